"""Building a chunk from an SAE that offers only `tokenize` and `encode`.

A bad document fails alone: a batch that fails is tried again in halves, and a document whose tokens
and rows do not match, or whose values are not finite, is the only one that fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol
from zlib import crc32

import numpy as np
from scipy.sparse import csr_matrix

from interp_embed.core.bisect import Worklist
from interp_embed.core.chunk import Chunk, DocumentStatus, TokenTable
from interp_embed.core.spans import align_strings, reason_not_text
from interp_embed.errors import SAENotLoadedError, SAEUnavailableError
from interp_embed.sae.batch_budget import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["NOT_FINITE", "TextEncoder", "chunk_from_encode", "one_line"]

NOT_FINITE = "activations are not finite (NaN or infinity in the model or the SAE)"


class TextEncoder(Protocol):
    """The methods of `interp_embed.sae.BaseSAE` that a chunk is made from."""

    @property
    def d_sae(self) -> int | None:
        """Number of features; None until it is known."""

    def encode(self, texts: Sequence[str], /) -> Sequence[csr_matrix | None]:
        """Return one (n_tokens, d_sae) matrix per text; None for a text that failed."""

    def tokenize(self, documents: Sequence[str], /, as_tokens: bool = True) -> Any:
        """Return the tokens of each document as strings, or the tokenizer's output."""


def one_line(error: BaseException) -> str:
    """Return an error as one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def chunk_from_encode(sae: TextEncoder, texts: Sequence[object]) -> Chunk:
    """Return a chunk made from ``sae.encode`` and ``sae.tokenize``; see `BaseSAE.encode_chunk`."""
    reasons = {i: r for i, t in enumerate(texts) if (r := reason_not_text(t)) is not None}
    wanted = {i: t for i, t in enumerate(texts) if isinstance(t, str) and t}
    inputs = list(wanted.values())
    matrices = _isolated(sae.encode, inputs)
    strings = _isolated(lambda batch: sae.tokenize(batch), inputs)
    ids = _token_ids(sae, inputs)

    width = sae.d_sae
    documents: dict[int, tuple[csr_matrix, TokenTable, bool]] = {}
    vocabulary: dict[int, str] = {}
    for position, (number, text) in enumerate(wanted.items()):
        matrix, tokens = matrices[position], strings[position]
        reason = _mismatch(matrix, tokens, width)
        if reason is not None:
            reasons[number] = reason
            continue
        matrix = csr_matrix(matrix)
        width = matrix.shape[1]
        start, end, special = align_strings(text, tokens)
        known = ids[position] if ids is not None and len(ids[position]) == len(tokens) else None
        numbers = np.array(
            [crc32(t.encode(errors="surrogatepass")) for t in tokens] if known is None else known
        )
        table = TokenTable(numbers.astype(np.uint32), start, end, special)
        vocabulary |= {int(n): t for n, t, s in zip(table.id, tokens, special, strict=True) if s}
        reached = int(end.max(initial=0))
        documents[number] = matrix, table, 0 < reached < len(text)

    width = width or 0
    nothing = csr_matrix(np.empty((0, width), np.float32)), TokenTable.empty(), False
    every = [documents.get(i, nothing) for i in range(len(texts))]
    chunk = Chunk.from_documents(
        width,
        [m for m, _, _ in every],
        [t for _, t, _ in every],
        truncated=[cut for _, _, cut in every],
        vocabulary=vocabulary,
    )
    chunk.status[list(reasons)] = DocumentStatus.FAILED
    return Chunk(
        **{name: getattr(chunk, name) for name in Chunk.__dataclass_fields__ if name != "reasons"},
        reasons=reasons,
    )


def _mismatch(matrix: Any, tokens: Any, width: int | None) -> str | None:
    """Return why a document's activations and tokens cannot be used."""
    for result in (matrix, tokens):
        if isinstance(result, Exception):
            return one_line(result)
    if matrix is None:
        return "encode() returned None for this document"
    rows, columns = matrix.shape
    if rows != len(tokens):
        return (
            f"encode() returned {rows} rows but tokenize() returned {len(tokens)} tokens; there must "
            "be one row per token"
        )
    if width is not None and columns != width:
        return f"encode() returned {columns} features, but other documents have {width}"
    if not np.isfinite(csr_matrix(matrix).data).all():
        return NOT_FINITE
    return None


def _isolated(call: Callable[[list[str]], Any], inputs: list[str]) -> list[Any]:
    """Call with all inputs, or with ever fewer where that fails; exceptions stand for results."""
    results: list[Any] = []
    todo = Worklist(inputs)
    while todo:
        batch = list(todo.take(len(inputs)))
        try:
            found = list(call(batch))
            if len(found) != len(batch):
                raise ValueError(f"got {len(found)} results for {len(batch)} documents")
        except (SAENotLoadedError, SAEUnavailableError):
            raise  # no document is to blame
        except Exception as error:
            if len(batch) > 1 and is_out_of_memory(error):
                raise  # no document is to blame; whoever called makes the batches smaller
            found = [] if todo.split(batch) else [error]
        results += found
    return results


def _token_ids(sae: TextEncoder, inputs: list[str]) -> list[Sequence[int]] | None:
    """Return token ids, if the SAE has any to give."""
    try:
        ids = sae.tokenize(inputs, as_tokens=False)["input_ids"]
        return [[int(i) for i in document] for document in ids]
    except Exception:  # noqa: BLE001 - a subclass need not support ids; strings stand in for them
        return None
