"""Datasets come from a store, from memory or from the original's pickle, and go back there."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from interp_embed.aggregate.execute import entries
from interp_embed.aggregate.memory import require_memory
from interp_embed.chunk import Chunk, TokenTable
from interp_embed.errors import NotAStoreError, StoreExistsError
from interp_embed.store import MISSING, Store, StoreWriter, create_store, finish, is_store
from interp_embed.store.layout import LABELS, check_dtype
from interp_embed.store.sealed import seal
from interp_embed.store.storage import LocalStorage, open_storage
from interp_embed.store.writer import check_fingerprint, check_place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd

    from interp_embed.dataset import Dataset
    from interp_embed.row import DatasetRow
    from interp_embed.sae.base import BaseSAE

__all__ = [
    "DEFAULT_DEVICE",
    "choose_device",
    "is_done",
    "keep_labels",
    "load",
    "open_or_create",
    "reopen",
    "save",
    "write_rows",
]

DEFAULT_DEVICE = "cuda:0"
"""Where a run is resumed that names no device."""

_PICKLES = (".pkl", ".pickle")
_COPY_DOCUMENTS = 4096
_COPY_NNZ = 2**24


def open_or_create(
    location: str | os.PathLike[str],
    frame: pd.DataFrame,
    sae: BaseSAE,
    *,
    field: str,
    description: str,
    identifier: str,
    documents_per_chunk: int,
    dtype: np.dtype[Any],
    feature_labels: Mapping[int, str] | None,
    load: bool,
) -> Store:
    """Open the store at ``location`` if it is of these documents, SAE and settings, or create it.

    Where a store is to be created and ``load`` is true, the SAE is loaded before, so that one that
    cannot be loaded leaves nothing behind.
    """
    from interp_embed.sae.loading import sae_record
    from interp_embed.store.columns import hash_frame, schema_of

    storage = open_storage(location)
    if isinstance(storage, LocalStorage):
        _recover(storage.root)
    fingerprint = sae.fingerprint()
    # Whatever is wrong with the data or the place is said before a model is loaded.
    hashes = hash_frame(frame, schema_of(frame), field)
    if is_store(storage):
        try:
            store = Store(storage)
        except NotAStoreError:  # creation was interrupted before the documents were all written
            store = None
        if store is not None:
            given = {**fingerprint, "dtype": dtype.name, "field": field, "documents": hashes}
            check_fingerprint(store, given, len(frame))
            if feature_labels:
                _put_labels(store, feature_labels, wrote=False)
            return store
    check_place(storage)
    if load and not sae.is_loaded():
        sae.load()
        fingerprint = sae.fingerprint()
    return create_store(
        storage,
        frame,
        field=field,
        identifier=identifier,
        description=description,
        documents_per_chunk=documents_per_chunk,
        dtype=dtype,
        d_sae=sae.d_sae,
        fingerprint=fingerprint,
        sae=sae_record(sae),
        feature_labels=feature_labels,
        hashes=hashes,
    )


def keep_labels(store: Store, sae: BaseSAE, *, wrote: bool = True) -> None:
    """Store the labels that the SAE brought, unless the store has labels.

    Where nothing was written before (``wrote`` is false) the store may be read-only: labels that
    cannot be stored there are left out.
    """
    if labels := sae.feature_labels():
        _put_labels(store, labels, wrote=wrote)


def _put_labels(store: Store, labels: Mapping[int, str], *, wrote: bool) -> None:
    key = f"{LABELS}/labels.json"
    if store.storage.exists(key):
        return
    try:
        store.storage.put_if_absent(key, seal({"labels": {str(k): v for k, v in labels.items()}}))
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


def write_rows(
    store: Store,
    sae: BaseSAE | None,
    rows: Sequence[DatasetRow | None],
    failed: Mapping[int, str] | None = None,
) -> None:
    """Commit activations that are known already; what the store holds stays as it is.

    ``failed`` says of documents without a row why they cannot have one.
    """
    reasons = failed or {}
    known = [row for row in rows if row is not None]
    if not known and not reasons:
        return
    widths = {row.activations.shape[1] for row in known}
    if len(widths) > 1:
        raise ValueError(f"rows have different numbers of features: {sorted(widths)}")
    d_sae = widths.pop() if widths else store.d_sae
    fingerprint = None if sae is None else sae.fingerprint()
    with StoreWriter(store, fingerprint, d_sae) as writer:
        for gap in store.ledger.missing:
            for start, stop in store.plan.pieces(*gap):
                run: list[int] = []
                for document in range(start, stop + 1):
                    if document < stop and (rows[document] is not None or document in reasons):
                        run.append(document)
                    elif run:
                        chunk = _chunk_of_rows(d_sae or 0, run, [rows[d] for d in run], reasons)
                        writer.write(chunk.with_failures(chunk.beyond_range(store.dtype)))
                        run = []
        finish(writer)
    store.refresh()


def _chunk_of_rows(
    d_sae: int,
    documents: list[int],
    rows: Sequence[DatasetRow | None],
    reasons: Mapping[int, str],
) -> Chunk:
    known = {d: row for d, row in zip(documents, rows, strict=True) if row is not None}
    failed = [d for d in documents if d not in known]
    tables: list[TokenTable] = []
    vocabulary: dict[int, str] = {}
    for row in known.values():
        table, strings = _token_table(row)
        tables.append(table)
        vocabulary |= strings
    without = Chunk.failed(d_sae, failed, [reasons[d] for d in failed])
    if not known:
        return without
    activations = [row.activations for row in known.values()]
    chunk = Chunk.from_documents(
        d_sae, activations, tables, doc_id=list(known), vocabulary=vocabulary
    )
    if not failed:
        return chunk
    return Chunk.concatenate([without, chunk]).take(np.argsort([*failed, *known]))


def _token_table(row: DatasetRow) -> tuple[TokenTable, dict[int, str]]:
    """Find a row's token strings in its text; ids are a hash, as only strings are known."""
    from interp_embed.sae.tokens import align_strings

    text = row.data if isinstance(row.data, str) else ""
    start, end, special = align_strings(text, row.tokenized_document)
    ids = np.array(
        [crc32(t.encode(errors="surrogatepass")) for t in row.tokenized_document], np.uint32
    )
    strings = dict(zip(ids.tolist(), row.tokenized_document, strict=True))
    return TokenTable(ids, start, end, special), {
        i: strings[i] for i, outside in zip(ids.tolist(), special.tolist(), strict=True) if outside
    }


