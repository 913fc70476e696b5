"""Many small values that are committed one by one, kept for good, and read together.

A journal is a set of values with names that only ever grows. Each value is one sealed object, created
with put-if-absent; packing writes many of them once more as one object and then deletes the small
ones. As what counts is the union of all objects, packing may end anywhere, and run twice at once.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

from interp_embed.errors import CorruptStoreError
from interp_embed.store.format.sealed import (
    canonical,
    read_entries,
    seal,
    seal_entries,
    text_digest,
    unseal,
)

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
    use from several threads and any number of processes. Values are held as the JSON texts that they
    are in the objects, and read when they are asked for.

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
        self._texts: dict[str, str] = {}
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
        found = self.texts(refresh=refresh)
        return {name: self._parsed(name, text) for name, text in found.items()}

    def texts(self, *, refresh: bool = False) -> dict[str, str]:
        """Return all values as JSON texts, by name; as for `values`."""
        self._load(refresh=refresh)
        with self._lock:
            return dict(self._texts)

    def forget(self, names: Iterable[str]) -> None:
        """Release the memory of values that the caller keeps in its own form.

        They stay in the store; `values` and `get` need not return them any more.
        """
        with self._lock:
            for name in names:
                self._texts.pop(name, None)

    def get(self, name: str) -> Any:
        """Return the value of that name; None if there is none.

        This also finds a single value that another process has put, for two more requests. A value
        that another process put as one of several may be found only by `values`.
        """
        key = self._key(name)
        self._load()
        with self._lock:
            text = self._texts.get(name)
        if text is not None:
            return self._parsed(name, text)
        # The single object first: it is deleted only once the pack is there.
        try:
            data = self.storage.get(key)
        except FileNotFoundError:
            if self._deletions() != self._state:
                self._refresh()
        else:
            self._take(key, self._read(key, data))
        with self._lock:
            text = self._texts.get(name)
        return None if text is None else self._parsed(name, text)

    def _parsed(self, name: str, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:  # sealed as it is, so this is how it was written
            raise CorruptStoreError(
                f"{name} in {self.folder} of {self.storage.url} is not a JSON value ({error})"
            ) from error

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

    def _take(self, key: str, texts: Mapping[str, str]) -> None:
        """Add the values of an object to those that are known."""
        with self._lock:
            _add(self._texts, texts)
            self._seen.add(key)

    def _read(self, key: str, data: bytes) -> dict[str, str]:
        where = f"{key} in {self.storage.url}"
        try:
            if self._is_pack(key):
                return read_entries("values", data, where)
            return {key.rsplit("/", 1)[-1][:-5]: canonical(unseal(data, where)["value"])}
        except CorruptStoreError as error:
            raise CorruptStoreError(
                f"{error}. Without a copy, delete the object: only its own values are lost"
            ) from error

    def _key(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"name must be a SHA-256 in lower-case hexadecimal for {self.folder}, got {name!r:.80}"
            )
        return f"{self.folder}/{name}.json"

    def _is_pack(self, key: str) -> bool:
        return key.startswith(f"{self.folder}/packs/")

    # Writing

    def put(self, name: str, value: Any) -> bool:
        """Commit one value durably; return False if another call had committed it before."""
        key = self._key(name)
        created = self._create(key, {"value": value})
        if created:
            self._take(key, {name: _text(value)})
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
        """Commit values together as one object, or as a few objects if they are many."""
        self.put_texts({name: _text(value) for name, value in values.items()})

    def put_texts(self, texts: Mapping[str, str]) -> None:
        """As `put_several`, of values that are `canonical` texts already."""
        for name in texts:
            self._key(name)
        if len(texts) == 1:
            for name, text in texts.items():
                self.put(name, json.loads(text))
            return
        for part in _cut(texts.items()):
            self._take(self._put_pack(part), part)
            self._count_object()

    def _put_pack(self, texts: dict[str, str]) -> str:
        members = ",".join(f'"{name}":{text}' for name, text in sorted(texts.items()))
        key = f"{self.folder}/packs/{text_digest(f'{{{members}}}')}.json"
        self._put(key, seal_entries("values", texts))
        return key

    def _create(self, key: str, document: dict[str, Any]) -> bool:
        return self._put(key, seal(document))

    def _put(self, key: str, data: bytes) -> bool:
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
        batch: dict[str, str] = {}
        parts: list[str] = []
        size = 0
        for key, data in zip(small, self.storage.get_several(small), strict=True):
            if data is None:
                continue
            try:
                texts = self._read(key, data)
            except CorruptStoreError:
                continue
            if size and size + len(data) > _MOST_BYTES:
                taken += self._replace(batch, parts)
                batch, parts, size = {}, [], 0
            _add(batch, texts)
            parts.append(key)
            size += len(data)
        return taken + self._replace(batch, parts)

    def _replace(self, texts: dict[str, str], parts: list[str]) -> int:
        if len(parts) < 2:
            return 0
        key = self._put_pack(texts)
        self._take(key, texts)
        replaced = [part for part in parts if part != key]
        if replaced:  # said before, so that whoever lists the journal meanwhile does so again
            state = seal({"packed": uuid.uuid4().hex})
            self.storage.put(f"{self.folder}/packed.json", state)
        self.storage.delete_several(replaced)
        return len(replaced)


def _text(value: Any) -> str:
    return canonical(json.loads(json.dumps(value)))  # tuples and int keys as a reader will see them


def _add(texts: dict[str, str], more: Mapping[str, str]) -> None:
    """Add values. Two processes may have given one name two: every reader takes the same one."""
    for name, text in more.items():
        known = texts.setdefault(name, text)
        if known != text and _rank(text) < _rank(known):
            texts[name] = text


def _rank(text: str) -> tuple[str, str]:
    """Return what decides between two values of one name: the older one counts."""
    value = json.loads(text)
    created = value.get("created", "") if isinstance(value, dict) else ""
    return str(created), text_digest(text)


def _cut(items: Iterable[tuple[str, str]]) -> Iterator[dict[str, str]]:
    """Cut values into parts for objects of bounded size."""
    part: dict[str, str] = {}
    size = 0
    for name, text in items:
        length = len(name) + len(text) + len('"":,\n')
        if part and size + length > _MOST_BYTES:
            yield part
            part, size = {}, 0
        part[name] = text
        size += length
    if part:
        yield part
