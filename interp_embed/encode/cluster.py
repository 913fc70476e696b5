"""Encoding a store on a dask cluster: a task carries the store's URL and the documents to encode.

Each worker process builds the SAE that the store names and keeps it loaded from one task to the
next. A task is a run of planned chunks. Its commits hold even if its result is lost, so a task that
is done twice, or half done by a worker that died, does no harm.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from interp_embed.core.progress import chosen_log
from interp_embed.encode.pipeline import EncodeReport, encode_store
from interp_embed.encode.recorded_sae import keep_labels, recorded_sae
from interp_embed.encode.worker_shares import chunk_ranges, gaps, missing_chunks
from interp_embed.store.format.sealed import digest
from interp_embed.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    import distributed

    from interp_embed.sae.base import BaseSAE

__all__ = ["encode_on_cluster"]

_TASKS_A_THREAD = 16
"""Tasks that each thread of the cluster should get over the whole run: few are long, many even."""
_MOST_CHUNKS = 64
_AHEAD = 2
"""Tasks that a thread has before it."""
_ROUNDS = 3
_RETRIES = 2


def encode_on_cluster(
    store: Store, client: distributed.Client, *, batch_size: int = 8, device: str = "auto"
) -> EncodeReport:
    """Encode every document that is missing, on the workers of a dask cluster.

    Does not finish the store, and does not try failed documents again.

    Parameters
    ----------
    store
        The store with the documents, which receives the activations. Every worker must reach it under
        its URL.
    client
        The cluster's client. If a worker dies, only its unfinished chunks are lost, and its tasks are
        given to others.
    batch_size
        Documents per batch.
    device
        Device of the SAE on each worker; ``"auto"`` is the first GPU that it sees, or the CPU.

    Returns
    -------
    EncodeReport
        The sum over the tasks whose results arrived.

    Raises
    ------
    TypeError
        If the client is asynchronous.
    ValueError
        If the SAE cannot be built from what the store records.
    RuntimeError
        If documents are still missing after every task is done.
    """
    if client.asynchronous:
        raise TypeError("client must be a synchronous dask client, got an asynchronous one")
    total: EncodeReport | None = None
    for _ in range(_ROUNDS):
        missing = gaps(store)
        if not missing:
            break
        for report in _submitted(store, client, missing, batch_size, device):
            total = report if total is None else _sum(total, report)
    client.run(_let_go, on_error="ignore")
    if left := missing_chunks(store):
        raise RuntimeError(
            f"chunks {chunk_ranges(left)} of the store at {store.storage.url} are still missing "
            f"after {_ROUNDS} rounds, although no task failed. Check that every worker sees the same "
            "store"
        )
    store.refresh(manifest=False)
    return total or EncodeReport(0, 0, 0, 0)


def _sum(a: EncodeReport, b: EncodeReport) -> EncodeReport:
    names = [field.name for field in fields(EncodeReport)]
    return EncodeReport(**{name: getattr(a, name) + getattr(b, name) for name in names})


def _submitted(
    store: Store,
    client: distributed.Client,
    missing: list[tuple[int, int]],
    batch_size: int,
    device: str,
) -> Iterator[EncodeReport]:
    """Yield the reports of the tasks, with a bounded number of them before the workers."""
    pending: deque[tuple[Any, int]] = deque()
    bar = tqdm(
        total=sum(stop - start for start, stop in missing),
        desc="Encoding",
        unit="doc",
        disable=chosen_log() != "bar",
    )
    threads = max(1, sum(client.nthreads().values()))
    where = _Where(store.storage.url, str(store.attributes["id"]), store.n_documents)
    try:
        with bar:
            for number, (start, stop) in enumerate(_tasks(store, missing, threads)):
                if number % 64 == 63:  # a cluster may grow meanwhile
                    threads = max(1, sum(client.nthreads().values()))
                # Not taken for pure: what is missing changes.
                task = client.submit(
                    _encode_run,
                    where,
                    start,
                    stop,
                    batch_size,
                    device,
                    pure=False,
                    retries=_RETRIES,
                )
                pending.append((task, stop - start))
                while len(pending) > _AHEAD * threads:
                    yield _result(pending, bar)
            while pending:
                yield _result(pending, bar)
    except BaseException as error:
        error.add_note("everything committed is safe. Make the same call again to resume")
        raise
    finally:
        for task, _ in pending:
            task.cancel()


def _result(pending: deque[tuple[Any, int]], bar: Any) -> EncodeReport:
    task, size = pending[0]
    report: EncodeReport = task.result()
    pending.popleft()
    bar.update(size)
    return report


def _tasks(store: Store, missing: list[tuple[int, int]], threads: int) -> Iterator[tuple[int, int]]:
    """Cut what is missing into runs of whole planned chunks."""
    step = store.plan.documents_per_chunk
    documents = sum(stop - start for start, stop in missing)
    chunks = -(-documents // (step * threads * _TASKS_A_THREAD))
    for start, stop in missing:
        yield from store.plan.pieces(start, stop, step * min(chunks, _MOST_CHUNKS))


@dataclass(frozen=True, slots=True)
class _Where:
    """A store, and what tells it from another that was at its place earlier."""

    url: str
    identifier: str
    n_documents: int


# On the workers

_busy = threading.Lock()
_stores: dict[_Where, Store] = {}
_loaded: dict[str, BaseSAE] = {}


def _encode_run(where: _Where, start: int, stop: int, batch_size: int, device: str) -> EncodeReport:
    with _busy:  # one SAE a process: a second thread would take the device from the first
        if where not in _stores:
            _stores.clear()
            _stores[where] = Store(where.url)
        store = _stores[where]
        pieces = (p for gap in gaps(store, start, stop) for p in store.plan.pieces(*gap))
        sae = _held(store, device)
        return encode_store(
            store, sae, batch_size=batch_size, work=pieces, finish=False, log="none"
        )


def _held(store: Store, device: str) -> BaseSAE:
    """Return the store's SAE, loaded: the one of the task before where it is the same."""
    key = digest([store.attributes["sae"], device])
    if key not in _loaded:
        _let_go_of_saes()
        sae = recorded_sae(store, device)
        sae.load()
        keep_labels(store, sae)
        _loaded[key] = sae
    return _loaded[key]


def _let_go_of_saes() -> None:
    for sae in _loaded.values():
        sae.destroy()
    _loaded.clear()


def _let_go() -> None:
    """Free what this process holds."""
    with _busy:
        _stores.clear()
        _let_go_of_saes()
