"""Opening a store or a pickle of the original library; planning a new store."""

from __future__ import annotations

import itertools
import uuid
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.progress import show_progress
from interp_embed.errors import NotAStoreError
from interp_embed.exchange.given_rows import write_rows
from interp_embed.exchange.paths import expanded
from interp_embed.exchange.replacing import recover
from interp_embed.exchange.temporary import TemporaryFolder
from interp_embed.sae.device import sees_gpu
from interp_embed.selection.selection import Selection
from interp_embed.store import Store, create_store, is_store
from interp_embed.store.fingerprint import check_fingerprint
from interp_embed.store.storage import LocalStorage, open_storage
from interp_embed.store.write.creation import check_place

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from interp_embed.inputs import Documents
    from interp_embed.sae.base import BaseSAE
    from interp_embed.store.format.document_blocks import DocumentBlock
    from interp_embed.store.storage import Storage

__all__ = [
    "DEFAULT_DEVICE",
    "Opened",
    "choose_device",
    "described",
    "is_done",
    "open_saved",
    "open_store",
    "plan_store",
]

DEFAULT_DEVICE = "cuda:0"
"""Device of a resumed run that does not name one."""


def plan_store(
    data: Any,
    location: str | os.PathLike[str] | Storage,
    sae: BaseSAE,
    *,
    field: Any,
    documents_per_chunk: int,
    description: str = "",
    dtype: np.dtype[Any] = np.dtype(np.float32),  # noqa: B008  (immutable)
    feature_labels: Mapping[int, str] | None = None,
    load: bool = False,
) -> Store:
    """Write documents into a new store without encoding them, or open the store that has them.

    Documents are read block by block, and at most one block is held. If this is interrupted, call it
    again with the same arguments: it reads the documents again and writes those that are missing.

    Parameters
    ----------
    data
        The documents, in any form that `Dataset` takes.
    location
        A path, a URL, or a `Storage`.
    sae
        The SAE that will encode them.
    field
        Column with the text.
    documents_per_chunk
        Number of documents that are encoded and committed together, and lost together in a crash.
    description
        A description for people, kept in the store.
    dtype
        Type of the stored activations, float32 or float16.
    feature_labels
        Stored beside the activations.
    load
        Whether to load the SAE before the store is created. If loading fails, no store is left behind.
        The SAE stays loaded.

    Returns
    -------
    Store

    Raises
    ------
    FingerprintMismatchError
        If the store was made with other documents, another SAE or other settings.
    StoreExistsError
        If there is something that is not a store.
    FileNotFoundError, TypeError, ValueError
        If the data cannot be read.
    """
    from interp_embed.inputs import as_documents
    from interp_embed.sae.loading import sae_record

    storage = open_storage(location)
    if isinstance(storage, LocalStorage):
        recover(storage.root)
    fingerprint = sae.fingerprint()
    documents = as_documents(data, field)
    coming = described(documents)
    # Whatever is wrong with the data or the place is said before a model is loaded.
    some = list(coming) if documents.in_memory else [next(coming)]
    empty = len(some[0].frame) == 0
    blocks = itertools.chain(iter(some), coming)
    del some
    if is_store(storage):
        try:
            store = Store(storage)
        except NotAStoreError:  # creation was interrupted before the documents were all written
            store = None
        if store is not None:
            check_fingerprint(
                store,
                {**fingerprint, "dtype": dtype.name, "field": field},
                blocks,
                n_documents=documents.length,
                in_memory=documents.in_memory,
            )
            storage.sync_names([""])  # that there is a plan
            if feature_labels:
                store.labels.begin(feature_labels, "given", wrote=False)
            return store
    check_place(storage)
    if load and not empty and not sae.is_loaded():
        sae.load()
        fingerprint = sae.fingerprint()
    return create_store(
        storage,
        blocks,
        field=field,
        identifier=uuid.uuid4().hex[:6],
        description=description,
        documents_per_chunk=documents_per_chunk,
        dtype=dtype,
        d_sae=sae.d_sae,
        fingerprint=fingerprint,
        sae=sae_record(sae),
        feature_labels=feature_labels,
        progress=show_progress() and not documents.in_memory,
    )


def described(documents: Documents) -> Iterator[DocumentBlock]:
    """Yield the blocks of documents as they are stored, one after the other."""
    from interp_embed.store.format.document_blocks import describe_block

    first = 0
    for frame in documents.blocks():
        block = describe_block(frame, documents.field, first)
        first += len(frame)
        del frame  # not held while the next one is read
        yield block
        del block


def is_done(store: Store) -> bool:
    """Return whether nothing is left to encode: every document is encoded or has no text."""
    from interp_embed.core.spans import reason_not_text

    if not store.is_complete:
        return False
    failed = np.array(list(store.failures(np.arange(store.n_documents))), np.int64)
    texts = store.frame(failed, [store.field]).iloc[:, 0].tolist()
    return all(reason_not_text(text) is not None for text in texts)


