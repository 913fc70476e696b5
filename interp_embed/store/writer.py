"""Writing a store: creating it with its documents, and committing chunks to it."""

from __future__ import annotations

import itertools
import os
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.errors import (
    FingerprintMismatchError,
    NotAStoreError,
    SingleWriterError,
    StoreExistsError,
)
from interp_embed.store.arrays import Folder, FolderWriter, group_metadata
from interp_embed.store.chunks import write_chunk
from interp_embed.store.columns import encode_frame, hash_frame, inner_documents, schema_of
from interp_embed.store.layout import (
    BINDING,
    CHUNKS,
    COMMITS,
    DOCUMENTS,
    FORMAT_VERSION,
    LABELS,
    MANIFEST,
    PLAN,
    ROOT,
    check_dtype,
    library_versions,
)
from interp_embed.store.ledger import Commit, Plan, read_plan
from interp_embed.store.reader import Store, read_root, root_document
from interp_embed.store.sealed import digest, seal, unseal
from interp_embed.store.shard import INNER_ELEMENTS
from interp_embed.store.storage import LocalStorage, open_storage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

    import pandas as pd

    from interp_embed.chunk import Chunk
    from interp_embed.kernels.pooling import Pooled
    from interp_embed.store.storage import Storage

__all__ = [
    "StoreWriter",
    "check_fingerprint",
    "check_place",
    "create_store",
    "fingerprint_differences",
    "is_store",
]

_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_BLOCK_DOCUMENTS = 2**16
_BLOCK_CHARACTERS = 2**26
_GROUP_FOLDERS = (CHUNKS, DOCUMENTS)


def is_store(location: str | os.PathLike[str] | Storage) -> bool:
    """Return whether a store, finished creating or not, is at this place."""
    try:
        read_root(open_storage(location))
    except NotAStoreError:
        return False
    return True


def check_place(location: str | os.PathLike[str] | Storage) -> Storage:
    """Make sure that a store may be created here, or its creation be finished.

    Raises
    ------
    StoreExistsError
        If something stands here that a store must not be mixed with.
    """
    storage = open_storage(location)
    if isinstance(storage, LocalStorage):
        root = storage.root
        if root.exists() and not root.is_dir():
            raise StoreExistsError(
                f"{root} is a file; a store is a folder. Give another path, or move the file away"
            )
        found = sorted(e.name for e in root.iterdir()) if root.is_dir() else []
    else:
        found = [key for key, _ in itertools.islice(storage.list(COMMITS), 1)]
    # Looked for after the listing: whoever creates a store meanwhile writes its root first.
    if storage.exists(ROOT):
        try:
            read_root(storage)
        except NotAStoreError as error:
            raise StoreExistsError(f"{error}. Give a path that does not exist yet") from None
        return storage
    if foreign := [name for name in found if not name.startswith(".tmp-")]:
        raise StoreExistsError(
            f"{storage.url} is a folder with other things in it ({foreign[0]!r} for one) and no "
            "store. Give a path that does not exist yet"
        )
    return storage


