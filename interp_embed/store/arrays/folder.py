"""A folder of arrays: written once, synced, read back, and described for the ledger."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from concurrent.futures import wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import google_crc32c

from interp_embed.core.threads import REQUESTS, Flights, bounded_map
from interp_embed.errors import CorruptStoreError
from interp_embed.store.arrays.shard import INNER_ELEMENTS, ArraySpec
from interp_embed.store.arrays.shard_reader import BlockCache, ShardedArray
from interp_embed.store.arrays.shard_writer import ArrayWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray

    from interp_embed.store.storage import Storage

__all__ = ["ArrayEntry", "Folder", "FolderWriter", "OpenFolder", "group_metadata"]

SHARD_INDEXES = "shard_indexes"
"""Attribute of a folder's group: the indexes of its larger shards once more, so that one request has
them all."""


@dataclass(frozen=True, slots=True)
class ArrayEntry:
    """The data that a reader needs to open an array without its ``zarr.json``."""

    dtype: str
    encoding: str
    dimension: str
    length: int
    inner: int
    size: int

    def metadata(self) -> dict[str, Any]:
        """Return the array's ``zarr.json``, which follows from the entry."""
        spec = ArraySpec(self.dtype, self.encoding, self.dimension)  # type: ignore[arg-type]
        return spec.metadata(self.length, self.inner)


@dataclass(frozen=True, slots=True, eq=False)
class Folder:
    """A committed folder of arrays.

    Attributes
    ----------
    key : str
        The folder.
    arrays : dict of str to ArrayEntry
        By name, which may have slashes.
    objects : dict of str to (int, str)
        Size and SHA-256 of every object, by key relative to the folder. Empty where the folder was
        read from a manifest, which leaves the hashes to the commits.
    """

    key: str
    arrays: Mapping[str, ArrayEntry]
    objects: Mapping[str, tuple[int, str]]

    def open(
        self,
        storage: Storage,
        name: str,
        cache: BlockCache | None = None,
        index: Callable[[], bytes | None] | None = None,
    ) -> ShardedArray:
        """Return the array called ``name``, unread; ``index`` as `ShardedArray` has it."""
        entry = self.arrays[name]
        key = f"{self.key}/{name}"
        return ShardedArray(storage, key, entry.metadata(), entry.size, cache, index)

    @property
    def nbytes(self) -> int:
        """Bytes on disk of the arrays' shards."""
        return sum(entry.size for entry in self.arrays.values())

    def to_json(self, *, objects: bool = True) -> dict[str, Any]:
        """Return a JSON value that `from_json` reads."""
        value: dict[str, Any] = {
            "key": self.key,
            "arrays": {name: asdict(entry) for name, entry in self.arrays.items()},
        }
        if objects:
            value["objects"] = {key: list(record) for key, record in self.objects.items()}
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Folder:
        """Read what `to_json` returned."""
        return cls(
            key=value["key"],
            arrays={name: ArrayEntry(**entry) for name, entry in value["arrays"].items()},
            objects={key: (int(r[0]), str(r[1])) for key, r in value.get("objects", {}).items()},
        )


class OpenFolder:
    """The arrays of a folder, each opened once.

    Parameters
    ----------
    storage, folder
        What to read.
    cache
        Where decoded inner chunks are kept.
    """

    def __init__(self, storage: Storage, folder: Folder, cache: BlockCache | None = None) -> None:
        self.storage = storage
        self.folder = folder
        self._cache = cache
        self._opened: dict[str, ShardedArray] = {}
        self._indexes = _ShardIndexes(storage, folder.key)
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self.folder.arrays

    def array(self, name: str) -> ShardedArray:
        """Return one of the arrays, unread."""
        if (found := self._opened.get(name)) is None:
            with self._lock:
                if name not in self._opened:
                    self._opened[name] = self.folder.open(
                        self.storage, name, self._cache, partial(self._indexes.of, name)
                    )
                found = self._opened[name]
        return found


