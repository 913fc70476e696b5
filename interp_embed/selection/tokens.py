"""The activations of a selection's tokens as matrices in memory, one per document."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from interp_embed.aggregate.matrices import entries, feature_count, unavailable
from interp_embed.core.memory import require_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interp_embed.selection.selection import Selection

__all__ = ["dense_tokens", "sparse_tokens"]


def sparse_tokens(selection: Selection) -> list[csr_matrix]:
    """Return one matrix per document, shape (tokens, features); one row of NaN without activations.

    Raises
    ------
    ResultTooLargeError
        If they would not fit in memory; nothing is read then.
    """
    width = feature_count(selection.store)
    absent = unavailable(selection.store, selection.documents)
    tokens = int(selection.store.n_tokens(selection.documents).sum())
    # A column and a value an entry, a pointer a token; NaN for what is not there.
    known = entries(selection.store, selection.documents, pooled=False)
    require_memory(
        8 * (known + width * int(absent.sum())) + 4 * (tokens + 2 * len(absent)),
        f"sparse activations of {tokens} tokens",
        "Select fewer documents, for instance dataset[:1000], or look at documents one by "
        "one through .rows",
    )
    return _matrices(selection, absent, width)


def dense_tokens(selection: Selection) -> NDArray[np.object_]:
    """Return an array of dense matrices, as `sparse_tokens`."""
    width = feature_count(selection.store)
    absent = unavailable(selection.store, selection.documents)
    tokens = int(selection.store.n_tokens(selection.documents).sum())
    require_memory(
        4 * width * (tokens + int(absent.sum())),
        f"dense activations of {tokens} tokens x {width} features",
        "Pass compress=True, or look at documents one by one through .rows",
    )
    out = np.empty(len(selection), object)
    for position, matrix in enumerate(_matrices(selection, absent, width)):
        out[position] = matrix.toarray()
    return out


def _matrices(selection: Selection, absent: NDArray[np.bool_], width: int) -> list[csr_matrix]:
    empty = np.full((1, width), np.nan, np.float32)
    return [
        csr_matrix(empty) if missing else selection.store.document(document)[0]
        for document, missing in zip(selection.documents.tolist(), absent.tolist(), strict=True)
    ]