def fingerprint_differences(
    stored: Mapping[str, Any], given: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Return the parts that both fingerprints have and that differ: name, stored, given."""
    flat_stored, flat_given = _flatten(stored), _flatten(given)
    return [
        (name, flat_stored[name], value)
        for name, value in flat_given.items()
        if name in flat_stored and flat_stored[name] != value
    ]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, part in value.items():
        if isinstance(part, dict):
            flat |= _flatten(part, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = part
    return flat


def check_fingerprint(
    store: Store, given: Mapping[str, Any], n_documents: int | None = None
) -> None:
    """Refuse to go on with a run that was made with something else.

    Parameters
    ----------
    store
        The store.
    given
        The fingerprint of the run.
    n_documents
        Documents that were given, where the fingerprint says something of them.

    Raises
    ------
    FingerprintMismatchError
        Naming each part that differs, with both values.
    """
    differences = fingerprint_differences(store.attributes["fingerprint"], given)
    if differences:
        parts = dict.fromkeys(_difference(store, *each, n_documents) for each in differences)
        raise FingerprintMismatchError(
            f"the store at {store.storage.url} was made with something else, so its activations "
            f"would not match new ones. What differs: {'; '.join(parts)}. Use what the store was "
            "made with, or another place for the store"
        )


def _difference(store: Store, name: str, stored: Any, given: Any, n_documents: int | None) -> str:
    """Return a difference for people, to whom hashes say nothing."""
    if name.startswith("documents."):
        if n_documents not in (None, store.n_documents):
            return f"the documents ({store.n_documents:,} stored, {n_documents:,} given)"
        return "the texts" if name == "documents.text" else "columns other than the text"
    return f"{name}: stored {_short(stored)}, given {_short(given)}"


def _short(value: Any) -> str:
    return _HASH.sub(r"\1…", repr(value))


def create_store(
    location: str | os.PathLike[str] | Storage,
    frame: pd.DataFrame,
    *,
    field: Any,
    identifier: str,
    documents_per_chunk: int,
    description: str = "",
    dtype: np.dtype[Any] = np.dtype(np.float32),  # noqa: B008  (immutable)
    d_sae: int | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    sae: Mapping[str, Any] | None = None,
    feature_labels: Mapping[int, str] | None = None,
    hashes: Mapping[str, str] | None = None,
) -> Store:
    """Create a store with its documents and without activations.

    Where two processes create one store, one plan wins; both get that store, and a caller that
    gave other documents or settings gets an error.

    Parameters
    ----------
    location
        Where to create it.
    frame
        The documents, one a row.
    field
        Column with the text.
    identifier, description
        Kept in the root's attributes.
    documents_per_chunk
        Documents that are encoded, committed and lost together.
    dtype
        Of stored activations, float32 or float16.
    d_sae
        Number of features, where known.
    fingerprint
        Whatever determines the activations; the documents' hash is added to it.
    sae
        Metadata from which the SAE can be made again.
    feature_labels
        Stored beside the activations.
    hashes
        What `hash_frame` says of the documents, where it is known already.
    """
    check_dtype(dtype)
    if isinstance(field, np.generic):  # a name taken from the frame's own index
        field = field.item()
    storage = check_place(location)
    schema = schema_of(frame)
    hashes = dict(hashes or hash_frame(frame, schema, field))
    complete = {**(fingerprint or {}), "dtype": dtype.name, "field": field, "documents": hashes}
    attributes = {
        "format_version": FORMAT_VERSION,
        "id": identifier,
        "description": description,
        "field": field,
        "dtype": dtype.name,
        "d_sae": d_sae,
        "fingerprint": complete,
        "sae": dict(sae or {}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "libraries": library_versions(),
    }
    if not storage.put_if_absent(ROOT, root_document(attributes)):
        stored = read_root(storage)
        differences = fingerprint_differences(stored["fingerprint"], complete)
        if differences:
            raise StoreExistsError(
                f"another store was created at {storage.url} meanwhile; it differs in "
                + ", ".join(name for name, _, _ in differences)
            )
    for folder in _GROUP_FOLDERS:  # so that plain Zarr walks down to the arrays
        storage.put(f"{folder}/zarr.json", group_metadata())
    if feature_labels:
        labels = {str(k): v for k, v in feature_labels.items()}
        storage.put_if_absent(f"{LABELS}/labels.json", seal({"labels": labels}))
    if read_plan(storage) is None:
        blocks = _write_documents(storage, frame, schema, field)
        plan = Plan(
            n_documents=len(frame),
            documents_per_chunk=documents_per_chunk,
            columns=[column.to_json() for column in schema],
            blocks=blocks,
            hashes=hashes,
        )
        document = {"format_version": FORMAT_VERSION, **plan.to_json()}
        if not storage.put_if_absent(PLAN, seal(document)):
            # Another plan was first, or this one, if the answer to a first try was lost.
            winner = read_plan(storage)
            named = {block.key for _, _, block in winner.blocks} if winner else set()
            for _, _, block in blocks:
                if winner and block.key not in named:
                    storage.delete_folder(block.key)
    return Store(storage)


def _write_documents(
    storage: Storage, frame: pd.DataFrame, schema: list[Any], field: Any
) -> list[tuple[int, int, Folder]]:
    blocks: list[tuple[int, int, Folder]] = []
    start = 0
    lengths = [len(v) if isinstance(v, str) else 0 for v in frame[field]]
    total = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    while start < len(frame) or not blocks:
        stop = int(np.searchsorted(total, total[start] + _BLOCK_CHARACTERS, side="right")) - 1
        stop = min(max(stop, start + 1), start + _BLOCK_DOCUMENTS, len(frame))
        key = f"{DOCUMENTS}/{start:012d}-{stop:012d}-{uuid.uuid4().hex[:12]}"
        with FolderWriter(storage, key) as arrays:
            for name, (values, spec) in encode_frame(frame.iloc[start:stop], schema).items():
                text = values.dtype == object
                arrays.add(name, spec, values, inner_documents(values) if text else INNER_ELEMENTS)
            folder = arrays.close()
        blocks.append((start, stop, folder))
        start = stop
    return blocks


class StoreWriter:
    """Commits chunks to a store.

    Safe to use from any number of processes on a storage that arbitrates between writers; on one
    that does not, the second writer is refused.

    Parameters
    ----------
    store
        The store; its snapshot of the ledger is not used for writing.
    fingerprint
        What the activations to come are determined by.
    d_sae
        Number of features, where known.

    Raises
    ------
    FingerprintMismatchError
        If the store was made with something else.
    SingleWriterError
        If the storage allows one writer only and has one.
    """

    _LOCK = "writer.json"

    def __init__(
        self, store: Store, fingerprint: Mapping[str, Any] | None = None, d_sae: int | None = None
    ) -> None:
        self.store = store
        self.storage = store.storage
        self.dtype = store.dtype
        # A few more than there are cores: some wait for the disk.
        self._executor = ThreadPoolExecutor((os.cpu_count() or 1) + 2, "interp-embed-write")
        self._holds_lock = False
        self._check(fingerprint or {}, d_sae)
        self._lock()
        try:
            self._bind(dict(fingerprint or {}), d_sae)
            self.storage.delete(MANIFEST)  # from here on the ledger may grow
        except BaseException:
            self.close()
            raise

    def _bind(self, fingerprint: dict[str, Any], d_sae: int | None) -> None:
        """Record what was not known when the store was created, once and for all.

        The first writer that knows everything binds the store with a put-if-absent, so that two runs
        with different settings cannot both go on.
        """
        bound = self.store.refresh_binding()
        self._check(fingerprint, d_sae)
        known = self.store.attributes
        merged = _merge(known["fingerprint"], fingerprint)
        width = known["d_sae"] if known["d_sae"] is not None else d_sae
        new = (merged, width) != (known["fingerprint"], known["d_sae"])
        if new and not bound and width is not None:
            self.storage.put_if_absent(BINDING, seal({"fingerprint": merged, "d_sae": width}))
            bound = self.store.refresh_binding()
            self._check(fingerprint, d_sae)
        if bound:
            merged = self.store.attributes["fingerprint"]
        self._fingerprint = merged
        self.encoder = digest({k: v for k, v in merged.items() if k != "documents"})

    def _check(self, fingerprint: Mapping[str, Any], d_sae: int | None) -> None:
        check_fingerprint(self.store, fingerprint)
        width = self.store.attributes["d_sae"]
        if d_sae is not None and width is not None and width != d_sae:
            raise FingerprintMismatchError(
                f"the store at {self.storage.url} has {width} features, this SAE has {d_sae}"
            )

    def _lock(self) -> None:
        if self.storage.arbitrates():
            return
        owner = f"process {os.getpid()} on {os.uname().nodename}".encode()
        if not self.storage.put_if_absent(self._LOCK, owner):
            raise SingleWriterError(
                f"{self.storage.url} cannot arbitrate between two writers, and "
                f"{self.storage.get(self._LOCK).decode(errors='replace')} is writing to it. If that "
                f"process is gone, delete {self._LOCK} in the store and try again"
            )
        self._holds_lock = True

    def close(self) -> None:
        """Release what the writer holds."""
        self._executor.shutdown()
        if self._holds_lock:
            self.storage.delete(self._LOCK)
            self._holds_lock = False

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(
        self,
        chunk: Chunk,
        *,
        generation: int = 0,
        pooled: Pooled | None = None,
    ) -> Commit | None:
        """Write one attempt at a run of documents and commit it.

        Parameters
        ----------
        chunk
            Documents with consecutive numbers. Activations are rounded to the store's dtype; the
            caller has dealt with those beyond its range (see `Chunk.beyond_range`).
        generation
            Above that of every commit it is to replace; 0 for documents that none holds.
        pooled
            The document level, where it is known already.

        Returns
        -------
        Commit or None
            None where another attempt at the same documents was committed first.
        """
        start, stop = int(chunk.doc_id[0]), int(chunk.doc_id[-1]) + 1
        if not np.array_equal(chunk.doc_id, np.arange(start, stop)):
            raise ValueError(
                f"a chunk holds consecutive documents, got {chunk.doc_id.tolist()[:9]}"
            )
        if overflow := chunk.beyond_range(self.dtype):
            position, reason = next(iter(overflow.items()))
            raise OverflowError(f"document {start + position}: {reason}")
        if self.store.attributes["d_sae"] is None and chunk.d_sae:
            self._bind(self._fingerprint, chunk.d_sae)
        if chunk.d_sae and chunk.d_sae != self.store.attributes["d_sae"]:
            raise ValueError(
                f"the store has {self.store.attributes['d_sae']} features, the chunk {chunk.d_sae}"
            )
        rounded = chunk.as_dtype(self.dtype)
        if chunk.activation.dtype != self.dtype:
            pooled = None  # sums of what was not rounded
        executor = self._threads_for(rounded.nnz)
        if rounded.nnz != chunk.nnz:  # rounding dropped entries: what was known does not hold
            pooled = None
        folder_key = f"{CHUNKS}/{start:012d}-{stop:012d}-{uuid.uuid4().hex[:12]}"
        with FolderWriter(self.storage, folder_key, executor) as arrays:
            statistics = write_chunk(arrays, rounded, self.dtype, pooled, executor)
            extent = {"d_sae": chunk.d_sae, "start": start, "stop": stop}
            folder = arrays.close({**extent, **statistics})
        commit = Commit(
            start=start,
            stop=stop,
            generation=generation,
            d_sae=chunk.d_sae,
            encoder=self.encoder,
            vocabulary={str(k): v for k, v in chunk.vocabulary.items()},
            folder=folder,
            **statistics,
        )
        # From here on the folder may be named by a commit, even if the call below fails (a lost
        # response): only a commit that is seen to name another folder allows deleting this one.
        if not commit.publish(self.storage):
            try:
                data = self.storage.get(commit.key)
            except FileNotFoundError:  # the winner was merged into a larger chunk already
                self.storage.delete_folder(folder_key)
                return None
            winner = unseal(data, f"{commit.key} in {self.storage.url}")
            if winner["folder"]["key"] != folder_key:
                self.storage.delete_folder(folder_key)
                return None
        self._require_whole(commit)
        self.storage.delete(MANIFEST)  # should another writer have finished the store meanwhile
        return commit

    def _require_whole(self, commit: Commit) -> None:
        """Take a commit back whose folder another process took for garbage before it was named."""
        prefix = f"{commit.folder.key}/"
        found = {key.removeprefix(prefix) for key, _ in self.storage.list(commit.folder.key)}
        if not found.issuperset(commit.folder.objects):
            self.storage.delete(commit.key)
            raise FileNotFoundError(f"{prefix} in {self.storage.url} was deleted meanwhile")

    def _threads_for(self, nnz: int) -> Executor | None:
        """Return threads to compress with, or None where starting them costs more than it saves."""
        return self._executor if nnz > 2**17 else None


def _merge(known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``known`` with what only ``given`` has."""
    merged = dict(known)
    for name, value in given.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merge(merged[name], value)
        else:
            merged.setdefault(name, value)
    return merged
