"""Which features tell two data sets apart, with the uncertainty of each difference.

Owns the comparison of feature frequencies. The difference is the one of "Interpretable embeddings
with sparse autoencoders" (arXiv:2512.10092, section on data set diffing): with ``b_f(d)`` = 1 where
feature ``f`` is active in document ``d``, ``mean over A of b_f`` minus ``mean over B of b_f``. The
interval, the test and the correction for having tested every feature are added here, because
among tens of thousands of features some differ by chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from scipy.special import chdtrc, ndtri

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray
    from scipy.sparse import csr_matrix

__all__ = ["Binarized", "diff", "newcombe_interval"]

COLUMNS = (
    "feature", "label", "share_a", "share_b", "difference", "low", "high",
    "p_value", "q_value", "n_a", "n_b",
)  # fmt: skip


class Binarized(Protocol):
    """What `diff` asks of a data set; ``interp_embed.Dataset`` is one."""

    def latents(
        self,
        aggregation_method: str = ...,
        *,
        compress: bool = ...,
        activated_threshold: float = ...,
    ) -> Any:
        """Return a csr_matrix (documents, d_sae) of 0 and 1; NaN rows for failed documents."""

    def feature_labels(self) -> Mapping[int, str]:
        """Return the labels of features, as far as they are known."""


def diff(
    a: Binarized,
    b: Binarized,
    *,
    threshold: float = 0.0,
    min_difference: float = 0.03,
    k: int | None = 200,
) -> pd.DataFrame:
    """Return the features whose share of active documents differs most between ``a`` and ``b``.

    Parameters
    ----------
    a, b
        Two data sets of one SAE. Documents that failed to encode are left out of both the counts
        and the totals.
    threshold
        A feature is active in a document if its largest activation there is above this.
    min_difference
        Leave out features whose shares differ by less than this.
    k
        Maximum number of features; None for all. The default values are the paper's.

    Returns
    -------
    DataFrame
        One row per feature, the largest absolute difference first, ties in order of features:
        ``feature``; ``label`` (empty if unknown); ``share_a`` and ``share_b``, the shares of
        documents in which it is active; ``difference``, their difference; ``low`` and ``high``, its
        95 % interval (see `newcombe_interval`); ``p_value`` of the two-sided two-proportion test
        (chi-squared with pooled variance, no continuity correction); ``q_value``, the same after
        Benjamini and Hochberg's control of the false discovery rate over every feature that is
        active anywhere in ``a`` or ``b``; ``n_a`` and ``n_b``, the numbers of documents.

    Raises
    ------
    TypeError
        If one of them is not a data set.
    ValueError
        If the two do not have the same number of features, or one has no documents.

    Notes
    -----
    The intervals are for one feature at a time. To decide which of many differ, use ``q_value``: among
    the features with ``q_value < 0.05``, at most 5 % are expected to be chance.

    References
    ----------
    .. [1] "Interpretable embeddings with sparse autoencoders: a data analysis toolkit",
       arXiv:2512.10092, section on data set diffing.
    .. [2] Y. Benjamini and Y. Hochberg, "Controlling the false discovery rate", Journal of the
       Royal Statistical Society B 57 (1995), 289-300.
    """
    from scipy.stats import false_discovery_control  # here, for it takes a while to import

    for name, given in (("a", a), ("b", b)):
        if not hasattr(given, "latents"):
            raise TypeError(f"{name} must be a Dataset, got {type(given).__name__}: {given!r:.60}")
    active_a, n_a = _count(a, threshold)
    active_b, n_b = _count(b, threshold)
    if len(active_a) != len(active_b):
        raise ValueError(
            f"a and b must be data sets of the same SAE, got {len(active_a)} features in the first "
            f"and {len(active_b)} in the second"
        )
    for name, documents in (("first", n_a), ("second", n_b)):
        if documents == 0:
            raise ValueError(f"the {name} data set has no encoded documents to compare")

    feature = np.flatnonzero(active_a + active_b)
    active_a, active_b = active_a[feature], active_b[feature]
    difference = active_a / n_a - active_b / n_b
    p_value = _two_proportion_test(active_a, n_a, active_b, n_b)
    q_value = false_discovery_control(p_value) if len(p_value) else p_value

    # A difference of exactly the minimum should not depend on how a fraction is rounded.
    large = np.flatnonzero(np.abs(difference) >= min_difference * (1 - 1e-12))
    chosen = large[np.argsort(-np.abs(difference[large]).round(12), kind="stable")][:k]
    low, high = newcombe_interval(active_a[chosen], n_a, active_b[chosen], n_b)
    labels = {**b.feature_labels(), **a.feature_labels()}
    return pd.DataFrame(
        {
            "feature": feature[chosen],
            "label": pd.Series([labels.get(int(f), "") for f in feature[chosen]], dtype=object),
            "share_a": active_a[chosen] / n_a,
            "share_b": active_b[chosen] / n_b,
            "difference": difference[chosen],
            "low": low,
            "high": high,
            "p_value": p_value[chosen],
            "q_value": q_value[chosen],
            "n_a": np.full(len(chosen), n_a),
            "n_b": np.full(len(chosen), n_b),
        },
        columns=list(COLUMNS),
    )


def newcombe_interval(
    x1: ArrayLike, n1: ArrayLike, x2: ArrayLike, n2: ArrayLike, confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a confidence interval for the difference of two independent proportions.

    Newcombe's hybrid score interval: the Wilson intervals of the two proportions, combined. Unlike
    the textbook interval it holds its level for shares near 0 and 1, where most features are, and
    never leaves [-1, 1].

    Parameters
    ----------
    x1, n1, x2, n2
        Successes and trials, numbers or arrays that broadcast; trials at least 1.
    confidence
        Level of the interval.

    Returns
    -------
    low, high : ndarray of float64
        Bounds of ``x1 / n1 - x2 / n2``.

    References
    ----------
    .. [1] R. G. Newcombe, "Interval estimation for the difference between independent proportions:
       comparison of eleven methods", Statistics in Medicine 17 (1998), 873-890, method 10.
    """
    z = float(ndtri(0.5 + confidence / 2))
    p1, low1, high1 = _wilson(x1, n1, z)
    p2, low2, high2 = _wilson(x2, n2, z)
    difference = p1 - p2
    low = difference - np.hypot(p1 - low1, high2 - p2)
    high = difference + np.hypot(high1 - p1, p2 - low2)
    return np.maximum(low, -1.0), np.minimum(high, 1.0)


