"""A selection of documents, and the questions one asks of their activations."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np

from interp_embed import ranking
from interp_embed.aggregate.execute import (
    aggregate_dense,
    aggregate_sparse,
    entries,
    feature_count,
    unavailable,
)
from interp_embed.aggregate.memory import require_memory
from interp_embed.aggregate.reductions import REDUCTIONS, check_method, check_threshold
from interp_embed.inputs import check_positive
from interp_embed.view import View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from interp_embed.row import DatasetRow

__all__ = ["Activations"]


class Activations(View):
    """Some documents of a store, and what their features do."""

    @overload
    def latents(
        self,
        aggregation_method: Literal["max", "mean", "sum", "binarize", "count"] = "max",
        compress: Literal[False] = False,
        activated_threshold: float = 0,
    ) -> NDArray[np.float32]: ...
    @overload
    def latents(
        self,
        aggregation_method: Literal["max", "mean", "sum", "binarize", "count"],
        compress: Literal[True],
        activated_threshold: float = 0,
    ) -> csr_matrix: ...
    @overload
    def latents(
        self,
        aggregation_method: str = "max",
        compress: bool = False,
        activated_threshold: float = 0,
    ) -> NDArray[Any] | csr_matrix | list[csr_matrix]: ...
    def latents(
        self,
        aggregation_method: str = "max",
        compress: bool = False,
        activated_threshold: float = 0,
    ) -> NDArray[Any] | csr_matrix | list[csr_matrix]:
        """Return the documents' activations, aggregated over their tokens.

        A token on which a feature is absent counts as 0. Documents without activations are rows of
        NaN.

        Parameters
        ----------
        aggregation_method
            ``"max"``, ``"mean"``, ``"sum"``, ``"binarize"`` (1 where any token is above the
            threshold), ``"count"`` (tokens above the threshold), or ``"all"`` (no aggregation).
        compress
            Return sparse matrices, without explicit zeros.
        activated_threshold
            Above which a feature counts as active, for ``"binarize"`` and ``"count"``; 0 or more.

        Returns
        -------
        ndarray or csr_matrix of float32, shape (documents, d_sae)
            For ``"all"`` a list of csr_matrix, or a 1-D object array of dense arrays, each of shape
            (n_tokens, d_sae).

        Raises
        ------
        ResultTooLargeError
            If the result would not fit in memory; nothing is computed.
        """
        check_method(aggregation_method, also=("all",))
        threshold = check_threshold(activated_threshold)
        if aggregation_method == "all":
            return self._all_latents(compress)
        run = aggregate_sparse if compress else aggregate_dense
        return run(self._store, self._documents, REDUCTIONS[aggregation_method], threshold)

    def _all_latents(self, compress: bool) -> NDArray[np.object_] | list[csr_matrix]:
        from scipy.sparse import csr_matrix as csr

        width = self.d_sae or 0
        absent = unavailable(self._store, self._documents)
        size = 4 * width * (self.token_count + int(absent.sum()))
        if compress:
            # A column and a value an entry, a pointer a token; NaN for what is not there.
            known = entries(self._store, self._documents, pooled=False)
            require_memory(
                8 * (known + width * int(absent.sum())) + 4 * (self.token_count + 2 * len(absent)),
                f"sparse activations of {self.token_count} tokens",
                "Select fewer documents, for instance dataset[:1000], or look at documents one by "
                "one through .rows",
            )
        else:
            require_memory(
                size,
                f"dense activations of {self.token_count} tokens x {width} features",
                "Pass compress=True, or look at documents one by one through .rows",
            )
        empty = np.full((1, width), np.nan, np.float32)
        found = [
            csr(empty) if missing else self._store.document(int(document))[0]
            for document, missing in zip(self._documents, absent, strict=True)
        ]
        if compress:
            return found
        out = np.empty(len(found), object)
        for position, matrix in enumerate(found):
            out[position] = matrix.toarray()
        return out

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
        values = aggregate_dense(self._store, self._documents, REDUCTIONS[method], 0.0, unique)
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
        values = self._feature_values([feature], aggregation_type)[:, 0]
        chosen = ranking.extreme(values, k, highest=select_top, inactive=include_nonactive_samples)
        rows = [row for row in self._read_rows(chosen) if row is not None]
        return [row.token_activations(feature) for row in rows] if document_only else rows

    def token_activations(self, feature: int) -> list[str | None]:
        """Return every document's text with the tokens on which a feature is active highlighted.

        Returns
        -------
        list of str or None
            None for documents without activations.
        """
        feature, width = operator.index(feature), self._width()
        if not 0 <= feature < width:
            raise IndexError(f"feature {feature} is not among the {width} features of the SAE")
        return [None if row is None else row.token_activations(feature) for row in self.rows]

    def sort_by_features(
        self,
        features: Sequence[int],
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
            Feature indices.
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
