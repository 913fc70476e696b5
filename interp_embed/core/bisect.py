"""Halving a failed batch until the item that caused the failure is alone."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Worklist", "halves"]

T = TypeVar("T")


def halves(batch: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Return the first and the second half of a batch; the second may have one item more."""
    middle = len(batch) // 2
    return batch[:middle], batch[middle:]


class Worklist(Generic[T]):
    """Items to process in order, in batches that are retried in halves if they fail.

    If one of n items fails, at most ``2 * ceil(log2(n)) + 1`` batches are tried. A worklist is true
    while items are left.

    Parameters
    ----------
    items : sequence
    """

    def __init__(self, items: Sequence[T]) -> None:
        self._parts: deque[Sequence[T]] = deque([items] if len(items) else [])

    def __bool__(self) -> bool:
        return bool(self._parts)

    @property
    def front(self) -> Sequence[T]:
        """The items from which the next batch is taken."""
        return self._parts[0]

    def take(self, most: int) -> Sequence[T]:
        """Remove and return the next batch. It has at least one item and at most the given number."""
        part = self._parts.popleft()
        most = max(1, most)
        if most < len(part):
            self._parts.appendleft(part[most:])
        return part[:most]

    def put_back(self, batch: Sequence[T]) -> None:
        """Put a batch back in front, unchanged."""
        self._parts.appendleft(batch)

    def split(self, batch: Sequence[T]) -> bool:
        """Put the halves of a failed batch in front; return False if it has only one item."""
        if len(batch) == 1:
            return False
        first, second = halves(batch)
        self._parts.extendleft((second, first))
        return True
