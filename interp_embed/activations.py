"""A selection of documents, and which of them a feature is found in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self, overload

import numpy as np

from interp_embed.aggregate import ranking
from interp_embed.aggregate.by_index import (
    feature_columns,
    holders,
    top_documents,
)
from interp_embed.aggregate.matrices import (
    feature_count,
    unavailable,
)
from interp_embed.aggregate.reductions import REDUCTIONS, check_method
from interp_embed.inputs import check_positive
from interp_embed.latents import Latents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from interp_embed.selection.row import DatasetRow

__all__ = ["Activations"]

_ROWS = 256
"""Rows that are read at a time."""


class Activations(Latents):
    """Some documents of a store, and what their features do."""

    def _feature_values(self, features: Sequence[int], method: str) -> NDArray[np.float32]:
        """Return some features' aggregates, shape (documents, features)."""
        check_method(method)
        columns = np.asarray(features)
        if columns.ndim != 1 or columns.dtype.kind not in "iu" or len(columns) == 0:
            raise TypeError(f"features must be one or more integers, got {features!r}")
        width = self._width()
        if (bad := columns[(columns < 0) | (columns >= width)]).size:
            raise IndexError(f"feature {bad[0]} is not among the {width} features of the SAE")
        unique, where = np.unique(columns.astype(np.int64), return_inverse=True)
        values = feature_columns(self._store, self._documents, unique, REDUCTIONS[method])
        return values[:, where]

    def _width(self) -> int:
        return self.d_sae or feature_count(self._store)

    # Documents by activation

    @overload
    def top_documents_for_feature(
        self,
        feature: int,
        aggregation_type: str = "max",
        document_only: Literal[True] = True,
        k: int = 10,
        select_top: bool = True,
        include_nonactive_samples: bool = False,
    ) -> list[str]: ...
    @overload
    def top_documents_for_feature(
        self,
        feature: int,
        aggregation_type: str = "max",
        *,
        document_only: Literal[False],
        k: int = 10,
        select_top: bool = True,
        include_nonactive_samples: bool = False,
    ) -> list[DatasetRow]: ...
    def top_documents_for_feature(
        self,
        feature: int,
        aggregation_type: str = "max",
        document_only: bool = True,
        k: int = 10,
        select_top: bool = True,
        include_nonactive_samples: bool = False,
    ) -> list[str] | list[DatasetRow]:
        """Return the documents in which a feature is strongest (or weakest).

        Parameters
        ----------
        feature
            Feature index.
        aggregation_type
            How a document's tokens are aggregated; see `latents`.
        document_only
            Return texts with active tokens highlighted; otherwise rows.
        k
            How many documents at most.
        select_top
            Highest first; otherwise lowest first. Ties go by document order.
        include_nonactive_samples
            Also consider documents in which the feature is nowhere active.
        """
        check_positive(k=k)
        chosen = None
        if aggregation_type == "max" and select_top:
            chosen = self._listed_top(feature, k, include_nonactive_samples)
        if chosen is None:
            values = self._feature_values([feature], aggregation_type)[:, 0]
            chosen = ranking.extreme(
                values, k, highest=select_top, inactive=include_nonactive_samples
            )
        rows = [row for row in self._read_rows(chosen) if row is not None]
        return [row.token_activations(feature) for row in rows] if document_only else rows

    def _listed_top(self, feature: int, k: int, inactive: bool) -> NDArray[np.int64] | None:
        """Return the top documents that the index lists; None where it cannot tell."""
        plain = isinstance(feature, (int, np.integer)) and not isinstance(feature, bool)
        if not plain or not 0 <= feature < self._width():
            return None  # whoever computes it says what is wrong
        found = top_documents(self._store, self._documents, int(feature), k)
        if found is None:
            return None
        documents, values = found
        # Documents in which the feature is not active rank before those where it is negative.
        if inactive and (len(documents) < k or values[-1] < 0):
            return None
        return documents

    def token_activations(self, feature: int) -> list[str | None]:
        """Return every document's text with the tokens on which a feature is active highlighted.

        Returns
        -------
        list of str or None
            None for documents without activations.
        """
        if isinstance(feature, bool) or not isinstance(feature, (int, np.integer)):
            raise TypeError(f"feature must be an integer, got {feature!r}")
        feature, width = int(feature), self._width()
        if not 0 <= feature < width:
            raise IndexError(f"feature {feature} is not among the {width} features of the SAE")
        held = holders(self._store, self._documents, feature)
        if held is None:
            return [None if row is None else row.token_activations(feature) for row in self.rows]
        # Of the documents that lack the feature only the texts are read, as far as they were encoded.
        found: list[str | None] = [None] * len(self)
        absent = unavailable(self._store, self._documents)
        lacking = np.flatnonzero(~held & ~absent)
        texts = self._frame(lacking, [self.field])[self.field]
        ends = self._store.encoded_characters(self._documents[lacking])
        for position, text, end in zip(lacking.tolist(), texts, ends.tolist(), strict=True):
            found[position] = text[:end]
        for begin in range(0, len(holding := np.flatnonzero(held & ~absent)), _ROWS):
            positions = holding[begin : begin + _ROWS]
            for position, row in zip(positions.tolist(), self._read_rows(positions), strict=True):
                found[position] = None if row is None else row.token_activations(feature)
        return found

    def sort_by_features(
        self,
        features: Sequence[int] | int,
        aggregation_type: str = "max",
        descending: bool = True,
        include_top_feature: bool = True,
        include_nonactive_samples: bool = True,
    ) -> Self:
        """Return the documents ordered by the highest activation among some features.

        Documents in which none of them is active come after the others (before them when
        ascending), in document order; those without activations come last.

        Parameters
        ----------
        features
            Feature indices, or one.
        aggregation_type
            How a document's tokens are aggregated; see `latents`.
        descending
            Highest first.
        include_top_feature
            Add the columns ``feature_activation``, ``top_feature_label`` and ``top_feature_index``
            (-1 where none is active) to the result. This dataset keeps its columns.
        include_nonactive_samples
            Keep the documents in which none of the features is active.
        """
        if isinstance(features, (int, np.integer)):
            features = [features]
        values = self._feature_values(features, aggregation_type)
        order, activation, best = ranking.by_features(
            values, descending=descending, inactive=include_nonactive_samples
        )
        if not include_top_feature:
            return self._view(order)
        index = np.append(np.asarray(features, np.int64), -1)[best]
        labels = self.feature_labels()
        names = np.array(["NA" if f < 0 else labels.get(int(f), "") for f in index], object)
        extra = {
            "feature_activation": activation,
            "top_feature_label": names,
            "top_feature_index": index,
        }
        return self._view(order, extra)
