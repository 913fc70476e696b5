"""Some features of many documents, read from the index if that is less work, else from the chunks.

The index says in which documents a feature is and how strong. It also helps with values that it does
not hold (sums, and counts above a threshold): only the documents that have one of the features need to
be read, because any reduction of the others is 0.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from interp_embed.aggregate.matrices import aggregate_dense, entries, unavailable
from interp_embed.aggregate.scheduler import worker_count
from interp_embed.core.memory import require_memory
from interp_embed.core.threads import bounded_map

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from interp_embed.aggregate.reductions import Reduction
    from interp_embed.store.index.feature_index import FeatureIndex, Postings
    from interp_embed.store.store import Store

__all__ = ["feature_columns", "holders", "known_totals", "top_documents"]

T = TypeVar("T")

_READ_ENTRIES = 2**16
"""What the documents of one feature take at least: the elements of an inner chunk are read together."""
_ATTEMPTS = 3
_FAR_WORKERS = 8
_STORED = frozenset({"max", "count", "positive"})


def feature_columns(
    store: Store,
    documents: NDArray[np.int64],
    features: NDArray[np.int64],
    reduction: Reduction,
    threshold: float = 0.0,
) -> NDArray[np.float32]:
    """Return some features of the documents, as `aggregate_dense` does.

    Parameters
    ----------
    store, documents
        Documents in any order, repetitions allowed.
    features
        Columns of the result, without repetition.
    reduction, threshold
        How the tokens of a document are aggregated.

    Returns
    -------
    ndarray of float32, shape (len(documents), len(features))
        NaN for documents without activations.

    Raises
    ------
    ResultTooLargeError
        If the result would not fit in memory.
    """

    def read(index: FeatureIndex) -> NDArray[np.float32] | None:
        return _Columns(store, index, documents, features, reduction, threshold).read()

    found = _ask(store, read)
    if found is None:
        return aggregate_dense(store, documents, reduction, threshold, features)
    return found


def top_documents(
    store: Store, documents: NDArray[np.int64], feature: int, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    """Return the ``k`` documents in which a feature's max is highest, and the max of each.

    They come highest first, with ties in order of documents and without documents where it is 0. The
    result is None if the index does not know it, or if ``documents`` are not all documents of the
    store in order.
    """
    if not _is_whole(store, documents):
        return None
    return _ask(store, lambda index: index.top(feature, k))


def holders(store: Store, documents: NDArray[np.int64], feature: int) -> NDArray[np.bool_] | None:
    """Return in which documents a feature is above zero, or may be.

    The result is None if there is no index, or if reading the documents themselves is less work.
    """

    def read(index: FeatureIndex) -> NDArray[np.bool_] | None:
        column = np.array([feature])
        if int(index.frequency(column)[0]) + _READ_ENTRIES > entries(
            store, documents, pooled=False
        ):
            return None
        postings = index.postings(feature, ["max"])
        assert postings.max is not None
        return np.isin(documents, postings.document[postings.max > 0]) | index.uncovered(documents)

    return _ask(store, read)


def known_totals(
    store: Store, documents: NDArray[np.int64], threshold: float = 0.0
) -> Mapping[str, NDArray[Any]]:
    """Return what the index has counted of all documents, under the names of `count_features`.

    The result is empty if ``documents`` are not all documents of the store, if the index does not
    cover them, or if the threshold is above zero.
    """
    if threshold > 0 or not _is_whole(store, documents):
        return {}
    found = _ask(store, lambda index: index.statistics())
    if found is None:
        return {}
    return {
        "document_frequency": found["document_frequency"],
        "token_frequency": found["token_frequency"],
        "entries": found["nonzero_documents"],
        "total": found["sum"],
        "highest": found["max"],
    }


def _is_whole(store: Store, documents: NDArray[np.int64]) -> bool:
    """Whether these are all documents of the store, in order."""
    n = store.n_documents
    return len(documents) == n and np.array_equal(documents, np.arange(n))


def _ask(store: Store, read: Callable[[FeatureIndex], T | None]) -> T | None:
    """Ask the index; None if there is none that can answer.

    Another process may replace the index or add documents at any time. An answer counts only if the
    store is still in the state that was indexed.
    """
    failure: OSError | None = None
    for _ in range(_ATTEMPTS):
        try:
            ledger, index = store.ledger, store.index()
            if index is None:
                return None
            found = read(index)
        except FileNotFoundError as error:
            failure = error
            store.refresh(manifest=False)  # and look for the index again
            continue
        except OSError as error:  # damaged, or not for this user to read
            failure = error
            break
        if store.ledger is ledger or store.ledger.state == ledger.state:
            return found
    if failure is not None:
        warnings.warn(
            f"the index of {store.storage.url} cannot be read ({failure}). The chunks are read instead, "
            "which takes longer. To rebuild the index: interp-embed index --rebuild, or "
            "build_index(rebuild=True)",
            stacklevel=4,
        )
    return None


class _Columns:
    """One question to an index; a document stands once, in ascending order, until the end."""

    def __init__(
        self,
        store: Store,
        index: FeatureIndex,
        documents: NDArray[np.int64],
        features: NDArray[np.int64],
        reduction: Reduction,
        threshold: float,
    ) -> None:
        self.store = store
        self.index = index
        self.features = features
        self.reduction = reduction
        self.threshold = threshold
        self.back: NDArray[np.int64] | None = None
        self.ascending = documents
        if len(documents) > 1 and not (np.diff(documents) > 0).all():
            self.ascending, self.back = np.unique(documents, return_inverse=True)
        self.unknown = np.flatnonzero(index.uncovered(self.ascending))

    def read(self) -> NDArray[np.float32] | None:
        """Return the columns, or None if reading the chunks is less work."""
        if len(self.ascending) == 0 or not self._is_worth_it():
            return None
        rows = len(self.ascending) + (0 if self.back is None else len(self.back))
        require_memory(
            4 * len(self.features) * rows,
            f"a dense array of {len(self.ascending)} documents x {len(self.features)} features",
            "Select fewer documents, for instance dataset[:100000], or ask for fewer features",
        )
        reduction, threshold = self.reduction, self.threshold
        known = not reduction.needs_tokens(threshold) and _STORED.issuperset(reduction.arrays)
        found = self._values() if known and not reduction.uses_n_tokens else self._selected()
        if found is None:
            return None
        found[unavailable(self.store, self.ascending)] = np.nan
        return found if self.back is None else found[self.back]

    def _is_worth_it(self) -> bool:
        """Whether the entries of the features are fewer than those of the documents."""
        tokens = self.reduction.needs_tokens(self.threshold)
        every = entries(self.store, self.ascending, pooled=not tokens)
        unknown = entries(self.store, self.ascending[self.unknown], pooled=not tokens)
        reads = len(self.features) * len(self.index.segments) * _READ_ENTRIES
        if reads + unknown > every:
            return False
        return int(self.index.frequency(self.features).sum()) + reads + unknown <= every

    def _rows_of(self, postings: Postings) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return rows of ``ascending``, and which of the postings they are of."""
        if len(self.ascending) == self.store.n_documents:
            return postings.document, np.ones(len(postings.document), np.bool_)
        row = np.searchsorted(self.ascending, postings.document)
        row[row == len(self.ascending)] = 0
        held = self.ascending[row] == postings.document
        return row[held], held

    def _values(self) -> NDArray[np.float32]:
        """Reduce what the index has."""
        out = np.zeros((len(self.ascending), len(self.features)), np.float32)
        finalize = self.reduction.finalize
        assert finalize is not None

        def fill(column: int) -> None:
            postings = self.index.postings(int(self.features[column]), self.reduction.arrays)
            row, held = self._rows_of(postings)
            level = {name: values[held] for name, values in postings.arrays().items()}
            out[row, column] = finalize(level, None, self.threshold)

        self._for_each_feature(fill)
        self._fill(out, self.unknown)
        return out

    def _selected(self) -> NDArray[np.float32] | None:
        """Read the documents that have one of the features; None if most documents do."""
        wanted = np.zeros(len(self.ascending), np.bool_)
        above = self.threshold if self.reduction.needs_tokens(self.threshold) else None

        def mark(column: int) -> None:
            named = ["max"] if self.reduction.uses_threshold and above is not None else []
            postings = self.index.postings(int(self.features[column]), named)
            row, held = self._rows_of(postings)
            if postings.max is not None:
                row = row[postings.max[held] > np.float64(self.threshold)]
            wanted[row] = True

        self._for_each_feature(mark)
        wanted[self.unknown] = True
        if 2 * wanted.sum() > len(wanted):
            return None
        out = np.zeros((len(self.ascending), len(self.features)), np.float32)
        self._fill(out, np.flatnonzero(wanted))
        return out

    def _fill(self, out: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Fill rows from the chunks."""
        if len(rows):
            documents = self.ascending[rows]
            out[rows] = aggregate_dense(
                self.store, documents, self.reduction, self.threshold, self.features
            )

    def _for_each_feature(self, run: Callable[[int], None]) -> None:
        # Far away, most of the time is waiting.
        most = _FAR_WORKERS if self.store.storage.remote else worker_count(None)
        workers = min(most, len(self.features))
        with ThreadPoolExecutor(max(1, workers), "interp-embed-columns") as executor:
            for _ in bounded_map(executor, run, range(len(self.features)), ahead=2 * workers):
                pass
