"""Reading an array from its shard: all of it, a range, or a range into existing memory."""

from __future__ import annotations

import contextlib
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import LRUCache

from interp_embed.core.allocation import roomy_array
from interp_embed.core.threads import Flights, bounded_map
from interp_embed.errors import CorruptStoreError
from interp_embed.store.arrays.shard import CRC_BYTES, INDEX_ENTRY, InnerCodec, crc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    from numpy.typing import DTypeLike, NDArray

    from interp_embed.store.storage import Storage

__all__ = ["BlockCache", "ShardedArray"]

_ABSENT = 2**64 - 1
_TASK_CHUNKS = 8
"""Inner chunks per task: handing one to a thread costs as much as decoding it."""
_KEPT_BYTES = 2**24
_CACHED_CHUNKS = 8
"""From this number of inner chunks on, a read counts as part of a pass and is not cached."""
_FETCH_CHUNKS = 32
"""Inner chunks per request of a pass: few requests, and memory that the allocator can reuse."""


class _Scratch(threading.local):
    """Memory for compressed bytes, one block per thread.

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
        self._blocks: LRUCache[tuple[str, int], NDArray[Any]] = LRUCache(limit, _size)
        self._lock = threading.Lock()

    @property
    def limit(self) -> int:
        """Bytes to hold at most."""
        return int(self._blocks.maxsize)

    @property
    def held(self) -> int:
        """Bytes that are held."""
        return int(self._blocks.currsize)

    def get(self, key: tuple[str, int]) -> NDArray[Any] | None:
        """Return the block, or None if it is not held."""
        with self._lock:
            return self._blocks.get(key)

    def put(self, key: tuple[str, int], block: NDArray[Any]) -> None:
        """Hold ``block``, unless it is too large."""
        with self._lock, contextlib.suppress(ValueError):
            if key not in self._blocks:
                self._blocks[key] = block


def _size(block: NDArray[Any]) -> int:
    # The pointers of an object array say nothing of its strings: count 100 bytes for each.
    return block.nbytes if block.dtype != object else 100 * len(block) + sum(map(len, block))


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
    index
        Returns the shard's index if it is known from elsewhere; used on remote storages.
    """

    def __init__(
        self,
        storage: Storage,
        key: str,
        metadata: dict[str, Any],
        size: int,
        cache: BlockCache | None = None,
        index: Callable[[], bytes | None] | None = None,
    ) -> None:
        self.storage = storage
        self._cache = cache or BlockCache(0)
        self.key = f"{key}/c/0"
        self.size = size
        self._metadata = metadata
        self.length = int(metadata["shape"][0])
        self._known_index = index
        self._parsed: NDArray[np.uint64] | None = None
        self._flights = Flights()
        # What was read ahead: bytes by their place in the shard, and inner chunks by number. Replaced
        # as a whole, so that readers need no lock.
        self._held: tuple[tuple[int, NDArray[np.uint8]], ...] = ()
        self._pinned: tuple[dict[int, NDArray[Any]], ...] = ()
        self._lock = threading.Lock()

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
        """Read bytes into memory that this thread's next call reuses."""
        if (ahead := self._ahead(start, length)) is not None:
            return ahead
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

    @property
    def _index(self) -> NDArray[np.uint64]:
        if self._parsed is None:
            self._parsed = self._flights.do("index", self._read_index)
        return self._parsed

    def _read_index(self) -> NDArray[np.uint64]:
        if self._known_index is not None and self.storage.remote:
            known = self._known_index()
            if known is not None and len(known) == self._index_bytes:
                body = np.frombuffer(known, np.uint8)
                if crc(body[:-CRC_BYTES]) == known[-CRC_BYTES:]:
                    return self._parse_index(body)
        return self._parse_index(self._fetch(self.size - self._index_bytes, self._index_bytes))

    # Reading ahead; see `interp_embed.store.arrays.readahead`

    @property
    def is_prepared(self) -> bool:
        """Whether a range can be read without another request first."""
        return self._parsed is not None or self._inner_count <= 1

    def prepare(self) -> None:
        """Read the metadata that is needed before a range can be read."""
        if self.length and self._inner_count > 1:
            self._index  # noqa: B018

    def bytes_of(self, start: int, stop: int) -> tuple[int, int]:
        """Return where the inner chunks of elements ``start:stop``, at least one, lie in the shard."""
        if self._inner_count == 1:
            return 0, self.size
        index, inner = self._index, self._codec.inner
        return int(index[start // inner, 0]), int(index[(stop - 1) // inner].sum())

    def hold(self, begin: int, data: NDArray[np.uint8]) -> None:
        """Read from ``data``, the bytes from ``begin`` on, instead of from the storage."""
        with self._lock:
            self._held = (*self._held, (begin, data))

    def pin(self, start: int, stop: int) -> dict[int, NDArray[Any]] | None:
        """Keep the decoded inner chunks of elements ``start:stop`` if the cache has them all."""
        numbers = range(start // self._codec.inner, (stop - 1) // self._codec.inner + 1)
        found = {number: self._cache.get((self.key, number)) for number in numbers}
        blocks = {number: block for number, block in found.items() if block is not None}
        if len(blocks) < len(numbers):
            return None
        with self._lock:
            self._pinned = (*self._pinned, blocks)
        return blocks

    def let_go(self, what: NDArray[np.uint8] | dict[int, NDArray[Any]]) -> None:
        """Release bytes that `hold` was given, or blocks that `pin` returned, once."""
        with self._lock:
            if isinstance(what, dict):
                at = next(i for i, blocks in enumerate(self._pinned) if blocks is what)
                self._pinned = self._pinned[:at] + self._pinned[at + 1 :]
            else:
                at = next(i for i, (_, data) in enumerate(self._held) if data is what)
                self._held = self._held[:at] + self._held[at + 1 :]

    def held(self, begin: int, end: int) -> tuple[int, NDArray[np.uint8]] | None:
        """Return bytes that are held, and where they begin, if ``begin:end`` is among them."""
        for start, data in self._held:
            if start <= begin and end <= start + len(data):
                return start, data
        return None

    def _ahead(self, start: int, length: int) -> NDArray[np.uint8] | None:
        found = self.held(start, start + length) if self._held else None
        return None if found is None else found[1][start - found[0] : start - found[0] + length]

    def fetch(self, begin: int, end: int) -> NDArray[np.uint8]:
        """Return bytes of the shard. If several threads want the same bytes, only one reads them."""

        def read() -> NDArray[np.uint8]:
            data = np.empty(end - begin, np.uint8)
            self.fetch_into(begin, data)
            return data

        return self._flights.do((begin, end, "bytes"), read)

    def fetch_into(self, begin: int, data: NDArray[np.uint8]) -> None:
        """Fill ``data`` with bytes of the shard from ``begin`` on."""
        if self.storage.get_range_into(self.key, begin, data) != len(data):
            raise self._damaged(f"bytes {begin}:{begin + len(data)} are missing")

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
        """Return the whole array as ``dtype``; ``executor`` reads and decodes, if given."""
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
                f"elements {start}:{stop} are outside the {self.length} elements of {self.key}"
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
                    target = out[low - start : high - start]
                    values = self._decode(number, data, target)
                    if values is not target:  # texts are not decoded in place
                        target[:] = values
                else:
                    values = self._decode(number, data)
                    a, b = max(low, start), min(high, stop)
                    out[a - start : b - start] = values[a - low : b - low]

    def read(self, start: int, stop: int, *, keep: bool = True) -> NDArray[Any]:
        """Return elements ``start:stop``; only the inner chunks that hold them are read.

        Few inner chunks are kept in the cache, which a pass (``keep=False``) would only fill with what
        nobody asks for again.
        """
        if not 0 <= start <= stop <= self.length:
            raise IndexError(
                f"elements {start}:{stop} are outside the {self.length} elements of {self.key}"
            )
        if start == stop:
            return np.empty(0, self.dtype)
        if stop - start == self.length and self._inner_count > 1:
            return self.read_all()  # the whole of a large array would only flush the cache
        inner = self._codec.inner
        first, last = start // inner, (stop - 1) // inner
        parts = [self._block(number) for number in range(first, last + 1)]
        direct = len(parts) >= _CACHED_CHUNKS or not (keep or self.storage.remote)
        if direct and all(part is None for part in parts):
            many = len(parts) >= _CACHED_CHUNKS and self.dtype != object
            out = (roomy_array if many else np.empty)(stop - start, self.dtype)
            self.read_into(out, start)
            return out
        if any(part is None for part in parts):
            if self.storage.remote:
                parts = self._flights.do(
                    (first, last), lambda: [*self._read_blocks(first, last, keep)]
                )
            else:
                parts = [*self._read_blocks(first, last, keep)]
        blocks = [part for part in parts if part is not None]
        joined = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return joined[start - first * inner : stop - first * inner]

    def _block(self, number: int) -> NDArray[Any] | None:
        block = self._cache.get((self.key, number))
        if block is None and self._pinned:
            block = next((b[number] for b in self._pinned if number in b), None)
        return block

    def _read_blocks(self, first: int, last: int, keep: bool) -> Iterator[NDArray[Any]]:
        whole = self._fetch(0, self.size) if self._inner_count == 1 else None
        for number, data in self._raw(first, last + 1, whole):
            block = self._decode(number, data)
            block.flags.writeable = False
            if keep:
                self._cache.put((self.key, number), block)
            yield block
