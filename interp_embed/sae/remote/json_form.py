"""Documents as JSON, the form of the wire format that every server has."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.chunk import Chunk, DocumentStatus, TokenTable
from interp_embed.sae.remote.checks import bits, decimals, fail, numbers
from interp_embed.sae.remote.wire import (
    Header,
    finished,
    header_of,
    parse_header,
    parse_json,
    statuses,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["decode_json", "encode_json"]


def encode_json(chunk: Chunk, sae: str) -> bytes:
    """Return documents as JSON; activations are read back as the same float32."""
    documents: list[dict[str, Any]] = []
    bounds, pointer = chunk.doc_ptr.tolist(), chunk.token_ptr.tolist()
    feature = chunk.feature.tolist()
    activation = chunk.activation.astype(np.float32, copy=False).tolist()
    for position, (first, last) in enumerate(pairwise(bounds)):
        if chunk.status[position] == DocumentStatus.FAILED:
            documents.append({"reason": chunk.reasons.get(position, "no reason was given")})
            continue
        spans = list(zip(pointer[first:last], pointer[first + 1 : last + 1], strict=True))
        documents.append(
            {
                "truncated": bool(chunk.status[position] == DocumentStatus.TRUNCATED),
                **{n: getattr(chunk.tokens, n)[first:last].tolist() for n in TokenTable.__slots__},
                "feature": [feature[a:b] for a, b in spans],
                "activation": [activation[a:b] for a, b in spans],
            }
        )
    return json.dumps({**header_of(chunk, sae, reasons=False), "documents": documents}).encode()


def decode_json(body: bytes, texts: Sequence[str]) -> tuple[Header, Chunk]:
    """Return the documents of a JSON answer; like `decode_arrow`."""
    said = parse_json(body, "the answer")
    documents = said.get("documents")
    if not isinstance(documents, list) or not all(isinstance(d, dict) for d in documents):
        fail("'documents' is not a list of objects")
    if len(documents) != len(texts):
        fail(f"{len(documents)} documents for {len(texts)} texts")
    reasons = {str(i): d["reason"] for i, d in enumerate(documents) if "reason" in d}
    header, vocabulary, failed = parse_header({**said, "reasons": reasons}, len(texts))
    tables: list[TokenTable] = []
    nnz: list[int] = []
    features: list[NDArray[np.uint32]] = []
    activations: list[NDArray[np.float32]] = []
    truncated = np.zeros(len(texts), np.bool_)
    for position, document in enumerate(documents):
        where = f"document {position}"
        if position in failed:
            tables.append(TokenTable.empty())
            continue
        cut = document.get("truncated", False)
        if not isinstance(cut, bool):
            fail(f"{where}: 'truncated' is {cut!r:.40}, expected true or false")
        truncated[position] = cut
        ids, start, end = (
            numbers(document.get(n), f"{where}: {n!r}") for n in TokenTable.__slots__[:3]
        )
        table = TokenTable(ids, start, end, bits(document.get("special"), f"{where}: 'special'"))
        found, values = (
            _lists(document.get(n), f"{where}: {n!r}") for n in ("feature", "activation")
        )
        sizes = {len(table.start), len(table.end), len(table.special), len(found), len(values)}
        if sizes != {len(table)}:
            fail(f"{where}: its lists have different lengths: {sorted(sizes | {len(table)})}")
        for token, (f, v) in enumerate(zip(found, values, strict=True)):
            if len(f) != len(v):
                fail(f"{where}: token {token} has {len(f)} features and {len(v)} activations")
        tables.append(table)
        nnz += map(len, found)
        features.append(numbers([n for f in found for n in f], f"{where}: 'feature'"))
        activations.append(decimals([n for v in values for n in v], f"{where}: 'activation'"))
    chunk = Chunk(
        d_sae=header.d_sae,
        doc_id=np.arange(len(texts)),
        status=statuses(truncated, failed),
        doc_ptr=_pointer([len(t) for t in tables]),
        token_ptr=_pointer(nnz),
        feature=np.concatenate([np.empty(0, np.uint32), *features]),
        activation=np.concatenate([np.empty(0, np.float32), *activations]),
        tokens=TokenTable.concatenate(tables),
        reasons=failed,
        vocabulary=vocabulary,
    )
    return header, finished(chunk, texts)


def _lists(found: Any, what: str) -> list[list[Any]]:
    if not isinstance(found, list) or not all(isinstance(row, list) for row in found):
        fail(f"{what} is not a list with one list per token")
    return found


def _pointer(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).astype(np.int64)
