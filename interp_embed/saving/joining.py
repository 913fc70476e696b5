"""Adding documents to a store, and joining stores."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.errors import StoreExistsError
from interp_embed.progress import show_progress
from interp_embed.saving.copying import expanded
from interp_embed.saving.opening import described, load
from interp_embed.saving.unannounced import Unannounced
from interp_embed.store import Store, is_store
from interp_embed.store.creation import add_documents, check_place
from interp_embed.store.fingerprint import check_fingerprint
from interp_embed.store.fingerprint import merge as combined
from interp_embed.store.layout import FORMAT_VERSION, SAVING, library_versions
from interp_embed.store.merging import check_mergeable, is_merged, merge_stores
from interp_embed.store.storage import open_storage

if TYPE_CHECKING:
    import os

    from interp_embed.dataset import Dataset
    from interp_embed.sae.base import BaseSAE

__all__ = ["append", "merge", "require_whole"]


def append(store: Store, data: Any, sae: BaseSAE | None, *, load: bool) -> None:
    """Add documents to a store, without activations; see `Dataset.append`.

    With ``load`` the SAE is loaded first, so that one that cannot be had leaves the store as it was.
    """
    from interp_embed.inputs import as_documents

    documents = as_documents(data, store.field)
    if sae is not None:
        check_fingerprint(store, sae.fingerprint())
        if load and not sae.is_loaded():
            sae.load()
    add_documents(store, described(documents), progress=show_progress() and not documents.in_memory)


def merge(
    stores: Sequence[str | os.PathLike[str] | Dataset], path: str | os.PathLike[str]
) -> Dataset:
    """Join stores of the same SAE and settings into a new one.

    The documents are those of the stores, one store after the other; columns that some of them lack
    are missing there. Nothing is encoded or compressed again: on one disk the objects are linked, which
    takes no room, and elsewhere they are copied byte for byte. The stores stay as they are. Cut off,
    the same call goes on.

    Parameters
    ----------
    stores
        Paths, URLs or whole datasets; one at least.
    path
        Where the new store goes, a path or a URL.

    Returns
    -------
    Dataset
        All documents. Those that were not encoded in their store are not encoded in this one.

    Raises
    ------
    FingerprintMismatchError
        If they were not made with the same SAE and settings; it names what differs.
    StoreExistsError
        If there is something at ``path``.
    ValueError
        If a dataset is a part of a store, or has columns of its own; or there is nothing to join.
    """
    from interp_embed.dataset import Dataset

    if not isinstance(stores, Sequence) or isinstance(stores, (str, bytes, Dataset)) or not stores:
        raise ValueError(
            f"stores must be a list of one path or dataset at least, got {stores!r:.100}"
        )
    sources = [_store(each) for each in stores]
    check_mergeable(sources)
    target = open_storage(expanded(path))
    unannounced = Unannounced(target)
    if unannounced.is_announced() and is_merged(sources, target):
        unannounced.announce()  # cut off when all was done but this
        return load(Dataset, target.url)
    if not target.exists(SAVING):
        check_place(target)
    if is_store(target):
        raise StoreExistsError(f"there is a store at {target.url} already; give another path")
    first = sources[0].attributes
    fingerprint: dict[str, Any] = {}
    for source in sources:
        fingerprint = combined(fingerprint, source.attributes["fingerprint"])
    attributes = {
        "format_version": FORMAT_VERSION,
        "id": uuid.uuid4().hex[:6],
        "description": first["description"],
        "field": first["field"],
        "dtype": first["dtype"],
        "d_sae": next((s.d_sae for s in sources if s.d_sae is not None), None),
        "fingerprint": fingerprint,
        "sae": first["sae"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "libraries": library_versions(),
    }
    merge_stores(sources, unannounced, attributes, progress=show_progress())
    unannounced.announce()
    return load(Dataset, target.url)


def _store(given: str | os.PathLike[str] | Dataset) -> Store:
    from interp_embed.dataset import Dataset

    if not isinstance(given, Dataset):
        return Store(expanded(given))
    require_whole(given, "merged")
    store = Store(given._store.storage)  # as it is now; the dataset stays as it was
    store.require_identity(given._store.identity)
    return store


def require_whole(dataset: Dataset, what: str) -> None:
    """Raise ValueError unless a dataset is all documents of its store, in order, as they are."""
    store = dataset._store
    if dataset._extra or not np.array_equal(dataset._documents, np.arange(store.n_documents)):
        raise ValueError(
            f"a part of the store at {dataset.path}, or one in another order or with columns of its "
            f"own, cannot be {what}. Save it as a store of its own first: save_to_file(path)"
        )
