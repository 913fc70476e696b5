"""Ordering documents by activations. Ties always keep document order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["by_features", "extreme"]


def extreme(
    values: NDArray[np.floating], k: int, *, highest: bool, inactive: bool
) -> NDArray[np.int64]:
    """Return the positions of the ``k`` highest or lowest values, the most extreme first.

    Parameters
    ----------
    values
        One per document; NaN for documents without activations, which are never returned.
    k
        Maximum number of documents.
    highest
        Highest first; otherwise lowest first.
    inactive
        Also consider zeros.
    """
    candidates = np.flatnonzero(~np.isnan(values) & ((values != 0) | inactive))
    keys = -values[candidates] if highest else values[candidates]
    return candidates[np.argsort(keys, kind="stable")[:k]]


def by_features(
    values: NDArray[np.floating], *, descending: bool, inactive: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Order documents by the highest nonzero activation among some features.

    Parameters
    ----------
    values
        Shape (documents, features); NaN for documents without activations.
    descending
        Highest first.
    inactive
        Keep documents in which no feature is active.

    Returns
    -------
    order : ndarray of int64
        Positions of the documents.
    activation : ndarray of float64
        In that order: the highest activation, 0 where no feature is active, NaN where none is known.
    best : ndarray of int64
        In that order: the column of the highest activation, -1 where no feature is active.
    """
    unknown = np.isnan(values).any(axis=1)
    active = (values != 0) & ~unknown[:, None]
    ranked = np.where(active, values, -np.inf)
    best = np.where(active.any(axis=1), ranked.argmax(axis=1), -1)
    activation = np.where(best >= 0, ranked.max(axis=1), 0.0)
    activation[unknown] = np.nan
    hit = np.flatnonzero(best >= 0)
    hit = hit[np.argsort(-activation[hit] if descending else activation[hit], kind="stable")]
    order = hit
    if inactive:
        silent = np.flatnonzero((best < 0) & ~unknown)
        groups = [hit, silent] if descending else [silent, hit]
        order = np.concatenate([*groups, np.flatnonzero(unknown)])
    return order, activation[order], best[order]
