"""The right value of every number: dense float64 numpy, straight from the definitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from interp_embed.core.chunk import DocumentStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from interp_embed.core.chunk import Chunk

__all__ = ["dense", "oracle"]

Method = Literal["max", "mean", "sum", "binarize", "count", "nnz", "var"]


def dense(chunk: Chunk) -> list[NDArray[np.float64] | None]:
    """Return each document's activations, shape (n_tokens, d_sae); None for one that failed."""
    documents: list[NDArray[np.float64] | None] = []
    for position in range(chunk.n_documents):
        if chunk.status[position] == DocumentStatus.FAILED:
            documents.append(None)
            continue
        first, last = int(chunk.doc_ptr[position]), int(chunk.doc_ptr[position + 1])
        matrix = np.zeros((last - first, chunk.d_sae))
        for row, token in enumerate(range(first, last)):
            for entry in range(int(chunk.token_ptr[token]), int(chunk.token_ptr[token + 1])):
                matrix[row, chunk.feature[entry]] = chunk.activation[entry]
        documents.append(matrix)
    return documents


def oracle(
    documents: Sequence[NDArray[np.float64] | None],
    method: Method,
    threshold: float = 0.0,
    *,
    d_sae: int | None = None,
) -> NDArray[np.float64]:
    """Return the aggregate of each document.

    Parameters
    ----------
    documents
        The result of `dense`.
    method : {"max", "mean", "sum", "binarize", "count", "nnz", "var"}
        Over a document's tokens; a token without the feature has activation 0. ``binarize`` is 1 if
        some token exceeds ``threshold``, ``count`` the number of tokens that do; ``nnz`` is the number
        of tokens that are not 0, ``var`` the mean squared deviation from the mean.
    threshold
        For ``binarize`` and ``count``.
    d_sae
        Number of features; needed only if every document failed.

    Returns
    -------
    ndarray of float64, shape (documents, d_sae)
        Zeros for a document without tokens, NaN for one that failed.
    """
    width = next((m.shape[1] for m in documents if m is not None), d_sae)
    if width is None:
        raise ValueError("d_sae must be given if every document failed, got None")
    out = np.full((len(documents), width), np.nan)
    for row, matrix in zip(out, documents, strict=True):
        if matrix is None:
            continue
        row[:] = 0
        if len(matrix) == 0:
            continue
        if method == "max":
            row[:] = matrix.max(axis=0)
        elif method == "mean":
            row[:] = matrix.mean(axis=0)
        elif method == "sum":
            row[:] = matrix.sum(axis=0)
        elif method == "binarize":
            row[:] = (matrix > threshold).any(axis=0)
        elif method == "count":
            row[:] = (matrix > threshold).sum(axis=0)
        elif method == "nnz":
            row[:] = (matrix != 0).sum(axis=0)
        elif method == "var":
            row[:] = matrix.var(axis=0)
        else:
            raise ValueError(
                "method must be one of 'max', 'mean', 'sum', 'binarize', 'count', 'nnz', "
                "'var', "
                f"got {method!r}"
            )
    return out
