"""Indexing documents: everything that may stand in the brackets of a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["positions_of"]


def positions_of(index: Any, n: int) -> NDArray[np.int64]:
    """Return the positions that a slice, mask, or array of integers selects among ``n``.

    Parameters
    ----------
    index
        A slice, a boolean mask of length ``n``, or integers (negative ones count from the end), as
        an array, a list or a pandas Series.
    n
        Number of documents.

    Raises
    ------
    TypeError
        If it is none of these.
    IndexError
        If a mask has another length or an integer is out of range.
    """
    if isinstance(index, slice):
        return np.arange(n, dtype=np.int64)[index]
    if isinstance(index, (list, pd.Series, pd.Index, range)):
        index = np.asarray(index)
        if index.size == 0:
            index = index.astype(np.int64)
        if index.dtype == object:  # a nullable boolean or a list of mixed types
            kinds = {type(v) for v in index.tolist()}
            if kinds <= {bool, np.bool_}:
                index = index.astype(np.bool_)
    if not isinstance(index, np.ndarray) or index.dtype.kind not in "biu":
        kind = index.dtype if isinstance(index, np.ndarray) else type(index).__name__
        raise TypeError(
            f"index must be an integer, a slice, a boolean mask or an array of integers, got {kind}"
        )
    if index.ndim != 1:
        raise IndexError(f"index must have one dimension, got shape {index.shape}")
    if index.dtype.kind == "b":
        if len(index) != n:
            raise IndexError(f"a mask of length {len(index)} does not fit {n} documents")
        return np.flatnonzero(index)
    bad = index[(index < -n) | (index >= n)]  # before a huge unsigned integer wraps around
    if len(bad):
        raise IndexError(f"document {int(bad[0])} is out of range for {n} documents")
    positions = index.astype(np.int64)
    return np.where(positions < 0, positions + n, positions)
