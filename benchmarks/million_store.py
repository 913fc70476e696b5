"""The measurements of this library's store. Each runs in a process of its own, see million.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from common import best, drop_from_page_cache, folder_size, peak_memory, remove, timed
from million_setting import top_warm

from interp_embed import Dataset
from interp_embed.store import Store, StoreWriter, create_store
from interp_embed.store.write.compaction import finish

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from million_setting import Setting


_WARM = 64  # documents of a first call, which loads compiled code


def _create(path: Path, chunk_documents: int, d_sae: int, texts: list[str]) -> StoreWriter:
    frame = pd.DataFrame({"number": np.arange(len(texts)), "text": texts})
    store = create_store(
        path,
        frame,
        field="text",
        identifier="million",
        documents_per_chunk=chunk_documents,
        dtype=np.dtype(np.float16),
        d_sae=d_sae,
    )
    return StoreWriter(store)


def write(setting: Setting) -> dict[str, Any]:
    """Write the corpus chunk by chunk; the time of making the chunks is left out.

    ``finished`` has the index, the manifest and what else finishing a store does added.
    """
    corpus = setting.corpus
    step = corpus.documents_per_chunk

    def produce() -> dict[str, Any]:
        for path in (setting.store, setting.path("index.json"), setting.path("warm.zarr")):
            remove(path)
        with _create(setting.path("warm.zarr"), step, corpus.base.d_sae, ["a"] * _WARM) as writer:
            writer.write(corpus.chunk(0, min(_WARM, setting.n_documents)))
        remove(setting.path("warm.zarr"))
        create, writer = timed(
            lambda: _create(setting.store, step, corpus.base.d_sae, corpus.texts())
        )
        seconds = 0.0
        with writer:
            for chunk in corpus.chunks():
                seconds += timed(writer.write, chunk)[0]
            closing, complete = timed(finish, writer)
        if not complete:
            raise RuntimeError("documents are missing after everything was written")
        return {
            "nnz": setting.nnz,
            "tokens": int(corpus.n_tokens.sum()),
            "chunks": len(Store(setting.store).ledger.live),
            "seconds": seconds,
            "finished": seconds + closing,
            "documents and texts": create,
            "peak": peak_memory(),
        }

    found = setting.remembered("write", produce)
    if not setting.store.exists():
        setting.path("write.json").unlink()
        found = setting.remembered("write", produce)
    return found


def index(setting: Setting) -> dict[str, Any]:
    """Build the index."""

    def produce() -> dict[str, Any]:
        remove(setting.store / "index")  # it is derived, and may be there already
        before = folder_size(setting.store)
        # A small store is first, so that the time is not that of loading compiled code.
        small = setting.path("warm.zarr")
        remove(small)
        corpus = setting.corpus
        with _create(small, _WARM, corpus.base.d_sae, ["a"] * _WARM) as writer:
            writer.write(corpus.chunk(0, _WARM))
            finish(writer)
        Dataset.load_from_file(small).build_index()
        remove(small)
        dataset = Dataset.load_from_file(setting.store)
        seconds, _ = timed(dataset.build_index)
        after = folder_size(setting.store)
        return {
            "seconds": seconds,
            "bytes": after,
            "index bytes": after - before,
            "peak": peak_memory(),
        }

    return setting.remembered("index", produce)


def decode(setting: Setting) -> dict[str, Any]:
    """Decode the token level into nothing: what no pass over it can be faster than."""
    store = Store(setting.store)
    names = ("feature", "activation", "token_ptr", "doc_ptr")

    def run() -> None:
        for chunk, _, _ in store.parts(np.arange(setting.n_documents)):
            for name in names:
                chunk.array(name).read_all(executor)

    with ThreadPoolExecutor(setting.threads) as executor:
        return {"seconds": best(run, setting.repeat)}


def _pass(method: str, threshold: Callable[[Setting], float]) -> Callable[[Setting], dict]:
    def measure(setting: Setting) -> dict[str, Any]:
        return _timed_pass(setting, method, threshold(setting))

    return measure


def _timed_pass(setting: Setting, method: str, threshold: float) -> dict[str, Any]:
    """Go through the corpus block by block; each run opens the store anew, before the clock."""
    entries = documents = 0
    view: Dataset | None = None

    def opened() -> None:
        nonlocal view
        view = Dataset.load_from_file(setting.store)

    def run() -> None:
        nonlocal entries, documents
        assert view is not None
        entries = documents = 0
        for positions, block in view.iter_latents(method, activated_threshold=threshold):
            entries += block.nnz
            documents += len(positions)

    opened()
    view = view[:_WARM]
    run()
    seconds = best(run, setting.repeat, opened)
    if documents != setting.n_documents:
        raise RuntimeError(f"{documents} documents of {setting.n_documents}")
    return {"seconds": seconds, "entries": entries}


def _whole(method: str, threshold: Callable[[Setting], float]) -> Callable[[Setting], dict]:
    def measure(setting: Setting) -> dict[str, Any]:
        """Return the result as one matrix in memory."""
        arguments = {"compress": True, "activated_threshold": threshold(setting)}
        Dataset.load_from_file(setting.store)[:_WARM].latents(method, **arguments)
        times = []
        for _ in range(setting.repeat):
            matrix = None  # the one before goes first
            dataset = Dataset.load_from_file(setting.store)
            seconds, matrix = timed(lambda d=dataset: d.latents(method, **arguments))
            times.append(seconds)
        return {
            "seconds": min(times),
            "entries": matrix.nnz,
            "total": float(matrix.data.sum(dtype=np.float64)),
        }

    return measure


def _statistics(masked: bool) -> Callable[[Setting], dict]:
    def measure(setting: Setting) -> dict[str, Any]:
        """Every run opens the store anew: what a dataset remembers does not count."""
        times, frequency = [], np.zeros(0)
        for _ in range(max(2, setting.repeat)):
            dataset = Dataset.load_from_file(setting.store)
            view = dataset[setting.mask] if masked else dataset
            seconds, found = timed(view.feature_statistics)
            times.append(seconds)
            frequency = np.asarray(found["document_frequency"])
        return {"seconds": min(times), "total": float(frequency.sum(dtype=np.float64))}

    return measure


def _cold(kind: str) -> Callable[[Setting], dict]:
    def measure(setting: Setting) -> dict[str, Any]:
        """Open a store that no page of is in memory, and ask for a top 10."""
        feature = setting.features[kind][setting.number]
        drop_from_page_cache(setting.store)
        opened, dataset = timed(Dataset.load_from_file, setting.store)
        asked, _ = timed(lambda: dataset.top_documents_for_feature(feature, k=10))
        return {"seconds": opened + asked, "open": opened}

    return measure


def warm(setting: Setting) -> dict[str, Any]:
    """Ask for top 10s, texts with highlighted tokens included, in a dataset that is open."""
    dataset = Dataset.load_from_file(setting.store)

    def values(feature: int) -> list[float]:
        rows = dataset.top_documents_for_feature(feature, k=10, document_only=False)
        return [float(row.latents("max")[0, feature]) for row in rows]

    return top_warm(setting, lambda f: dataset.top_documents_for_feature(f, k=10), values)


def warm_numbers(setting: Setting) -> dict[str, Any]:
    """Ask for the documents and activations of top 10s only, which is what DuckDB returns."""
    store = Store(setting.store)

    def ask(feature: int) -> list[float]:
        index = store.index()
        found = None if index is None else index.top(feature, 10)
        if found is None:
            raise RuntimeError("the index does not know the top 10")
        return [float(value) for value in found[1]]

    return top_warm(setting, ask, ask)


def _read_row(dataset: Dataset, position: int) -> Any:
    return dataset.rows[position].activations


def documents(setting: Setting) -> dict[str, Any]:
    """Read a thousand random documents one by one; opening is left out."""
    chosen = setting.chosen.tolist()
    rows, plain = [], []
    for _ in range(max(2, setting.repeat)):
        dataset = Dataset.load_from_file(setting.store)
        rows.append([timed(_read_row, dataset, i)[0] for i in chosen])
        store = Store(setting.store)
        plain.append([timed(store.document, i)[0] for i in chosen])
    return {
        "seconds": min(map(sum, plain)) / len(chosen),
        "median": float(np.median(min(plain, key=sum))),
        "row": min(map(sum, rows)) / len(chosen),
        "row median": float(np.median(min(rows, key=sum))),
    }


def _timed_totals(setting: Setting) -> dict[str, Any]:
    """Count the same tokens per feature rather than per document: a result of a few kilobytes."""

    def run() -> None:
        nonlocal found
        view = Dataset.load_from_file(setting.store)
        found = view.feature_statistics("token_frequency", activated_threshold=setting.most)

    found: Any = None
    Dataset.load_from_file(setting.store)[:_WARM].feature_statistics("token_frequency", (), 1.0)
    seconds = best(run, setting.repeat)
    return {"seconds": seconds, "total": float(found["token_frequency"].sum())}


def _on_two_processes(measure: Callable[[Setting], dict]) -> Callable[[Setting], dict]:
    def distributed(setting: Setting) -> dict[str, Any]:
        """Measure on two processes of a local dask cluster.

        It is set up as docs/how-to/aggregate-on-a-cluster.md says.
        """
        import dask
        from distributed import Client, LocalCluster

        environment = {"MALLOC_TRIM_THRESHOLD_": 2**28, "MALLOC_MMAP_THRESHOLD_": 2**24}
        with (
            dask.config.set({"distributed.nanny.pre-spawn-environ": environment}),
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster, direct_to_workers=True) as client,
        ):
            found = measure(setting)
            found["worker peak"] = max(client.run(peak_memory).values())
        return found

    return distributed


MEASURES: dict[str, Callable[[Setting], dict]] = {
    "write": write,
    "index": index,
    "decode": decode,
    "count most": _pass("count", lambda s: s.most),
    "count few": _pass("count", lambda s: s.few),
    "max": _pass("max", lambda s: 0.0),
    "mean": _pass("mean", lambda s: 0.0),
    "count most, one matrix": _whole("count", lambda s: s.most),
    "max, one matrix": _whole("max", lambda s: 0.0),
    "statistics": _statistics(masked=False),
    "statistics of a tenth": _statistics(masked=True),
    "top cold rare": _cold("rare"),
    "top cold common": _cold("common"),
    "top warm": warm,
    "top warm, numbers only": warm_numbers,
    "documents": documents,
    "count most, 2 processes": _on_two_processes(lambda s: _timed_pass(s, "count", s.most)),
    "count most per feature": _timed_totals,
    "count most per feature, 2 processes": _on_two_processes(_timed_totals),
}
"""By name; each takes a `Setting` and returns figures: seconds, and whatever else there is."""
