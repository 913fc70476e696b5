"""The reductions as data: from a document's tokens to one number a feature.

Each says which stored level answers it and how. To add one, add an entry to `REDUCTIONS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

__all__ = ["REDUCTIONS", "Reduction", "check_method", "check_threshold"]


@dataclass(frozen=True, slots=True)
class Reduction:
    """How tokens become a document.

    Attributes
    ----------
    name : str
        What callers say.
    arrays : tuple of str
        Arrays of the document level that are read.
    finalize : callable
        ``finalize(arrays, n_tokens, threshold)`` returns one value for each entry of the document
        level; ``n_tokens`` is the number of tokens of the entry's document. Zeros are dropped later.
    uses_threshold : bool
        Whether ``activated_threshold`` matters.
    needs_tokens : callable
        ``needs_tokens(threshold)``: whether the document level cannot answer, so that the tokens'
        activations above the threshold are counted instead.
    """

    name: str
    arrays: tuple[str, ...]
    finalize: Callable[[Mapping[str, NDArray[Any]], NDArray[np.int64], float], NDArray[Any]]
    uses_threshold: bool = False
    needs_tokens: Callable[[float], bool] = lambda _: False


REDUCTIONS: Mapping[str, Reduction] = {
    r.name: r
    for r in (
        Reduction("max", ("max",), lambda a, n, t: a["max"]),
        Reduction("sum", ("sum",), lambda a, n, t: a["sum"]),
        Reduction("mean", ("sum",), lambda a, n, t: a["sum"] / n),
        # A float64 threshold: a Python float would be rounded to the dtype of the array.
        Reduction(
            "binarize", ("max",), lambda a, n, t: a["max"] > np.float64(t), uses_threshold=True
        ),
        Reduction(
            "count",
            ("positive",),
            lambda a, n, t: a["positive"],
            uses_threshold=True,
            needs_tokens=lambda threshold: threshold != 0,
        ),
    )
}


def check_method(method: str, *, also: tuple[str, ...] = ()) -> str:
    """Return ``method`` if it names a reduction or one of ``also``.

    Raises
    ------
    ValueError
        If it does not.
    """
    known = [*REDUCTIONS, *also]
    if method not in known:
        raise ValueError(f"aggregation method must be one of {known}, got {method!r}")
    return method


def check_threshold(threshold: float) -> float:
    """Return ``threshold`` as a float.

    Raises
    ------
    ValueError
        If it is negative or not a number. Every feature is 0 on nearly every token, so a negative
        threshold would mark everything and nothing could stay sparse.
    """
    value = float(threshold)
    if not value >= 0:
        raise ValueError(
            f"activated_threshold must be 0 or more, got {threshold!r}: an absent feature counts as "
            "0, which is above any negative threshold"
        )
    return value
