"""Entries of the document level as they pass by: their order, a hash of each, and what they sum to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["Entries", "FeatureSums", "Summary"]

_TOP = 100
_COUNTS = ("document_frequency", "token_frequency", "nonzero_documents", "nonzero_tokens")


class Entries:
    """Some entries of the document level, in any order."""

    def __init__(
        self,
        feature: NDArray[np.int64],
        document: NDArray[np.int64],
        value: NDArray[np.float32],
        count: NDArray[np.int64],
        positive: NDArray[np.int64],
        before: tuple[int, int],
    ) -> None:
        self.feature = feature
        self.document = document
        self.value = value
        self.count = count
        self.positive = positive
        self._before = before

    def disorder(self) -> int | None:
        """Return a feature whose documents do not ascend, the entry before this block included."""
        feature = np.concatenate([[self._before[0]], self.feature])
        document = np.concatenate([[self._before[1]], self.document])
        wrong = (np.diff(feature) == 0) & (np.diff(document) <= 0)
        return int(self.feature[np.argmax(wrong)]) if wrong.any() else None

    def part(self, parts: Sequence[tuple[int, int, str]]) -> NDArray[np.int64]:
        """Return which part each document is of, -1 for none."""
        starts = np.array([part[0] for part in parts])
        stops = np.array([part[1] for part in parts])
        at = np.searchsorted(starts, self.document, side="right") - 1
        return np.where((at >= 0) & (self.document < stops[at]), at, -1)

    def hashes(self) -> NDArray[np.uint64]:
        """Return a hash of each entry."""
        counts = self.count.astype(np.uint64) << np.uint64(32) | self.positive.astype(np.uint64)
        return _mixed(_mixed(_pairs(self.document, self.value)) + counts) + _mixed(
            self.feature.astype(np.uint64) ^ _mixed(counts + self.document.astype(np.uint64))
        )


def _pairs(document: NDArray[np.int64], value: NDArray[np.float32]) -> NDArray[np.uint64]:
    bits = value.view(np.uint32).astype(np.uint64)
    return _mixed(document.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)) + _mixed(bits)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble, by the finaliser of SplitMix64 (Steele, Lea, Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class FeatureSums:
    """Sums of each feature, and how far additions in another order may be from them."""

    def __init__(self, d_sae: int) -> None:
        self.total = np.zeros(d_sae)
        self.size = np.zeros(d_sae)
        self.number = np.zeros(d_sae)

    def add(self, feature: NDArray[np.int64], summand: NDArray[np.float64]) -> None:
        """Add the sums of some entries."""
        d_sae = len(self.total)
        self.total += np.bincount(feature, summand, d_sae)
        self.size += np.bincount(feature, np.abs(summand), d_sae)
        self.number += np.bincount(feature, minlength=d_sae)

    def include(self, other: FeatureSums) -> None:
        """Add other sums."""
        self.total += other.total
        self.size += other.size
        self.number += other.number


class Summary:
    """What a folder says of all features, to be compared with the entries as they pass by."""

    def __init__(
        self,
        stored: Mapping[str, NDArray[Any]],
        d_sae: int,
        error: Callable[[str, str], None],
    ) -> None:
        self.stored = stored
        self._report = error
        self.sums = FeatureSums(d_sae)
        self.counts = {name: np.zeros(d_sae, np.int64) for name in _COUNTS}
        self.highest = np.full(d_sae, -np.inf, np.float32)
        pointer = self.stored["top_ptr"].astype(np.int64)
        documents = self.stored["top_document"].astype(np.int64)
        values = self.stored["top_max"].astype(np.float32)
        self.ordered = (
            len(pointer) == d_sae + 1
            and pointer[0] == 0
            and pointer[-1] == len(documents) == len(values)
            and not (np.diff(pointer) < 0).any()
        )
        self.listed = np.diff(pointer) if self.ordered else np.zeros(d_sae, np.int64)
        # Entries that rank as high as the last one listed must be those that are listed.
        self.last_value = np.full(d_sae, np.inf, np.float32)
        self.last_document = np.full(d_sae, -1)
        self.hashes = np.zeros(d_sae, np.uint64)
        self.nonzero = np.zeros(d_sae, np.int64)
        if self.ordered:
            feature = np.repeat(np.arange(d_sae), self.listed)
            rank = np.lexsort((documents, -values, feature))
            self.ordered = bool((rank == np.arange(len(rank))).all())
            some = self.listed > 0
            self.last_value[some] = values[pointer[1:][some] - 1]
            self.last_document[some] = documents[pointer[1:][some] - 1]
            np.subtract.at(self.hashes, feature, _pairs(documents, values))

    def add(self, block: Entries) -> None:
        """Take entries into account."""
        d_sae, feature, value = len(self.listed), block.feature, block.value
        self.counts["document_frequency"] += np.bincount(feature[value > 0], minlength=d_sae)
        self.counts["nonzero_documents"] += np.bincount(feature, minlength=d_sae)
        for name, weight in (("token_frequency", block.positive), ("nonzero_tokens", block.count)):
            self.counts[name] += np.bincount(feature, weight, d_sae).astype(np.int64)
        np.maximum.at(self.highest, feature, value)
        some = value != 0
        feature, value, document = feature[some], value[some], block.document[some]
        self.nonzero += np.bincount(feature, minlength=d_sae)
        last = self.last_value[feature]
        high = (value > last) | ((value == last) & (document <= self.last_document[feature]))
        np.add.at(self.hashes, feature[high], _pairs(document[high], value[high]))

    def compare(self) -> None:
        """Report what differs."""
        d_sae = len(self.listed)
        for name, expected in self.counts.items():
            if name in self.stored and not np.array_equal(self.stored[name], expected):
                self._error(name, "is not what the entries give")
        if "nonzero_documents" not in self.stored and (
            (self.counts["nonzero_documents"] != self.counts["document_frequency"]).any()
            or (self.counts["nonzero_tokens"] != self.counts["token_frequency"]).any()
        ):
            self._error("nonzero_documents", "is missing, though activations are negative")
        highest = np.where(np.isneginf(self.highest), np.float32(0), self.highest)
        if not np.array_equal(self.stored["max"], highest):
            self._error("max", "is not what the entries give")
        allowed = 2.0**-50 * (self.sums.number + 1) * self.sums.size
        stored = self.stored["sum"]
        if len(stored) != d_sae or (np.abs(stored - self.sums.total) > allowed).any():
            self._error("sum", "is not what the chunks give")
        expected = np.minimum(self.nonzero, _TOP)
        if not self.ordered:
            self._error("top_document", "does not list documents by their max, then by number")
        elif (self.listed != expected).any() or self.hashes.any():
            wrong = int(np.argmax((self.listed != expected) | (self.hashes != 0)))
            self._error("top_document", f"does not list the top documents of feature {wrong}")

    def _error(self, name: str, what: str) -> None:
        self._report(f"summary/{name}", what)
