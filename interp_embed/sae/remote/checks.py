"""Checks of a server's answer, as strict as those of a file that may be damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from interp_embed.core.chunk import DocumentStatus
from interp_embed.sae.remote.transport import BadAnswerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from interp_embed.core.chunk import Chunk

__all__ = ["bits", "check_chunk", "decimals", "fail", "numbers"]

_MOST = 2**32 - 1


def fail(what: str) -> NoReturn:
    """Raise BadAnswerError; the caller that knows the URL adds it."""
    raise BadAnswerError(what)


def numbers(found: Any, what: str) -> NDArray[np.uint32]:
    """Return a list of JSON as numbers below 2**32.

    Raises
    ------
    BadAnswerError
        If it is anything else.
    """
    array = _array(found, what)
    if array.dtype.kind not in "iu" and array.size:
        fail(f"{what} must hold only integers below 2**32")
    if array.size and (int(array.min()) < 0 or int(array.max()) > _MOST):
        fail(f"{what} must hold only integers from 0 to 2**32 - 1")
    return array.astype(np.uint32)


def bits(found: Any, what: str) -> NDArray[np.bool_]:
    """Return a list of JSON as booleans; like `numbers`."""
    array = _array(found, what)
    if array.dtype.kind != "b" and array.size:
        fail(f"{what} must hold only true and false")
    return array.astype(np.bool_)


def decimals(found: Any, what: str) -> NDArray[np.float32]:
    """Return a list of JSON as float32; like `numbers`."""
    array = _array(found, what)
    if array.dtype.kind not in "iuf" and array.size:
        fail(f"{what} must hold only numbers")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _array(found: Any, what: str) -> NDArray[Any]:
    if not isinstance(found, list):
        fail(f"{what} is {'missing' if found is None else 'not a list'}")
    try:
        array = np.array(found)
    except (ValueError, OverflowError):
        fail(f"{what} is not a flat list")
    if array.ndim != 1:
        fail(f"{what} is not a flat list")
    if array.dtype.kind in "iuf" and bool in set(map(type, found)):  # numpy counts true as 1
        fail(f"{what} must hold only numbers")
    return array


def check_chunk(chunk: Chunk, texts: Sequence[str]) -> None:
    """Check what must hold between the arrays of a chunk, and between them and the texts.

    Raises
    ------
    BadAnswerError
        If one of these does not hold. The message says which, and in which document.
    """
    document = np.repeat(np.arange(chunk.n_documents), np.diff(chunk.doc_ptr))
    failed = chunk.status == DocumentStatus.FAILED
    if (wrong := failed & (np.diff(chunk.doc_ptr) > 0)).any():
        fail(f"document {int(wrong.argmax())} has both a reason for its failure and tokens")
    _check_activations(chunk, document)
    _check_spans(chunk, document, texts)


def _check_activations(chunk: Chunk, document: NDArray[np.int64]) -> None:
    feature = chunk.feature.astype(np.int64)
    token = np.repeat(np.arange(chunk.n_tokens), np.diff(chunk.token_ptr))
    if chunk.n_tokens and not chunk.d_sae:
        fail("there are tokens, but 'd_sae' is 0")

    def first(wrong: NDArray[np.bool_]) -> tuple[int, int]:
        at = int(wrong.argmax())
        return int(document[token[at]]), at

    if (wrong := feature >= chunk.d_sae).any():
        where, at = first(wrong)
        fail(f"document {where} has feature {feature[at]}, expected less than {chunk.d_sae}")
    unordered = (np.diff(feature) <= 0) & (np.diff(token) == 0)
    if unordered.any():
        where, _ = first(np.append(unordered, False))
        fail(f"document {where} has a token whose features are not in ascending order")
    if (wrong := ~np.isfinite(chunk.activation)).any():
        fail(f"document {first(wrong)[0]} has an activation that is not finite")
    if (wrong := chunk.activation == 0).any():
        fail(f"document {first(wrong)[0]} has an activation that is 0")


def _check_spans(chunk: Chunk, document: NDArray[np.int64], texts: Sequence[str]) -> None:
    """Check that the spans of ordinary tokens partition the text, from its beginning."""
    start, end = chunk.tokens.start.astype(np.int64), chunk.tokens.end.astype(np.int64)
    special = chunk.tokens.special
    if (wrong := special & ((start != 0) | (end != 0))).any():
        fail(f"document {int(document[wrong.argmax()])} gives text to a special token")
    start, end, document = start[~special], end[~special], document[~special]
    before = np.concatenate([[0], end[:-1]])[: len(end)]
    begins = np.diff(document, prepend=-1) > 0
    before[begins] = 0
    if (wrong := (start != before) | (end < start)).any():
        fail(f"document {int(document[wrong.argmax()])}: its spans do not partition its text")
    lengths = np.array([len(text) for text in texts], np.int64)[document]
    if (wrong := end > lengths).any():
        fail(f"document {int(document[wrong.argmax()])} has a token beyond the end of its text")
