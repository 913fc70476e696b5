"""The current state of a store: its plan, its ledger, and the chunks that count.

A snapshot is replaced as a whole. If another process has merged chunks since it was taken, reading
notices that a folder is gone and reads the ledger again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from interp_embed.errors import CorruptStoreError, NotAStoreError
from interp_embed.store.arrays.readahead import ReadAhead
from interp_embed.store.arrays.shard_reader import BlockCache
from interp_embed.store.chunks import StoredChunk
from interp_embed.store.format.columns import Column
from interp_embed.store.format.layout import BINDING, MANIFEST, PLAN, ROOT
from interp_embed.store.format.root import read_root, unfinished
from interp_embed.store.format.sealed import digest, unseal
from interp_embed.store.ledger import (
    Ledger,
    Plan,
    plan_key,
    read_commits,
    read_manifest,
    read_plan,
)
from interp_embed.store.reference import Reference
from interp_embed.store.storage import open_storage
from interp_embed.store.storage.wrapped import AtOnce

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from interp_embed.store.arrays.readahead import Wanted
    from interp_embed.store.ledger import Commit
    from interp_embed.store.storage import Storage

__all__ = ["Snapshot", "Snapshots"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A ledger, and the chunks that it names."""

    ledger: Ledger
    chunks: dict[str, StoredChunk]

    def chunk(self, interval: int) -> StoredChunk:
        """Return the chunk that an interval of the ledger is read from."""
        return self.chunks[self.ledger.intervals[interval].commit.key]


def _identity(plan: Plan | None) -> str:
    return digest([block.folder.key for block in plan.blocks[:1]] if plan else None)


def _referred(cls: type[Snapshots], reference: Reference) -> Snapshots:
    """Return a store that is opened on first use."""
    store = cls.__new__(cls)
    vars(store)["_reference"] = reference
    return store


@lru_cache(maxsize=8)
def _opened(cls: type[Snapshots], reference: Reference) -> Snapshots:
    """Return the store of a reference, opened once in this process for each state of its ledger.

    Raises
    ------
    CorruptStoreError
        If there is another store at its place.
    """
    store = cls(reference.url)
    store.require_identity(reference.identity)
    if store.ledger.state != reference.state:  # an older manifest, or chunks were merged meanwhile
        store.refresh(manifest=False)
    return store


class Snapshots:
    """A store's plan and ledger, as they were when they were last looked at; see `Store`."""

    def __init__(self, location: str | os.PathLike[str] | Storage) -> None:
        self.storage = open_storage(location)
        first = AtOnce(self.storage, (ROOT, PLAN, plan_key(1), BINDING, MANIFEST))
        self.attributes = read_root(first)
        plan = read_plan(first)
        if plan is None:
            raise NotAStoreError(unfinished(self.storage))
        self.plan: Plan = plan
        self.cache = BlockCache()
        self._take_binding(first)
        self._take_ledger(read_manifest(first))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a reference to the store, which the receiving process opens once.

        The store is opened on first use, not on arrival. If it cannot be opened, only the task that
        reads from it fails; a scheduler or a worker can still take part.
        """
        reference = vars(self).get("_reference")
        if reference is None:
            reference = Reference(self.storage.url, self.identity, self.ledger.state)
        return _referred, (type(self), reference)

    if not TYPE_CHECKING:  # for mypy every name would be an attribute

        def __getattr__(self, name: str) -> Any:
            """Open a store that was sent to this process, on first use."""
            reference = vars(self).get("_reference")
            if reference is None or name.startswith("__"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            vars(self).update(vars(_opened(type(self), reference)))
            vars(self).pop("_reference", None)  # unless another thread was first
            return object.__getattribute__(self, name)

    @property
    def identity(self) -> str:
        """Digest that no other store has: its documents are in folders with names of their own."""
        return _identity(self.plan)

    def require_identity(self, identity: str) -> None:
        """Refuse to read from a store with another identity.

        Raises
        ------
        CorruptStoreError
            If this is another store.
        """
        if self.identity != identity:
            raise CorruptStoreError(
                f"the store at {self.storage.url} was replaced by another store meanwhile. Open it again"
            )

    def _require_unreplaced(self) -> None:
        """Refuse to continue if this store was deleted or replaced by another one."""
        if _identity(read_plan(self.storage)) != self.identity:
            raise CorruptStoreError(
                f"the store that was opened at {self.storage.url} no longer exists: it was deleted, or "
                "another store was saved in its place. Open it again"
            )

    def refresh_binding(self) -> bool:
        """Read the attributes that the first run added to the root; return whether there are any."""
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
        """Read the ledger again, and the plan if documents were added."""
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
        self._snapshot = Snapshot(ledger, chunks)

    def refresh_plan(self) -> None:
        """Include documents that were added since the store was opened."""
        plan = read_plan(self.storage)
        if plan is not None and plan.n_documents > self.n_documents:
            self.__dict__.pop("schema", None)
            self.plan = plan

    @property
    def ledger(self) -> Ledger:
        """The commits, as of the last time that the store was read."""
        return self._snapshot.ledger

    def consistently(self, read: Callable[[], T]) -> T:
        """Run ``read``; if chunks were merged meanwhile, read the ledger again and repeat.

        Raises
        ------
        CorruptStoreError
            If an object is missing although the ledger names it.
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
                        "Run 'interp-embed verify' to find other missing objects, and restore it from a copy"
                    ) from error
        raise CorruptStoreError(
            f"the store at {self.storage.url} changes faster than it can be read"
        )

    def ahead(self, plans: Iterable[Iterator[Iterable[Wanted]]]) -> ReadAhead:
        """Read what several plans ask for; see `interp_embed.store.arrays.readahead`. To be closed."""
        return ReadAhead(self.storage).follow(plans)

    # What the store says of itself

    @property
    def n_documents(self) -> int:
        """Number of documents, encoded or not."""
        return self.plan.n_documents

    @property
    def d_sae(self) -> int | None:
        """Number of features; None if nothing was encoded and the SAE did not say."""
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
        """Whether every document was encoded or has failed."""
        return not self.ledger.missing
