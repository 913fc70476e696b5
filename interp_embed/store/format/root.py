"""The root of a store: a Zarr group whose attributes say what the store is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from interp_embed.errors import CorruptStoreError, NotAStoreError
from interp_embed.store.format.layout import PLANNING, ROOT, SAVING, check_version
from interp_embed.store.format.sealed import digest

if TYPE_CHECKING:
    from interp_embed.store.storage import Storage

__all__ = ["read_root", "root_document", "unfinished"]


def root_document(attributes: dict[str, Any]) -> bytes:
    """Return the root ``zarr.json``: a plain Zarr group whose attributes carry their checksum."""
    body = json.loads(json.dumps(attributes))  # keys as a reader will see them
    sealed = {**body, "checksum": digest(body)}
    return json.dumps({**_GROUP, "attributes": sealed}, indent=1).encode()


_GROUP = {"zarr_format": 3, "node_type": "group"}


def read_root(storage: Storage) -> dict[str, Any]:
    """Return the root attributes.

    Raises
    ------
    NotAStoreError
        If there is no store at this place.
    UnsupportedFormatError
        If a newer release wrote the store.
    CorruptStoreError
        If the root is damaged.
    """
    try:
        data = storage.get(ROOT)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        if storage.exists(SAVING):
            raise NotAStoreError(
                f"there is no store at {storage.url} yet: saving or merging into it was interrupted or "
                "is still running. Make the same call again to continue"
            ) from None
        raise NotAStoreError(
            f"there is no store at {storage.url}: it has no {ROOT}. Give the folder that you passed as "
            "save_path"
        ) from None
    damaged = f"{ROOT} in {storage.url}"
    try:
        document = json.loads(data)
        attributes = document.pop("attributes")
        claimed = attributes.pop("checksum")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        if isinstance(error, KeyError) and document.get("zarr_format") == 3:
            raise NotAStoreError(
                f"{storage.url} is a Zarr hierarchy, but not one that interp_embed wrote"
            ) from None
        raise CorruptStoreError(f"{damaged} is damaged: {error!r}") from error
    check_version(attributes.get("format_version"), storage.url)
    if claimed != digest(attributes) or document != _GROUP:
        raise CorruptStoreError(
            f"{damaged} is damaged: its content does not match its checksum. "
            "Restore this object from a copy"
        )
    return dict(attributes)


def unfinished(storage: Storage) -> str:
    """Return the message for a store that has a root and no plan."""
    stops = [int(k.split("-")[-2]) for k, _ in storage.list(PLANNING) if k.count("-") == 2]
    return (
        f"the creation of the store at {storage.url} was interrupted: {max(stops, default=0):,} "
        "documents are in it, and there may be more. Pass the data again, with this path as save_path. "
        "Documents that were written are kept"
    )
