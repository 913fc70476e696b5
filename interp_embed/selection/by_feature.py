"""Finding the documents of a selection where a feature is active, and how strong it is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interp_embed.aggregate import ranking
from interp_embed.aggregate.by_index import feature_columns, holders, top_documents
from interp_embed.aggregate.matrices import unavailable
from interp_embed.aggregate.reductions import REDUCTIONS, check_method
from interp_embed.core.checks import check_feature, check_features

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from interp_embed.selection.selection import Selection

__all__ = ["feature_values", "highlighted", "listed_top", "sorted_by_features", "top_positions"]

_ROWS = 256
"""Rows that are read at a time."""


def feature_values(
    selection: Selection, features: Sequence[int] | NDArray[np.int64], method: str, width: int
) -> NDArray[np.float32]:
    """Return some features' aggregates.

    Parameters
    ----------
    selection
        Which documents.
    features
        Feature indices, one or more.
    method
        A reduction's name.
    width
        Number of features of the SAE.

    Returns
    -------
    ndarray of float32, shape (documents, features)
        NaN for documents without activations.

    Raises
    ------
    TypeError
        If the features are not integers.
    IndexError
        If the SAE has no such feature.
    """
    check_method(method)
    columns = check_features(features, width)
    if len(columns) == 0:
        raise TypeError("features must be one or more integers, got none")
    unique, where = np.unique(columns, return_inverse=True)
    values = feature_columns(selection.store, selection.documents, unique, REDUCTIONS[method])
    return values[:, where]


def top_positions(
    selection: Selection,
    feature: int,
    width: int,
    *,
    method: str = "max",
    k: int = 10,
    highest: bool = True,
    inactive: bool = False,
) -> NDArray[np.int64]:
    """Return the positions of the documents in which a feature is strongest (or weakest).

    Ties keep document order. ``inactive`` also considers documents in which it is not active.
    """
    check_method(method)
    feature = check_feature(feature, width)
    if method == "max" and highest:
        listed = listed_top(selection, feature, k, inactive=inactive)
        if listed is not None:
            return listed
    values = feature_values(selection, [feature], method, width)[:, 0]
    return ranking.extreme(values, k, highest=highest, inactive=inactive)


def listed_top(
    selection: Selection, feature: int, k: int, *, inactive: bool = False
) -> NDArray[np.int64] | None:
    """Return the top documents that the index lists; None if the index does not know them."""
    found = top_documents(selection.store, selection.documents, feature, k)
    if found is None:
        return None
    positions, values = found
    # Documents in which the feature is not active rank before those where it is negative.
    if inactive and (len(positions) < k or values[-1] < 0):
        return None
    return positions


def highlighted(selection: Selection, feature: int, width: int) -> list[str | None]:
    """Return every text with the tokens on which a feature is active highlighted.

    Texts of documents that lack the feature are read without their activations, and end where the
    document was cut. None stands for documents without activations.
    """
    feature = check_feature(feature, width)
    found: list[str | None] = [None] * len(selection)
    held = holders(selection.store, selection.documents, feature)
    absent = unavailable(selection.store, selection.documents)
    if held is None:
        held = np.ones(len(selection), np.bool_)
    lacking = np.flatnonzero(~held & ~absent)
    ends = selection.store.encoded_characters(selection.documents[lacking])
    for position, text, end in zip(
        lacking.tolist(), selection.texts(lacking), ends.tolist(), strict=True
    ):
        found[position] = text[:end]
    holding = np.flatnonzero(held & ~absent)
    for begin in range(0, len(holding), _ROWS):
        positions = holding[begin : begin + _ROWS]
        for position, row in zip(positions.tolist(), selection.rows(positions), strict=True):
            found[position] = None if row is None else row.token_activations(feature)
    return found


def sorted_by_features(
    selection: Selection,
    features: Sequence[int],
    width: int,
    labels: Callable[[], Mapping[int, str]] | None,
    *,
    method: str = "max",
    descending: bool = True,
    inactive: bool = True,
) -> Selection:
    """Return the documents ordered by the highest activation among some features.

    With ``labels``, which returns the name of each feature, the result has the columns ``feature_activation``, ``top_feature_label`` and
    ``top_feature_index`` (-1 where none is active).
    """
    check_method(method)
    columns = check_features(features, width)
    values = feature_values(selection, columns, method, width)
    order, activation, best = ranking.by_features(values, descending=descending, inactive=inactive)
    if labels is None:
        return selection.take(order)
    index = np.append(columns, -1)[best]
    known = labels()
    names = ["NA" if f < 0 else known.get(f, "") for f in index.tolist()]
    return selection.take(
        order,
        {
            "feature_activation": activation,
            "top_feature_label": np.array(names, object),
            "top_feature_index": index,
        },
    )
