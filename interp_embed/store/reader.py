"""Reading a store: its documents, its chunks, and which chunk holds which document.

A `Store` is a snapshot of the ledger. Data is read when it is asked for. Where another process has
merged chunks since the snapshot, reading notices that a folder has gone and looks at the ledger
again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from interp_embed.chunk import Chunk, DocumentStatus
from interp_embed.errors import CorruptStoreError, NotAStoreError
from interp_embed.store.chunks import StoredChunk
from interp_embed.store.columns import Column
from interp_embed.store.documents import DocumentReader
from interp_embed.store.handles import Reference, opened
from interp_embed.store.labels import Answers, LabelStore
from interp_embed.store.layout import (
    BINDING,
    MANIFEST,
    PLAN,
    ROOT,
)
from interp_embed.store.ledger import (
    Ledger,
    Plan,
    plan_key,
    read_commits,
    read_manifest,
    read_plan,
)
from interp_embed.store.readahead import ReadAhead
from interp_embed.store.root import read_root, unfinished
from interp_embed.store.sealed import digest, unseal
from interp_embed.store.shard_reader import BlockCache
from interp_embed.store.storage import open_storage
from interp_embed.store.storage_wrapped import AtOnce

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from interp_embed.chunk import TokenTable
    from interp_embed.store.index import FeatureIndex
    from interp_embed.store.ledger import Commit
    from interp_embed.store.readahead import Wanted
    from interp_embed.store.storage import Storage

__all__ = ["MISSING", "Store"]

T = TypeVar("T")

MISSING = 255
"""Status of a document that no commit holds yet."""


@dataclass(frozen=True, slots=True, eq=False)
class _Snapshot:
    """A ledger, and the chunks that it names."""

    ledger: Ledger
    chunks: dict[str, StoredChunk]

    def chunk(self, interval: int) -> StoredChunk:
        """Return the chunk that an interval of the ledger is read from."""
        return self.chunks[self.ledger.intervals[interval].commit.key]


def _is_clean(chunk: StoredChunk) -> bool:
    """Whether every document of the chunk was encoded whole, which the commit says."""
    return not (chunk.commit.n_failed or chunk.commit.n_truncated)


def _identity(plan: Plan | None) -> str:
    return digest([block.folder.key for block in plan.blocks[:1]] if plan else None)


def _referred(reference: Reference) -> Store:
    """Return a store that is opened when it is first asked for something."""
    store = Store.__new__(Store)
    vars(store)["_reference"] = reference
    return store


class Store:
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
        self.storage = open_storage(location)
        first = AtOnce(self.storage, (ROOT, PLAN, plan_key(1), BINDING, MANIFEST))
        self.attributes = read_root(first)
        plan = read_plan(first)
        if plan is None:
            raise NotAStoreError(unfinished(self.storage))
        self.plan: Plan = plan
        self.cache = BlockCache()
        self._documents = DocumentReader(self.storage, self.cache)
        self._index: tuple[Ledger, FeatureIndex | None] | None = None
        self._take_binding(first)
        self._take_ledger(read_manifest(first))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a reference; see `interp_embed.store.handles`."""
        reference = vars(self).get("_reference")
        if reference is None:
            reference = Reference(self.storage.url, self.identity, self.ledger.state)
        return _referred, (reference,)

    if not TYPE_CHECKING:  # for mypy every name would be an attribute

        def __getattr__(self, name: str) -> Any:
            """Open the store that was sent here, when it is first asked for something."""
            reference = vars(self).get("_reference")
            if reference is None or name.startswith("__"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            vars(self).update(vars(opened(reference)))
            vars(self).pop("_reference", None)  # unless another thread was first
            return object.__getattribute__(self, name)

    @property
    def identity(self) -> str:
        """Digest that no other store has: its documents are in folders with names of their own."""
        return _identity(self.plan)

    def require_identity(self, identity: str) -> None:
        """Refuse to read from another store than is meant.

        Raises
        ------
        CorruptStoreError
            If this is another one.
        """
        if self.identity != identity:
            raise CorruptStoreError(
                f"the store at {self.storage.url} was replaced by another one meanwhile. Open it again"
            )

    def _require_unreplaced(self) -> None:
        """Refuse to go on where another store, or none, stands in this one's place."""
        if _identity(read_plan(self.storage)) != self.identity:
            raise CorruptStoreError(
                f"the store that was opened at {self.storage.url} is not there any more: it was "
                "deleted, or another one was saved in its place. Open it again"
            )

    def refresh_binding(self) -> bool:
        """Take over what the first run added to the root's attributes; return whether there is any."""
        return self._take_binding(self.storage)

    def _take_binding(self, storage: Storage) -> bool:
        try:
            data = storage.get(BINDING)
        except FileNotFoundError:
            return False
        bound = unseal(data, f"{BINDING} in {self.storage.url}")
        self.attributes = {**self.attributes, **bound}
        return True

    def refresh(self, *, manifest: bool = True) -> None:
        """Look at the ledger again, and at the plan where it holds documents that were added."""
        self._take_ledger(read_manifest(self.storage) if manifest else None)

    def _take_ledger(self, commits: list[Commit] | None) -> None:
        if commits is None:
            commits = read_commits(self.storage)
        if max((commit.stop for commit in commits), default=0) > self.n_documents:
            self.refresh_plan()
        for commit in commits:
            if commit.stop > self.n_documents:
                raise CorruptStoreError(
                    f"{commit.key} in {self.storage.url} has documents {commit.start} to {commit.stop}, "
                    f"and the plan says that there are {self.n_documents}: an object of the plan, such "
                    "as plan-000001.json, is missing. Restore it from a copy"
                )
        ledger = Ledger(commits, self.plan.n_documents)
        chunks = {c.key: StoredChunk(self.storage, c, self.cache) for c in ledger.live}
        # Replaced together: other threads may be reading.
        self._snapshot = _Snapshot(ledger, chunks)

    def refresh_plan(self) -> None:
        """Take over documents that were added since the store was opened."""
        plan = read_plan(self.storage)
        if plan is not None and plan.n_documents > self.n_documents:
            self.__dict__.pop("schema", None)
            self.plan = plan

    @property
    def ledger(self) -> Ledger:
        """The commits, as they were when the store was last looked at."""
        return self._snapshot.ledger

    def consistently(self, read: Callable[[], T]) -> T:
        """Run ``read``; where chunks were merged meanwhile, look at the ledger again and repeat.

        Raises
        ------
        CorruptStoreError
            If an object is missing though the ledger names it.
        """
        for _ in range(8):
            snapshot = self._snapshot
            before = snapshot.ledger.state
            try:
                return read()
            except FileNotFoundError as error:
                self._require_unreplaced()
                self.refresh(manifest=False)
                same = self.ledger.state == before
                # What was committed once stays: a ledger that shrank was deleted, not merged.
                if same or self.ledger.n_held < snapshot.ledger.n_held:
                    self._snapshot = snapshot
                    raise CorruptStoreError(
                        f"an object that the ledger of {self.storage.url} names is missing: {error}. "
                        "Run 'interp-embed verify' to see what else is, and restore it from a copy"
                    ) from error
        raise CorruptStoreError(
            f"the store at {self.storage.url} changes faster than it can be read"
        )

    def ahead(self, plans: Iterable[Iterator[Iterable[Wanted]]]) -> ReadAhead:
        """Read what several plans ask for; see `interp_embed.store.readahead`. To be closed."""
        return ReadAhead(self.storage).follow(plans)

    # What the store says of itself

    @property
    def n_documents(self) -> int:
        """Number of documents, encoded or not."""
        return self.plan.n_documents

    @property
    def d_sae(self) -> int | None:
        """Number of features; None where nothing was encoded and the SAE did not say."""
        known = self.attributes.get("d_sae")
        if known is None:
            known = next((c.d_sae for c in self.ledger.live if c.d_sae), None)
        return known

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the stored activations."""
        return np.dtype(str(self.attributes["dtype"]))

    @property
    def field(self) -> Any:
        """Name of the column that holds the text."""
        return self.attributes["field"]

    @cached_property
    def schema(self) -> list[Column]:
        """The documents' columns."""
        return [Column(**value) for value in self.plan.columns]

    @property
    def n_tokens_total(self) -> int:
        """Number of tokens of all documents."""
        return sum(c.n_tokens for c in self.ledger.live)

    @property
    def is_complete(self) -> bool:
        """Whether every document was tried."""
        return not self.ledger.missing

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
                f"documents {wanted.min()} to {wanted.max()} asked of {self.n_documents}"
            )
        return self.consistently(lambda: self._documents.frame(self.plan, schema, wanted))

    def record(self, document: int) -> dict[Any, Any]:
        """Return one document's columns as a dictionary."""
        return dict(self.frame(np.array([document])).to_dict(orient="records")[0])

    # Chunks

    def index(self) -> FeatureIndex | None:
        """Return the feature-major index of the snapshot's documents; None where there is none.

        Looked for once a snapshot: `refresh` to notice one that was built since.
        """
        ledger, known = self.ledger, self._index
        if known is None or known[0] is not ledger:
            from interp_embed.store.index import read_index

            known = self._index = (ledger, read_index(self, ledger))
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
        located = snapshot.ledger.locate(documents)
        order = np.argsort(located, kind="stable")
        cuts = np.flatnonzero(np.diff(located[order], prepend=-2))
        for begin, end in zip(cuts, [*cuts[1:], len(order)], strict=True):
            where = order[begin:end]
            interval = int(located[where[0]])
            if interval >= 0:
                chunk = snapshot.chunk(interval)
                yield chunk, documents[where] - chunk.commit.start, where

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
        """Return the number of tokens of each document, 0 where it has none."""

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
        """The labels: read when they are first asked for, and again by `LabelStore.refresh`."""
        return LabelStore(self.storage)

    @cached_property
    def answers(self) -> Answers:
        """Answers of language models that were paid for."""
        return Answers(self.storage)

    def feature_labels(self) -> dict[int, str]:
        """Return the label of each feature that is shown; see `interp_embed.label.best_labels`."""
        return self.labels.shown()
