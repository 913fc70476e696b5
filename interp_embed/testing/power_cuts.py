"""Every state in which a power cut or a kernel panic could leave the files of a `FileRecord`.

The model is that of POSIX, taken at its word, and so more pessimistic than a journaling file system
such as ext4 is by default:

- **The content of a file** is on the disk once the file was synced. What was written since may be
  there or not: the file may hold what it held when it was last synced, nothing, the first half of the
  new bytes, as many zeros as there are new bytes, or all of them.
- **A name** (made by creating, linking or renaming a file or folder, and taken away by renaming or
  removing one) is on the disk once the folder that it is in was synced. Of the changes of names
  since, each may be there or not, whatever became of those before and after it. A renaming is one
  change: it is there as a whole or not at all, and safe once the folders of both names were synced.
- Syncing a file says nothing of its name, and syncing a folder nothing of what is in its files, of
  the names in the folders below it, or of its own name.
- What was synced stays as it was: no sector is lost, and a disk that says that it has written bytes
  has them.

A state is the same at any moment between two syncs, except that more may have been done; and what was
done may be lost. So all states there are can be had just before a run of syncs and at the end, and it
is from these moments that they are taken, together with what had been reported as done by then
(`FileRecorder.mark`).
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp_embed.testing.file_record import TreeState, rename, write_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from interp_embed.testing.file_record import FileOperation, FileRecord

__all__ = ["CrashState", "crash_states", "safe_state"]

Contents = dict[int, bytes]
Choice = tuple[frozenset[int], Contents]
"""Which of the changes of names that are not safe are there, and what is in files that are not."""


@dataclass(frozen=True, slots=True, eq=False)
class CrashState:
    """The state after a crash.

    Attributes
    ----------
    files : dict of str to bytes
        The files, by their paths.
    folders : set of str
        The folders.
    done : int
        Number of operations of the record that had been done.
    marks : tuple
        The marks that had been reported as done.
    lost : list of str
        Descriptions of everything that is missing or changed.
    """

    files: Mapping[str, bytes]
    folders: frozenset[str]
    done: int
    marks: tuple[Any, ...]
    lost: tuple[str, ...]

    def write_to(self, path: Path) -> None:
        """Write the files and folders into ``path``, which is created."""
        write_tree(path, self.files, self.folders)

    def __str__(self) -> str:
        lost = "; ".join(self.lost) or "nothing"
        return f"after {self.done} operations, {len(self.marks)} of them marks, lost: {lost}"


def crash_states(record: FileRecord, *, limit: int = 64, seed: int = 0) -> Iterator[CrashState]:
    """Yield the states in which a crash could leave the recorded files, each of them once.

    Parameters
    ----------
    record
        The changes.
    limit
        Largest number of states per moment. If there are no more, all are yielded. Otherwise: nothing
        lost, everything lost, all names with contents of each kind, and then a sample of: one change
        lost, one change kept, all changes up to one, one file torn, and any mixture of these.
    seed
        Seed of the sample. The same record gives the same states.

    Yields
    ------
    CrashState
        In order of the moments.
    """
    disk = _Disk(record.before)
    marks: list[Any] = []
    known: set[Any] = set()
    operations = [*record.operations, None]
    for number, operation in enumerate(operations):
        quiet = operation is not None and operation.kind in ("sync", "mark")
        before = operations[number - 1] if number else None
        first = quiet and (before is None or before.kind not in ("sync", "mark"))
        if operation is None or first:
            rng = random.Random(f"{seed}-{number}")
            for choice in disk.choices(limit, rng):
                files, folders = disk.tree(choice)
                key = hash((frozenset(files.items()), frozenset(folders), len(marks)))
                if key not in known:
                    known.add(key)
                    yield CrashState(
                        files, frozenset(folders), number, tuple(marks), tuple(disk.lost(choice))
                    )
        if operation is not None:
            if operation.kind == "mark":
                marks.append(operation.mark)
            disk.apply(operation)


def safe_state(record: FileRecord, done: int | None = None) -> CrashState:
    """Return the state that is certain after a crash, because nothing else was synced.

    Parameters
    ----------
    record
        The changes.
    done
        Number of operations that had been done; all by default.
    """
    disk = _Disk(record.before)
    count = len(record.operations) if done is None else done
    for operation in record.operations[:count]:
        disk.apply(operation)
    marks = tuple(o.mark for o in record.operations[:count] if o.kind == "mark")
    choice = disk.nothing()
    files, folders = disk.tree(choice)
    return CrashState(files, frozenset(folders), count, marks, tuple(disk.lost(choice)))


class _Change:
    """A change of names that some folders have yet to make safe."""

    __slots__ = ("operation", "waiting")

    def __init__(self, operation: FileOperation) -> None:
        self.operation = operation
        self.waiting = {folder for folder, _, _ in operation.changes}


class _Disk:
    """What is safe, and what is only in memory."""

    def __init__(self, before: TreeState) -> None:
        self._safe = before.copy()  # names, and contents as they were last synced
        self._now = dict(before.contents)
        self._changes: list[_Change] = []

    def apply(self, operation: FileOperation) -> None:
        """Do what was done."""
        if operation.kind == "sync":
            self._sync(operation.node)
            return
        held = TreeState(contents=self._now)
        held.apply(operation)
        if operation.kind == "mkdir":
            self._safe.folders.add(operation.node)
        elif operation.kind == "create":
            self._safe.contents[operation.node] = b""
        if operation.changes:
            self._changes.append(_Change(operation))

    def _sync(self, number: int) -> None:
        if number not in self._safe.folders:
            self._safe.contents[number] = self._now[number]
            return
        for change in self._changes:
            change.waiting.discard(number)
        while self._changes and not self._changes[0].waiting:
            rename(self._safe.names, self._changes.pop(0).operation.changes)

    def _loose(self) -> list[int]:
        """Return the places of the changes that may be lost."""
        return [i for i, change in enumerate(self._changes) if change.waiting]

    def _torn(self) -> dict[int, list[bytes]]:
        """Return what may be in each file that was not synced and may have a name; all of it first."""
        named = set(self._safe.names.values())
        named |= {n for c in self._changes for _, _, n in c.operation.changes if n is not None}
        found = {}
        for number in sorted(named & self._now.keys()):
            new, old = self._now[number], self._safe.contents[number]
            if new != old:
                variants = [new, old, b"", new[: len(new) // 2], bytes(len(new))]
                found[number] = list(dict.fromkeys(variants))
        return found

    def nothing(self) -> Choice:
        """Return the choice that keeps nothing that is not safe."""
        contents = self._safe.contents
        return frozenset(), {n: contents[n] for n, now in self._now.items() if now != contents[n]}

    def choices(self, limit: int, rng: random.Random) -> Iterator[Choice]:
        """Yield at most ``limit`` of the ways in which things can have been lost."""
        loose, torn = self._loose(), self._torn()
        count = 2 ** len(loose) * math.prod(map(len, torn.values()))
        if count <= limit:
            subsets = itertools.chain.from_iterable(
                itertools.combinations(loose, size) for size in range(len(loose), -1, -1)
            )
            for kept in subsets:
                for variants in itertools.product(*torn.values()):
                    yield frozenset(kept), dict(zip(torn, variants, strict=True))
            return
        yield from itertools.islice(_sample(loose, torn, rng), limit)

    def tree(self, choice: Choice) -> tuple[dict[str, bytes], set[str]]:
        """Return the files and folders that are there."""
        kept, contents = choice
        names = dict(self._safe.names)
        for place, change in enumerate(self._changes):
            if place in kept or not change.waiting:
                rename(names, change.operation.changes)
        held = {n: c for n, c in self._now.items() if c != self._safe.contents[n]} | contents
        return TreeState(names, self._safe.contents, self._safe.folders).tree(held)

    def lost(self, choice: Choice) -> Iterator[str]:
        """Yield in words what is lost."""
        kept, contents = choice
        for place in self._loose():
            if place not in kept:
                yield str(self._changes[place].operation)
        for number, content in contents.items():
            new = self._now[number]
            if content != new:
                kind = "zeros" if content == bytes(len(new)) else f"{len(content)} bytes"
                yield f"content of {self._name(number)} ({kind} of {len(new)})"

    def _name(self, number: int) -> str:
        for change in reversed(self._changes):
            if any(n == number for _, _, n in change.operation.changes):
                return change.operation.target or change.operation.path
        return next((name for (_, name), n in self._safe.names.items() if n == number), "?")


def _sample(
    loose: Sequence[int], torn: Mapping[int, list[bytes]], rng: random.Random
) -> Iterator[Choice]:
    """Yield ways in which things can have been lost, without end."""
    everything = frozenset(loose)
    whole = {number: variants[0] for number, variants in torn.items()}
    yield everything, whole
    yield frozenset(), whole
    if torn:
        for place in range(1, max(map(len, torn.values()))):
            yield everything, {n: v[min(place, len(v) - 1)] for n, v in torn.items()}
    simple: list[Choice] = [(everything - {one}, whole) for one in loose]
    simple += [(frozenset({one}), whole) for one in loose]
    simple += [(frozenset(loose[:length]), whole) for length in range(1, len(loose))]
    simple += [(everything, {**whole, n: one}) for n, v in torn.items() for one in v[1:]]
    rng.shuffle(simple)
    yield from simple
    while True:
        chance = rng.random()
        kept = frozenset(one for one in loose if rng.random() < chance)
        yield kept, {n: rng.choice(v) if rng.random() < 0.5 else v[0] for n, v in torn.items()}
