"""JSON documents that notice their own corruption.

A flipped bit in a shape or in an attribute is as dangerous as one in the data. Every JSON document
that the store relies on carries the SHA-256 of itself, so that reading one either gives what was
written or fails.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from interp_embed.errors import CorruptStoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["canonical", "digest", "read_entries", "seal", "seal_entries", "text_digest", "unseal"]

_FIELD = "checksum"
_INDENTED = 2**16
"""Characters up to which a document is indented throughout; the encoder that indents is the slow one."""
_LAST_LINE = re.compile(rf'}},"{_FIELD}":"([0-9a-f]{{64}})"}}')
_NAME = re.compile(r'"([^"\\]*)":')

# Made once, as `json.dumps` makes one a call where it is told anything.
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode
_compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


def canonical(value: Any) -> str:
    """Return a JSON value as the text that digests are of, independent of the order of its keys."""
    return _canonical(value)


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of its keys."""
    return text_digest(canonical(value))


def seal(document: dict[str, Any]) -> bytes:
    """Serialise ``document`` with its checksum under ``checksum``."""
    body = json.loads(json.dumps(document))  # tuples and int keys as a reader will see them
    text = canonical(body)
    sealed = {**body, _FIELD: text_digest(text)}
    if len(text) <= _INDENTED:
        return json.dumps(sealed, indent=1).encode()
    members = (f"{_compact(name)}:{_by_line(member)}" for name, member in sealed.items())
    return ("{\n" + ",\n".join(members) + "\n}").encode()


def _by_line(value: Any) -> str:
    """Return a JSON value with each of its members on a line of its own."""
    if isinstance(value, dict) and value:
        members = (f"{_compact(name)}:{_compact(member)}" for name, member in value.items())
        return "{\n" + ",\n".join(members) + "\n}"
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(map(_compact, value)) + "\n]"
    return _compact(value)


def seal_entries(field: str, entries: Mapping[str, str]) -> bytes:
    """Serialise ``{field: entries}`` with its checksum, one entry a line, as `seal` might.

    As the lines joined are the text that the checksum is of, nothing is encoded again, neither here
    nor in `read_entries`.

    Parameters
    ----------
    field
        The document's only key.
    entries
        Names, and values as `canonical` texts.
    """
    begin, end = _around(field)
    lines = [f"{canonical(name)}:{text}" for name, text in sorted(entries.items())]
    checksum = text_digest(begin + ",".join(lines) + end)
    return "\n".join([begin, ",\n".join(lines), f'}},"{_FIELD}":"{checksum}"}}']).encode()


def read_entries(field: str, data: bytes, where: str) -> dict[str, str]:
    """Return the entries of what `seal_entries` wrote, or `seal` of a document with such entries.

    Parameters
    ----------
    field
        The key under which they are.
    data, where
        As for `unseal`.

    Returns
    -------
    dict of str to str
        Names, and values as `canonical` texts.

    Raises
    ------
    CorruptStoreError
        As `unseal`, and if there is nothing of that kind under ``field``.
    """
    found = _as_written(field, data)
    if found is None:  # in another layout, or damaged
        entries = unseal(data, where).get(field)
        if not isinstance(entries, dict):
            raise CorruptStoreError(
                f"{where} is damaged: it holds no {field} by name. "
                "Run 'interp-embed verify' on the store and restore this object from a copy"
            )
        found = {name: canonical(value) for name, value in entries.items()}
    return found


def _around(field: str) -> tuple[str, str]:
    """Return what stands before the entries of a document and after them."""
    return f"{{{canonical(field)}:{{", "}}"


def _as_written(field: str, data: bytes) -> dict[str, str] | None:
    """Return the entries if the bytes are undamaged output of `seal_entries`; None otherwise."""
    begin, end = _around(field)
    try:
        first, *lines, last = data.decode("ascii").split("\n")
    except (UnicodeDecodeError, ValueError):
        return None
    claimed = _LAST_LINE.fullmatch(last)
    # A line break in JSON never is part of a value, so without them this is the text that was sealed.
    if first != begin or claimed is None:
        return None
    if text_digest("".join([begin, *lines, end])) != claimed[1]:
        return None
    entries = {}
    for line in lines:
        if (name := _NAME.match(line)) is None:
            return None
        entries[name[1]] = line[name.end() :].removesuffix(",")
    return entries


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
