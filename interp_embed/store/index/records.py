"""The records of indexes: one JSON object for each state of the ledger that was indexed.

The object's name is the state it covers, so a reader finds the index of its documents with one
request, two processes that index the same documents have one winner, and an index of documents that
have changed since cannot be taken for a current one. Of such an index the segments count whose
documents are still read from the same chunks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from interp_embed.errors import CorruptStoreError
from interp_embed.store.arrays.folder import Folder
from interp_embed.store.format.layout import INDEX
from interp_embed.store.format.sealed import seal, unseal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from interp_embed.store.ledger import Ledger
    from interp_embed.store.storage import Storage

__all__ = [
    "IndexCommit",
    "Part",
    "Segment",
    "index_key",
    "index_leftovers",
    "is_there",
    "read_index_commit",
    "read_index_commits",
    "superseded_indexes",
    "valid_segments",
]

_NAME = re.compile(rf"{INDEX}/[0-9a-f]{{64}}\.json")


class Part(NamedTuple):
    """Documents ``start:stop``, as they are in the chunk in ``folder``."""

    start: int
    stop: int
    folder: str


@dataclass(frozen=True)
class Segment:
    """The entries of some documents, in order of the features.

    Attributes
    ----------
    parts : tuple of Part
        The documents, ascending.
    folder : Folder
        The arrays.
    """

    parts: tuple[Part, ...]
    folder: Folder = field(compare=False)

    @property
    def start(self) -> int:
        """The first document."""
        return self.parts[0].start

    @property
    def stop(self) -> int:
        """The end of the last documents."""
        return self.parts[-1].stop

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return sum(part.stop - part.start for part in self.parts)

    @property
    def n_entries(self) -> int:
        """Number of entries."""
        return self.folder.arrays["document"].length

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value that `from_json` reads."""
        return {"parts": [list(part) for part in self.parts], "folder": self.folder.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Segment:
        """Read what `to_json` returned."""
        parts = tuple(Part(*part) for part in value["parts"])
        return cls(parts, Folder.from_json(value["folder"]))


@dataclass(frozen=True)
class IndexCommit:
    """An index: its segments, and what it says of all documents together.

    Attributes
    ----------
    state : str
        State of the ledger, see `Ledger.state`.
    coverage : tuple of Part
        The ledger's intervals in that state.
    d_sae : int
        Number of features.
    n_documents, n_tokens : int
        Documents that have activations, and their tokens.
    segments : tuple of Segment
        In order of the documents.
    summary : Folder or None
        Of all segments together; None where there is one, which has it.
    """

    state: str
    coverage: tuple[Part, ...]
    d_sae: int
    n_documents: int
    n_tokens: int
    segments: tuple[Segment, ...]
    summary: Folder | None

    @property
    def key(self) -> str:
        """Where the commit is."""
        return index_key(self.state)

    @cached_property
    def folders(self) -> frozenset[str]:
        """Every folder that it names."""
        extra = {self.summary.key} if self.summary else set()
        return frozenset({segment.folder.key for segment in self.segments} | extra)

    def publish(self, storage: Storage) -> bool:
        """Make the index count; return False if another index of this state was first."""
        return storage.put_if_absent(
            self.key,
            seal(
                {
                    "coverage": [list(part) for part in self.coverage],
                    "d_sae": self.d_sae,
                    "n_documents": self.n_documents,
                    "n_tokens": self.n_tokens,
                    "segments": [segment.to_json() for segment in self.segments],
                    "summary": self.summary and self.summary.to_json(),
                }
            ),
        )

    def is_whole(self, storage: Storage) -> bool:
        """Return whether all objects of its folders are there."""
        folders = [segment.folder for segment in self.segments]
        every = [*folders, self.summary] if self.summary else folders
        return all(is_there(storage, folder) for folder in every)


def is_there(storage: Storage, folder: Folder) -> bool:
    """Return whether all objects of a folder are there."""
    prefix = f"{folder.key}/"
    found = {key.removeprefix(prefix) for key, _ in storage.list(folder.key)}
    return found.issuperset(folder.objects)


def index_key(state: str) -> str:
    """Return the key of the index of a state of the ledger."""
    return f"{INDEX}/{state}.json"


def read_index_commit(storage: Storage, state: str) -> IndexCommit | None:
    """Read the index of a state of the ledger; None if there is none or it is damaged."""
    try:
        data = storage.get(index_key(state))
    except FileNotFoundError:
        return None
    return _parsed(storage, state, data)


def _parsed(storage: Storage, state: str, data: bytes | None) -> IndexCommit | None:
    if data is None:
        return None
    try:
        value = unseal(data, f"{index_key(state)} in {storage.url}")
    except CorruptStoreError:
        return None  # derived: the chunks say the same
    return IndexCommit(
        state=state,
        coverage=tuple(Part(*part) for part in value["coverage"]),
        d_sae=value["d_sae"],
        n_documents=value["n_documents"],
        n_tokens=value["n_tokens"],
        segments=tuple(Segment.from_json(segment) for segment in value["segments"]),
        summary=value["summary"] and Folder.from_json(value["summary"]),
    )


def read_index_commits(storage: Storage) -> dict[str, IndexCommit | None]:
    """Read every index commit, by key; None for a damaged one."""
    keys = sorted(key for key, _ in storage.list(INDEX) if _NAME.fullmatch(key))
    found = zip(keys, storage.get_several(keys), strict=True)
    return {key: _parsed(storage, key[len(INDEX) + 1 : -5], data) for key, data in found}


def valid_segments(commit: IndexCommit, ledger: Ledger) -> list[Segment]:
    """Return the segments whose documents are all still read from the same chunks."""

    def stands(part: Part) -> bool:
        at = int(np.searchsorted(ledger.starts, part.start, side="right")) - 1
        if at < 0:
            return False
        interval = ledger.intervals[at]
        return part.stop <= interval.stop and interval.commit.folder.key == part.folder

    return [segment for segment in commit.segments if all(map(stands, segment.parts))]


def superseded_indexes(
    commits: Mapping[str, IndexCommit | None], ledger: Ledger
) -> tuple[list[str], list[str]]:
    """Return the keys of the index commits that can go, and the folders that go with them.

    Once there is an index of the ledger as it is, all others can; before, those of which no segment
    counts.
    """
    current = commits.get(index_key(ledger.state))
    keys = [
        key
        for key, commit in commits.items()
        if commit is None
        or (commit is not current and (current or not valid_segments(commit, ledger)))
    ]
    kept = _named(commits[key] for key in commits.keys() - set(keys))
    return keys, sorted(_named(commits[key] for key in keys) - kept)


def index_leftovers(storage: Storage, listed: Collection[str]) -> set[str]:
    """Return which of the folders below ``index``, listed before, no index commit names."""
    return set(listed) - _named(read_index_commits(storage).values())


def _named(commits: Iterable[IndexCommit | None]) -> set[str]:
    return {folder for commit in commits if commit is not None for folder in commit.folders}
