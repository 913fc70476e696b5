"""Saving a selection: as a store of its own, or as the original library's pickle."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.aggregate.matrices import entries
from interp_embed.core.checks import check_dtype
from interp_embed.core.files import make_folder
from interp_embed.core.memory import require_memory
from interp_embed.errors import StoreExistsError
from interp_embed.exchange.paths import expanded
from interp_embed.exchange.replacing import clear_leftovers, locked, recover, replace
from interp_embed.inputs.batches import StoredPiece, cut
from interp_embed.selection.rows import Rows
from interp_embed.store import MISSING, Store, StoreWriter, create_store, finish, is_store
from interp_embed.store.format.document_blocks import describe_block
from interp_embed.store.labels.collection import copy_labels, put_first_labels
from interp_embed.store.storage import LocalStorage, open_storage
from interp_embed.store.write.creation import check_place
from interp_embed.store.write.unannounced_store import Unannounced

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from interp_embed.exchange.labels import SeenLabels
    from interp_embed.selection.selection import Selection
    from interp_embed.store.storage import Storage

__all__ = ["Words", "save"]

_PICKLES = (".pkl", ".pickle")
_COPY_DOCUMENTS = 4096
_COPY_NNZ = 2**24


@dataclass(frozen=True, slots=True)
class Words:
    """The texts that are saved with a dataset.

    Attributes
    ----------
    identifier, description : str
        Of the dataset.
    labels : callable
        Returns the names of its features.
    """

    identifier: str
    description: str
    labels: Callable[[], SeenLabels]


def save(
    selection: Selection, words: Words, path: str | os.PathLike[str], dtype: np.dtype[Any]
) -> None:
    """Write documents to ``path`` as a store, or as the original library's pickle if the suffix says so."""
    check_dtype(dtype)
    text = expanded(path)
    if text.lower().endswith(_PICKLES) and "://" not in text:
        _save_pickle(selection, words, Path(text), dtype)
        return
    source = selection.store.storage.url
    target = open_storage(text)
    if isinstance(target, LocalStorage):
        recover(target.root, strict=False)
    taken = is_store(target)
    if not isinstance(target, LocalStorage):
        if taken and _same_place(source, target.url) and _is_unchanged(selection, dtype):
            return
        # Nothing can be renamed there, so the root is written last; cut off, the same save goes on.
        unannounced = Unannounced(target)
        announced = unannounced.is_announced()
        if taken and not announced:
            raise StoreExistsError(
                f"there is already a store at {target.url}; delete it or save elsewhere"
            )
        # Where it is announced nothing is missing: this makes sure that it is of the same documents.
        _copy(selection, words, unannounced, dtype, labelled=not announced)
        unannounced.announce()
        return
    if taken and _same_place(source, target.url):
        if _is_unchanged(selection, dtype):
            return
        raise StoreExistsError(
            f"this dataset is read from {target.url}, so it cannot replace that store; save it elsewhere"
        )
    check_place(target)
    root = target.root.resolve()
    # Written beside it first: the path holds a whole dataset at any time, or nothing for a moment.
    # `recover` repairs a crash in that moment.
    fresh = root.with_name(f".{root.name}-{uuid.uuid4().hex[:8]}")
    with _naming(text):
        make_folder(fresh)
    try:
        with locked(fresh):
            _copy(selection, words, fresh, dtype)
            replace(root, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    clear_leftovers(root)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Make system errors name the path that the caller gave, not a path tried on the way."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, path) from error


def _same_place(a: str, b: str) -> bool:
    return a == b or ("://" not in a and Path(a).resolve() == Path(b).resolve())


def _is_unchanged(selection: Selection, dtype: np.dtype[Any]) -> bool:
    """Return whether saving to where the documents are read from would change nothing."""
    return selection.store.dtype == dtype and selection.is_whole


def _copy(
    selection: Selection,
    words: Words,
    path: str | os.PathLike[str] | Storage,
    dtype: np.dtype[Any],
    *,
    labelled: bool = True,
) -> None:
    store = selection.store
    attributes = store.attributes
    settings = {
        k: v
        for k, v in attributes["fingerprint"].items()
        if k not in ("dtype", "field", "documents")
    }
    copy = create_store(
        path,
        (describe_block(frame, store.field) for frame in cut(_stored(selection))),
        field=store.field,
        identifier=words.identifier,
        description=words.description,
        documents_per_chunk=store.plan.documents_per_chunk,
        dtype=dtype,
        d_sae=store.d_sae,
        fingerprint=settings,
        sae=attributes["sae"],
    )
    documents = selection.documents
    if labelled:
        labels = words.labels()
        if labels.own:
            put_first_labels(copy.storage, labels.own, labels.source)
        copy_labels(store.storage, copy.storage, documents, first=labels.own is None)
    located = store.status(documents) != MISSING
    located &= copy.ledger.locate(np.arange(len(documents))) < 0  # by a save that was cut off
    with StoreWriter(copy) as writer:
        for start, stop in _runs(located, _documents_a_copy(store)):
            chunk = store.chunk(documents[start:stop])
            writer.write(chunk.with_doc_id(np.arange(start, stop)))
        finish(writer)


def _stored(selection: Selection) -> Iterator[StoredPiece]:
    """Yield the documents as they are stored, regardless of changes to other frames."""
    for start in range(0, max(1, len(selection)), _COPY_DOCUMENTS):
        stop = min(start + _COPY_DOCUMENTS, len(selection))
        yield StoredPiece(selection.frame(np.arange(start, stop)))


def _documents_a_copy(store: Store) -> int:
    nnz = sum(c.nnz for c in store.ledger.live)
    held = sum(c.stop - c.start for c in store.ledger.live)
    return int(np.clip(_COPY_NNZ * held / max(1, nnz), 1, _COPY_DOCUMENTS * 16))


def _runs(wanted: np.ndarray[Any, np.dtype[np.bool_]], longest: int) -> list[tuple[int, int]]:
    """Return the runs of True, cut to a maximum length."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
    return [
        (begin, min(begin + longest, int(stop)))
        for start, stop in edges.reshape(-1, 2)
        for begin in range(int(start), int(stop), longest)
    ]


def _save_pickle(selection: Selection, words: Words, path: Path, dtype: np.dtype[Any]) -> None:
    from interp_embed.interop.pickle import LegacyDataset, write_pickle

    if path.is_dir():
        raise StoreExistsError(
            f"{path} is a folder, but its suffix asks for a pickle file. Give another name, or for a "
            "store a name that does not end in .pkl or .pickle"
        )
    nnz = entries(selection.store, selection.documents, pooled=False)
    require_memory(
        16 * nnz, "the one-file pickle, which holds everything in memory,", "Save a store instead"
    )
    rows = list(Rows(len(selection), selection.rows))
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
        dataset=selection.frame(),
        rows=[None if r is None else rounded(r.activations) for r in rows],
        aggregate_activations=[
            None if r is None else {name: rounded(m) for name, m in r.aggregate_activations.items()}
            for r in rows
        ],
        tokenized_documents=[None if r is None else r.tokenized_document for r in rows],
        field=selection.store.field,
        dataset_description=words.description,
        id=words.identifier,
        sae_metadata=dict(selection.store.attributes["sae"]),
        feature_labels=words.labels().shown(),
    )
    with _naming(str(path)):
        write_pickle(path, legacy)


def _through(matrix: Any, dtype: np.dtype[Any]) -> Any:
    """Round a matrix to ``dtype``. It stays float32, because scipy has no float16."""
    rounded = matrix.copy()
    rounded.data = matrix.data.astype(dtype).astype(np.float32)
    return rounded
