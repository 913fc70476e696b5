"""A line for somebody who waits for a server that does not answer: since when, and what comes next.

Owns when to say it, and in which words. Sends nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from interp_embed.core.progress import say

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Silence", "Wait"]

_FIRST = 20.0
"""Seconds without any answer after which it is said; then after twice as many, and so on."""


@dataclass(eq=False, slots=True)
class Wait:
    """A request that has no answer yet.

    Attributes
    ----------
    began : float
        On the loop's clock.
    attempt : int
        Which one is under way, or was the last; from 1.
    until : float
        When the attempt ends for lack of an answer, or else the pause after it.
    trouble : str
        Why there is a pause; empty while an attempt is under way.
    """

    began: float
    attempt: int = 0
    until: float = 0.0
    trouble: str = ""

    def attempts(self, timeout: float) -> None:
        """Note that it is sent, and given up after so many seconds."""
        self.attempt += 1
        self.until = asyncio.get_running_loop().time() + timeout
        self.trouble = ""

    def pauses(self, seconds: float, trouble: str) -> None:
        """Note that it is sent again after so many seconds, and why."""
        self.until = asyncio.get_running_loop().time() + seconds
        self.trouble = trouble


@dataclass(eq=False)
class Silence:
    """Says in one line, now and then, that a server does not answer.

    Silence is counted from the last answer, or from the oldest request if that came later: a server
    that answers others meanwhile is only slow.

    Parameters
    ----------
    server
        Its URL, with nothing secret in it.
    attempts
        How often a request is sent at most.
    """

    server: str
    attempts: int
    _open: list[Wait] = field(default_factory=list)
    _heard: float = 0.0
    _after: float = 0.0
    _timer: asyncio.TimerHandle | None = None

    @contextmanager
    def request(self) -> Iterator[Wait]:
        """Count a request as waiting, for as long as this is open."""
        loop = asyncio.get_running_loop()
        wait = Wait(loop.time())
        self._open.append(wait)
        if self._timer is None:
            self._after = _FIRST
            self._timer = loop.call_later(_FIRST, self._look)
        try:
            yield wait
        finally:
            self._open.remove(wait)
            self._heard, self._after = loop.time(), _FIRST
            if not self._open and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = min(self._open, key=lambda wait: wait.began)
        since = max(self._heard, oldest.began)
        # The clock of the loop may be a little coarser than the timer.
        if loop.time() >= since + self._after - 0.001:
            say(self._line(oldest, loop.time(), loop.time() - since))
            self._after *= 2
        self._timer = loop.call_at(since + self._after, self._look)

    def _line(self, oldest: Wait, now: float, silent: float) -> str:
        many = len(self._open)
        waiting = "1 request waits" if many == 1 else f"{many:,} requests wait"
        left = max(0.0, oldest.until - now)
        following = f"attempt {oldest.attempt + 1} of {self.attempts}"
        if oldest.trouble:
            coming = f"{oldest.trouble}; {following} comes in {left:.0f} s"
        elif oldest.attempt < self.attempts:
            coming = f"after {left:.0f} s more it is asked again ({following})"
        else:
            coming = f"after {left:.0f} s more it is given up"
        return f"{self.server} has not answered for {silent:.0f} s ({waiting}): {coming}"
