"""How much is run at once: less after memory runs out, then step by step more."""

from __future__ import annotations

import sys

__all__ = ["Budget", "free_cached", "is_out_of_memory"]

_FIRST_PATIENCE = 4
_MOST_PATIENCE = 1024
_GROWTH = 1.25


class Budget:
    """The largest size of a batch, in tokens or documents.

    Parameters
    ----------
    most
        The size that it starts with and never exceeds.

    Attributes
    ----------
    most, now : int
    """

    def __init__(self, most: int) -> None:
        self.most = self.now = most
        self._patience = _FIRST_PATIENCE
        self._successes = 0
        self._grown = False

    def fell_short(self, used: int) -> None:
        """Halve the budget: there was no memory for ``used``."""
        self.now = max(1, min(self.now, used) // 2)
        if self._grown:  # it was too much again: wait longer before the next attempt
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
        self._successes, self._grown = 0, False

    def sufficed(self, used: int) -> None:
        """Note that ``used`` went well; after a few such batches the budget grows by a quarter."""
        if self.now >= self.most or 2 * used <= self.now:  # a small batch says nothing
            return
        self._successes += 1
        if self._successes >= self._patience:
            self.now = min(self.most, max(self.now + 1, int(self.now * _GROWTH)))
            self._successes, self._grown = 0, True


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a device or on this machine."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in message or "can't allocate memory" in message
    )


def free_cached() -> None:
    """Free the GPU memory that torch caches."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
