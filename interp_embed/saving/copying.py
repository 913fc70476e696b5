"""Saving a view: as a store of its own, or as the original library's pickle."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.aggregate.execute import entries
from interp_embed.aggregate.memory import require_memory
from interp_embed.durable import make_folder
from interp_embed.errors import StoreExistsError
from interp_embed.inputs.pieces import StoredPiece, cut
from interp_embed.saving.replacing import clear_leftovers, locked, recover, replace
from interp_embed.saving.unannounced import Unannounced
from interp_embed.store import MISSING, Store, StoreWriter, create_store, finish, is_store
from interp_embed.store.blocks import describe_block
from interp_embed.store.creation import check_place
from interp_embed.store.labels import copy_labels, put_first_labels
from interp_embed.store.layout import check_dtype
from interp_embed.store.storage import LocalStorage, open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interp_embed.dataset import Dataset
    from interp_embed.store.storage import Storage

__all__ = ["expanded", "save"]

_PICKLES = (".pkl", ".pickle")
_COPY_DOCUMENTS = 4096
_COPY_NNZ = 2**24


def save(dataset: Dataset, path: str | os.PathLike[str], dtype: np.dtype[Any]) -> None:
    """Write a view to ``path``: a store, or by its suffix the original library's pickle."""
    check_dtype(dtype)
    text = expanded(path)
    if text.lower().endswith(_PICKLES) and "://" not in text:
        _save_pickle(dataset, Path(text), dtype)
        return
    target = open_storage(text)
    if isinstance(target, LocalStorage):
        recover(target.root, strict=False)
    taken = is_store(target)
    if not isinstance(target, LocalStorage):
        if taken and _same_place(dataset.path, target.url) and _is_whole(dataset, dtype):
            return
        # Nothing can be renamed there, so the root is written last; cut off, the same save goes on.
        unannounced = Unannounced(target)
        if taken and not unannounced.is_announced():
            raise StoreExistsError(
                f"there is a store at {target.url} already; delete it or save elsewhere"
            )
        _copy(dataset, unannounced, dtype)
        unannounced.announce()
        return
    if taken and _same_place(dataset.path, target.url):
        if _is_whole(dataset, dtype):
            return
        raise StoreExistsError(
            f"this dataset is read from {target.url}, so it cannot replace it; save it elsewhere"
        )
    check_place(target)
    root = target.root.resolve()
    # Written beside it first: what is at the path is a whole dataset at any time, or nothing for a
    # moment; a crash in that moment is made good by `recover`.
    fresh = root.with_name(f".{root.name}-{uuid.uuid4().hex[:8]}")
    with _naming(text):
        make_folder(fresh)
    try:
        with locked(fresh):
            _copy(dataset, fresh, dtype)
            replace(root, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    clear_leftovers(root)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Make errors of the system name the path that was given, not what was tried on the way."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, path) from error


def expanded(path: str | os.PathLike[str]) -> str:
    """Return a path or URL as a string, the user's home folder in full."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"file_path must be a path or a URL, got {path!r}")
    text = os.fspath(path)
    return text if "://" in text else os.path.expanduser(text)  # noqa: PTH111  (keeps "" as it is)


def _same_place(a: str, b: str) -> bool:
    return a == b or ("://" not in a and Path(a).resolve() == Path(b).resolve())


def _is_whole(dataset: Dataset, dtype: np.dtype[Any]) -> bool:
    """Return whether saving to where the dataset is read from would change nothing."""
    store = dataset._store
    return (
        store.dtype == dtype
        and not dataset._extra
        and np.array_equal(dataset._documents, np.arange(store.n_documents))
    )


def _copy(dataset: Dataset, path: str | os.PathLike[str] | Storage, dtype: np.dtype[Any]) -> None:
    store = dataset._store
    attributes = store.attributes
    settings = {
        k: v
        for k, v in attributes["fingerprint"].items()
        if k not in ("dtype", "field", "documents")
    }
    copy = create_store(
        path,
        (describe_block(frame, store.field) for frame in cut(_stored(dataset))),
        field=store.field,
        identifier=dataset.id,
        description=dataset.dataset_description,
        documents_per_chunk=store.plan.documents_per_chunk,
        dtype=dtype,
        d_sae=store.d_sae,
        fingerprint=settings,
        sae=attributes["sae"],
    )
    documents = dataset._documents
    first, source = dataset._first_labels()
    if first:
        put_first_labels(copy.storage, first, source)
    copy_labels(store.storage, copy.storage, documents, first=first is None)
    located = store.status(documents) != MISSING
    located &= copy.ledger.locate(np.arange(len(documents))) < 0  # by a save that was cut off
    with StoreWriter(copy) as writer:
        for start, stop in _runs(located, _documents_a_copy(store)):
            chunk = store.chunk(documents[start:stop])
            writer.write(chunk.with_doc_id(np.arange(start, stop)))
        finish(writer)


def _stored(dataset: Dataset) -> Iterator[StoredPiece]:
    """Yield the documents of a view as they are stored, whatever was done to other frames."""
    for start in range(0, max(1, len(dataset)), _COPY_DOCUMENTS):
        stop = min(start + _COPY_DOCUMENTS, len(dataset))
        yield StoredPiece(dataset._frame(np.arange(start, stop)))


def _documents_a_copy(store: Store) -> int:
    nnz = sum(c.nnz for c in store.ledger.live)
    held = sum(c.stop - c.start for c in store.ledger.live)
    return int(np.clip(_COPY_NNZ * held / max(1, nnz), 1, _COPY_DOCUMENTS * 16))


def _runs(wanted: np.ndarray[Any, np.dtype[np.bool_]], longest: int) -> list[tuple[int, int]]:
    """Return runs of True, cut to a length."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
    return [
        (begin, min(begin + longest, int(stop)))
        for start, stop in edges.reshape(-1, 2)
        for begin in range(int(start), int(stop), longest)
    ]


def _save_pickle(dataset: Dataset, path: Path, dtype: np.dtype[Any]) -> None:
    from interp_embed.interop.pickle import LegacyDataset, write_pickle

    if path.is_dir():
        raise StoreExistsError(
            f"{path} is a folder, and by its suffix a pickle file was to be written. Give another "
            "name, or for a store one that does not end in .pkl or .pickle"
        )
    nnz = entries(dataset._store, dataset._documents, pooled=False)
    require_memory(
        16 * nnz, "the one-file pickle, which holds everything in memory,", "Save a store instead"
    )
    rows = list(dataset.rows)
    for number, row in enumerate(rows):
        highest = np.abs(row.activations.data).max(initial=0) if row is not None else 0
        if highest > np.finfo(dtype).max:
            raise OverflowError(
                f"document {number} has an activation of {highest:g}, beyond the range of "
                f"{dtype.name}; save float32"
            )

    def rounded(matrix: Any) -> Any:
        return matrix.astype(np.float32) if dtype == np.float32 else _through(matrix, dtype)

    legacy = LegacyDataset(
        dataset=dataset._frame(np.arange(len(dataset))),
        rows=[None if r is None else rounded(r.activations) for r in rows],
        aggregate_activations=[
            None if r is None else {name: rounded(m) for name, m in r.aggregate_activations.items()}
            for r in rows
        ],
        tokenized_documents=[None if r is None else r.tokenized_document for r in rows],
        field=dataset.field,
        dataset_description=dataset.dataset_description,
        id=dataset.id,
        sae_metadata=dict(dataset._store.attributes["sae"]),
        feature_labels=dataset.feature_labels(),
    )
    with _naming(str(path)):
        write_pickle(path, legacy)


def _through(matrix: Any, dtype: np.dtype[Any]) -> Any:
    """Round a matrix to ``dtype``; scipy has no float16, so it stays float32."""
    rounded = matrix.copy()
    rounded.data = matrix.data.astype(dtype).astype(np.float32)
    return rounded
