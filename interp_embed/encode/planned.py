"""Encoding a store that has its documents already: here, as one of several, or on a dask cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp_embed.core.checks import check_positive
from interp_embed.core.progress import show_progress
from interp_embed.encode.pipeline import EncodeReport, encode_store
from interp_embed.encode.recorded_sae import keep_labels, recorded_sae
from interp_embed.encode.worker_shares import Worker, chunk_ranges, missing_chunks, take_work
from interp_embed.store import StoreWriter
from interp_embed.store import finish as finish_chunks
from interp_embed.store.store import Store

if TYPE_CHECKING:
    import os

    import distributed

    from interp_embed.sae.base import BaseSAE
    from interp_embed.store.storage import Storage

__all__ = ["encode", "finish_store"]

_ATTEMPTS = 5


def encode(
    store: str | os.PathLike[str] | Storage | Store,
    sae: BaseSAE | None = None,
    *,
    worker: Worker | str | None = None,
    client: distributed.Client | None = None,
    batch_size: int = 8,
    device: str = "auto",
    finish: bool | None = None,
) -> EncodeReport:
    """Encode what is missing in a store that was planned, or begun, before.

    Parameters
    ----------
    store
        The store, or where it is.
    sae
        By default the one that the store names.
    worker
        Which of several workers this one is: ``"i/n"``, ``i`` from 0. It encodes its share and then
        helps the others, until no document is missing.
    client
        A dask client. Its workers do the work, each with an SAE of its own.
    batch_size
        Documents a batch.
    device
        Of the SAE that the store names; ``"auto"`` is a GPU where there is one.
    finish
        Whether to merge small chunks, index the store and write its manifest once no document is
        missing. By default true, except for one of several workers.

    Returns
    -------
    EncodeReport

    Raises
    ------
    NotAStoreError
        If there is no store.
    FingerprintMismatchError
        If ``sae`` is not what the store was made for.
    ValueError
        If the SAE that the store names cannot be built again, or the arguments contradict each
        other.
    """
    check_positive(batch_size=batch_size)
    if client is not None and (worker is not None or sae is not None):
        raise ValueError("with client, the workers are the cluster's and so are their SAEs")
    number = Worker.parse(worker) if isinstance(worker, str) else worker
    opened = store if isinstance(store, Store) else Store(store)
    if client is not None:
        from interp_embed.encode.cluster import encode_on_cluster

        report = encode_on_cluster(opened, client, batch_size=batch_size, device=device)
        if finish is not False:
            finish_store(opened)
        return report
    model = recorded_sae(opened, device) if sae is None else sae
    if number is None:
        report = encode_store(opened, model, batch_size=batch_size, finish=finish is not False)
    else:
        work = take_work(opened, number)
        report = encode_store(
            opened, model, batch_size=batch_size, work=work, finish=finish is True
        )
    keep_labels(opened, model, wrote=report.encoded > 0)
    return report


def finish_store(store: Store) -> None:
    """Merge the small chunks of a complete store, clear what is left over, index it, write the manifest.

    Nothing else may be encoding into the store. Can be called again after dying at any point.

    Raises
    ------
    RuntimeError
        If documents are missing; the message has the numbers of their planned chunks.
    """
    if missing := missing_chunks(store):
        raise RuntimeError(
            f"{store.storage.url} cannot be finished: of its planned chunks {len(missing)} are "
            f"missing ({chunk_ranges(missing)}). Encode them first"
        )
    with StoreWriter(store) as writer:
        for attempt in range(_ATTEMPTS):
            try:
                finish_chunks(writer, progress=show_progress())
            except FileNotFoundError:  # another process that does the same was faster
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                break
    store.refresh()
