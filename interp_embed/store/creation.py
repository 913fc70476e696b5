"""Creating a store with its documents and without activations."""

from __future__ import annotations

import itertools
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.errors import (
    NotAStoreError,
    StoreExistsError,
)
from interp_embed.store.arrays import Folder, FolderWriter, group_metadata
from interp_embed.store.columns import encode_frame, hash_frame, inner_documents, schema_of
from interp_embed.store.fingerprint import fingerprint_differences
from interp_embed.store.layout import (
    CHUNKS,
    COMMITS,
    DOCUMENTS,
    FORMAT_VERSION,
    LABELS,
    PLAN,
    ROOT,
    check_dtype,
    library_versions,
)
from interp_embed.store.ledger import Plan, read_plan
from interp_embed.store.reader import Store, read_root, root_document
from interp_embed.store.sealed import seal
from interp_embed.store.shard import INNER_ELEMENTS
from interp_embed.store.storage import LocalStorage, open_storage

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import pandas as pd

    from interp_embed.store.storage import Storage

__all__ = ["check_place", "create_store", "is_store"]

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
