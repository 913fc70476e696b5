"""Refusing to mix activations of different models, settings or texts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from interp_embed.core.recorded_names import current_name
from interp_embed.errors import FingerprintMismatchError
from interp_embed.store.format.sealed import digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from interp_embed.store.format.document_blocks import DocumentBlock
    from interp_embed.store.store import Store

__all__ = ["check_fingerprint", "encoder_digest", "fingerprint_differences", "merge"]

_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


def fingerprint_differences(
    stored: Mapping[str, Any], given: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Return the parts that both fingerprints have and that differ: name, stored, given.

    Two names of one class, see `interp_embed.core.recorded_names`, are no difference.
    """
    flat_stored, flat_given = _flatten(stored), _flatten(given)
    return [
        (name, flat_stored[name], value)
        for name, value in flat_given.items()
        if name in flat_stored and _compared(name, flat_stored[name]) != _compared(name, value)
    ]


def _compared(name: str, value: Any) -> Any:
    """Return a part of a fingerprint in the form in which it is compared."""
    names_class = name.rpartition(".")[2] == "class" and isinstance(value, str)
    return current_name(value) if names_class else value


def encoder_digest(fingerprint: Mapping[str, Any]) -> str:
    """Return the digest by which a commit records the settings that encoded its documents."""
    return digest({name: value for name, value in fingerprint.items() if name != "documents"})


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, part in value.items():
        if isinstance(part, dict):
            flat |= _flatten(part, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = part
    return flat


def check_fingerprint(
    store: Store,
    given: Mapping[str, Any],
    blocks: Iterator[DocumentBlock] | None = None,
    *,
    n_documents: int | None = None,
    in_memory: bool = False,
) -> None:
    """Refuse to continue a run that was made with another SAE, other settings or other documents.

    Parameters
    ----------
    store
        The store.
    given
        The fingerprint of the run.
    blocks
        The documents that were given, cut as `interp_embed.store.format.document_blocks` cuts them. They are compared
        block by block, up to the first that differs.
    n_documents
        Number of documents, if it is known without reading them.
    in_memory
        Whether reading the documents is so cheap that it is worth doing although the settings differ.

    Raises
    ------
    FingerprintMismatchError
        Naming each part that differs, with both values, or which documents.
    """
    differences = fingerprint_differences(store.attributes["fingerprint"], given)
    parts = [f"{name}: stored {_short(a)}, given {_short(b)}" for name, a, b in differences]
    if blocks is not None and (in_memory or not parts):
        parts += _document_differences(store, blocks, n_documents)
    if parts:
        raise FingerprintMismatchError(
            f"the store at {store.storage.url} was made with other documents, another SAE or other "
            f"settings, so its activations would not match new ones. Differences: {'; '.join(parts)}. "
            "Use what the store was made with, or give the store another path"
        )


def _document_differences(
    store: Store, blocks: Iterator[DocumentBlock], n_documents: int | None
) -> list[str]:
    """Return the differences of the first documents that differ."""
    if n_documents is not None and n_documents != store.n_documents:
        return [_numbers(store, f"{n_documents:,}")]
    stop = 0
    planned = iter(store.plan.blocks)
    for block in blocks:
        start, stop = stop, stop + len(block.frame)
        expected = next(planned, None)
        if expected is None:
            if start == stop:
                continue
            return [_numbers(store, f"more than {start:,}")]
        if stop < expected.stop and next(blocks, None) is None:
            return [_numbers(store, f"{stop:,}")]
        names = {"text": "the texts", "columns": "columns other than the text"}
        parts = [
            f"{said} of documents {start:,} to {max(start, min(stop, expected.stop) - 1):,}"
            for name, said in names.items()
            if block.hashes[name] != expected.hashes[name]
        ]
        if parts:
            return parts
    return [_numbers(store, f"{stop:,}")] if stop < store.n_documents else []


def _numbers(store: Store, given: str) -> str:
    return f"the documents ({store.n_documents:,} stored, {given} given)"


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
