"""Reading an array from its shard: all of it, a range, or a range into memory that is there already."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.errors import CorruptStoreError
from interp_embed.parallel import bounded_map
from interp_embed.store.shard import CRC_BYTES, INDEX_ENTRY, InnerCodec, crc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor

    from numpy.typing import DTypeLike, NDArray

    from interp_embed.store.storage import Storage

__all__ = ["BlockCache", "ShardedArray"]

_ABSENT = 2**64 - 1
_TASK_CHUNKS = 8
"""Inner chunks a task: handing one to a thread costs as much as decoding it."""
_KEPT_BYTES = 2**24
_FETCH_CHUNKS = 32
"""Inner chunks a request of a pass: few requests, and memory that the allocator uses again."""


class _Scratch(threading.local):
    """Memory for compressed bytes, one a thread.

    Megabytes that are freed go back to the system in many settings (dask's workers for one), and
    getting them again costs as much as decoding what is in them.
    """

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def room(self, length: int) -> NDArray[np.uint8]:
        """Return memory that is valid until the next call in this thread."""
        if length > _KEPT_BYTES:
            return np.empty(length, np.uint8)
        if len(self._buffer) < length:
            self._buffer = np.empty(length, np.uint8)
        return self._buffer[:length]


_scratch = _Scratch()


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
    def _codec(self) -> InnerCodec:
        return InnerCodec(self._metadata, self.key)

    @property
    def inner(self) -> int:
        """Elements of an inner chunk."""
        return self._codec.inner

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

    def _fetch(self, start: int, length: int) -> NDArray[np.uint8]:
        """Read bytes into memory that this thread's next call uses again."""
        data = _scratch.room(length)
        if self.storage.get_range_into(self.key, start, data) != length:
            raise self._damaged(f"bytes {start}:{start + length} are missing")
        return data

    def _parse_index(self, tail: NDArray[np.uint8]) -> NDArray[np.uint64]:
        body, claimed = tail[:-CRC_BYTES], tail[-CRC_BYTES:]
        if crc(body) != bytes(claimed):
            raise self._damaged("the checksum of its index does not match")
        index = np.frombuffer(bytes(body), "<u8").reshape(-1, 2)
        if (index == _ABSENT).any():
            raise self._damaged("its index lacks an inner chunk")
        return index

    @property
    def _index_bytes(self) -> int:
        return self._inner_count * INDEX_ENTRY + CRC_BYTES

    @cached_property
    def _index(self) -> NDArray[np.uint64]:
        return self._parse_index(self._fetch(self.size - self._index_bytes, self._index_bytes))

    def _decode(
        self, number: int, data: NDArray[np.uint8], out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
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

    def _fill(
        self, out: NDArray[Any], first: int, last: int, whole: NDArray[np.uint8] | None = None
    ) -> None:
        """Decode inner chunks ``first:last`` into ``out``."""
        inner = self._codec.inner
        for number, data in self._raw(first, last, whole):
            target = out[(number - first) * inner : (number - first + 1) * inner]
            values = self._decode(number, data, target)
            if values is not target:
                target[:] = values[: len(target)]

    def _raw(
        self, first: int, last: int, whole: NDArray[np.uint8] | None = None
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
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

    def read_into(self, out: NDArray[Any], start: int) -> None:
        """Fill ``out``, of this array's dtype, with the elements from ``start`` on.

        For passes over much data: the same memory serves again and again, and the cache is left to
        what is asked for more than once.
        """
        stop = start + len(out)
        if not 0 <= start <= stop <= self.length:
            raise IndexError(
                f"{start}:{stop} is outside of the {self.length} elements of {self.key}"
            )
        inner = self._codec.inner
        first, last = start // inner, -(-stop // inner)
        if start == stop:
            return
        whole = self._fetch(0, self.size) if self._inner_count == 1 else None
        for begin in range(first, last, _FETCH_CHUNKS):
            end = min(begin + _FETCH_CHUNKS, last)
            for number, data in self._raw(begin, end, whole):
                low, high = number * inner, (number + 1) * inner
                if low >= start and high <= stop:
                    self._decode(number, data, out[low - start : high - start])
                else:
                    values = self._decode(number, data)
                    a, b = max(low, start), min(high, stop)
                    out[a - start : b - start] = values[a - low : b - low]

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
