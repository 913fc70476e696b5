"""Messages about a server that does not answer: since when, and what happens next.

Owns the time and the words of these messages. Sends no requests.
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
"""Seconds for which a server may say that it is busy before a message is shown."""
_BUSY_AGAIN_SECONDS = 60.0
_GONE_AGAIN_SECONDS = 30.0
"""A network that occasionally loses a connection should not print two lines each time."""
_LONGEST_REASON = 200


class Wait:
    """A request without an answer yet. From `Waiting.request`.

    Attributes
    ----------
    began : float
        On the loop's clock.
    attempt : int
        Number of the current or last attempt, from 1.
    until : float
        The end of the attempt if no answer comes, or the end of the pause after it.
    trouble : str
        The reason for the pause; empty during an attempt.
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
    """Reports that a server does not answer: immediately if it is down, later if it is busy or silent.

    All requests to a server share one instance, so that a problem is reported once, however many
    requests wait. Silence is counted from the last answer, or from the oldest request if that came
    later. A server that answers others meanwhile is only slow.

    Parameters
    ----------
    server : callable
        Returns the name of the server for messages, without secrets.
    attempts : int
        Largest number of attempts per request.
    patience : float
        Seconds of silence until the first message. The next comes after twice as many, and so on.
    under_way : str, optional
        Message about an attempt without an answer, instead of the time at which it is given up.
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
        """Count a request as waiting while this is open."""
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
        """Note that a request is sent, and is given up after so many seconds."""
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
            The reason for the failure.
        seconds
            Seconds until it is sent again.
        left
            Approximate seconds until it is given up.
        gone
            Whether there was no answer at all.
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
                f"{self._server()} is busy or fails ({why}): retrying a request in "
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
            coming = f"{oldest.trouble}; {following} follows in {left}"
        elif self._under_way is not None:
            coming = self._under_way
        elif oldest.attempt < self._attempts:
            coming = f"it is asked again in {left} ({following})"
        else:
            coming = f"the request is given up in {left}"
        return f"{self._server()} has not answered for {_time(silent)} ({waiting}): {coming}"


def _now() -> float:
    return asyncio.get_running_loop().time()


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
