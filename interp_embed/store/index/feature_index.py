"""The feature-major index: which documents a feature is in, without a pass over the corpus.

An index is the document level of the chunks once more, in order of the features, with what can be
said of each feature at once: how many documents and tokens it is in, and its top documents. It is
derived from the chunks and may be missing, incomplete or deleted at any time; whoever asks it has to
be able to do without.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.checks import check_feature, check_features
from interp_embed.errors import CorruptIndexError, CorruptStoreError
from interp_embed.store.arrays.folder import OpenFolder
from interp_embed.store.arrays.readahead import ReadAhead
from interp_embed.store.format.layout import INDEX_TOP
from interp_embed.store.index.records import (
    read_index_commit,
    read_index_commits,
    valid_segments,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from interp_embed.store.arrays.readahead import Wanted
    from interp_embed.store.arrays.shard_reader import BlockCache
    from interp_embed.store.index.records import IndexCommit, Segment
    from interp_embed.store.ledger import Ledger
    from interp_embed.store.storage import Storage

__all__ = ["FeatureIndex", "Postings", "read_index"]

COLUMNS = ("max", "count", "positive")


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """The documents that have an entry for a feature.

    Attributes
    ----------
    document : ndarray of int64
        Document numbers, ascending.
    max : ndarray of float32, or None
        Highest activation over a document's tokens, those without the feature counting as 0.
    count, positive : ndarray of uint32, or None
        Tokens on which the feature is not zero, and above zero.
    """

    document: NDArray[np.int64]
    max: NDArray[np.float32] | None = None
    count: NDArray[np.uint32] | None = None
    positive: NDArray[np.uint32] | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the columns that were asked for, by name."""
        found = {name: getattr(self, name) for name in COLUMNS}
        return {name: values for name, values in found.items() if values is not None}


