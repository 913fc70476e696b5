"""What the format promises of an index: that it says what the chunks say, in order of the features.

Like the rest of the verifier it knows the format, plain Zarr and numpy, and nothing of the writer. A
segment is compared with its chunks by a sum of hashes of the entries, which does not depend on their
order: neither has to be in memory whole.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.store.verify.check_arrays import metadata_differs
from interp_embed.store.verify.check_entries import Entries, FeatureSums, Summary

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from interp_embed.store.verify.check_folders import Folders

__all__ = ["check_indexes"]

_NAME = re.compile(r"index/([0-9a-f]{64})\.json")
_BLOCK = 2**20  # entries at a time
_SIGNED = frozenset({"positive", "summary/nonzero_documents", "summary/nonzero_tokens"})
_POSTINGS = frozenset({"feature_ptr", "document", "max", "count"})
_SUMMARY = frozenset(
    f"summary/{name}"
    for name in (
        "document_frequency", "token_frequency", "sum", "max", "top_ptr", "top_document", "top_max",
    )
)  # fmt: skip


def check_indexes(
    folders: Folders, commits: Sequence[Mapping[str, Any]], winners: NDArray[np.int32]
) -> None:
    """Check every index of a store, the one of its present state first.

    Parameters
    ----------
    folders
        What reads the folders, and where findings go.
    commits
        All commits of the store.
    winners
        The place in ``commits`` of the one that each document is read from, -1 where none holds it.
    """
    intervals = _intervals(commits, winners)
    current = f"index/{_digest(intervals)}.json"
    keys = sorted(
        (key for key in folders.present if _NAME.fullmatch(key)), key=lambda k: (k != current, k)
    )
    done: set[str] = set()
    for key in keys:
        document = folders.sealed(key)
        if document is not None:
            folders.guarded(
                key,
                lambda k=key, d=document: _Index(folders, commits, k, d).check(intervals, done),  # type: ignore[misc]
            )
        if key != current and current in keys:
            folders.note(key, "is of an earlier state: 'interp-embed compact' deletes it")
        elif key != current:
            folders.note(key, "is of an earlier state: 'interp-embed index' adds what is missing")


def _digest(parts: Sequence[Any]) -> str:
    text = json.dumps([list(part) for part in parts], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _intervals(
    commits: Sequence[Mapping[str, Any]], winners: NDArray[np.int32]
) -> list[tuple[int, int, str]]:
    """Return the runs of documents that are read from one folder."""
    names = [c["folder"]["key"] for c in commits]
    cuts = [0, *(np.flatnonzero(np.diff(winners)) + 1).tolist(), len(winners)]
    runs = itertools.pairwise(cuts)
    return [(a, b, names[winners[a]]) for a, b in runs if a < b and winners[a] >= 0]


class _Index:
    """One index commit."""

    def __init__(
        self,
        folders: Folders,
        commits: Sequence[Mapping[str, Any]],
        key: str,
        document: dict[str, Any],
    ) -> None:
        self.folders = folders
        self.key = key
        self.d_sae = int(document["d_sae"])
        self.document = document
        self.segments = document["segments"]
        self.chunks = {c["folder"]["key"]: c for c in commits}

    def error(self, key: str, what: str) -> None:
        self.folders.error(key, what)

    def check(self, intervals: Sequence[tuple[int, int, str]], done: set[str]) -> None:
        """Check the commit and its folders; ``done`` are the folders that need no second look."""
        coverage = [tuple(part) for part in self.document["coverage"]]
        if self.key != f"index/{_digest(coverage)}.json":
            self.error(self.key, "does not cover what its name says")
        if not self.segments:
            self.error(self.key, "names no segment")
            return
        parts = [tuple(part) for segment in self.segments for part in segment["parts"]]
        if _joined(parts) != coverage:
            self.error(self.key, "its segments do not cover its documents, one after the other")
        current = coverage == intervals
        if current:
            self._check_totals()
        own = self.document["summary"]
        folders = [segment["folder"] for segment in self.segments] + ([own] if own else [])
        sound = {f["key"]: self._folder(f) for f in folders if f["key"] not in done}
        known = [_POSTINGS | _SUMMARY] * len(self.segments) + [_SUMMARY]
        for folder, names in zip(folders, known, strict=False):
            if missing := sorted(names - set(folder["arrays"])):
                self.error(folder["key"], f"lacks the array {missing[0]}")
                sound[folder["key"]] = False
        if own is None and len(self.segments) > 1:
            self.error(self.key, "has several segments and no summary of them")
        done |= set(sound)
        whole = self._summary(own) if own and current and sound.get(own["key"]) else None
        complete = whole is not None
        for segment in self.segments:
            key = segment["folder"]["key"]
            if not sound.get(key):  # looked at before, or damaged
                complete = False
                continue
            complete &= self._segment(segment, whole)
        if whole is not None and complete:
            whole.compare()

    def _check_totals(self) -> None:
        commits = self.chunks
        whole = all(
            stop - start == commits[folder]["stop"] - commits[folder]["start"]
            for start, stop, folder in self.document["coverage"]
        )
        if not whole:  # how many of a part's documents failed the chunk does not say
            return
        live = [commits[folder] for _, _, folder in self.document["coverage"]]
        totals = {
            "n_documents": sum(c["stop"] - c["start"] - c["n_failed"] for c in live),
            "n_tokens": sum(c["n_tokens"] for c in live),
        }
        for name, total in totals.items():
            if self.document[name] != total:
                self.error(self.key, f"says {name} {self.document[name]}, the commits {total}")

    def _folder(self, folder: Mapping[str, Any]) -> bool:
        """Check sizes, hashes and metadata of a folder; return whether it can be read."""
        reader, base, before = self.folders, folder["key"], len(self.folders.problems)
        held = {}
        for relative, (size, sha256) in folder["objects"].items():
            data = reader.hashed(f"{base}/{relative}", self.key, size, sha256)
            if data is not None and relative.endswith("zarr.json"):
                held[relative] = data
        reader.unnamed(base, self.key)
        reader.structure(self.key, folder, held)
        for name, entry in folder["arrays"].items():
            data = held.get(f"{name}/zarr.json")
            why = data and metadata_differs(json.loads(data), entry)
            if why:
                self.error(f"{base}/{name}/zarr.json", f"{why}, unlike what {self.key} says")
        return len(reader.problems) == before

    def open(self, folder: str, name: str) -> Any:
        """Open an array with plain Zarr."""
        import zarr

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Nn]umcodecs.*")
            store = self.folders.storage.zarr_store()
            return zarr.open_array(store=store, path=f"{folder}/{name}", mode="r")

    # Content

    def _summary(self, folder: Mapping[str, Any]) -> Summary:
        names = [name for name in folder["arrays"] if name.startswith("summary/")]
        stored = {n.removeprefix("summary/"): self.open(folder["key"], n)[:] for n in names}
        return Summary(stored, self.d_sae, lambda n, what: self.error(f"{folder['key']}/{n}", what))

    def _segment(self, segment: Mapping[str, Any], whole: Summary | None) -> bool:
        """Compare a segment with its chunks, and its summary with itself; return whether it could."""
        folder = segment["folder"]
        key, arrays = folder["key"], folder["arrays"]
        entries, signed = arrays["document"]["length"], "positive" in arrays
        lengths = {name: entries for name in ("max", "count", "positive") if name in arrays}
        wrong = [n for n, length in lengths.items() if arrays[n]["length"] != length]
        pointer = self.open(key, "feature_ptr")[:].astype(np.int64)
        rising = len(pointer) == self.d_sae + 1 and pointer[0] == 0 and pointer[-1] == entries
        if wrong or not rising or (np.diff(pointer) < 0).any():
            name = wrong[0] if wrong else "feature_ptr"
            self.error(f"{key}/{name}", f"does not fit {entries} entries of {self.d_sae} features")
            return False
        if signed is not (set(arrays) >= _SIGNED):
            self.error(key, "has some of the arrays of negative activations, and not all")
            return False
        parts = [tuple(part) for part in segment["parts"]]
        found = np.zeros(len(parts), np.uint64)
        sums = FeatureSums(self.d_sae)
        own = self._summary(folder)
        for block in self._stored(key, pointer, signed):
            if (wrong_order := block.disorder()) is not None:
                self.error(f"{key}/document", f"is not ascending at feature {wrong_order}")
                return False
            number = block.part(parts)
            if (number < 0).any():
                at = int(block.document[np.argmin(number)])
                self.error(f"{key}/document", f"has document {at}, which is none of the segment's")
                return False
            np.add.at(found, number, block.hashes())
            for summary in (own, whole) if whole else (own,):
                summary.add(block)
        readable = True
        for place, part in enumerate(parts):
            expected = self._of_chunk(part, sums)
            if expected is None:
                readable = False
            elif expected != int(found[place]):
                self.error(
                    key,
                    f"does not say of documents {part[0]}:{part[1]} what their document level says",
                )
        if readable:
            own.sums = sums
            own.compare()
            if whole:
                whole.sums.include(sums)
        return readable

    def _stored(self, key: str, pointer: NDArray[np.int64], signed: bool) -> Iterator[Entries]:
        names = ["document", "max", "count", *(["positive"] if signed else [])]
        arrays = {name: self.open(key, name) for name in names}
        before = (-1, -1)
        for begin in range(0, int(pointer[-1]), _BLOCK):
            end = min(begin + _BLOCK, int(pointer[-1]))
            feature = np.searchsorted(pointer, np.arange(begin, end), side="right") - 1
            values = {name: array[begin:end] for name, array in arrays.items()}
            block = Entries(
                feature,
                values["document"].astype(np.int64),
                values["max"].astype(np.float32),
                values["count"].astype(np.int64),
                values["positive" if signed else "count"].astype(np.int64),
                before,
            )
            yield block
            before = int(feature[-1]), int(block.document[-1])

    def _of_chunk(self, part: tuple[int, int, str], sums: FeatureSums) -> int | None:
        """Return the hash of what a chunk has of some documents; None where it cannot be read."""
        start, stop, folder = part
        commit = self.chunks.get(folder)
        if commit is None:
            return None
        total = 0
        try:
            for block, summand in self._pooled(commit, start, stop):
                total += int(np.add.reduce(block.hashes()))  # modulo 2^64
                sums.add(block.feature, summand)
        except Exception:  # noqa: BLE001 - damage that was found where the chunk was looked at
            return None
        return total % 2**64

    def _pooled(
        self, commit: Mapping[str, Any], start: int, stop: int
    ) -> Iterator[tuple[Entries, NDArray[np.float64]]]:
        folder, first = commit["folder"]["key"], commit["start"]
        low, high = start - first, stop - first
        pointer = self.open(folder, "pooled/doc_ptr")[low : high + 1].astype(np.int64)
        if pointer[0] == pointer[-1]:
            return
        names = ["feature", "max", "count", *(["positive"] if commit["has_negative"] else [])]
        arrays = {name: self.open(folder, f"pooled/{name}") for name in names}
        own_sums = self.open(folder, "pooled/sum")
        at = int(self.open(folder, "pooled/sum_ptr")[low])
        for begin in range(int(pointer[0]), int(pointer[-1]), _BLOCK):
            end = min(begin + _BLOCK, int(pointer[-1]))
            values = {name: array[begin:end] for name, array in arrays.items()}
            document = np.searchsorted(pointer, np.arange(begin, end), side="right") - 1 + start
            value, count = values["max"].astype(np.float32), values["count"].astype(np.int64)
            positive = values["positive" if commit["has_negative"] else "count"].astype(np.int64)
            own = (count > 1) | (value <= 0)
            summand = value.astype(np.float64)
            summand[own] = own_sums[at : at + int(own.sum())]
            at += int(own.sum())
            feature = values["feature"].astype(np.int64)
            yield Entries(feature, document, value, count, positive, (-1, -1)), summand


def _joined(parts: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Join parts that follow each other in one chunk: a large chunk may be cut between segments."""
    joined: list[tuple[int, int, str]] = []
    for start, stop, folder in parts:
        if joined and joined[-1][1:] == (start, folder):
            joined[-1] = (joined[-1][0], stop, folder)
        else:
            joined.append((start, stop, folder))
    return joined