def _wilson(
    x: ArrayLike, n: ArrayLike, z: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return a proportion and the bounds of its Wilson score interval."""
    x, n = np.asarray(x, np.float64), np.asarray(n, np.float64)
    p = x / n
    centre = x + z * z / 2
    half = z * np.sqrt(x * (1 - p) + z * z / 4)
    total = n + z * z
    return p, np.minimum((centre - half) / total, p), np.maximum((centre + half) / total, p)


def _two_proportion_test(
    x1: NDArray[np.int64], n1: int, x2: NDArray[np.int64], n2: int
) -> NDArray[np.float64]:
    """Return two-sided p-values of equal proportions; 1 where a feature is active everywhere."""
    pooled = (x1 + x2) / (n1 + n2)
    variance = pooled * (1 - pooled) * (1 / n1 + 1 / n2)
    difference = x1 / n1 - x2 / n2
    squared = np.divide(difference**2, variance, out=np.zeros_like(variance), where=variance > 0)
    return np.asarray(chdtrc(1, squared), np.float64)


def _count(dataset: Binarized, threshold: float) -> tuple[NDArray[np.int64], int]:
    """Return the number of documents in which each feature is active, and of documents encoded."""
    matrix: csr_matrix | None = dataset.latents(
        "binarize", compress=True, activated_threshold=threshold
    )
    if matrix is None or matrix.shape is None:
        raise ValueError("cannot compare a data set that has no documents")
    documents, d_sae = matrix.shape
    active = matrix.data > 0  # which NaN is not
    failed = np.zeros(documents, np.bool_)
    failed[np.repeat(np.arange(documents), np.diff(matrix.indptr))[np.isnan(matrix.data)]] = True
    counts = np.bincount(matrix.indices[active], minlength=d_sae).astype(np.int64)
    return counts, documents - int(failed.sum())
