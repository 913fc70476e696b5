"""Datasets come from a store, from memory or from the original's pickle."""

from __future__ import annotations

import errno
import itertools
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.errors import NotAStoreError
from interp_embed.progress import show_progress
from interp_embed.saving.copying import expanded
from interp_embed.saving.known import write_rows
from interp_embed.saving.replacing import recover
from interp_embed.store import Store, create_store, is_store
from interp_embed.store.creation import check_place
from interp_embed.store.fingerprint import check_fingerprint
from interp_embed.store.labels import has_first_labels, put_first_labels
from interp_embed.store.storage import LocalStorage, open_storage

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from interp_embed.dataset import Dataset
    from interp_embed.inputs import Documents
    from interp_embed.sae.base import BaseSAE
    from interp_embed.store.blocks import DocumentBlock
    from interp_embed.store.storage import Storage

__all__ = [
    "DEFAULT_DEVICE",
    "choose_device",
    "is_done",
    "keep_labels",
    "load",
    "plan_store",
    "reopen",
]

DEFAULT_DEVICE = "cuda:0"
"""Where a run is resumed that names no device."""


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
    """Write documents into a new store, and encode none; or open the store that has them already.

    Documents are read block by block, and never more than a block of them is held. Where this is cut
    off, the same call goes on: it reads the documents again, and writes those that are not written.

    Parameters
    ----------
    data
        The documents: whatever `Dataset` takes.
    location
        A path, a URL, or a `Storage`.
    sae
        What is to encode them.
    field
        Column with the text.
    documents_per_chunk
        Documents that are encoded, committed and lost together.
    description
        Kept in the store, for people.
    dtype
        Of stored activations, float32 or float16.
    feature_labels
        Stored beside the activations.
    load
        Whether to load the SAE before a store is created, so that one that cannot be loaded leaves
        nothing behind. It stays loaded.

    Returns
    -------
    Store

    Raises
    ------
    FingerprintMismatchError
        If the store is of other documents, another SAE or other settings.
    StoreExistsError
        If there is something that is no store.
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
                _put_labels(store, feature_labels, "given", wrote=False)
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
    from interp_embed.store.blocks import describe_block

    first = 0
    for frame in documents.blocks():
        block = describe_block(frame, documents.field, first)
        first += len(frame)
        del frame  # not held while the next one is read
        yield block
        del block


def keep_labels(store: Store, sae: BaseSAE, *, wrote: bool = True) -> None:
    """Store the labels that the SAE brought, unless the store has labels.

    Where nothing was written before (``wrote`` is false) the store may be read-only: labels that
    cannot be stored there are left out.
    """
    if labels := sae.feature_labels():
        _put_labels(store, labels, "sae", wrote=wrote)


def _put_labels(store: Store, labels: Mapping[int, str], source: str, *, wrote: bool) -> None:
    if has_first_labels(store.storage):
        return
    try:
        put_first_labels(store.storage, labels, source)
        store.labels.refresh()
    except OSError as error:
        read_only = isinstance(error, PermissionError) or error.errno == errno.EROFS
        if wrote or not read_only:
            raise


def is_done(store: Store) -> bool:
    """Return whether there is nothing to encode: every document was, or has no text."""
    from interp_embed.sae.tokens import reason_not_text

    if not store.is_complete:
        return False
    failed = np.array(list(store.failures(np.arange(store.n_documents))), np.int64)
    texts = store.frame(failed, [store.field]).iloc[:, 0].tolist()
    return all(reason_not_text(text) is not None for text in texts)


def load(
    cls: type[Dataset], path: str | os.PathLike[str], *, import_modules: bool = False
) -> Dataset:
    """Open a store or a pickle of the original library, whichever is there.

    The module of the SAE's class is imported only if asked for, and never for a pickle.
    """
    from interp_embed.interop.pickle import is_pickle

    text = expanded(path)
    if "://" not in text and is_pickle(text):
        return _load_pickle(cls, text)
    if "://" not in text and Path(text).is_file():
        raise NotAStoreError(
            f"{text} is neither a store (a folder) nor a pickle of the original library"
        )
    if text and "://" not in text:
        recover(Path(text).absolute())
    store = Store(text)
    dataset = cls.__new__(cls)
    sae, reason = _rebuild(store.attributes["sae"], import_modules, store.attributes["fingerprint"])
    dataset._bind(store, sae, np.arange(store.n_documents), {}, None, None)
    dataset._no_sae = reason
    dataset.id = store.attributes["id"]
    return dataset


def reopen(cls: type[Dataset], path: str, state: Mapping[str, Any]) -> Dataset:
    """Open the documents of a store that a pickled `Dataset` was of."""
    store = Store(path)
    dataset = cls.__new__(cls)
    sae, reason = _rebuild(store.attributes["sae"], False, store.attributes["fingerprint"])
    dataset._bind(store, sae, state["documents"], state["extra"], state["labels"], None)
    dataset._no_sae = reason
    dataset.dataset_description = state["description"]
    dataset.id = state["identifier"]
    return dataset


def _load_pickle(cls: type[Dataset], path: str) -> Dataset:
    from interp_embed.dataset import _TemporaryFolder
    from interp_embed.interop.pickle import read_pickle
    from interp_embed.row import DatasetRow
    from interp_embed.sae.tokens import reason_not_text

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
    folder = _TemporaryFolder()
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
    dataset = cls.__new__(cls)
    dataset._bind(store, sae, np.arange(store.n_documents), {}, legacy.feature_labels, folder)
    dataset._no_sae = reason
    dataset.id = legacy.id
    return dataset


def _rebuild(
    metadata: Mapping[str, Any],
    import_modules: bool = False,
    fingerprint: Mapping[str, Any] | None = None,
) -> tuple[BaseSAE | None, str]:
    """Return the SAE that was recorded, not loaded; None and why where that cannot be done here."""
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
    """Put the SAE on ``device``; on the CPU where there is no GPU.

    That comes with a warning, unless ``device`` is the default, which nobody need have asked for.
    """
    if sae is None:
        return
    wanted = [device] if isinstance(device, str) else list(device.values())
    if any(d.startswith("cuda") for d in wanted) and not _sees_gpu():
        if device != DEFAULT_DEVICE:
            warnings.warn(
                f"device {device!r} was asked for, but there is no GPU; encoding on the CPU. "
                "Pass device='cpu' to say so",
                stacklevel=3,
            )
        device = "cpu"
    elif device == DEFAULT_DEVICE and getattr(sae, "model_device", None) == "auto":
        device = {"model": "auto", "sae": device}  # a model that may not fit on one GPU
    sae.set_device(device)


def _sees_gpu() -> bool:
    try:
        import torch
    except ImportError:  # an SAE of the user's own may do without it
        return False
    return bool(torch.cuda.is_available())
