"""The ledger: commits, the plan, which commits count, and how documents map to chunks.

A commit is one JSON object under ``commits/``, created with *fail if it exists*. It says that a
folder of arrays holds the documents ``start:stop``. Commits may overlap: a merged chunk replaces its
parts, a retried document replaces its failed self. For every document the commit of the highest
generation counts, and of one generation the one that covers less. No coordination is needed to read
this right, and whatever lost can be deleted at any time.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from interp_embed.errors import CorruptStoreError
from interp_embed.store.arrays.folder import Folder
from interp_embed.store.format.layout import COMMITS, MANIFEST, PLAN, check_version
from interp_embed.store.format.sealed import digest, seal, unseal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from interp_embed.store.storage import Storage

__all__ = [
    "Commit",
    "Interval",
    "Ledger",
    "Plan",
    "PlannedBlock",
    "commit_keys",
    "committed_ranges",
    "plan_key",
    "read_commits",
    "read_manifest",
    "read_plan",
    "write_manifest",
]


@dataclass(frozen=True, slots=True, eq=False)
class Commit:
    """One attempt that counts.

    Attributes
    ----------
    start, stop : int
        The documents it holds.
    generation : int
        0 for the first encoding of a planned chunk, higher for what replaces others.
    d_sae : int
        Number of features.
    n_tokens, nnz, pooled_nnz, n_failed, n_truncated : int
        Sizes, so that memory and progress are known without reading data.
    n_special : int
        Tokens that stand for no text.
    has_negative : bool
        Whether an activation below zero occurs; then ``pooled/positive`` exists.
    encoder : str
        Digest of the fingerprint under which it was encoded.
    vocabulary : dict of str to str
        Strings of the token ids that are special somewhere in the chunk (BOS, chat template).
    folder : Folder
        The arrays.
    shift : int
        What to add to the folder's own document numbers, where it was copied from another store.
    """

    start: int
    stop: int
    generation: int
    d_sae: int
    n_tokens: int
    n_special: int
    nnz: int
    pooled_nnz: int
    n_failed: int
    n_truncated: int
    has_negative: bool
    encoder: str
    vocabulary: Mapping[str, str]
    folder: Folder
    shift: int = 0

    @property
    def key(self) -> str:
        """The commit's key: the same range and generation can be committed once."""
        return f"{COMMITS}/{self.start:012d}-{self.stop:012d}-{self.generation:06d}.json"

    @property
    def rank(self) -> tuple[int, int, str]:
        """Of two commits that hold a document, the one of higher rank counts."""
        return (self.generation, self.start - self.stop, self.folder.key)

    def to_json(self, *, objects: bool = True) -> dict[str, Any]:
        """Return a JSON value that `from_json` reads."""
        value: dict[str, Any] = {
            name: getattr(self, name) for name in self.__slots__ if name != "folder"
        }
        if not self.shift:
            del value["shift"]
        return value | {"folder": self.folder.to_json(objects=objects)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Commit:
        """Read what `to_json` returned."""
        return cls(**{**value, "folder": Folder.from_json(value["folder"])})

    def publish(self, storage: Storage) -> bool:
        """Make the commit count; return False if another attempt was first."""
        return storage.put_if_absent(self.key, seal(self.to_json()))


@dataclass(frozen=True, slots=True)
class Interval:
    """Documents ``start:stop`` are read from ``commit``."""

    start: int
    stop: int
    commit: Commit


class PlannedBlock(NamedTuple):
    """Documents that are stored in one folder.

    Attributes
    ----------
    start, stop : int
        Their numbers.
    folder : Folder
        The arrays of their columns.
    columns : list of dict or None
        Their schema, where it is not that of all documents.
    hashes : dict of str to str
        ``text`` and ``columns``, see `interp_embed.store.format.document_hash`.
    """

    start: int
    stop: int
    folder: Folder
    columns: Sequence[Mapping[str, Any]] | None
    hashes: Mapping[str, str]

    def to_json(self) -> list[Any]:
        """Return a JSON value that `from_json` reads."""
        more = {"columns": self.columns, "hashes": dict(self.hashes)}
        return [self.start, self.stop, self.folder.to_json(), more]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> PlannedBlock:
        """Read what `to_json` returned."""
        start, stop, folder, more = value
        return cls(start, stop, Folder.from_json(folder), more["columns"], more["hashes"])


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be encoded: written once, when a store is created.

    Attributes
    ----------
    n_documents, documents_per_chunk : int
        Chunk ``i`` is the documents ``i * documents_per_chunk`` up to the next multiple.
    columns : list of dict
        Schema of the documents' columns, see `interp_embed.store.format.columns`.
    blocks : list of PlannedBlock
        The documents themselves.
    hashes : dict of str to str
        ``text`` and ``columns``: digests of the blocks' hashes.
    additions : int
        How often documents were added since the store was created.
    """

    n_documents: int
    documents_per_chunk: int
    columns: Sequence[Mapping[str, Any]]
    blocks: Sequence[PlannedBlock]
    hashes: Mapping[str, str]
    additions: int = 0

    def with_added(self, added: Plan) -> Plan:
        """Return this plan with what was added to it."""
        unified = added.columns
        blocks = [
            block._replace(columns=self.columns)
            if block.columns is None and self.columns != unified
            else block
            for block in self.blocks
        ]
        return replace(added, blocks=[*blocks, *added.blocks], additions=self.additions + 1)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value that `from_json` reads."""
        return {
            "n_documents": self.n_documents,
            "documents_per_chunk": self.documents_per_chunk,
            "columns": list(self.columns),
            "blocks": [block.to_json() for block in self.blocks],
            "hashes": dict(self.hashes),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Read what `to_json` returned."""
        return cls(
            n_documents=value["n_documents"],
            documents_per_chunk=value["documents_per_chunk"],
            columns=value["columns"],
            blocks=[PlannedBlock.from_json(block) for block in value["blocks"]],
            hashes=value["hashes"],
        )

    def pieces(self, start: int, stop: int, step: int | None = None) -> list[tuple[int, int]]:
        """Cut documents ``start:stop`` at the multiples of ``step``, by default the plan's."""
        step = step or self.documents_per_chunk
        cuts = [start, *range((start // step + 1) * step, stop, step), stop]
        return list(itertools.pairwise(cuts))


@dataclass(frozen=True)
class Ledger:
    """All commits of a store, resolved."""

    commits: Sequence[Commit]
    n_documents: int

    @cached_property
    def intervals(self) -> tuple[Interval, ...]:
        """Disjoint runs of documents in ascending order, each with the commit that counts."""
        return tuple(_resolve(self.commits))

    @cached_property
    def live(self) -> tuple[Commit, ...]:
        """The commits that some document is read from, in order of their first document."""
        return tuple(dict.fromkeys(interval.commit for interval in self.intervals))

    @cached_property
    def superseded(self) -> tuple[Commit, ...]:
        """The commits that no document is read from."""
        live = {commit.key for commit in self.live}
        return tuple(commit for commit in self.commits if commit.key not in live)

    @cached_property
    def missing(self) -> tuple[tuple[int, int], ...]:
        """Runs of documents that no commit holds."""
        gaps, at = [], 0
        for interval in self.intervals:
            if interval.start > at:
                gaps.append((at, interval.start))
            at = interval.stop
        if at < self.n_documents:
            gaps.append((at, self.n_documents))
        return tuple(gaps)

    @property
    def n_held(self) -> int:
        """Number of documents that a commit holds."""
        return self.n_documents - sum(stop - start for start, stop in self.missing)

    @cached_property
    def state(self) -> str:
        """Digest of which documents are read from which folder."""
        return digest([[i.start, i.stop, i.commit.folder.key] for i in self.intervals])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First document of each interval, for binary search."""
        return np.array([interval.start for interval in self.intervals], np.int64)

    @cached_property
    def stops(self) -> NDArray[np.int64]:
        """End of each interval."""
        return np.array([interval.stop for interval in self.intervals], np.int64)

    def locate(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the interval of each document, -1 where no commit holds it."""
        if not self.intervals:
            return np.full(len(documents), -1, np.int64)
        found = np.searchsorted(self.starts, documents, side="right") - 1
        inside = (found >= 0) & (documents < self.stops[found])
        return np.where(inside, found, -1)

    @property
    def next_generation(self) -> int:
        """A generation above every commit's."""
        return 1 + max((commit.generation for commit in self.commits), default=-1)


def _resolve(commits: Iterable[Commit]) -> list[Interval]:
    """Sweep over the documents with the commits that cover the position in a heap by rank."""
    ordered = sorted(commits, key=lambda c: c.start)
    cuts = sorted({c.start for c in ordered} | {c.stop for c in ordered})
    active: list[tuple[_Descending, Commit]] = []
    intervals: list[Interval] = []
    upcoming = 0
    for begin, end in itertools.pairwise(cuts):
        while upcoming < len(ordered) and ordered[upcoming].start <= begin:
            commit = ordered[upcoming]
            heapq.heappush(active, (_Descending(commit.rank), commit))
            upcoming += 1
        while active and active[0][1].stop <= begin:
            heapq.heappop(active)
        if not active:
            continue
        winner = active[0][1]
        if intervals and intervals[-1].commit is winner and intervals[-1].stop == begin:
            intervals[-1] = Interval(intervals[-1].start, end, winner)
        else:
            intervals.append(Interval(begin, end, winner))
    return intervals


@dataclass(frozen=True, slots=True)
class _Descending:
    """Orders a heap with the highest rank first."""

    rank: tuple[int, int, str]

    def __lt__(self, other: _Descending) -> bool:
        return self.rank > other.rank


def read_commits(storage: Storage) -> list[Commit]:
    """Read every commit, as of one moment.

    Others may commit a merged chunk and delete its parts meanwhile: a listing that saw neither would
    lose documents. So commits are listed again until nothing changed while they were read.

    Raises
    ------
    CorruptStoreError
        If a commit is damaged.
    """
    known: dict[str, Commit] = {}
    listed = commit_keys(storage)
    while True:
        known = {key: commit for key, commit in known.items() if key in listed}
        new = sorted(listed - set(known))
        for key, data in zip(new, storage.get_several(new), strict=True):
            if data is None:  # superseded and deleted since the listing
                continue
            known[key] = Commit.from_json(unseal(data, f"{key} in {storage.url}"))
        again = commit_keys(storage)
        if again == set(known):
            return [known[key] for key in sorted(known)]
        listed = again


def commit_keys(storage: Storage) -> set[str]:
    """Return the keys of all commits."""
    return {
        key
        for key, _ in storage.list(COMMITS)
        if key.endswith(".json") and not key.rsplit("/", 1)[1].startswith(".")
    }


def committed_ranges(storage: Storage) -> list[tuple[int, int]]:
    """Return the documents that each commit holds, from a listing alone. No commit is read."""
    names = (key.rsplit("/", 1)[1].split("-") for key in commit_keys(storage))
    return sorted((int(start), int(stop)) for start, stop, _ in names)


def plan_key(number: int) -> str:
    """Return the key of the plan, or of the ``number``-th addition to it."""
    return f"plan-{number:06d}.json" if number else PLAN


def read_plan(storage: Storage) -> Plan | None:
    """Read the plan with all additions; None if creation was interrupted before it was written."""
    plan: Plan | None = None
    while True:
        key = plan_key(0 if plan is None else plan.additions + 1)
        try:
            document = unseal(storage.get(key), f"{key} in {storage.url}")
        except FileNotFoundError:
            return plan
        check_version(document.pop("format_version", None), storage.url)
        added = Plan.from_json(document)
        plan = added if plan is None else plan.with_added(added)


def read_manifest(storage: Storage) -> list[Commit] | None:
    """Read the commits of a complete store in one object; None if there is no manifest."""
    try:
        document = unseal(storage.get(MANIFEST), f"{MANIFEST} in {storage.url}")
    except (FileNotFoundError, CorruptStoreError):
        return None  # derived: the commits say the same
    return [Commit.from_json(value) for value in document["commits"]]


def write_manifest(storage: Storage, commits: Iterable[Commit]) -> None:
    """Write the manifest of a complete store."""
    storage.put(MANIFEST, seal({"commits": [c.to_json(objects=False) for c in commits]}))
