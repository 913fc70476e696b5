"""Lines for somebody who waits for a server that does not answer: since when, and what comes next.

Owns when to say it, and in which words. Asks nobody.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from interp_embed.core.progress import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Wait", "Waiting"]

_BUSY_SECONDS = 10.0
"""A server that only says that it is busy is nothing to worry about for so long."""
_BUSY_AGAIN_SECONDS = 60.0
_GONE_AGAIN_SECONDS = 30.0
"""A network that loses a connection now and then is not worth two lines each time."""
_LONGEST_REASON = 200


class Wait:
    """A request that has no answer yet. From `Waiting.request`.

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
    answered : bool
        Whether an answer came.
    """

    def __init__(self, began: float) -> None:
        self.began = began
        self.attempt = 0
        self.until = float("inf")
        self.trouble = ""
        self.answered = False


class Waiting:
    """Says that a server does not answer: at once where it is gone, later where it is busy or silent.

    All requests to a server share one, so that what is wrong with it is said once, however many
    wait. Silence is counted from the last answer, or from the oldest request if that came later: a
    server that answers others meanwhile is only slow.

    Parameters
    ----------
    server : callable
        Returns what messages call the server, with nothing secret in it.
    attempts : int
        How often a request is sent at most.
    patience : float
        Seconds of silence after which it is said; then after twice as many, and so on.
    under_way : str, optional
        What to say of an attempt that has no answer yet, in place of when it is given up.
    """

    def __init__(
        self,
        server: Callable[[], str],
        attempts: int,
        *,
        patience: float,
        under_way: str | None = None,
    ) -> None:
        self._server = server
        self._attempts = attempts
        self._patience = self._after = patience
        self._under_way = under_way
        self._open: list[Wait] = []
        self._timer: asyncio.TimerHandle | None = None
        self._heard = self._said_gone = self._said_busy = float("-inf")
        self._gone = self._silent = False

    @contextmanager
    def request(self) -> Iterator[Wait]:
        """Count a request as waiting, for as long as this is open."""
        loop = asyncio.get_running_loop()
        wait = Wait(loop.time())
        self._open.append(wait)
        if self._timer is None:
            self._after = self._patience
            self._timer = loop.call_later(self._after, self._look)
        try:
            yield wait
        finally:
            self._open.remove(wait)
            if not self._open and self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if not wait.answered:
                # Its error says so; what fails later is news again.
                self._gone = self._silent = False
                self._said_gone = float("-inf")

    def attempts(self, wait: Wait, timeout: float | None = None) -> None:
        """Note that a request is sent, and given up after so many seconds."""
        wait.attempt += 1
        wait.trouble = ""
        wait.until = float("inf") if timeout is None else _now() + timeout

    def pauses(self, wait: Wait, why: str, seconds: float, left: float, *, gone: bool) -> None:
        """Note that a request failed and is sent again.

        Parameters
        ----------
        wait
            The request.
        why
            What it failed with.
        seconds
            Until it is sent again.
        left
            Seconds until it is given up, about.
        gone
            Whether nobody answered at all.
        """
        now = _now()
        why = why if len(why) <= _LONGEST_REASON else f"{why[:_LONGEST_REASON]}…"
        wait.trouble, wait.until = why, now + seconds
        if gone:
            if not self._gone and now - self._said_gone >= _GONE_AGAIN_SECONDS:
                self._gone, self._said_gone = True, now
                say(
                    f"{self._server()} does not answer ({why}): trying again for about {_time(left)}"
                )
        elif (
            now - wait.began + seconds >= _BUSY_SECONDS
            and now - self._said_busy >= _BUSY_AGAIN_SECONDS
        ):
            self._said_busy = now
            say(
                f"{self._server()} is busy or fails ({why}): a request is repeated in "
                f"{_time(seconds)}, and for about {_time(left)} in all"
            )

    def answers(self, wait: Wait) -> None:
        """Note that a request was answered."""
        wait.answered = True
        self._heard, self._after = _now(), self._patience
        if self._gone or self._silent:
            say(f"{self._server()} answers again")
        self._gone = self._silent = False

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = min(self._open, key=lambda wait: wait.began)
        since = max(self._heard, oldest.began)
        # The clock of the loop may be a little coarser than the timer.
        if loop.time() >= since + self._after - 0.01:
            self._silent = True
            say(self._line(oldest, loop.time(), loop.time() - since))
            self._after *= 2
        self._timer = loop.call_at(since + self._after, self._look)

    def _line(self, oldest: Wait, now: float, silent: float) -> str:
        many = len(self._open)
        waiting = "1 request waits" if many == 1 else f"{many:,} requests wait"
        left = _time(max(0.0, oldest.until - now))
        following = f"attempt {oldest.attempt + 1} of {self._attempts}"
        if oldest.trouble:
            coming = f"{oldest.trouble}; {following} comes in {left}"
        elif self._under_way is not None:
            coming = self._under_way
        elif oldest.attempt < self._attempts:
            coming = f"after {left} more it is asked again ({following})"
        else:
            coming = f"after {left} more it is given up"
        return f"{self._server()} has not answered for {_time(silent)} ({waiting}): {coming}"


def _now() -> float:
    return asyncio.get_running_loop().time()


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
