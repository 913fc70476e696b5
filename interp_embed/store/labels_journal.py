"""Many small values that are committed one by one, kept for good, and read together.

A journal is a set of values with names that only ever grows. Each value is one sealed object, created
with put-if-absent; packing writes many of them once more as one object and then deletes the small
ones. As what counts is the union of all objects, packing may end anywhere, and run twice at once.
"""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

from interp_embed.errors import CorruptStoreError
from interp_embed.store.sealed import digest, seal, unseal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from interp_embed.store.storage import Storage

__all__ = ["Journal"]

_NAME = re.compile(r"[0-9a-f]{64}")
_PACK_AFTER = 256
"""Single values that are packed into one object."""
_PACK_BYTES = 2**20
"""A pack of this size is left as it is."""
_MOST_BYTES = 2**22
"""A pack is not made larger than this, unless a single value is."""
_ATTEMPTS = 20


class Journal:
    """A growing set of named JSON values in a folder of a store.

    ``<folder>/<name>.json`` holds one value under ``value``, ``<folder>/packs/<digest>.json`` several
    under ``values``, by name. ``<folder>/packed.json`` is replaced before anything is deleted. Safe to
    use from several threads and any number of processes.

    Parameters
    ----------
    storage
        Where the store is.
    folder
        The journal's folder in it.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self.storage = storage
        self.folder = folder
        self._lock = threading.Lock()  # of what is known, never held during a request
        self._values: dict[str, Any] = {}
        self._seen: set[str] = set()  # objects whose values are known
        self._loaded = False
        self._loading = threading.Lock()
        self._state: bytes | None = None  # of the deletions, when all was read
        self._unpacked = 0

    # Reading

    def values(self, *, refresh: bool = False) -> dict[str, Any]:
        """Return all values, by name.

        Parameters
        ----------
        refresh
            Look for values that other processes have added. Without it, they are read once.

        Raises
        ------
        CorruptStoreError
            If an object is damaged.
        """
        self._load(refresh=refresh)
        with self._lock:
            return dict(self._values)

    def forget(self, names: Iterable[str]) -> None:
        """Give up the memory of values that whoever read them has in a form of its own.

        They stay in the store; `values` and `get` need not return them any more.
        """
        with self._lock:
            for name in names:
                self._values.pop(name, None)

    def get(self, name: str) -> Any:
        """Return the value of that name; None where there is none.

        What another process has put by itself is found too, for two requests more; what came as one
        of several may be found only by `values`.
        """
        key = self._key(name)
        self._load()
        with self._lock:
            if name in self._values:
                return self._values[name]
        # The single object first: it is deleted only once the pack is there.
        try:
            data = self.storage.get(key)
        except FileNotFoundError:
            if self._deletions() != self._state:
                self._refresh()
        else:
            self._take(key, self._read(key, data))
        with self._lock:
            return self._values.get(name)

    def _load(self, *, refresh: bool = False) -> None:
        if refresh:
            self._refresh()
            self._loaded = True
        elif not self._loaded:
            with self._loading:  # by one thread, where several ask at once
                if not self._loaded:
                    self._refresh()
                    self._loaded = True

    def _deletions(self) -> bytes | None:
        """Return what changes before objects are deleted: another value each time."""
        try:
            return self.storage.get(f"{self.folder}/packed.json")
        except FileNotFoundError:
            return None

    def _refresh(self) -> None:
        """Read the objects that are not known yet.

        A listing may lack an object that is created while it is made, and at once one that is deleted
        meanwhile because its values are in the other. So it counts only if nothing was deleted.
        """
        for attempt in range(_ATTEMPTS):
            state = self._deletions()
            listed = sorted(key for key, _ in self._objects())
            with self._lock:
                new = [key for key in listed if key not in self._seen]
            gone = False
            for key, data in zip(new, self.storage.get_several(new), strict=True):
                if data is None:
                    gone = True  # packed meanwhile: the pack is in the next listing
                else:
                    self._take(key, self._read(key, data))
            if not gone and self._deletions() == state:
                self._state = state
                return
            time.sleep(0.01 * 2 ** min(attempt, 6) * random.random())
        raise CorruptStoreError(
            f"{self.folder} in {self.storage.url} changes faster than it can be read"
        )

    def _objects(self) -> Iterator[tuple[str, int]]:
        """Yield the journal's objects with their sizes; others may be there, such as unfinished ones."""
        for key, size in self.storage.list(self.folder):
            name = key.rsplit("/", 1)[-1]
            if name.endswith(".json") and _NAME.fullmatch(name[:-5]):
                yield key, size

    def _take(self, key: str, values: Mapping[str, Any]) -> None:
        """Add the values of an object to those that are known."""
        with self._lock:
            for name, value in values.items():
                known = self._values.get(name)
                # Two processes may have given one name two values: every reader takes the same one.
                if known is None or _rank(value) < _rank(known):
                    self._values[name] = value
            self._seen.add(key)

    def _read(self, key: str, data: bytes) -> dict[str, Any]:
        document = unseal(data, f"{key} in {self.storage.url}")
        if self._is_pack(key):
            return dict(document["values"])
        return {key.rsplit("/", 1)[-1][:-5]: document["value"]}

    def _key(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"a name in {self.folder} is a SHA-256 in lower-case hexadecimal, got {name!r:.80}"
            )
        return f"{self.folder}/{name}.json"

    def _is_pack(self, key: str) -> bool:
        return key.startswith(f"{self.folder}/packs/")

    # Writing

    def put(self, name: str, value: Any) -> bool:
        """Commit one value, durably; return whether this call did, and not another one before it."""
        key = self._key(name)
        created = self._create(key, {"value": value})
        if created:
            self._take(key, {name: value})
            self._count_object()
        return created

    def _count_object(self) -> None:
        """Pack after so many objects."""
        with self._lock:
            self._unpacked += 1
            full = self._unpacked >= _PACK_AFTER
            if full:
                self._unpacked = 0
        if full:
            # What was put is committed, whether or not it can be packed: where nothing may be deleted,
            # or the disk is full. Then it is tried again after as many more.
            with contextlib.suppress(OSError):
                self.pack()

    def put_several(self, values: Mapping[str, Any]) -> None:
        """Commit values together, as one object (a few where they are many)."""
        for name in values:
            self._key(name)
        if len(values) == 1:
            for name, value in values.items():
                self.put(name, value)
            return
        for part in _cut(values.items()):
            self._take(self._put_pack(part), part)
            self._count_object()

    def _put_pack(self, values: dict[str, Any]) -> str:
        key = f"{self.folder}/packs/{digest(values)}.json"
        self._create(key, {"values": values})
        return key

    def _create(self, key: str, document: dict[str, Any]) -> bool:
        data = seal(document)
        for _ in range(_ATTEMPTS - 1):
            try:
                return self.storage.put_if_absent(key, data)
            except FileNotFoundError:  # `compact` took the file that it is in for a leftover
                continue
        return self.storage.put_if_absent(key, data)

    def pack(self) -> int:
        """Write small objects once more as large ones, and delete them; return how many.

        May be interrupted anywhere, and run in several processes: what is deleted is in a larger
        object already. Objects that are damaged are left alone.
        """
        taken = 0
        small = [
            key
            for key, size in sorted(self._objects())
            if not self._is_pack(key) or size < _PACK_BYTES
        ]
        batch: dict[str, Any] = {}
        parts: list[str] = []
        size = 0
        for key, data in zip(small, self.storage.get_several(small), strict=True):
            if data is None:
                continue
            try:
                values = self._read(key, data)
            except CorruptStoreError:
                continue
            if size and size + len(data) > _MOST_BYTES:
                taken += self._replace(batch, parts)
                batch, parts, size = {}, [], 0
            for name, value in values.items():
                if name not in batch or _rank(value) < _rank(batch[name]):
                    batch[name] = value
            parts.append(key)
            size += len(data)
        return taken + self._replace(batch, parts)

    def _replace(self, values: dict[str, Any], parts: list[str]) -> int:
        if len(parts) < 2:
            return 0
        key = self._put_pack(values)
        self._take(key, values)
        replaced = [part for part in parts if part != key]
        if replaced:  # said before, so that whoever lists the journal meanwhile does so again
            state = seal({"packed": uuid.uuid4().hex})
            self.storage.put(f"{self.folder}/packed.json", state)
        self.storage.delete_several(replaced)
        return len(replaced)


def _rank(value: Any) -> tuple[str, str]:
    """Return what decides between two values of one name: the older one counts."""
    created = value.get("created", "") if isinstance(value, dict) else ""
    return str(created), digest(value)


def _cut(items: Iterable[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    """Cut values into parts for objects of bounded size."""
    part: dict[str, Any] = {}
    size = 0
    for name, value in items:
        length = len(seal({"value": value}))
        if part and size + length > _MOST_BYTES:
            yield part
            part, size = {}, 0
        part[name] = value
        size += length
    if part:
        yield part
