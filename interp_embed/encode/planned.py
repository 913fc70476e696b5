"""Encoding a store that already has its documents: alone, as one of several, or on a dask cluster."""

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
    """Encode the missing documents of a store that was planned or begun before.

    Parameters
    ----------
    store
        The store, or its path or URL.
    sae
        By default the one that the store names.
    worker
        This worker's number among several: ``"i/n"``, ``i`` from 0. It encodes its share and then
        helps the others until no document is missing.
    client
        A dask client. Its workers encode the documents, each with its own SAE.
    batch_size
        Documents per batch.
    device
        Device of the SAE that the store names; ``"auto"`` is a GPU if there is one.
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
        If ``sae`` is not the SAE that the store was made for.
    ValueError
        If the SAE that the store names cannot be built again, or the arguments contradict each
        other.
    """
    check_positive(batch_size=batch_size)
    if client is not None and (worker is not None or sae is not None):
        raise ValueError(
            "client cannot be combined with sae or worker; the cluster's workers build their own SAEs"
        )
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
    """Merge the small chunks of a complete store, clear leftovers, index it, and write the manifest.

    Nothing else may encode into the store meanwhile. If it is interrupted, call it again.

    Raises
    ------
    RuntimeError
        If documents are missing. The message lists the numbers of their planned chunks.
    """
    if missing := missing_chunks(store):
        raise RuntimeError(
            f"{store.storage.url} cannot be finished: {len(missing)} of its planned chunks are "
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
