"""The wire format, version 1: the common part of its two forms, Arrow and JSON.

Both sides use this module. Everything read is checked like a file that may be damaged;
``docs/reference/http-protocol.md`` describes the format for other implementations.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.chunk import Chunk, DocumentStatus, feature_dtype
from interp_embed.sae.remote.checks import check_chunk, fail
from interp_embed.sae.remote.transport import ForeignAnswerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "ARROW", "JSON", "PROTOCOL", "Header", "finished", "header_of", "parse_header", "parse_json",
    "statuses", "strings",
]  # fmt: skip

PROTOCOL = 1
ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"
_MOST_FEATURES = 2**31


@dataclass(frozen=True, slots=True)
class Header:
    """The header before the documents.

    Attributes
    ----------
    sae : str
        Identifies the SAE and its settings: a digest of its fingerprint.
    d_sae : int
        Number of features; 0 if no token was encoded and it is not known.
    """

    sae: str
    d_sae: int


def parse_json(body: bytes | str, what: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises
    ------
    ForeignAnswerError
        If it is not JSON at all.
    BadAnswerError
        If it is not an object, or holds NaN or infinity, which JSON does not have.
    """

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a number of JSON")

    try:
        found = json.loads(body, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        begins = body[:40] if isinstance(body, bytes) else body[:40].encode()
        message = f"{what} is not JSON ({error}); it begins {begins!r}"
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
            raise ForeignAnswerError(message) from error
        fail(message)
    if not isinstance(found, dict):
        fail(f"{what} is a JSON {type(found).__name__}, expected an object")
    return found


def header_of(chunk: Chunk, sae: str, *, reasons: bool) -> dict[str, Any]:
    """Return the header before the documents, with the ``reasons`` of failures if requested."""
    said: dict[str, Any] = {
        "protocol": PROTOCOL,
        "sae": sae,
        "d_sae": chunk.d_sae,
        "vocabulary": {str(k): v for k, v in chunk.vocabulary.items()},
    }
    if reasons:
        said["reasons"] = {str(k): v for k, v in chunk.reasons.items()}
    return said


def parse_header(
    said: Mapping[str, Any], n_documents: int
) -> tuple[Header, dict[int, str], dict[int, str]]:
    """Return the header, the vocabulary, and the reasons by position."""
    if said.get("protocol") != PROTOCOL:
        fail(f"'protocol' is {said.get('protocol')!r:.40}, expected {PROTOCOL}")
    sae, width = said.get("sae"), said.get("d_sae")
    if not isinstance(sae, str):
        fail(f"'sae' is {sae!r:.40}, expected a string")
    if isinstance(width, bool) or not isinstance(width, int) or not 0 <= width <= _MOST_FEATURES:
        fail(f"'d_sae' is {width!r:.40}, expected a number of features")
    vocabulary = strings(said.get("vocabulary", {}), "vocabulary", 2**32)
    reasons = strings(said.get("reasons", {}), "reasons", n_documents)
    return Header(sae, width), vocabulary, reasons


def strings(found: Any, name: str, most: int) -> dict[int, str]:
    """Return an object whose keys are numbers below ``most`` and whose values are strings."""
    if not isinstance(found, dict):
        fail(f"{name!r} is {found!r:.40}, expected an object")
    for key, value in found.items():
        if not (key.isascii() and key.isdigit() and len(key) < 12 and int(key) < most):
            fail(f"{name!r} has the key {key!r:.40}, expected a number below {most}")
        if not isinstance(value, str):
            fail(f"{name!r} has {value!r:.40} under {key}, expected a string")
    return {int(key): value for key, value in found.items()}


def statuses(truncated: NDArray[np.bool_], reasons: Mapping[int, str]) -> NDArray[np.uint8]:
    """Return the status of each document; those with a reason failed."""
    status = np.where(truncated, DocumentStatus.TRUNCATED, DocumentStatus.OK).astype(np.uint8)
    status[list(reasons)] = DocumentStatus.FAILED
    return status


def finished(chunk: Chunk, texts: Sequence[str]) -> Chunk:
    """Return the chunk, checked, with feature ids as small as its width allows."""
    check_chunk(chunk, texts)
    return replace(chunk, feature=chunk.feature.astype(feature_dtype(chunk.d_sae)))
