"""Sources of samples of a feature: documents, the strength of features in them, and their rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from interp_embed.aggregate.matrices import aggregate_sparse
from interp_embed.aggregate.reductions import REDUCTIONS
from interp_embed.selection.by_feature import feature_values, listed_top

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from interp_embed.selection.row import DatasetRow
    from interp_embed.selection.selection import Selection

__all__ = ["Samples", "SelectedSamples"]


class Samples(Protocol):
    """Documents that samples are chosen from. Positions count from 0."""

    def __len__(self) -> int:
        """Return the number of documents."""
        ...

    def strengths(self, features: Sequence[int]) -> NDArray[np.float32]:
        """Return the highest activation of some features, shape (documents, features).

        NaN for documents without activations. Raises IndexError if there is no such feature.
        """
        ...

    def matrix(self, positions: NDArray[np.int64]) -> csr_matrix:
        """Return the highest activation of every feature in some documents."""
        ...

    def listed_top(self, feature: int, k: int) -> NDArray[np.int64] | None:
        """Return where a feature is strongest, if that is known without reading all documents."""
        ...

    def rows(self, positions: NDArray[np.int64]) -> list[DatasetRow | None]:
        """Read some documents with their activations; None for those that have none."""
        ...

    def n_tokens(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of tokens of some documents."""
        ...

    def document(self, position: int) -> int:
        """Return the number of a document in its store."""
        ...


@dataclass(frozen=True, slots=True)
class SelectedSamples:
    """The documents of a selection.

    Parameters
    ----------
    selection : Selection
    width : int
        Number of features of the SAE.
    """

    selection: Selection
    width: int

    def __len__(self) -> int:
        return len(self.selection)

    def strengths(self, features: Sequence[int]) -> NDArray[np.float32]:
        """Return the highest activation of some features per document."""
        return feature_values(self.selection, features, "max", self.width)

    def matrix(self, positions: NDArray[np.int64]) -> csr_matrix:
        """Return the highest activation of every feature in some documents."""
        store, documents = self.selection.store, self.selection.documents[positions]
        return aggregate_sparse(store, documents, REDUCTIONS["max"], 0.0)

    def listed_top(self, feature: int, k: int) -> NDArray[np.int64] | None:
        """Return where a feature is strongest, from the index."""
        return listed_top(self.selection, feature, k)

    def rows(self, positions: NDArray[np.int64]) -> list[DatasetRow | None]:
        """Read some documents with their activations."""
        return self.selection.rows(positions)

    def n_tokens(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of tokens of some documents."""
        return self.selection.store.n_tokens(self.selection.documents[positions])

    def document(self, position: int) -> int:
        """Return the number of a document in its store."""
        return int(self.selection.documents[position])
