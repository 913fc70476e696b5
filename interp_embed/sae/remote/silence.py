"""Lines for somebody who waits for a service that does not answer: what it did, and what comes next.

Owns when to say it, and in which words. Asks nobody.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from interp_embed.core.progress import say
from interp_embed.sae.remote.retries import http_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interp_embed.sae.remote.retries import Pause

__all__ = ["Silence"]

_BUSY_SECONDS = 10.0
"""A service that only says that it is busy is nothing to worry about for so long."""
_BUSY_AGAIN_SECONDS = 60.0
_HUNG_SECONDS = 60.0
_GONE_AGAIN_SECONDS = 30.0
"""A network that loses a connection now and then is not worth two lines each time."""


class Silence:
    """Says that a service does not answer: at once where it is gone, later where it is slow.

    All requests of an SAE share one, on its event loop, so that a service that is gone is said to be
    so once, however many requests wait for it.

    Parameters
    ----------
    service : callable
        Returns what messages call the service.
    answer_seconds : float or None
        How long a request waits for its answer, where that is known.
    """

    def __init__(self, service: Callable[[], str], answer_seconds: float | None) -> None:
        self._service = service
        self._answer_seconds = answer_seconds
        self._clock = asyncio.get_running_loop().time
        self._heard = self._clock()
        self._said_busy = float("-inf")
        self._said_gone = float("-inf")
        self._gone = False
        self._hung = False

    def pauses(self, pause: Pause) -> None:
        """Note that a request failed and is repeated after a pause."""
        error, now = pause.error, self._clock()
        if http_status(error) is not None:
            self._is_busy(pause)
        elif not self._gone and now - self._said_gone >= _GONE_AGAIN_SECONDS:
            self._gone, self._said_gone = True, now
            say(
                f"{self._service()} does not answer ({_short(error)}): trying again for about "
                f"{_time(pause.left)}"
            )

    def _is_busy(self, pause: Pause) -> None:
        now = self._clock()
        waits = pause.since + pause.seconds
        if waits < _BUSY_SECONDS or now - self._said_busy < _BUSY_AGAIN_SECONDS:
            return
        self._said_busy = now
        say(
            f"{self._service()} is busy or fails ({_short(pause.error)}): a request is repeated in "
            f"{_time(pause.seconds)}, and for about {_time(pause.left)} in all"
        )

    @contextmanager
    def request(self) -> Iterator[None]:
        """Watch a request: when it has waited for long, and no other was answered, say so."""
        loop = asyncio.get_running_loop()
        begun = self._clock()
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            since = max(begun, self._heard)
            if self._clock() < since + _HUNG_SECONDS - 0.01:  # a timer may be a little early
                timer = loop.call_at(since + _HUNG_SECONDS, look)
            elif not (self._hung or self._gone):
                self._hung = True
                self._say_hung(self._clock() - since)

        timer = loop.call_later(_HUNG_SECONDS, look)
        try:
            yield
        finally:
            timer.cancel()

    def _say_hung(self, seconds: float) -> None:
        limit = self._answer_seconds
        wait = "" if limit is None else f"; it is given up when nothing comes for {_time(limit)}"
        say(f"{self._service()} has not answered for {_time(seconds)}: it may be encoding{wait}")

    def given_up(self) -> None:
        """Note that a request failed for good, which its error says; a later one is news again."""
        self._gone = self._hung = False
        self._said_gone = float("-inf")

    def heard(self) -> None:
        """Note that the service answered."""
        self._heard = self._clock()
        if self._gone or self._hung:
            say(f"{self._service()} answers again")
        self._gone = self._hung = False


def _short(error: BaseException) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 200 else f"{said[:200]}…"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
