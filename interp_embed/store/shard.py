"""One 1-D Zarr v3 array in one sharded object: encoded in memory, read by ranges.

The bytes and the metadata are plain Zarr (``sharding_indexed`` with a checksum on every inner chunk
and on the index); any Zarr reader opens them. They are produced and read here, rather than through a
generic array class, for three reasons: the whole object is known before it is written, so its hash
can be committed; a damaged or missing object is an error instead of fill values; and reading a
document costs two small reads and one inner chunk, with no event loop in between.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from concurrent.futures import wait
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import google_crc32c
import numcodecs
import numpy as np

from interp_embed.errors import CorruptStoreError
from interp_embed.parallel import bounded_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor, Future

    from numpy.typing import DTypeLike, NDArray

    from interp_embed.store.storage import Sink, Storage

__all__ = [
    "INNER_ELEMENTS",
    "ArraySpec",
    "ArrayWriter",
    "BlockCache",
    "ShardedArray",
]

INNER_ELEMENTS = 2**16
"""Elements of an inner chunk: the smallest piece that a reader decodes."""

Encoding = Literal["delta", "zstd", "lz4", "text"]
_CRC_BYTES = 4
_INDEX_ENTRY = 16
_ABSENT = 2**64 - 1
_TASK_CHUNKS = 8
"""Inner chunks a task: handing one to a thread costs as much as decoding it."""
_TASKS_AHEAD = 4
_CRC32C = {"name": "crc32c"}
_DELTA = "numcodecs.delta"


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """How an array is stored.

    Attributes
    ----------
    dtype : str
        A numpy dtype name, or ``"string"``.
    encoding : {"delta", "zstd", "lz4", "text"}
        ``delta`` for sorted or slowly varying integers (differences, bit-shuffled, zstd), ``zstd``
        and ``lz4`` bit-shuffled, ``text`` for strings.
    dimension : str
        Name of the array's one dimension.
    """

    dtype: str
    encoding: Encoding
    dimension: str

    def metadata(self, length: int, inner: int) -> dict[str, Any]:
        """Return the ``zarr.json`` of an array of ``length`` elements."""
        inner = max(1, min(inner, length))
        shard = max(1, -(-length // inner)) * inner
        text = self.dtype == "string"
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [length],
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "" if text else (False if self.dtype == "bool" else _zero(self.dtype)),
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [inner],
                        "codecs": self._codecs(inner),
                        "index_codecs": [
                            {"name": "bytes", "configuration": {"endian": "little"}},
                            _CRC32C,
                        ],
                        "index_location": "end",
                    },
                }
            ],
            "dimension_names": [self.dimension],
            "attributes": {},
        }

    def _codecs(self, inner: int) -> list[dict[str, Any]]:
        if self.encoding == "text":
            return [
                {"name": "vlen-utf8"},
                {"name": "zstd", "configuration": {"level": 3, "checksum": False}},
                _CRC32C,
            ]
        dtype = np.dtype(self.dtype).newbyteorder("<")
        as_bytes: dict[str, Any] = {"name": "bytes"}
        if dtype.itemsize > 1:
            as_bytes["configuration"] = {"endian": "little"}
        blosc = {
            "typesize": dtype.itemsize,
            "cname": "lz4" if self.encoding == "lz4" else "zstd",
            "clevel": 1,
            "shuffle": "bitshuffle",
            # One block an inner chunk: smaller and up to 1.6 times faster to decode than the
            # block size that Blosc would choose.
            "blocksize": inner * dtype.itemsize,
        }
        codecs = [as_bytes, {"name": "blosc", "configuration": blosc}, _CRC32C]
        if self.encoding == "delta":
            codecs.insert(0, {"name": _DELTA, "configuration": {"dtype": dtype.str}})
        return codecs


def _zero(dtype: str) -> int | float:
    return 0.0 if np.dtype(dtype).kind == "f" else 0


def _crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(_CRC_BYTES, "little")


class _InnerCodec:
    """The inner chunk's codecs of an array, read from its metadata."""

    def __init__(self, metadata: dict[str, Any], where: str) -> None:
        configuration = metadata["codecs"][0]["configuration"]
        names = [c["name"] for c in configuration["codecs"]]
        by_name = {c["name"]: c.get("configuration", {}) for c in configuration["codecs"]}
        self.inner = int(configuration["chunk_shape"][0])
        self.delta = names[0] == _DELTA
        self.text = names[0] == "vlen-utf8"
        if names[-1] != "crc32c" or not {"blosc", "zstd"} & set(names):
            raise CorruptStoreError(f"{where} uses codecs {names}, which this format does not have")
        if "blosc" in by_name:
            blosc = by_name["blosc"]
            self.compressor: Any = numcodecs.Blosc(
                cname=blosc["cname"],
                clevel=blosc["clevel"],
                shuffle=numcodecs.Blosc.BITSHUFFLE,
                blocksize=blosc["blocksize"],
                typesize=blosc["typesize"],
            )
        else:
            self.compressor = numcodecs.Zstd(level=by_name["zstd"]["level"])
        self.dtype: np.dtype[Any] = (
            np.dtype(object) if self.text else np.dtype(metadata["data_type"]).newbyteorder("<")
        )

    def encode(self, values: NDArray[Any]) -> bytes:
        if len(values) < self.inner:  # an inner chunk at the end is padded with the fill value
            padding = np.full(self.inner - len(values), "" if self.text else 0, self.dtype)
            values = np.concatenate([values, padding])
        if self.text:
            raw = numcodecs.VLenUTF8().encode(values)
        elif self.delta:
            raw = np.empty_like(values)
            raw[:1] = values[:1]
            np.subtract(values[1:], values[:-1], out=raw[1:])
        else:
            raw = np.ascontiguousarray(values)
        compressed = bytes(self.compressor.encode(raw))
        checksum: int = google_crc32c.value(compressed)
        return compressed + checksum.to_bytes(_CRC_BYTES, "little")

    def decode(self, data: bytes, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the elements of an inner chunk, padding included; in ``out`` where it fits."""
        compressed, claimed = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
        if _crc(compressed) != claimed:
            raise ValueError("checksum mismatch")
        if self.text:
            raw = self.compressor.decode(compressed)
            return np.asarray(numcodecs.VLenUTF8().decode(raw), dtype=object)
        if out is None or len(out) != self.inner or out.dtype != self.dtype:
            out = np.empty(self.inner, self.dtype)
        self.compressor.decode(compressed, out=out)
        if self.delta:
            np.cumsum(out, dtype=self.dtype, out=out)
        return out


class ArrayWriter:
    """Writes one array into one shard as its values come, compressing on threads.

    Parameters
    ----------
    create
        Opens what the shard is written to; not called for an array without elements.
    spec
        How the values are stored.
    inner
        Elements of an inner chunk; an array with fewer has one inner chunk of its own length.
    executor
        Threads that compress.

    Attributes
    ----------
    length, size : int
        Elements and bytes so far.
    crc32c : int
        Of the bytes so far.
    metadata : dict
        The array's ``zarr.json``, once finished.
    """

    def __init__(
        self,
        create: Callable[[], Sink],
        spec: ArraySpec,
        *,
        inner: int = INNER_ELEMENTS,
        executor: Executor | None = None,
    ) -> None:
        self.spec = spec
        self.inner = inner
        self.length = 0
        self.size = 0
        self.crc32c = 0
        self.finished = False
        self._create = create
        self._sink: Sink | None = None
        self._executor = executor
        self._codec = _InnerCodec(spec.metadata(inner, inner), spec.dimension)
        self._carry = np.empty(0, self._codec.dtype)
        self._pending: deque[Future[list[bytes]]] = deque()
        self._sizes: list[int] = []

    def append(self, values: NDArray[Any]) -> None:
        """Add values at the end."""
        values = np.asarray(values, self._codec.dtype)
        self.length += len(values)
        if len(self._carry):
            values = np.concatenate([self._carry, values])
        whole = len(values) // self.inner * self.inner
        step = _TASK_CHUNKS * self.inner
        for begin in range(0, whole, step):
            self._compress(values[begin : min(begin + step, whole)])
        # A copy, so that the caller's array is not kept alive, nor changed under our hands.
        self._carry = values[whole:].copy()

    def _compress(self, values: NDArray[Any]) -> None:
        codec = self._codec

        def run() -> list[bytes]:
            return [
                codec.encode(values[i : i + codec.inner])
                for i in range(0, len(values), codec.inner)
            ]

        if self._executor is None:
            self._write(run())
            return
        self._pending.append(self._executor.submit(run))
        while len(self._pending) > _TASKS_AHEAD:
            self._write(self._pending.popleft().result())

    def _write(self, pieces: list[bytes]) -> None:
        self._sizes += map(len, pieces)
        for piece in pieces:
            self._put(piece)

    def _put(self, piece: bytes) -> None:
        if self._sink is None:
            self._sink = self._create()
        self._sink.write(piece)
        self.crc32c = google_crc32c.extend(self.crc32c, piece)
        self.size += len(piece)

    def finish(self) -> None:
        """Write what is left and the index."""
        if len(self._carry):
            if self.length < self.inner:
                self.inner = self.length
                self._codec = _InnerCodec(
                    self.spec.metadata(self.length, self.inner), self.spec.dimension
                )
            self._compress(self._carry)
        while self._pending:
            self._write(self._pending.popleft().result())
        self.metadata = self.spec.metadata(self.length, self.inner)
        if self.length:
            sizes = np.array(self._sizes, "<u8")
            index = np.stack([np.cumsum(sizes, dtype="<u8") - sizes, sizes], axis=1).tobytes()
            self._put(index + _crc(index))
        if self._sink is not None:
            self._sink.close()
        self.finished = True

    def abandon(self) -> None:
        """Stop writing, after a failure."""
        for future in self._pending:
            future.cancel()
        wait(self._pending)
        if self._sink is not None:
            self._sink.abandon()


class BlockCache:
    """Decoded inner chunks, the least recently used dropped first.

    Parameters
    ----------
    limit
        Bytes to hold at most.
    """

    def __init__(self, limit: int = 2**26) -> None:
        self.limit = limit
        self._blocks: OrderedDict[tuple[str, int], NDArray[Any]] = OrderedDict()
        self._sizes: dict[tuple[str, int], int] = {}
        self._held = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int]) -> NDArray[Any] | None:
        """Return the block, or None where it is not held."""
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
        return None

    def put(self, key: tuple[str, int], block: NDArray[Any]) -> None:
        """Hold ``block``."""
        # The pointers of an object array say nothing of its strings: count 100 bytes for each.
        size = block.nbytes if block.dtype != object else 100 * len(block) + sum(map(len, block))
        with self._lock:
            if key in self._blocks or size > self.limit:
                return
            self._blocks[key] = block
            self._held += size
            self._sizes[key] = size
            while self._held > self.limit:
                old, _ = self._blocks.popitem(last=False)
                self._held -= self._sizes.pop(old)


class ShardedArray:
    """An array in a store, read lazily.

    Parameters
    ----------
    storage, key
        Where the array's folder is.
    metadata
        The array's ``zarr.json``, from the commit: a damaged one on disk cannot mislead a reader.
    size
        Size of the shard in bytes, from the commit.
    cache
        Where `read` keeps decoded inner chunks.
    """

    def __init__(
        self,
        storage: Storage,
        key: str,
        metadata: dict[str, Any],
        size: int,
        cache: BlockCache | None = None,
    ) -> None:
        self.storage = storage
        self._cache = cache or BlockCache(0)
        self.key = f"{key}/c/0"
        self.size = size
        self._metadata = metadata
        self.length = int(metadata["shape"][0])

    @cached_property
    def _codec(self) -> _InnerCodec:
        return _InnerCodec(self._metadata, self.key)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of what `read` returns (object for strings)."""
        return self._codec.dtype

    @property
    def nbytes(self) -> int:
        """Size in memory once read; for strings, the size of the pointers."""
        return self.length * self.dtype.itemsize

    def __len__(self) -> int:
        return self.length

    @property
    def _inner_count(self) -> int:
        return -(-self.length // self._codec.inner)

    def _damaged(self, what: str) -> CorruptStoreError:
        return CorruptStoreError(
            f"{self.key} in {self.storage.url} is damaged: {what}. Run 'interp-embed verify' on the "
            "store and restore this object from a copy, or encode its documents again"
        )

    def _fetch(self, start: int, length: int) -> bytes:
        data = self.storage.get_range(self.key, start, length)
        if len(data) != length:
            raise self._damaged(f"bytes {start}:{start + length} are missing")
        return data

    def _parse_index(self, tail: bytes) -> NDArray[np.uint64]:
        body, claimed = tail[:-_CRC_BYTES], tail[-_CRC_BYTES:]
        if _crc(body) != claimed:
            raise self._damaged("the checksum of its index does not match")
        index = np.frombuffer(body, "<u8").reshape(-1, 2)
        if (index == _ABSENT).any():
            raise self._damaged("its index lacks an inner chunk")
        return index

    @property
    def _index_bytes(self) -> int:
        return self._inner_count * _INDEX_ENTRY + _CRC_BYTES

    @cached_property
    def _index(self) -> NDArray[np.uint64]:
        return self._parse_index(self._fetch(self.size - self._index_bytes, self._index_bytes))

    def _decode(self, number: int, data: bytes, out: NDArray[Any] | None = None) -> NDArray[Any]:
        try:
            values = self._codec.decode(data, out)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise self._damaged(f"inner chunk {number}: {error}") from error
        if len(values) != self._codec.inner:
            raise self._damaged(f"inner chunk {number} has {len(values)} elements")
        return values

    def read_all(
        self, executor: Executor | None = None, dtype: DTypeLike | None = None
    ) -> NDArray[Any]:
        """Return the whole array, as ``dtype``; ``executor`` reads and decodes, where given."""
        dtype = self.dtype if dtype is None else dtype
        if self.length == 0:
            return np.empty(0, dtype)
        inner, count = self._codec.inner, self._inner_count
        out = np.empty(self.length, dtype)
        if count == 1:
            self._fill(out, 0, 1, self._fetch(0, self.size))
            return out
        self._index  # noqa: B018  (read once, before the threads need it)

        def run(first: int) -> None:
            last = min(first + _TASK_CHUNKS, count)
            self._fill(out[first * inner : last * inner], first, last)

        for _ in bounded_map(executor, run, range(0, count, _TASK_CHUNKS), ahead=16):
            pass
        return out

    def _fill(self, out: NDArray[Any], first: int, last: int, whole: bytes | None = None) -> None:
        """Decode inner chunks ``first:last`` into ``out``."""
        inner = self._codec.inner
        for number, data in self._raw(first, last, whole):
            target = out[(number - first) * inner : (number - first + 1) * inner]
            values = self._decode(number, data, target)
            if values is not target:
                target[:] = values[: len(target)]

    def _raw(
        self, first: int, last: int, whole: bytes | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Read inner chunks ``first:last``, which lie one after another."""
        if whole is not None:
            index, begin, data = self._parse_index(whole[-self._index_bytes :]), 0, whole
        else:
            index = self._index
            begin = int(index[first, 0])
            data = self._fetch(begin, int(index[last - 1].sum()) - begin)
        for number in range(first, last):
            offset, size = (int(x) for x in index[number])
            yield number, data[offset - begin : offset - begin + size]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements ``start:stop``; only the inner chunks that hold them are read."""
        if not 0 <= start <= stop <= self.length:
            raise IndexError(
                f"{start}:{stop} is outside of the {self.length} elements of {self.key}"
            )
        if start == stop:
            return np.empty(0, self.dtype)
        if stop - start == self.length and self._inner_count > 1:
            return self.read_all()  # the whole of a large array would only flush the cache
        inner = self._codec.inner
        first, last = start // inner, (stop - 1) // inner
        parts = [self._cache.get((self.key, number)) for number in range(first, last + 1)]
        if any(part is None for part in parts):
            parts = list(self._read_blocks(first, last))
        blocks = [part for part in parts if part is not None]
        joined = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return joined[start - first * inner : stop - first * inner]

    def _read_blocks(self, first: int, last: int) -> Iterator[NDArray[Any]]:
        whole = self._fetch(0, self.size) if self._inner_count == 1 else None
        for number, data in self._raw(first, last + 1, whole):
            block = self._decode(number, data)
            block.flags.writeable = False
            self._cache.put((self.key, number), block)
            yield block
