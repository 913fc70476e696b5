"""Adding documents to a store, and joining stores."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from interp_embed.core.progress import show_progress
from interp_embed.errors import StoreExistsError
from interp_embed.exchange.opening import described
from interp_embed.exchange.paths import expanded
from interp_embed.selection.selection import Selection
from interp_embed.store import Store, is_store
from interp_embed.store.fingerprint import check_fingerprint
from interp_embed.store.fingerprint import merge as combined
from interp_embed.store.format.layout import FORMAT_VERSION, SAVING, library_versions
from interp_embed.store.storage import open_storage
from interp_embed.store.write.creation import add_documents, check_place
from interp_embed.store.write.merging import check_mergeable, is_merged, merge_stores
from interp_embed.store.write.unannounced_store import Unannounced

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from interp_embed.sae.base import BaseSAE

__all__ = ["append", "merge", "require_whole"]


def append(store: Store, data: Any, sae: BaseSAE | None, *, load: bool) -> None:
    """Add documents to a store, without activations; see `Dataset.append`.

    With ``load`` the SAE is loaded first. If that fails, the store does not change.
    """
    from interp_embed.inputs import as_documents

    documents = as_documents(data, store.field)
    if sae is not None:
        check_fingerprint(store, sae.fingerprint())
        if load and not sae.is_loaded():
            sae.load()
    add_documents(store, described(documents), progress=show_progress() and not documents.in_memory)


def merge(
    selections: Sequence[Selection | str | os.PathLike[str]], path: str | os.PathLike[str]
) -> str:
    """Join whole stores into a new one; see `interp_embed.merge`.

    Returns
    -------
    str
        Path or URL of the new store.
    """
    sources = [_store(each) for each in selections]
    check_mergeable(sources)
    target = open_storage(expanded(path))
    unannounced = Unannounced(target)
    if unannounced.is_announced() and is_merged(sources, target):
        unannounced.announce()  # cut off when all was done but this
        return target.url
    if not target.exists(SAVING):
        check_place(target)
    if is_store(target):
        raise StoreExistsError(f"there is already a store at {target.url}; give another path")
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
    return target.url


def _store(given: Selection | str | os.PathLike[str]) -> Store:
    if not isinstance(given, Selection):
        return Store(expanded(given))
    require_whole(given, "merged")
    store = Store(given.store.storage)  # as it is now; the selection stays as it was
    store.require_identity(given.store.identity)
    return store


def require_whole(selection: Selection, what: str) -> None:
    """Raise ValueError unless a selection has all documents of its store, in order, unchanged."""
    if not selection.is_whole:
        raise ValueError(
            f"this dataset is only part of the store at {selection.store.storage.url}, or has another "
            f"order or columns of its own, so it cannot be {what}. Save it as its own store first: "
            "save_to_file(path)"
        )
