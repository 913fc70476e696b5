"""Reading a store: its documents, its chunks, and which chunk holds which document.

Data is read on request. See `interp_embed.store.snapshot` for what happens if another process has
merged chunks since the store was opened.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.chunk import Chunk, DocumentStatus
from interp_embed.store.documents import DocumentReader
from interp_embed.store.index.feature_index import read_index
from interp_embed.store.labels.collection import Answers, LabelStore
from interp_embed.store.snapshot import Snapshots

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from interp_embed.core.chunk import TokenTable
    from interp_embed.store.arrays.readahead import ReadAhead
    from interp_embed.store.chunks import StoredChunk
    from interp_embed.store.index.feature_index import FeatureIndex
    from interp_embed.store.ledger import Ledger
    from interp_embed.store.snapshot import Snapshot
    from interp_embed.store.storage import Storage

__all__ = ["MISSING", "Store"]

MISSING = 255
"""Status of a document that no commit holds yet."""


def _is_clean(chunk: StoredChunk) -> bool:
    """Whether every document of the chunk was encoded completely, according to the commit."""
    return not (chunk.commit.n_failed or chunk.commit.n_truncated)


class Store(Snapshots):
    """A store opened for reading.

    Parameters
    ----------
    location
        A path, a URL, or a `Storage`.

    Attributes
    ----------
    attributes : dict
        The root's attributes.
    plan : Plan
        The documents and how they map to chunks.
    """

    def __init__(self, location: str | os.PathLike[str] | Storage) -> None:
        super().__init__(location)
        self._documents = DocumentReader(self.storage, self.cache)
        self._index: tuple[Ledger, FeatureIndex | None] | None = None

    # Documents

    def frame(
        self, documents: NDArray[np.int64] | None = None, columns: Sequence[Any] | None = None
    ) -> pd.DataFrame:
        """Return the given documents' columns, in the given order.

        Parameters
        ----------
        documents
            Document numbers; all by default.
        columns
            Names of the columns to read; all by default.

        Raises
        ------
        IndexError
            If there is no such document.
        """
        schema = [c for c in self.schema if columns is None or c.name in list(columns)]
        wanted = np.arange(self.n_documents) if documents is None else documents
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.n_documents:
            raise IndexError(
                f"documents {wanted.min()} to {wanted.max()} are out of range for {self.n_documents} "
                "documents"
            )
        return self.consistently(lambda: self._documents.frame(self.plan, schema, wanted))

    def record(self, document: int) -> dict[Any, Any]:
        """Return one document's columns as a dictionary."""
        return dict(self.frame(np.array([document])).to_dict(orient="records")[0])

    # Chunks

    def index(self) -> FeatureIndex | None:
        """Return the feature-major index of the snapshot's documents; None if there is none.

        This looks once per snapshot. Call `refresh` to notice an index that was built since.
        """
        ledger, known = self.ledger, self._index
        if known is None or known[0] is not ledger:
            found = read_index(self.storage, self.cache, ledger)
            known = self._index = (ledger, found)
        return known[1]

    def locate(self, document: int) -> tuple[StoredChunk, int] | None:
        """Return the chunk that holds a document and its position there, or None."""
        snapshot = self._snapshot
        interval = int(snapshot.ledger.locate(np.array([document]))[0])
        if interval < 0:
            return None
        chunk = snapshot.chunk(interval)
        return chunk, document - chunk.commit.start

    def document(self, document: int) -> tuple[csr_matrix, TokenTable, dict[int, str]]:
        """Return one document's activations, its tokens, and the strings of special tokens.

        Raises
        ------
        KeyError
            If no commit holds the document.
        """

        def read() -> tuple[csr_matrix, TokenTable, dict[int, str]]:
            located = self.locate(document)
            if located is None:
                raise KeyError(f"document {document} is not encoded")
            chunk, position = located
            with self.ahead([chunk.steps_of_documents(position, position + 1)]):
                return chunk.csr(position), chunk.tokens(position), chunk.vocabulary

        return self.consistently(read)

    def documents_ahead(
        self, documents: NDArray[np.int64], columns_of: NDArray[np.int64]
    ) -> ReadAhead:
        """Read what `document` will read of some documents, and `frame` of others. To be closed."""
        if not self.storage.remote:
            return self.ahead(())
        plans = [
            chunk.steps_of_documents(position, position + 1)
            for chunk, positions, _ in self.parts(documents)
            for position in positions.tolist()
        ]
        return self.ahead([*plans, self._documents.steps(self.plan, self.schema, columns_of)])

    def chunk(self, documents: NDArray[np.int64]) -> Chunk:
        """Return some documents in memory, in order; those that no commit holds are left out."""
        nothing = Chunk.failed(self.d_sae or 0, [], []).as_dtype(self.dtype)

        def read() -> Chunk:
            parts, where = [nothing], [np.empty(0, np.int64)]
            runs = []
            for stored, positions, index in self.parts(documents):
                low, high = int(positions.min()), int(positions.max()) + 1
                if high - low <= 2 * len(positions):
                    runs.append((stored, low, high, positions - low))
                else:
                    one = np.zeros(1, np.int64)
                    runs += [(stored, p, p + 1, one) for p in positions.tolist()]
                where.append(index)
            with self.ahead(stored.steps_of_documents(a, b) for stored, a, b, _ in runs):
                parts += [stored.read(a, b).take(taken) for stored, a, b, taken in runs]
            order = np.argsort(np.concatenate(where), kind="stable")
            return Chunk.concatenate(parts).take(order)

        return self.consistently(read)

    def parts(
        self, documents: NDArray[np.int64]
    ) -> Iterator[tuple[StoredChunk, NDArray[np.int64], NDArray[np.int64]]]:
        """Group documents by the chunk that holds them.

        Yields
        ------
        chunk : StoredChunk
        positions : ndarray of int64
            Of some of the documents, in the chunk.
        where : ndarray of int64
            Index of the same documents in ``documents``, ascending.
        """
        if len(documents) == 0:
            return
        snapshot = self._snapshot
        if (documents[1:] >= documents[:-1]).all():
            yield from self._parts_of_ascending(snapshot, documents)
            return
        located = snapshot.ledger.locate(documents)
        order = np.argsort(located, kind="stable")
        cuts = np.flatnonzero(np.diff(located[order], prepend=-2))
        for begin, end in zip(cuts, [*cuts[1:], len(order)], strict=True):
            where = order[begin:end]
            interval = int(located[where[0]])
            if interval >= 0:
                chunk = snapshot.chunk(interval)
                yield chunk, documents[where] - chunk.commit.start, where

    def _parts_of_ascending(
        self, snapshot: Snapshot, documents: NDArray[np.int64]
    ) -> Iterator[tuple[StoredChunk, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield `parts` without arrays of the length of the corpus."""
        ledger = snapshot.ledger
        begins = np.searchsorted(documents, ledger.starts)
        ends = np.searchsorted(documents, ledger.stops)
        for interval in np.flatnonzero(begins < ends):
            begin, end = int(begins[interval]), int(ends[interval])
            chunk = snapshot.chunk(int(interval))
            yield chunk, documents[begin:end] - chunk.commit.start, np.arange(begin, end)

    def _parts_with(
        self,
        documents: NDArray[np.int64],
        names: Sequence[str],
        without: Callable[[StoredChunk], bool] = lambda _: False,
    ) -> Iterator[tuple[StoredChunk, NDArray[np.int64], NDArray[np.int64], bool]]:
        """Yield `parts`, arrays of each chunk read ahead, and whether it does ``without`` them."""
        if not self.storage.remote:
            yield from ((*part, without(part[0])) for part in self.parts(documents))
            return
        parts = [(*part, without(part[0])) for part in self.parts(documents)]
        with self.ahead(part[0].steps_of(*names) for part in parts if not part[3]):
            yield from parts

    def status(self, documents: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return a `DocumentStatus` for each document, or `MISSING`."""

        def read() -> NDArray[np.uint8]:
            out = np.full(len(documents), MISSING, np.uint8)
            for chunk, positions, where, clean in self._parts_with(
                documents, ("status",), _is_clean
            ):
                out[where] = DocumentStatus.OK if clean else chunk.status()[positions]
            return out

        return self.consistently(read)

    def n_tokens(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of tokens of each document, 0 if it has none."""

        def read() -> NDArray[np.int64]:
            out = np.zeros(len(documents), np.int64)
            for chunk, positions, where, _ in self._parts_with(documents, ("doc_ptr",)):
                out[where] = chunk.n_tokens()[positions]
            return out

        return self.consistently(read)

    def encoded_characters(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many characters of each document's text its tokens stand for."""

        def read() -> NDArray[np.int64]:
            out = np.zeros(len(documents), np.int64)
            parts = list(self.parts(documents))
            plans = [
                chunk.steps_of_ends(int(positions.min()), int(positions.max()) + 1)
                for chunk, positions, _ in parts
            ]
            with self.ahead(plans):
                for chunk, positions, where in parts:
                    low, high = int(positions.min()), int(positions.max()) + 1
                    pointer = chunk.array("doc_ptr").read(low, high + 1).astype(np.int64)
                    end = chunk.array("token/end").read(int(pointer[0]), int(pointer[-1]))
                    # Spans follow each other, and those of special tokens end at 0.
                    whole = np.append(end, np.uint32(0))
                    furthest = np.maximum.reduceat(whole, pointer[:-1] - pointer[0])
                    furthest[pointer[1:] == pointer[:-1]] = 0
                    out[where] = furthest[positions - low]
            return out

        return self.consistently(read)

    def failures(self, documents: NDArray[np.int64]) -> dict[int, str]:
        """Return why each failed document failed, by its index in ``documents``."""

        def read() -> dict[int, str]:
            reasons: dict[int, str] = {}
            for chunk, positions, where, none in self._parts_with(
                documents, ("status", "reason"), lambda chunk: not chunk.commit.n_failed
            ):
                if none:
                    continue
                failed = chunk.status()[positions] == DocumentStatus.FAILED
                for position, index in zip(positions[failed], where[failed], strict=True):
                    reasons[int(index)] = chunk.reason(int(position))
            return dict(sorted(reasons.items()))

        return self.consistently(read)

    @cached_property
    def labels(self) -> LabelStore:
        """The labels, read on first access and again by `LabelStore.refresh`."""
        return LabelStore(self.storage)

    @cached_property
    def answers(self) -> Answers:
        """Paid answers of language models."""
        return Answers(self.storage)

    def feature_labels(self) -> dict[int, str]:
        """Return the label shown for each feature; see `interp_embed.labels.record.best_labels`."""
        return self.labels.shown()
