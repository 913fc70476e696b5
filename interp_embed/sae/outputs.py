"""The results of an SAE's `tokenize` and `encode`, one row per token, from tables and chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp_embed.core.chunk import DocumentStatus
from interp_embed.core.spans import token_strings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scipy.sparse import csr_matrix

    from interp_embed.core.chunk import Chunk, TokenTable

__all__ = ["chunk_matrices", "id_rows", "string_rows"]


def string_rows(
    documents: Sequence[str],
    tables: Sequence[TokenTable],
    vocabulary: Mapping[int, str],
    *,
    padding: str | None = None,
) -> list[list[str]]:
    """Return the tokens of each document as strings.

    Parameters
    ----------
    documents : sequence of str
    tables : sequence of TokenTable
        The tokens of each; a document that cannot be encoded has none.
    vocabulary : mapping of int to str
        Strings of the special tokens' ids.
    padding : str, optional
        Put behind shorter documents, up to the longest.
    """
    rows = [
        token_strings(text, table, vocabulary) if len(table) else []
        for text, table in zip(documents, tables, strict=True)
    ]
    if padding is None:
        return rows
    width = max(map(len, rows), default=0)
    return [row + [padding] * (width - len(row)) for row in rows]


def id_rows(
    tables: Sequence[TokenTable], *, padding: int | None = None
) -> dict[str, list[list[int]]]:
    """Return the tokens of each document as ``input_ids``, with their ``attention_mask``.

    Parameters
    ----------
    tables : sequence of TokenTable
    padding : int, optional
        Put behind shorter documents, up to the longest; the mask is 0 there.
    """
    width = 0 if padding is None else max(map(len, tables), default=0)
    rests = [max(0, width - len(table)) for table in tables]
    return {
        "input_ids": [
            table.id.tolist() + [padding or 0] * rest
            for table, rest in zip(tables, rests, strict=True)
        ],
        "attention_mask": [
            [1] * len(table) + [0] * rest for table, rest in zip(tables, rests, strict=True)
        ],
    }


def chunk_matrices(chunk: Chunk) -> list[csr_matrix | None]:
    """Return one (n_tokens, d_sae) matrix per document; None for a document that failed."""
    return [
        None if status == DocumentStatus.FAILED else chunk.csr(i)
        for i, status in enumerate(chunk.status.tolist())
    ]
