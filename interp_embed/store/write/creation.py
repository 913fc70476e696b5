"""Creating a store with its documents and without activations."""

from __future__ import annotations

import itertools
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from interp_embed.core.checks import check_dtype
from interp_embed.errors import (
    CorruptStoreError,
    FingerprintMismatchError,
    NotAStoreError,
    StoreExistsError,
)
from interp_embed.store.arrays.folder import Folder, FolderWriter, group_metadata
from interp_embed.store.arrays.shard import INNER_ELEMENTS
from interp_embed.store.fingerprint import check_fingerprint, fingerprint_differences
from interp_embed.store.format.columns import Column, encode_frame, inner_documents
from interp_embed.store.format.document_blocks import DocumentBlock, cut_frame, describe_block
from interp_embed.store.format.document_hash import combined_hashes
from interp_embed.store.format.layout import (
    CHUNKS,
    COMMITS,
    DOCUMENTS,
    FORMAT_VERSION,
    MANIFEST,
    PLANNING,
    ROOT,
    SAVING,
    library_versions,
)
from interp_embed.store.format.root import read_root, root_document
from interp_embed.store.format.schema import unified_schema
from interp_embed.store.format.sealed import digest, seal, unseal
from interp_embed.store.labels.collection import put_first_labels
from interp_embed.store.ledger import Plan, PlannedBlock, plan_key, read_plan
from interp_embed.store.storage import LocalStorage, open_storage
from interp_embed.store.store import Store

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from interp_embed.store.storage import Storage

__all__ = ["add_documents", "check_place", "create_store", "is_store"]

_GROUP_FOLDERS = (CHUNKS, DOCUMENTS)
_THREADS = 3  # that compress and wait for the disk


def is_store(location: str | os.PathLike[str] | Storage) -> bool:
    """Return whether there is a store at this place, even if its creation is not finished."""
    try:
        read_root(open_storage(location))
    except NotAStoreError:
        return False
    return True


