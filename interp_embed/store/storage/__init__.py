"""Opening the storage of a path or a URL; see `interp_embed.store.storage.base` for its operations."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from interp_embed.store.storage.base import Sink, Storage
from interp_embed.store.storage.local import LocalStorage
from interp_embed.store.storage.remote import FsspecStorage, ObjectStorage, object_store

__all__ = ["FsspecStorage", "LocalStorage", "ObjectStorage", "Sink", "Storage", "open_storage"]

_OBSTORE_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "memory"})
_memory_stores: dict[str, Any] = {}


def open_storage(location: str | os.PathLike[str] | Storage) -> Storage:
    """Return the storage at a local path or a URL; nothing is read or created.

    Parameters
    ----------
    location
        A path, ``file://``, ``s3://``, ``gs://``, ``az://``, ``memory://``, or any other URL that an
        installed fsspec implementation understands. Credentials come from the environment.
    """
    if isinstance(location, Storage):
        return location
    text = os.fspath(location)
    if not isinstance(text, str) or not text:
        raise ValueError(f"location must be a path or a URL, got {location!r}")
    _refuse_what_is_not_meant(text)
    scheme = urlsplit(text).scheme if "://" in text else ""
    rest = text.split("://", 1)[-1]
    if scheme in {"", "file", "local"}:
        return LocalStorage(rest)
    if scheme not in _OBSTORE_SCHEMES:
        return FsspecStorage(text)
    url = f"{scheme}://{rest.rstrip('/')}"
    if scheme != "memory":
        return ObjectStorage(object_store(url), url)
    from obstore.store import MemoryStore

    return ObjectStorage(_memory_stores.setdefault(url, MemoryStore()), url)


def _refuse_what_is_not_meant(text: str) -> None:
    """Refuse passwords in URLs, which every message would show, and URLs that `pathlib` was given."""
    for part in text.split("::"):
        if "://" in part and urlsplit(part).password:
            scheme = urlsplit(part).scheme
            raise ValueError(
                f"the {scheme}:// URL of a store has a password in it, which messages and logs would "
                "show. Leave it out: credentials come from the environment "
                f"(FSSPEC_{scheme.upper()}_PASSWORD, if fsspec reads them)"
            )
    scheme, _, rest = text.partition(":/")
    if scheme in _OBSTORE_SCHEMES and not rest.startswith("/"):
        raise ValueError(
            f"{text!r} is neither a path nor a URL: pathlib turns two slashes into one. Pass the URL as "
            f"a string: '{scheme}://{rest}'"
        )
