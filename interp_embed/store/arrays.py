"""A folder of arrays: written once, synced, read back, and described for the ledger."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import wait
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from interp_embed.errors import CorruptStoreError
from interp_embed.store.shard import (
    INNER_ELEMENTS,
    ArraySpec,
    BlockCache,
    EncodedArray,
    ShardedArray,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from interp_embed.store.storage import Storage

__all__ = ["ArrayEntry", "Folder", "group_metadata", "write_folder"]


@dataclass(frozen=True, slots=True)
class ArrayEntry:
    """What a reader needs to open an array without looking at its ``zarr.json``."""

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

    def open(self, storage: Storage, name: str, cache: BlockCache | None = None) -> ShardedArray:
        """Return the array called ``name``, unread."""
        entry = self.arrays[name]
        return ShardedArray(storage, f"{self.key}/{name}", entry.metadata(), entry.size, cache)

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


def group_metadata(attributes: Mapping[str, Any] | None = None) -> bytes:
    """Return the ``zarr.json`` of a group."""
    document = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})}
    return json.dumps(document, indent=1).encode()


def write_folder(
    storage: Storage,
    key: str,
    arrays: Mapping[str, tuple[NDArray[Any], ArraySpec]],
    *,
    attributes: Mapping[str, Any] | None = None,
    inner: Mapping[str, int] | None = None,
    executor: Executor | None = None,
) -> Folder:
    """Write arrays into a new folder that nobody else writes, make them durable, and check them.

    Nothing refers to the folder yet when this returns: it counts once a commit names it.

    Raises
    ------
    CorruptStoreError
        If what is read back differs from what was written.
    """
    inner = inner or {}

    def put(relative: str, data: bytes) -> tuple[str, tuple[int, str]]:
        storage.put_new(f"{key}/{relative}", data)
        if storage.get(f"{key}/{relative}") != data:
            raise CorruptStoreError(
                f"{key}/{relative} in {storage.url} reads back different from what was written: "
                "the disk or the object store is losing data. Nothing was committed"
            )
        return relative, (len(data), hashlib.sha256(data).hexdigest())

    def put_array(name: str, encoded: EncodedArray) -> tuple[int, dict[str, tuple[int, str]]]:
        shard = encoded.shard()
        records = [put(f"{name}/zarr.json", json.dumps(encoded.metadata, indent=1).encode())]
        if shard:
            records.append(put(f"{name}/c/0", shard))
        return len(shard), dict(records)

    groups = {"": group_metadata(attributes)}
    for name in arrays:
        for parent in PurePosixPath(name).parents[:-1]:
            groups.setdefault(f"{parent}/", group_metadata())
    objects = dict(put(f"{group}zarr.json", data) for group, data in groups.items())
    # Everything is handed to the threads at once. Each takes what was handed over first, so that an
    # array's inner chunks are under way before a thread waits for them in order to write them.
    encoded = {
        name: EncodedArray(values, spec, inner=inner.get(name, INNER_ELEMENTS), executor=executor)
        for name, (values, spec) in arrays.items()
    }
    sizes: dict[str, int] = {}
    if executor is None:
        written = {name: put_array(name, array) for name, array in encoded.items()}
    else:
        tasks = {name: executor.submit(put_array, name, array) for name, array in encoded.items()}
        wait(tasks.values())  # all, so that nothing writes into the folder after a failure
        written = {name: task.result() for name, task in tasks.items()}
    for name, (size, records) in written.items():
        sizes[name] = size
        objects |= records
    storage.sync(f"{key}/{relative}" for relative in objects)
    return Folder(
        key=key,
        arrays={
            name: ArrayEntry(
                dtype=spec.dtype,
                encoding=spec.encoding,
                dimension=spec.dimension,
                length=len(values),
                inner=inner.get(name, INNER_ELEMENTS),
                size=sizes[name],
            )
            for name, (values, spec) in arrays.items()
        },
        objects=objects,
    )
