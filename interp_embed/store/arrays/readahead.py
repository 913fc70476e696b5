"""Reading ahead: fetching the bytes that an answer will need in few concurrent requests.

On a remote storage, a request takes as long as decoding millions of numbers. So a caller says what it
is about to read, in steps, because pointers have to be known before the data that they point to. The
bytes of each step are requested at once, with nearby ranges as one request, and held where the arrays
look before they ask the storage. Nothing depends on this: data that was not read ahead is read when it
is needed.
"""

from __future__ import annotations

from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.errors import CorruptStoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from interp_embed.store.arrays.shard_reader import ShardedArray
    from interp_embed.store.storage import Storage

__all__ = ["LARGEST_REQUEST", "NEAR", "ReadAhead", "Wanted"]

Wanted = tuple["ShardedArray", int, int]
"""Elements of an array. An empty range means the data that has to be known before elements are read."""

LARGEST_REQUEST = 2**23
"""Bytes per request; longer ranges are read in several concurrent requests."""
NEAR = 2**18
"""Gap in bytes up to which two ranges are read as one request."""


class ReadAhead:
    """Bytes of arrays, held until this is closed.

    On a local storage, nothing is read or held.

    Parameters
    ----------
    storage
        Where the arrays are.
    """

    def __init__(self, storage: Storage) -> None:
        self._requests = storage.requests()
        self._held: list[tuple[ShardedArray, NDArray[np.uint8] | dict[int, NDArray[Any]]]] = []

    def follow(self, plans: Iterable[Iterator[Iterable[Wanted]]]) -> ReadAhead:
        """Read the steps of several plans: the first step of all plans, then the second, and so on.

        Data that one step requested can be read cheaply when the next step is requested. Missing or
        damaged data raises no error here, but when it is read.
        """
        if self._requests is None:
            return self
        active = list(plans)
        try:
            while active:
                steps = [(plan, next(plan, None)) for plan in active]
                active = [plan for plan, step in steps if step is not None]
                self.load(wanted for _, step in steps if step is not None for wanted in step)
        except (FileNotFoundError, CorruptStoreError):
            # Merged meanwhile, say, or damaged: the reader deals with it, and says so.
            self.close()
        except BaseException:
            self.close()
            raise
        return self

    def load(self, wanted: Iterable[Wanted]) -> None:
        """Read elements of arrays, and hold their bytes."""
        pool = self._requests
        if pool is None:
            return
        ranges: dict[ShardedArray, list[tuple[int, int]]] = {}
        soon: dict[ShardedArray, None] = {}
        for array, start, stop in wanted:
            if start >= stop:
                soon[array] = None
            elif (blocks := array.pin(start, stop)) is None:
                ranges.setdefault(array, []).append((start, stop))
            else:
                self._held.append((array, blocks))
        flying: list[Future[Any]] = [pool.submit(a.prepare) for a in soon if not a.is_prepared]
        later = [array for array in ranges if not array.is_prepared]
        prepared = [pool.submit(array.prepare) for array in later]
        landed: list[tuple[ShardedArray, int, NDArray[np.uint8] | Future[Any]]] = []
        try:
            for array in [array for array in ranges if array not in later]:
                landed += self._request(pool, array, ranges[array], flying)
            for future in prepared:
                future.result()
            for array in later:
                landed += self._request(pool, array, ranges[array], flying)
            for future in flying:
                future.result()
        except BaseException:
            wait([future for future in (*flying, *prepared) if not future.cancel()])
            raise
        for array, begin, data in landed:
            self._hold(array, begin, data.result() if isinstance(data, Future) else data)

    def _request(
        self,
        pool: Executor,
        array: ShardedArray,
        elements: Sequence[tuple[int, int]],
        flying: list[Future[Any]],
    ) -> Iterator[tuple[ShardedArray, int, NDArray[np.uint8] | Future[Any]]]:
        """Request the bytes of elements; yield their start, and the bytes or a function that gets them."""
        for begin, end in joined(array.bytes_of(*each) for each in elements):
            if (held := array.held(begin, end)) is not None:
                yield array, *held
            elif end - begin <= LARGEST_REQUEST:  # one that others may want just now, too
                flying.append(pool.submit(array.fetch, begin, end))
                yield array, begin, flying[-1]
            else:
                data = np.empty(end - begin, np.uint8)
                for at in range(0, end - begin, LARGEST_REQUEST):
                    piece = data[at : at + LARGEST_REQUEST]
                    flying.append(pool.submit(array.fetch_into, begin + at, piece))
                yield array, begin, data

    def _hold(self, array: ShardedArray, begin: int, data: NDArray[np.uint8]) -> None:
        array.hold(begin, data)
        self._held.append((array, data))

    def close(self) -> None:
        """Release the bytes that are held."""
        held, self._held = self._held, []
        for array, what in held:
            array.let_go(what)

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges of bytes that overlap or are near each other."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if found and begin - found[-1][1] <= NEAR:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found