@dataclass(frozen=True, slots=True)
class Opened:
    """A dataset found on disk.

    Attributes
    ----------
    selection : Selection
        All documents.
    sae : BaseSAE or None
        The SAE that made the store, not loaded.
    why_no_sae : str
        Why there is no SAE.
    labels : mapping of int to str or None
        Names of features that replace those in the store.
    identifier : str
        Identifier of the dataset.
    """

    selection: Selection
    sae: BaseSAE | None
    why_no_sae: str
    labels: Mapping[int, str] | None
    identifier: str


def open_saved(path: str | os.PathLike[str], *, import_modules: bool = False) -> Opened:
    """Open a store or a pickle of the original library, whichever is there.

    The module of the SAE's class is imported only on request, and never for a pickle.

    Raises
    ------
    NotAStoreError
        If there is neither a store nor a pickle.
    """
    from interp_embed.interop.pickle import is_pickle

    text = expanded(path)
    if "://" not in text and is_pickle(text):
        return _open_pickle(text)
    if "://" not in text and Path(text).is_file():
        raise NotAStoreError(
            f"{text} is neither a store (a folder) nor a pickle of the original library"
        )
    if text and "://" not in text:
        recover(Path(text).absolute())
    return open_store(text, import_modules=import_modules)


def open_store(path: str, *, import_modules: bool = False) -> Opened:
    """Open a store; see `open_saved`."""
    store = Store(path)
    attributes = store.attributes
    sae, reason = _rebuild(attributes["sae"], import_modules, attributes["fingerprint"])
    return Opened(Selection.whole(store), sae, reason, None, attributes["id"])


def _open_pickle(path: str) -> Opened:
    from interp_embed.core.spans import reason_not_text
    from interp_embed.interop.pickle import read_pickle
    from interp_embed.selection.row import DatasetRow

    legacy = read_pickle(path)
    records = legacy.dataset.to_dict(orient="records")
    rows = [
        None
        if matrix is None
        else DatasetRow(record, tokens or [], matrix, field=legacy.field, low_memory=True)
        for record, matrix, tokens in zip(
            records, legacy.rows, legacy.tokenized_documents, strict=True
        )
    ]
    sae, reason = _rebuild(legacy.sae_metadata)
    fingerprint: dict[str, Any] = {}
    if sae is not None:
        try:
            fingerprint = sae.fingerprint()
        except Exception as error:  # noqa: BLE001  (its folder has moved, say: it can be read)
            sae, reason = None, _said(error)
    folder = TemporaryFolder()
    d_sae = next((r.activations.shape[1] for r in rows if r is not None), None)
    store = create_store(
        folder.path,
        legacy.dataset.reset_index(drop=True),
        field=legacy.field,
        identifier=legacy.id,
        description=legacy.dataset_description,
        documents_per_chunk=40,
        d_sae=d_sae,
        fingerprint=fingerprint,
        sae=legacy.sae_metadata,
        feature_labels=legacy.feature_labels,
    )
    # The pickle says only that these have no activations; what has no text cannot have any.
    texts = store.frame(columns=[store.field]).iloc[:, 0].tolist()
    failed = {
        document: why
        for document, text in enumerate(texts)
        if rows[document] is None and (why := reason_not_text(text)) is not None
    }
    write_rows(store, sae, rows, failed)
    return Opened(Selection.whole(store, folder), sae, reason, legacy.feature_labels, legacy.id)


def _rebuild(
    metadata: Mapping[str, Any],
    import_modules: bool = False,
    fingerprint: Mapping[str, Any] | None = None,
) -> tuple[BaseSAE | None, str]:
    """Return the recorded SAE, not loaded, or None and the reason if it cannot be rebuilt here."""
    from interp_embed.sae.loading import load_sae_from_metadata

    try:
        return load_sae_from_metadata(
            metadata, import_modules=import_modules, fingerprint=fingerprint
        ), ""
    except Exception as error:  # noqa: BLE001  (its folder has moved, a class of a user's raises)
        return None, _said(error)  # everything can be read without it; encoding says so when asked


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def choose_device(sae: BaseSAE | None, device: str | Mapping[str, str]) -> None:
    """Put the SAE on ``device``, or on the CPU if there is no GPU.

    The fallback warns, unless ``device`` is the default, which the caller may not have chosen.
    """
    if sae is None:
        return
    wanted = [device] if isinstance(device, str) else list(device.values())
    if any(d.startswith("cuda") for d in wanted) and not sees_gpu():
        if device != DEFAULT_DEVICE:
            warnings.warn(
                f"device is {device!r}, but there is no GPU; encoding on the CPU. "
                "Pass device='cpu' to avoid this warning",
                stacklevel=3,
            )
        device = "cpu"
    elif device == DEFAULT_DEVICE and getattr(sae, "model_device", None) == "auto":
        device = {"model": "auto", "sae": device}  # a model that may not fit on one GPU
    sae.set_device(device)
