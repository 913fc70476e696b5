"""Refusing to mix activations of different models, settings or texts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from interp_embed.errors import FingerprintMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interp_embed.store.reader import Store

__all__ = ["check_fingerprint", "fingerprint_differences", "merge"]

_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


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


def merge(known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``known`` with what only ``given`` has."""
    merged = dict(known)
    for name, value in given.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = merge(merged[name], value)
        else:
            merged.setdefault(name, value)
    return merged
