"""The reductions as data: each turns a document's tokens into one number per feature.

Each names the stored level that it is computed from, and how. To add one, add an entry to `REDUCTIONS`.
A document never spans two chunks, so rows of different chunks need not be combined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from interp_embed.kernels.token_reductions import TokenReducer

__all__ = ["REDUCTIONS", "Reduction", "check_method", "check_threshold"]


def _always(threshold: float) -> bool:
    return True


def _above_zero(threshold: float) -> bool:
    return threshold > 0


def _count_above() -> type[TokenReducer]:
    from interp_embed.kernels.token_reductions import CountAbove  # a compiler: not needed to read

    return CountAbove


def _variance() -> type[TokenReducer]:
    from interp_embed.kernels.token_reductions import Variance

    return Variance


@dataclass(frozen=True, slots=True)
class Reduction:
    """A way to aggregate the tokens of a document.

    Attributes
    ----------
    name : str
        The name that callers pass.
    arrays : tuple of str
        Arrays of the document level that are read; see `StoredChunk.pooled`.
    finalize : callable, optional
        ``finalize(arrays, n_tokens, threshold)`` returns one value for each entry of the document
        level. Zeros are dropped later.
    uses_n_tokens : bool
        Whether ``finalize`` looks at ``n_tokens``, the number of tokens of each entry's document.
    gives_zeros : bool
        Whether an entry that is above zero may be finalised to zero.
    gives_integers : bool
        Whether values are integers from 0 on.
    uses_threshold : bool
        Whether ``activated_threshold`` has an effect.
    tokens : callable, optional
        Returns the class that computes the reduction from the tokens.
    needs_tokens : callable
        ``needs_tokens(threshold)``: whether ``tokens`` is needed because the document level is not enough.
    """

    name: str
    arrays: tuple[str, ...] = ()
    finalize: (
        Callable[[Mapping[str, NDArray[Any]], NDArray[np.float32] | None, float], NDArray[Any]]
        | None
    ) = None
    uses_n_tokens: bool = False
    gives_zeros: bool = False
    gives_integers: bool = False
    uses_threshold: bool = False
    tokens: Callable[[], type[TokenReducer]] | None = None
    needs_tokens: Callable[[float], bool] = lambda _: False

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the name, so that the reduction can be sent to another process."""
        return _named, (self.name,)


REDUCTIONS: Mapping[str, Reduction] = {
    r.name: r
    for r in (
        Reduction("max", ("max",), lambda a, n, t: a["max"]),
        Reduction("sum", ("sum",), lambda a, n, t: a["sum"]),
        Reduction(
            "mean",
            ("sum",),
            lambda a, n, t: a["sum"] / n,
            uses_n_tokens=True,
            gives_zeros=True,  # the smallest numbers there are, divided
        ),
        Reduction(
            "binarize",
            ("max",),
            # A float64 threshold: a Python float would be rounded to the dtype of the array.
            lambda a, n, t: a["max"] > np.float64(t),
            gives_zeros=True,
            gives_integers=True,
            uses_threshold=True,
        ),
        Reduction(
            "count",
            ("positive",),
            lambda a, n, t: a["positive"],
            gives_integers=True,
            uses_threshold=True,
            tokens=_count_above,
            needs_tokens=_above_zero,
        ),
        Reduction("nnz", ("count",), lambda a, n, t: a["count"], gives_integers=True),
        Reduction("var", tokens=_variance, needs_tokens=_always),
    )
}


def _named(name: str) -> Reduction:
    return REDUCTIONS[name]


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
    TypeError
        If it is a string or a truth value.
    ValueError
        If it is negative or NaN. Every feature is 0 on nearly every token, so a negative
        threshold would mark everything and nothing could stay sparse.
    """
    # float() would take these too.
    if isinstance(threshold, str | bytes | bool | np.bool_):
        raise TypeError(f"activated_threshold must be a number, got {threshold!r}")
    value = float(threshold)
    if not value >= 0:
        raise ValueError(
            f"activated_threshold must be 0 or more, got {threshold!r}: an absent feature counts as "
            "0, which would be above any negative threshold"
        )
    return value