class _ShardIndexes:
    """The indexes of a folder's larger shards, read together when one is asked for.

    Not a part of `OpenFolder`: its arrays have this, and would keep each other, and the cache with
    decoded data, until the garbage collector comes by.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage = storage
        self._folder = folder
        self._known: Mapping[str, bytes] | None = None
        self._flights = Flights()

    def of(self, name: str) -> bytes | None:
        if self._known is None:
            self._known = self._flights.do("indexes", self._read)
        return self._known.get(name)

    def _read(self) -> Mapping[str, bytes]:
        try:
            document = json.loads(self._storage.get(f"{self._folder}/zarr.json"))
            known = document["attributes"].get(SHARD_INDEXES, {})
            return {name: base64.b64decode(data) for name, data in known.items()}
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            return {}  # each shard has its own


def group_metadata(attributes: Mapping[str, Any] | None = None) -> bytes:
    """Return the ``zarr.json`` of a group."""
    document = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})}
    return json.dumps(document, indent=1).encode()


class FolderWriter:
    """Writes arrays into a new folder that no other process writes, and checks what the disk kept.

    After this, nothing refers to the folder yet. It counts once a commit names it.

    Parameters
    ----------
    storage, key
        The folder.
    executor
        Threads that compress and check.
    check
        Called before values are added. It raises an error to stop the writing.
    """

    def __init__(
        self,
        storage: Storage,
        key: str,
        executor: Executor | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.storage = storage
        self.key = key
        self._executor = executor
        self._check = check
        self._requests = storage.requests()
        self._writers: dict[str, ArrayWriter] = {}
        self._syncing: list[Future[None]] = []
        self._checking: dict[str, Future[tuple[int, str]]] = {}

    def append(
        self, name: str, spec: ArraySpec, values: NDArray[Any], inner: int = INNER_ELEMENTS
    ) -> None:
        """Add values at the end of an array, which is begun by the first call."""
        self._check()
        if name not in self._writers:
            self._writers[name] = ArrayWriter(
                lambda: self.storage.create(f"{self.key}/{name}/c/0"),
                spec,
                inner=inner,
                executor=self._executor,
            )
        self._writers[name].append(values)

    def add(
        self, name: str, spec: ArraySpec, values: NDArray[Any], inner: int = INNER_ELEMENTS
    ) -> None:
        """Write a whole array."""
        self.append(name, spec, values, inner)
        self._finish(name)

    def _finish(self, name: str) -> None:
        """Write the end of an array; for a large chunk, syncing and checking continue in the background."""
        writer = self._writers[name]
        if writer.finished:
            return
        writer.finish(land=self._requests is None)
        relative = f"{name}/c/0"
        if writer.size and self._requests is not None:

            def land() -> tuple[int, str]:
                writer.land()
                return self._read_back(relative, writer.size, writer.crc32c)

            self._checking[relative] = self._requests.submit(land)
            return
        if writer.size and self._executor is not None:
            # One waits for the disk while the other computes.
            self._syncing.append(
                self._executor.submit(self.storage.sync, [f"{self.key}/{relative}"])
            )
            self._checking[relative] = self._executor.submit(
                self._read_back, relative, writer.size, writer.crc32c
            )

    def _read_back(self, relative: str, size: int, crc: int) -> tuple[int, str]:
        """Return size and SHA-256 of an object as read back; they must match what was written."""
        state, found_size, found_crc = hashlib.sha256(), 0, 0
        for block in self.storage.blocks(f"{self.key}/{relative}"):
            state.update(block)
            found_size += len(block)
            found_crc = google_crc32c.extend(found_crc, block)
        if (found_size, found_crc) != (size, crc):
            raise CorruptStoreError(
                f"{self.key}/{relative} in {self.storage.url} reads back different from what was "
                "written: the disk or the object store is losing data. Nothing was committed"
            )
        return size, state.hexdigest()

    def close(self, attributes: Mapping[str, Any] | None = None) -> Folder:
        """Finish all arrays, make everything durable, and read it back.

        Parameters
        ----------
        attributes
            Of the folder's group.

        Raises
        ------
        CorruptStoreError
            If what is read back differs from what was written.
        """
        for name in self._writers:
            self._finish(name)
        indexes = {
            name: base64.b64encode(writer.index).decode()
            for name, writer in self._writers.items()
            if writer.length > writer.inner
        }
        joined = {SHARD_INDEXES: indexes} if indexes else {}
        documents = {
            "zarr.json": group_metadata({**(attributes or {}), **joined}),
            **{
                f"{parent}/zarr.json": group_metadata()
                for name in self._writers
                for parent in PurePosixPath(name).parents[:-1]
            },
            **{
                f"{name}/zarr.json": json.dumps(writer.metadata, indent=1).encode()
                for name, writer in self._writers.items()
            },
        }
        written = {
            f"{name}/c/0": (writer.size, writer.crc32c)
            for name, writer in self._writers.items()
            if writer.size
        }
        for relative, data in documents.items():
            written[relative] = (len(data), google_crc32c.value(data))
        each = documents.items()
        for _ in bounded_map(self._requests, self._put_document, each, ahead=REQUESTS):
            pass
        self.storage.sync(
            f"{self.key}/{relative}" for relative in written if relative not in self._checking
        )
        for synced in self._syncing:
            synced.result()
        others = [relative for relative in written if relative not in self._checking]
        checked = bounded_map(
            self._requests, lambda r: self._read_back(r, *written[r]), others, ahead=REQUESTS
        )
        found = dict(zip(others, checked, strict=True))
        found |= {relative: future.result() for relative, future in self._checking.items()}
        objects = {relative: found[relative] for relative in written}
        return Folder(
            key=self.key,
            arrays={
                name: ArrayEntry(
                    dtype=writer.spec.dtype,
                    encoding=writer.spec.encoding,
                    dimension=writer.spec.dimension,
                    length=writer.length,
                    inner=writer.inner,
                    size=writer.size,
                )
                for name, writer in self._writers.items()
            },
            objects=objects,
        )

    def _put_document(self, item: tuple[str, bytes]) -> None:
        self.storage.put_new(f"{self.key}/{item[0]}", item[1])

    def __enter__(self) -> FolderWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # A half-written attempt is invisible, but it takes room: a full disk wants it back.
            behind: list[Future[Any]] = [*self._syncing, *self._checking.values()]
            wait([future for future in behind if not future.cancel()])
            for writer in self._writers.values():
                writer.abandon()
            # Where that fails too, the first error is the one to tell.
            with contextlib.suppress(OSError):
                self.storage.delete_folder(self.key)
