"""What a block of a lazy array is read from: some documents of a store, as one `sparse.COO`.

A source is what a task carries: a store, which travels as a reference, and a few settings.

Blocks are COO, not GCXS: of sparse 0.19, GCXS has no ``broadcast_to`` and no ``squeeze``, so
xarray's default ``sum`` (which skips NaN) and ``matmul`` of two lazy arrays fail on it, and its
reductions over documents take twice as long. Coordinates are int64, as sparse makes them: narrower
ones become uint64 when sparse reshapes a large array, and float64 from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import sparse

from interp_embed.aggregate.blocks import clusters
from interp_embed.aggregate.matrices import aggregate_sparse
from interp_embed.aggregate.reductions import REDUCTIONS
from interp_embed.core.chunk import DocumentStatus, gather_ranges
from interp_embed.core.memory import memory_budget

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interp_embed.lazy.partition import Positions
    from interp_embed.store import Store
    from interp_embed.store.chunks import StoredChunk

__all__ = ["Pooled", "Source", "TokenWeights", "Tokens"]

_UNLIMITED = 2**62


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """A reduction over each document's tokens; rows of NaN where there are none to reduce."""

    store: Store
    width: int
    reduction: str
    threshold: float
    keep: object = None
    has_features = True
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """(features,)."""
        return (self.width,)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the folder, which belongs to this process."""
        return Pooled, (self.store, self.width, self.reduction, self.threshold)

    def identity(self) -> tuple[Any, ...]:
        """Return the settings."""
        return "pooled", self.width, self.reduction, self.threshold

    def read(self, documents: Positions, features: Positions | None) -> sparse.COO:
        """Return (documents, features)."""
        with memory_budget(_UNLIMITED):  # how large blocks are was decided when they were cut
            matrix = aggregate_sparse(
                self.store,
                np.asarray(documents, np.int64),
                REDUCTIONS[self.reduction],
                self.threshold,
                None if features is None else np.asarray(features, np.int64),
                workers=1,  # dask runs the tasks side by side
            )
        rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        return _coo([rows, matrix.indices], matrix.data, matrix.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The activations themselves, padded to ``length`` tokens.

    A document without activations has NaN on its first position.
    """

    store: Store
    width: int
    length: int
    keep: object = None
    has_features = True
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """(tokens, features)."""
        return self.length, self.width

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the folder, which belongs to this process."""
        return Tokens, (self.store, self.width, self.length)

    def identity(self) -> tuple[Any, ...]:
        """Return the settings."""
        return "tokens", self.width, self.length

    def read(self, documents: Positions, features: Positions | None) -> sparse.COO:
        """Return (documents, tokens, features)."""
        wanted = np.asarray(documents, np.int64)
        return self.store.consistently(lambda: self._read(wanted, features))

    def _read(self, documents: NDArray[np.int64], features: Positions | None) -> sparse.COO:
        column_of = None
        width = self.width
        if features is not None:
            width = len(features)
            column_of = np.full(self.width, -1, np.int64)
            column_of[np.asarray(features, np.int64)] = np.arange(width)
        absent = np.ones(len(documents), np.bool_)
        entries, runs, plans = [], [], []
        for chunk, positions, where in self.store.parts(documents):
            if chunk.commit.n_failed:
                plans.append(chunk.steps_of("status"))
            order = np.argsort(positions, kind="stable")
            unique, first = np.unique(positions[order], return_index=True)
            last = np.append(first[1:], len(order))
            for run in clusters(chunk, unique, tokens=True):
                members = order[first[run.start] : last[run.stop - 1]]
                runs.append((chunk, positions[members], where[members]))
                low, high = int(unique[run.start]), int(unique[run.stop - 1]) + 1
                plans.append(chunk.steps_of_nonzeros(low, high))
        with self.store.ahead(plans):
            for chunk, positions, where in runs:
                failed = chunk.commit.n_failed > 0
                absent[where] = failed and chunk.status()[positions] == DocumentStatus.FAILED
                entries.append(_entries(chunk, positions, where).of_features(column_of))
        entries.append(_Entries.of_nan(np.flatnonzero(absent), width))
        joined = _Entries.joined(entries)
        if (longest := int(joined.token.max(initial=-1))) >= self.length:
            raise ValueError(
                f"{self.store.storage.url} holds a document of more than {self.length} tokens (one "
                f"is active on number {longest}) that was not there when this lazy array was made. "
                "Open the dataset again"
            )
        coords = [joined.document, joined.token, joined.feature]
        return _coo(coords, joined.value, (len(documents), self.length, width))


@dataclass(frozen=True, slots=True, eq=False)
class TokenWeights:
    """Where a document has tokens, padded to ``length``.

    Either a mask, or weights whose sum is 1 in every document; one without tokens then has all of it
    on its first position, where its activations are 0, or NaN.
    """

    store: Store
    width: int
    length: int
    mask: bool
    keep: object = None
    has_features = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the values."""
        return np.dtype(np.bool_ if self.mask else np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """(tokens,)."""
        return (self.length,)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the folder, which belongs to this process."""
        return TokenWeights, (self.store, self.width, self.length, self.mask)

    def identity(self) -> tuple[Any, ...]:
        """Return the settings."""
        return "weights", self.length, self.mask

    def read(self, documents: Positions, features: Positions | None) -> sparse.COO:
        """Return (documents, tokens)."""
        lengths = self.store.n_tokens(np.asarray(documents, np.int64))
        if not self.mask:
            lengths = np.maximum(lengths, 1)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        tokens = gather_ranges(np.zeros_like(lengths), lengths)
        if self.mask:
            values = np.ones(len(rows), np.bool_)
        else:
            values = np.repeat((1 / lengths).astype(np.float32), lengths)
        return _coo([rows, tokens], values, (len(lengths), self.length))


def _coo(coords: list[NDArray[Any]], values: NDArray[Any], shape: tuple[int, ...]) -> sparse.COO:
    """Return a COO of coordinates that are known to be sorted and unique."""
    stacked = np.empty((len(shape), len(values)), np.intp)
    for row, coord in zip(stacked, coords, strict=True):
        row[:] = coord
    return sparse.COO(stacked, values, shape=shape, has_duplicates=False, sorted=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Entries:
    """Nonzeros of some documents; those of one document stand together, in order."""

    document: NDArray[np.int64]
    token: NDArray[np.int64]
    feature: NDArray[np.int64]
    value: NDArray[np.float32]

    @classmethod
    def of_nan(cls, documents: NDArray[np.int64], width: int) -> _Entries:
        feature = np.tile(np.arange(width), len(documents))
        return cls(
            np.repeat(documents, width),
            np.zeros_like(feature),
            feature,
            np.full(len(feature), np.nan, np.float32),
        )

    @classmethod
    def joined(cls, parts: list[_Entries]) -> _Entries:
        document = np.concatenate([part.document for part in parts])
        order: slice | NDArray[np.int64] = slice(None)
        if (np.diff(document) < 0).any():
            order = np.argsort(document, kind="stable")
        return cls(
            document[order],
            np.concatenate([part.token for part in parts])[order],
            np.concatenate([part.feature for part in parts])[order],
            np.concatenate([part.value for part in parts])[order],
        )

    def of_features(self, column_of: NDArray[np.int64] | None) -> _Entries:
        if column_of is None:
            return self
        column = column_of[self.feature]
        kept = column >= 0
        return _Entries(self.document[kept], self.token[kept], column[kept], self.value[kept])


def _entries(
    chunk: StoredChunk, positions: NDArray[np.int64], where: NDArray[np.int64]
) -> _Entries:
    """Read documents that stand near each other in a chunk; ``positions`` ascend and may repeat."""
    low, high = int(positions[0]), int(positions[-1]) + 1
    doc_ptr = chunk.array("doc_ptr").read(low, high + 1).astype(np.int64)
    token_ptr = chunk.array("token_ptr").read(int(doc_ptr[0]), int(doc_ptr[-1]) + 1)
    token_ptr = token_ptr.astype(np.int64)
    doc_ptr -= doc_ptr[0]
    begin, end = int(token_ptr[0]), int(token_ptr[-1])
    feature = chunk.array("feature").read(begin, end)
    value = chunk.array("activation").read(begin, end)
    in_document = np.arange(doc_ptr[-1]) - np.repeat(doc_ptr[:-1], np.diff(doc_ptr))
    token = np.repeat(in_document, np.diff(token_ptr))
    bounds = token_ptr[doc_ptr] - begin
    rows = positions - low
    first, last = bounds[rows], bounds[rows + 1]
    document = np.repeat(where, last - first)
    if len(rows) == high - low and (np.diff(rows) == 1).all():
        at: slice | NDArray[np.int64] = slice(None)
    else:
        at = gather_ranges(first, last)
    return _Entries(document, token[at], feature[at].astype(np.int64), value[at].astype(np.float32))


Source = Pooled | Tokens | TokenWeights
"""What `read` a block of documents, in any order, and of features, ascending; None is all of them.

``identity`` tells a source from the others of a store, ``shape`` and ``dtype`` are of one document,
and ``keep`` is what must live as long as the source does in the process that made it: a temporary
folder.
"""
