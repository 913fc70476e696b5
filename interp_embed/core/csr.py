"""Rows of unequal length in flat arrays: selecting rows, and building CSR matrices from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["canonical_csr", "gather_ranges", "take_ranges", "trusted_csr"]

_LONG_RANGE = 128  # elements that are sooner copied than their numbers written down


def gather_ranges(start: NDArray[np.integer], stop: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return ``concatenate([arange(a, b) for a, b in zip(start, stop)])`` without the loop."""
    length = np.asarray(stop, np.int64) - np.asarray(start, np.int64)
    total = int(length.sum())
    first = np.concatenate([[0], np.cumsum(length)[:-1]]) if len(length) else length
    return np.repeat(np.asarray(start, np.int64) - first, length) + np.arange(total)


def trusted_csr(
    data: NDArray[np.float32],
    indices: NDArray[np.signedinteger[Any]],
    indptr: NDArray[np.signedinteger[Any]],
    shape: tuple[int, int],
) -> csr_matrix:
    """Return a CSR matrix of arrays that are known to be sorted and unique within rows.

    scipy's constructor checks and copies. For one document that takes longer than reading it.
    """
    matrix: Any = csr_matrix(shape, dtype=np.float32)  # type: ignore[arg-type]
    matrix.data, matrix.indices, matrix.indptr = data, indices, indptr
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    return matrix  # type: ignore[no-any-return]


def take_ranges(
    arrays: Sequence[NDArray[Any]], start: NDArray[np.int64], stop: NDArray[np.int64]
) -> list[NDArray[Any]]:
    """Return the ranges ``start[i]:stop[i]`` of each array end to end; a view where they adjoin."""
    if len(start) == 0:
        return [array[:0] for array in arrays]
    if np.array_equal(start[1:], stop[:-1]):
        whole = slice(int(start[0]), int(stop[-1]))
        return [array[whole] for array in arrays]
    if int((stop - start).sum()) >= _LONG_RANGE * len(start):  # copied whole, not one by one
        bounds = list(zip(start.tolist(), stop.tolist(), strict=True))
        return [np.concatenate([array[a:b] for a, b in bounds]) for array in arrays]
    index = gather_ranges(start, stop)
    return [array[index] for array in arrays]


def canonical_csr(matrix: csr_matrix, d_sae: int) -> csr_matrix:
    """Return ``matrix`` as float32 CSR with sorted, unique columns and no explicit zeros."""
    if matrix.shape[1] != d_sae:
        raise ValueError(
            f"activations must have one column per feature, got {matrix.shape[1]} columns for "
            f"{d_sae} features"
        )
    clean = csr_matrix(matrix, dtype=np.float32)
    if clean is matrix or np.shares_memory(clean.data, matrix.data):
        clean = clean.copy()
    clean.sum_duplicates()
    clean.eliminate_zeros()
    return clean
