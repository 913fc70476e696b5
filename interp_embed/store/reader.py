"""Reading a store: its documents, its chunks, and which chunk holds which document.

A `Store` is a snapshot of the ledger. Data is read when it is asked for. Where another process has
merged chunks since the snapshot, reading notices that a folder has gone and looks at the ledger
again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from interp_embed.chunk import Chunk, DocumentStatus
from interp_embed.errors import CorruptStoreError, NotAStoreError
from interp_embed.store.chunks import StoredChunk
from interp_embed.store.columns import Column, decode_frame
from interp_embed.store.handles import opened
from interp_embed.store.layout import BINDING, LABELS, ROOT, check_version
from interp_embed.store.ledger import Ledger, Plan, read_commits, read_manifest, read_plan
from interp_embed.store.sealed import digest, unseal
from interp_embed.store.shard_reader import BlockCache
from interp_embed.store.storage import open_storage

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from interp_embed.chunk import TokenTable
    from interp_embed.store.index import FeatureIndex
    from interp_embed.store.storage import Storage

__all__ = ["MISSING", "Store", "read_root", "root_document"]

T = TypeVar("T")

MISSING = 255
"""Status of a document that no commit holds yet."""


def root_document(attributes: dict[str, Any]) -> bytes:
    """Return the root ``zarr.json``: a plain Zarr group whose attributes carry their checksum."""
    body = json.loads(json.dumps(attributes))  # keys as a reader will see them
    sealed = {**body, "checksum": digest(body)}
    return json.dumps({**_GROUP, "attributes": sealed}, indent=1).encode()


_GROUP = {"zarr_format": 3, "node_type": "group"}


def read_root(storage: Storage) -> dict[str, Any]:
    """Return the root attributes.

    Raises
    ------
    NotAStoreError
        If there is nothing, or something else, at this place.
    UnsupportedFormatError
        If a newer release wrote the store.
    CorruptStoreError
        If the root is damaged.
    """
    try:
        data = storage.get(ROOT)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise NotAStoreError(
            f"there is no store at {storage.url}: it has no {ROOT}. Give the folder that was passed "
            "as save_path"
        ) from None
    damaged = f"{ROOT} in {storage.url}"
    try:
        document = json.loads(data)
        attributes = document.pop("attributes")
        claimed = attributes.pop("checksum")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        if isinstance(error, KeyError) and document.get("zarr_format") == 3:
            raise NotAStoreError(
                f"{storage.url} is a Zarr hierarchy, but not one that interp_embed wrote"
            ) from None
        raise CorruptStoreError(f"{damaged} is damaged: {error!r}") from error
    check_version(attributes.get("format_version"), storage.url)
    if claimed != digest(attributes) or document != _GROUP:
        raise CorruptStoreError(
            f"{damaged} is damaged: its content does not match its checksum. "
            "Restore this object from a copy"
        )
    return dict(attributes)


@dataclass(frozen=True, slots=True, eq=False)
class _Snapshot:
    """A ledger, and the chunks that it names."""

    ledger: Ledger
    chunks: dict[str, StoredChunk]

    def chunk(self, interval: int) -> StoredChunk:
        """Return the chunk that an interval of the ledger is read from."""
        return self.chunks[self.ledger.intervals[interval].commit.key]


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
        self.attributes = read_root(self.storage)
        plan = read_plan(self.storage)
        if plan is None:
            raise NotAStoreError(
                f"the store at {self.storage.url} was never finished creating: it has no documents. "
                "Create it again with the data and the same path"
            )
        self.plan: Plan = plan
        self.cache = BlockCache()
        self._index: tuple[Ledger, FeatureIndex | None] | None = None
        self.refresh_binding()
        self.refresh()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a reference; see `interp_embed.store.handles`."""
        return opened, (self.storage.url, self.ledger.state)

    def refresh_binding(self) -> bool:
        """Take over what the first run added to the root's attributes; return whether there is any."""
        try:
            data = self.storage.get(BINDING)
        except FileNotFoundError:
            return False
        bound = unseal(data, f"{BINDING} in {self.storage.url}")
        self.attributes = {**self.attributes, **bound}
        return True

    def refresh(self, *, manifest: bool = True) -> None:
        """Look at the ledger again."""
        commits = read_manifest(self.storage) if manifest else None
        if commits is None:
            commits = read_commits(self.storage)
        ledger = Ledger(commits, self.plan.n_documents)
        chunks = {c.key: StoredChunk(self.storage, c, self.cache) for c in ledger.live}
        # Replaced together: other threads may be reading.
        self._snapshot = _Snapshot(ledger, chunks)

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

        def read() -> dict[str, NDArray[Any]]:
            names = [name for column in schema for name in column.arrays]
            return {name: self._column(name, wanted) for name in names}

        return decode_frame(self.consistently(read), schema, len(wanted))

    def _column(self, name: str, wanted: NDArray[np.int64]) -> NDArray[Any]:
        out: NDArray[Any] | None = None
        for start, stop, folder in self.plan.blocks:
            here = np.flatnonzero((wanted >= start) & (wanted < stop))
            if len(here) == 0 and out is not None:
                continue
            array = folder.open(self.storage, name, self.cache)
            if out is None:
                out = np.empty(len(wanted), array.dtype)
            if len(here) == 0:
                continue
            position = wanted[here] - start
            low, high = int(position.min()), int(position.max()) + 1
            if high - low == array.length:
                out[here] = array.read_all()[position]
            elif high - low <= 4 * len(here):
                out[here] = array.read(low, high)[position - low]
            else:
                for target, p in zip(here.tolist(), position.tolist(), strict=True):
                    out[target] = array.read(p, p + 1)[0]
        return np.empty(0, object) if out is None else out

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
            return chunk.csr(position), chunk.tokens(position), chunk.vocabulary

        return self.consistently(read)

    def chunk(self, documents: NDArray[np.int64]) -> Chunk:
        """Return some documents in memory, in order; those that no commit holds are left out."""
        nothing = Chunk.failed(self.d_sae or 0, [], []).as_dtype(self.dtype)

        def read() -> Chunk:
            parts, where = [nothing], [np.empty(0, np.int64)]
            for stored, positions, index in self.parts(documents):
                low, high = int(positions.min()), int(positions.max()) + 1
                if high - low <= 2 * len(positions):
                    parts.append(stored.read(low, high).take(positions - low))
                else:
                    parts += [stored.read(int(p), int(p) + 1) for p in positions]
                where.append(index)
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

    def status(self, documents: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return a `DocumentStatus` for each document, or `MISSING`."""

        def read() -> NDArray[np.uint8]:
            out = np.full(len(documents), MISSING, np.uint8)
            for chunk, positions, where in self.parts(documents):
                clean = not (chunk.commit.n_failed or chunk.commit.n_truncated)
                out[where] = DocumentStatus.OK if clean else chunk.status()[positions]
            return out

        return self.consistently(read)

    def n_tokens(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of tokens of each document, 0 where it has none."""

        def read() -> NDArray[np.int64]:
            out = np.zeros(len(documents), np.int64)
            for chunk, positions, where in self.parts(documents):
                out[where] = chunk.n_tokens()[positions]
            return out

        return self.consistently(read)

    def encoded_characters(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many characters of each document's text its tokens stand for."""

        def read() -> NDArray[np.int64]:
            out = np.zeros(len(documents), np.int64)
            for chunk, positions, where in self.parts(documents):
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
            for chunk, positions, where in self.parts(documents):
                if not chunk.commit.n_failed:
                    continue
                failed = chunk.status()[positions] == DocumentStatus.FAILED
                for position, index in zip(positions[failed], where[failed], strict=True):
                    reasons[int(index)] = chunk.reason(int(position))
            return dict(sorted(reasons.items()))

        return self.consistently(read)

    def feature_labels(self) -> dict[int, str]:
        """Return the labels that were stored with the activations."""
        try:
            key = f"{LABELS}/labels.json"
            found = unseal(self.storage.get(key), f"{key} in {self.storage.url}")
        except FileNotFoundError:
            return {}
        return {int(feature): label for feature, label in found["labels"].items()}