class _Arrays(OpenFolder):
    """The arrays of a folder of the index."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        array = self.array(name)
        try:
            return array.read(start, array.length if stop is None else stop)
        except CorruptStoreError as error:
            raise CorruptIndexError(
                f"the index of {self.storage.url} is damaged. It can be made again from the "
                f"chunks, with 'interp-embed index --rebuild'. ({error})"
            ) from error


class FeatureIndex:
    """The index of a store, which may cover only some of the store's documents.

    Reading raises `FileNotFoundError` if another process has replaced the index meanwhile, and
    `CorruptIndexError` if it is damaged. In either case, call ``store.index()`` after
    ``store.refresh()``, or read the chunks instead.

    Parameters
    ----------
    storage, cache
        Where the index is, and where decoded inner chunks are kept.
    commit
        What was indexed.
    segments
        The segments that count, in order of the documents.
    is_complete
        Whether they cover every document of the ledger.

    Attributes
    ----------
    commit : IndexCommit
    segments : tuple of Segment
    is_complete : bool
        Whether every document that a commit of the ledger holds is covered.
    d_sae : int
        Number of features.
    """

    def __init__(
        self,
        storage: Storage,
        cache: BlockCache,
        commit: IndexCommit,
        segments: Sequence[Segment],
        *,
        is_complete: bool,
    ) -> None:
        self.commit = commit
        self.segments = tuple(segments)
        self.is_complete = is_complete
        self.d_sae = commit.d_sae
        self._storage = storage
        self._arrays = [_Arrays(storage, s.folder, cache) for s in self.segments]
        self._summary: _Arrays | None = None
        if is_complete:
            own = commit.summary
            self._summary = self._arrays[0] if own is None else _Arrays(storage, own, cache)

    def __repr__(self) -> str:
        return (
            f"FeatureIndex({self.documents_covered} documents, {self.d_sae} features, "
            f"{self.n_entries} entries, {len(self.segments)} segments)"
        )

    # What it covers

    @cached_property
    def covered(self) -> list[tuple[int, int]]:
        """Runs of documents that the index covers, ascending and apart from each other."""
        runs: list[tuple[int, int]] = []
        for part in (part for segment in self.segments for part in segment.parts):
            if runs and runs[-1][1] == part.start:
                runs[-1] = (runs[-1][0], part.stop)
            else:
                runs.append((part.start, part.stop))
        return runs

    @property
    def documents_covered(self) -> int:
        """Number of documents that the index covers, including those that failed."""
        return sum(stop - start for start, stop in self.covered)

    @property
    def n_entries(self) -> int:
        """Number of (document, feature) pairs where the feature occurs in the document."""
        return sum(segment.n_entries for segment in self.segments)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        folders = [segment.folder for segment in self.segments]
        own = self.commit.summary if self.is_complete else None
        return sum(folder.nbytes for folder in ([*folders, own] if own else folders))

    def uncovered(self, documents: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which documents the index does not cover."""
        runs = np.array(self.covered, np.int64).reshape(-1, 2)
        if len(runs) == 0:
            return np.ones(len(documents), np.bool_)
        at = np.searchsorted(runs[:, 0], documents, side="right") - 1
        beyond: NDArray[np.bool_] = documents >= runs[at, 1]
        return beyond | (at < 0)

    # Features

    def frequency(self, features: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of documents that have an entry of each feature."""
        features = check_features(features, self.d_sae)
        found = np.zeros(len(features), np.int64)
        if len(features):
            low, high = int(features.min()), int(features.max())
            for arrays in self._arrays:
                pointer = arrays.read("feature_ptr", low, high + 2).astype(np.int64)
                found += np.diff(pointer)[features - low]
        return found

    def postings(self, feature: int, columns: Sequence[str] = COLUMNS) -> Postings:
        """Return the documents that have an entry of a feature.

        Parameters
        ----------
        feature
            Feature index.
        columns
            Of ``max``, ``count`` and ``positive``, those to read.

        Raises
        ------
        IndexError
            If there is no such feature.
        """
        if unknown := set(columns) - set(COLUMNS):
            raise ValueError(f"columns must be among {COLUMNS}, got {sorted(unknown)[0]!r}")
        feature = check_feature(feature, self.d_sae)
        documents: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        values: dict[str, list[NDArray[Any]]] = {
            name: [np.empty(0, np.float32 if name == "max" else np.uint32)] for name in columns
        }
        with self._ahead(self._steps_of_postings(a, feature, columns) for a in self._arrays):
            for arrays in self._arrays:
                begin, end = (int(x) for x in arrays.read("feature_ptr", feature, feature + 2))
                if begin == end:
                    continue
                documents.append(arrays.read("document", begin, end).astype(np.int64))
                for name, parts in values.items():
                    stored = _stored(arrays, name)
                    parts.append(arrays.read(stored, begin, end).astype(parts[0].dtype))
        return Postings(
            np.concatenate(documents), **{name: np.concatenate(v) for name, v in values.items()}
        )

    def _ahead(self, plans: Iterable[Iterator[Iterable[Wanted]]]) -> ReadAhead:
        return ReadAhead(self._storage).follow(plans)

    def _steps_of_postings(
        self, arrays: _Arrays, feature: int, columns: Sequence[str]
    ) -> Iterator[Iterable[Wanted]]:
        names = ["document", *(_stored(arrays, name) for name in columns)]
        soon = [(arrays.array(name), 0, 0) for name in names]
        yield [(arrays.array("feature_ptr"), feature, feature + 2), *soon]
        begin, end = (int(x) for x in arrays.read("feature_ptr", feature, feature + 2))
        yield [(arrays.array(name), begin, end) for name in names]

    def _steps_of_top(self, arrays: _Arrays, feature: int, k: int) -> Iterator[Iterable[Wanted]]:
        names = ("summary/top_document", "summary/top_max")
        soon = [(arrays.array(name), 0, 0) for name in names]
        yield [(arrays.array("summary/top_ptr"), feature, feature + 2), *soon]
        begin, end = (int(x) for x in arrays.read("summary/top_ptr", feature, feature + 2))
        yield [(arrays.array(name), begin, min(end, begin + k)) for name in names]

    # What it says of all documents together

    def top(self, feature: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Return the documents in which a feature's max is highest.

        Parameters
        ----------
        feature
            Feature index.
        k
            How many at most.

        Returns
        -------
        documents : ndarray of int64
            The highest first, ties by document; none in which the max is 0.
        values : ndarray of float32
            The max of each.

        The result is None if the index does not cover all documents or lists fewer than requested.
        """
        feature = check_feature(feature, self.d_sae)
        if self._summary is None:
            return None
        with self._ahead([self._steps_of_top(self._summary, feature, k)]):
            pointer = self._summary.read("summary/top_ptr", feature, feature + 2)
            begin, end = int(pointer[0]), int(pointer[1])
            if k > end - begin == INDEX_TOP and self.frequency(np.array([feature]))[0] > INDEX_TOP:
                return None
            end = min(end, begin + k)
            documents = self._summary.read("summary/top_document", begin, end)
            values = self._summary.read("summary/top_max", begin, end)
        return documents.astype(np.int64), values.astype(np.float32)

    def statistics(self) -> dict[str, NDArray[Any]] | None:
        """Return statistics of every feature.

        Returns
        -------
        dict of ndarray, shape (d_sae,)
            ``document_frequency`` and ``token_frequency``, int64: documents and tokens in which the
            feature is above zero; ``nonzero_documents`` and ``nonzero_tokens``, int64: in which it
            is not zero; ``sum``, float64, over all tokens; ``max``, float32: the highest entry of
            the document level, 0 for a feature without any. None where the index does not cover all
            documents. How many documents and tokens there are is in ``commit``.
        """
        if self._summary is None:
            return None
        summary = self._summary
        named = [name for name in summary.folder.arrays if name.startswith("summary/")]
        named = [name for name in named if not name.startswith("summary/top_")]
        with self._ahead([iter([[(summary.array(n), 0, self.d_sae) for n in named]])]):
            return _statistics(summary)


def _statistics(summary: _Arrays) -> dict[str, NDArray[Any]]:
    found = {}
    for name in ("document_frequency", "token_frequency"):
        found[name] = summary.read(f"summary/{name}").astype(np.int64)
    for name, same in (
        ("nonzero_documents", "document_frequency"),
        ("nonzero_tokens", "token_frequency"),
    ):
        known = f"summary/{name}" in summary
        stored = summary.read(f"summary/{name}").astype(np.int64) if known else None
        found[name] = found[same].copy() if stored is None else stored
    for name in ("sum", "max"):
        found[name] = summary.read(f"summary/{name}").copy()
    return found


def _stored(arrays: _Arrays, name: str) -> str:
    """Return which array has a column: all counts are of positive activations where none says so."""
    return "count" if name == "positive" and name not in arrays else name


def read_index(storage: Storage, cache: BlockCache, ledger: Ledger) -> FeatureIndex | None:
    """Return the index of a store's documents as a ledger has them; see `Store.index`.

    Where there is none of the ledger as it is, the one that covers most of it: documents were added
    or tried again since it was made. None where no index covers anything.

    Parameters
    ----------
    storage, cache
        Where the store is, and where decoded inner chunks are kept.
    ledger
        The commits that are to be covered.
    """
    commit = read_index_commit(storage, ledger.state)
    if commit is not None:
        return FeatureIndex(storage, cache, commit, commit.segments, is_complete=True)
    best: FeatureIndex | None = None
    for found in read_index_commits(storage).values():
        segments = [] if found is None else valid_segments(found, ledger)
        if found is None or not segments:
            continue
        index = FeatureIndex(storage, cache, found, segments, is_complete=False)
        if best is None or index.documents_covered > best.documents_covered:
            best = index
    return best