def check_place(location: str | os.PathLike[str] | Storage) -> Storage:
    """Check that a store may be created here, or that its creation may be finished.

    Raises
    ------
    StoreExistsError
        If there is something here that a store must not be mixed with.
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
        found += [SAVING] if storage.exists(SAVING) else []
    # Looked for after the listing: whoever creates a store meanwhile writes its root first.
    if storage.exists(ROOT):
        try:
            read_root(storage)
        except NotAStoreError as error:
            raise StoreExistsError(f"{error}. Give a path that does not exist yet") from None
        return storage
    if foreign := [name for name in found if not name.startswith(".tmp-")]:
        raise StoreExistsError(
            f"{storage.url} is a folder with other contents (for example {foreign[0]!r}), not a store. "
            "Give a path that does not exist yet"
        )
    return storage


def create_store(
    location: str | os.PathLike[str] | Storage,
    documents: pd.DataFrame | Iterable[DocumentBlock],
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
    progress: bool = False,
) -> Store:
    """Create a store with its documents and without activations.

    Blocks are written one by one as they arrive. If this is interrupted, the same call continues, and
    blocks of the same documents that were written are kept. If two processes create one store, one plan
    wins: both get that store, and a caller that gave other documents or settings gets an error.

    Parameters
    ----------
    location
        Where to create it.
    documents
        The documents, one per row; or one or more blocks of them, as
        `interp_embed.store.format.document_blocks` cuts them. Each block is taken once and then released.
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
        Everything that determines the activations, except the documents.
    sae
        Metadata from which the SAE can be rebuilt.
    feature_labels
        Stored beside the activations.
    progress
        Whether to show how many documents were written.

    Raises
    ------
    StoreExistsError
        If there is something else at this place.
    TypeError, ValueError
        If a column cannot be stored.
    """
    check_dtype(dtype)
    if isinstance(field, np.generic):  # a name taken from the frame's own index
        field = field.item()
    storage = check_place(location)
    # What is wrong with a frame, or with the first block of others, leaves nothing behind.
    if isinstance(documents, pd.DataFrame):
        blocks: Iterator[DocumentBlock] = iter(
            [describe_block(frame, field) for frame in cut_frame(documents)]
        )
    else:
        blocks = iter(documents)
        blocks = itertools.chain(iter([next(blocks)]), blocks)
    complete = {**(fingerprint or {}), "dtype": dtype.name, "field": field}
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
                f"another run began a store at {storage.url}; it differs in "
                f"{', '.join(name for name, _, _ in differences)}. Use the settings that it was begun "
                "with, or another path"
            )
    for folder in _GROUP_FOLDERS:  # so that plain Zarr walks down to the arrays
        storage.put(f"{folder}/zarr.json", group_metadata())
    if feature_labels:
        put_first_labels(storage, feature_labels, "given")
    if read_plan(storage) is None:
        planning = _Planning(storage)
        planning.write(blocks, progress=progress)
        planning.publish(documents_per_chunk)
        return Store(storage)
    store = Store(storage)  # of another process, meanwhile
    try:
        check_fingerprint(store, {}, blocks)
    except FingerprintMismatchError as error:
        raise StoreExistsError(str(error)) from error
    return store


def add_documents(store: Store, blocks: Iterable[DocumentBlock], *, progress: bool = False) -> None:
    """Add documents to a complete store, without activations.

    If this is interrupted before the documents count, the same call continues. They are added all
    together or not at all.

    Parameters
    ----------
    store
        The store, which knows the documents afterwards.
    blocks
        As `interp_embed.store.format.document_blocks` cuts them.
    progress
        Whether to show how many documents were written.

    Raises
    ------
    ValueError
        If documents of the store are not encoded yet.
    StoreExistsError
        If another process added other documents meanwhile.
    """
    store.refresh_plan()
    store.refresh(manifest=False)
    if missing := sum(stop - start for start, stop in store.ledger.missing):
        raise ValueError(
            f"{missing:,} documents of the store at {store.storage.url} are not encoded yet. Encode "
            "them before you add others: interp-embed encode, or load_from_file(path, resume=True)"
        )
    planning = _Planning(store.storage, store.plan)
    planning.write((block for block in blocks if len(block.frame)), progress=progress)
    if planning.is_empty:
        return
    planning.publish(store.plan.documents_per_chunk)
    store.storage.delete(MANIFEST)  # of a complete store
    store.refresh_plan()
    store.refresh(manifest=False)


def _records(storage: Storage) -> list[str]:
    return [key for key, _ in storage.list(PLANNING) if key.endswith(".json") and "/." not in key]


class _Planning:
    """Documents on their way into a store, and the records of those that are there.

    A record says that a block was written, under a name made of its range and its content. So a
    creation that goes on where another one was cut off finds what it need not write again, and what
    is of other documents stays unused.
    """

    def __init__(self, storage: Storage, after: Plan | None = None) -> None:
        self.storage = storage
        self._known = set(_records(storage))
        self._after = after
        self._blocks: list[PlannedBlock] = []
        self._schemas: list[list[Column]] = []
        self._unified = [Column(**value) for value in after.columns] if after else []
        self._stop = after.n_documents if after else 0

    def write(self, blocks: Iterable[DocumentBlock], *, progress: bool) -> None:
        """Write the blocks that were not written yet."""
        bar = tqdm(desc="Writing documents", unit="doc", disable=not progress)
        with bar, ThreadPoolExecutor(_THREADS, "interp-embed-documents") as executor:
            for block in blocks:
                self._add(block, executor)
                bar.update(len(block.frame))
                del block  # before the next one is read

    def _add(self, block: DocumentBlock, executor: ThreadPoolExecutor) -> None:
        start = self._stop
        self._stop = stop = start + len(block.frame)
        named = digest([block.hashes, _as_json(block.schema)])[:12]
        record = f"{PLANNING}/{start:012d}-{stop:012d}-{named}.json"
        folder = self._recorded(record) if record in self._known else None
        if folder is None:
            key = f"{DOCUMENTS}/{start:012d}-{stop:012d}-{uuid.uuid4().hex[:12]}"
            folder = _write_block(self.storage, key, block, executor)
            if not self.storage.put_if_absent(record, seal({"folder": folder.to_json()})):
                # Of another process, or of this one, if the answer to a first try was lost. One
                # that is gone was deleted once there was a plan, which then counts.
                first = self._recorded(record)
                if first is not None and first.key != folder.key:
                    self.storage.delete_folder(folder.key)
                folder = first or folder
        self._blocks.append(PlannedBlock(start, stop, folder, None, dict(block.hashes)))
        self._schemas.append(block.schema)
        if self._unified:
            self._unified = unified_schema(self._unified, block.schema)
        else:
            self._unified = block.schema

    @property
    def is_empty(self) -> bool:
        """Whether there was no document."""
        return not self._blocks

    def _recorded(self, key: str) -> Folder | None:
        try:
            record = unseal(self.storage.get(key), f"{key} in {self.storage.url}")
        except FileNotFoundError:
            return None
        return Folder.from_json(record["folder"])

    def publish(self, documents_per_chunk: int) -> None:
        """Make the blocks count, unless another plan was first.

        Raises
        ------
        StoreExistsError
            If the other plan is of other documents.
        CorruptStoreError
            If another process took what is not planned yet for a dead run's, and deleted it.
        """
        blocks = [
            block if schema == self._unified else block._replace(columns=_as_json(schema))
            for block, schema in zip(self._blocks, self._schemas, strict=True)
        ]
        after = self._after
        before = after.blocks if after else ()
        plan = Plan(
            n_documents=self._stop,
            documents_per_chunk=documents_per_chunk,
            columns=_as_json(self._unified),
            blocks=blocks,
            hashes=combined_hashes([b.hashes for b in (*before, *blocks)]),
        )
        document = {"format_version": FORMAT_VERSION, **plan.to_json()}
        key = plan_key(after.additions + 1 if after else 0)
        self._require_written(key)
        if not self.storage.put_if_absent(key, seal(document)):
            # Another plan was first, or this one, if the answer to a first try was lost.
            winner = read_plan(self.storage)
            named = {block.folder.key for block in winner.blocks} if winner else set()
            mine = [block.folder.key for block in blocks if block.folder.key not in named]
            if winner:
                self.storage.delete_folders(mine)
            if winner and mine and winner.hashes != plan.hashes:
                raise StoreExistsError(
                    f"another process added documents to the store at {self.storage.url} meanwhile; "
                    "add these again"
                    if after
                    else f"another process created a store with other documents at {self.storage.url} "
                    "meanwhile; give another path"
                )
        self.storage.delete_several(_records(self.storage))

    def _require_written(self, key: str) -> None:
        for block in self._blocks:
            if not self.storage.exists(f"{block.folder.key}/zarr.json"):
                if self.storage.exists(key):  # another plan was first, and has no need of it
                    return
                # Of what may be gone: all is written again.
                self.storage.delete_several(_records(self.storage))
                raise CorruptStoreError(
                    f"documents {block.start:,} to {block.stop - 1:,}, just written to "
                    f"{self.storage.url}, are gone: another process cleaned up the store meanwhile. "
                    "Make the same call again to write them again"
                )


def _as_json(schema: Sequence[Column]) -> list[dict[str, Any]]:
    return [column.to_json() for column in schema]


def _write_block(
    storage: Storage, key: str, block: DocumentBlock, executor: ThreadPoolExecutor
) -> Folder:
    with FolderWriter(storage, key, executor) as arrays:
        for name, (values, spec) in encode_frame(block.frame, block.schema).items():
            text = values.dtype == object
            arrays.add(name, spec, values, inner_documents(values) if text else INNER_ELEMENTS)
        return arrays.close()
