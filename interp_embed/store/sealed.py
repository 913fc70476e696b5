"""JSON documents that notice their own corruption.

A flipped bit in a shape or in an attribute is as dangerous as one in the data. Every JSON document
that the store relies on carries the SHA-256 of itself, so that reading one either gives what was
written or fails.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from interp_embed.errors import CorruptStoreError

__all__ = ["digest", "seal", "unseal"]

_FIELD = "checksum"


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(document: dict[str, Any]) -> bytes:
    """Serialise ``document`` with its checksum under ``checksum``."""
    body = json.loads(json.dumps(document))  # tuples and int keys as a reader will see them
    return json.dumps({**body, _FIELD: digest(body)}, indent=1).encode()


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """Parse what `seal` wrote.

    Raises
    ------
    CorruptStoreError
        If it is not JSON, or not the JSON that was sealed. ``where`` names it in the message.
    """
    try:
        document = json.loads(data)
        claimed = document.pop(_FIELD)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CorruptStoreError(
            f"{where} is damaged: it is not the JSON document that was written ({error!r}). "
            "Run 'interp-embed verify' on the store and restore this object from a copy"
        ) from error
    if claimed != digest(document):
        raise CorruptStoreError(
            f"{where} is damaged: its content does not match its checksum. "
            "Run 'interp-embed verify' on the store and restore this object from a copy"
        )
    return dict(document)
