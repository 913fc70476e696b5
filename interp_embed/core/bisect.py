"""Halving a batch that failed until the item that is to blame is alone."""

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
    """Items to be worked through in order, in batches that are tried again in halves if they fail.

    With one guilty item among n, work is done at most ``2 * ceil(log2(n)) + 1`` times. It is true
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
        """The items that the next batch can be taken from."""
        return self._parts[0]

    def take(self, most: int) -> Sequence[T]:
        """Remove the next batch, of at most so many items and at least one, and return it."""
        part = self._parts.popleft()
        most = max(1, most)
        if most < len(part):
            self._parts.appendleft(part[most:])
        return part[:most]

    def put_back(self, batch: Sequence[T]) -> None:
        """Put a batch in front again, as it is."""
        self._parts.appendleft(batch)

    def split(self, batch: Sequence[T]) -> bool:
        """Put the halves of a batch that failed in front; return False if its one item is to blame."""
        if len(batch) == 1:
            return False
        first, second = halves(batch)
        self._parts.extendleft((second, first))
        return True