# --- saving --------------------------------------------------------------------------------------


def save(dataset: Dataset, path: str | os.PathLike[str], dtype: np.dtype[Any]) -> None:
    """Write a view to ``path``: a store, or by its suffix the original library's pickle."""
    check_dtype(dtype)
    text = _expanded(path)
    if text.lower().endswith(_PICKLES) and "://" not in text:
        _save_pickle(dataset, Path(text), dtype)
        return
    target = open_storage(text)
    if isinstance(target, LocalStorage):
        _recover(target.root, strict=False)
    taken = is_store(target)
    if not isinstance(target, LocalStorage):
        if taken:
            raise StoreExistsError(
                f"there is a store at {target.url} already; delete it or save elsewhere"
            )
        _copy(dataset, text, dtype)
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
    # moment; a crash in that moment is made good by `_recover`.
    fresh = root.with_name(f".{root.name}-{uuid.uuid4().hex[:8]}")
    with _naming(text):
        fresh.mkdir(parents=True)
    try:
        with _locked(fresh):
            _copy(dataset, fresh, dtype)
            _replace(root, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    _clear_leftovers(root)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Make errors of the system name the path that was given, not what was tried on the way."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, path) from error


def _expanded(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"file_path must be a path or a URL, got {path!r}")
    text = os.fspath(path)
    return text if "://" in text else os.path.expanduser(text)  # noqa: PTH111  (keeps "" as it is)


_ATTEMPTS = 8


def _replace(root: Path, fresh: Path) -> None:
    """Put ``fresh`` where ``root`` is; what was there stays beside it, to be cleared away."""
    for attempt in range(_ATTEMPTS):
        retired = root.with_name(f".{root.name}-{uuid.uuid4().hex[:8]}-old")
        if root.exists():
            root.rename(retired)
            _sync_folder(root.parent)
        try:
            fresh.rename(root)
        except OSError as error:
            if not root.exists() and retired.exists():
                retired.rename(root)
            # Another process saved here, or put back what was retired.
            taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            if not taken or attempt == _ATTEMPTS - 1:
                raise
        else:
            _sync_folder(root.parent)
            return


def _beside(root: Path, suffix: str) -> list[Path]:
    """Return what saves to ``root`` left beside it."""
    pattern = re.compile(rf"\.{re.escape(root.name)}-[0-9a-f]{{8}}{suffix}")
    try:
        return sorted(p for p in root.parent.iterdir() if pattern.fullmatch(p.name) and p.is_dir())
    except OSError:
        return []


def _recover(root: Path, *, strict: bool = True) -> None:
    """Put back the store that a save was about to replace when it was cut off."""
    root = root.resolve()
    if root.exists():
        return
    retired = [path for path in _beside(root, "-old") if is_store(path)]
    if len(retired) == 1:
        # Another process may have put it back, or finished its save; or nothing can be renamed.
        with contextlib.suppress(OSError):
            retired[0].rename(root)
            _sync_folder(root.parent)
    elif retired and strict:
        raise NotAStoreError(
            f"there is nothing at {root}, but saves that were cut off left "
            f"{', '.join(p.name for p in retired)} beside it. Rename the one you want to {root.name}"
        )


def _clear_leftovers(root: Path) -> None:
    """Remove what saves to ``root``, now done or cut off, left beside it."""
    for path in _beside(root, "-old"):
        shutil.rmtree(path, ignore_errors=True)
    for path in _beside(root, ""):
        with contextlib.suppress(OSError), _locked(path) as held:
            if held:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a folder that is being written, as far as the system has locks; yield whether it is."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _copy(dataset: Dataset, path: str | os.PathLike[str], dtype: np.dtype[Any]) -> None:
    store = dataset._store
    attributes = store.attributes
    settings = {
        k: v
        for k, v in attributes["fingerprint"].items()
        if k not in ("dtype", "field", "documents")
    }
    copy = create_store(
        path,
        dataset._frame(np.arange(len(dataset))),  # as stored, whatever was done to other frames
        field=store.field,
        identifier=dataset.id,
        description=dataset.dataset_description,
        documents_per_chunk=store.plan.documents_per_chunk,
        dtype=dtype,
        d_sae=store.d_sae,
        fingerprint=settings,
        sae=attributes["sae"],
        feature_labels=dataset.feature_labels(),
    )
    documents = dataset._documents
    located = store.status(documents) != MISSING
    with StoreWriter(copy) as writer:
        for start, stop in _runs(located, _documents_a_copy(store)):
            chunk = store.chunk(documents[start:stop])
            writer.write(chunk.with_doc_id(np.arange(start, stop)))
        finish(writer)


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


# --- loading -------------------------------------------------------------------------------------


def load(
    cls: type[Dataset], path: str | os.PathLike[str], *, import_modules: bool = False
) -> Dataset:
    """Open a store or a pickle of the original library, whichever is there.

    The module of the SAE's class is imported only if asked for, and never for a pickle.
    """
    from interp_embed.interop.pickle import is_pickle

    text = _expanded(path)
    if "://" not in text and is_pickle(text):
        return _load_pickle(cls, text)
    if "://" not in text and Path(text).is_file():
        raise NotAStoreError(
            f"{text} is neither a store (a folder) nor a pickle of the original library"
        )
    if text and "://" not in text:
        _recover(Path(text).absolute())
    store = Store(text)
    dataset = cls.__new__(cls)
    sae, reason = _rebuild(store.attributes["sae"], import_modules)
    dataset._bind(store, sae, np.arange(store.n_documents), {}, None, None)
    dataset._no_sae = reason
    dataset.id = store.attributes["id"]
    return dataset


def reopen(cls: type[Dataset], path: str, state: Mapping[str, Any]) -> Dataset:
    """Open the documents of a store that a pickled `Dataset` was of."""
    store = Store(path)
    dataset = cls.__new__(cls)
    sae, reason = _rebuild(store.attributes["sae"])
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
    metadata: Mapping[str, Any], import_modules: bool = False
) -> tuple[BaseSAE | None, str]:
    """Return the SAE that was recorded, not loaded; None and why where that cannot be done here."""
    from interp_embed.sae.loading import load_sae_from_metadata

    try:
        return load_sae_from_metadata(metadata, import_modules=import_modules), ""
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
    sae.set_device(device)


def _sees_gpu() -> bool:
    try:
        import torch
    except ImportError:  # an SAE of the user's own may do without it
        return False
    return bool(torch.cuda.is_available())
