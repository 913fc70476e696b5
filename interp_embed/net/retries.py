"""Retries: how often, after which pause, and the server's own wishes. Knows no service."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import tenacity

__all__ = ["Backoff", "asked_pause", "http_status", "retrying"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Backoff:
    """The number of retries of a request, and the pauses between them.

    Attributes
    ----------
    max_retries : int
        Attempts after the first.
    first : float
        Seconds of the first pause. The next ones are twice as long each,
    longest : float
        but not longer than so many seconds.
    spread : float
        Largest number of seconds that is added to a pause, so that many clients do not retry at once.
    """

    max_retries: int
    first: float
    longest: float
    spread: float

    def left(self, done: int) -> float:
        """Return the average total seconds of all pauses after the first ``done``."""
        growing = (self.first * 2.0 ** min(n, 64) for n in range(done, self.max_retries))
        return sum(min(pause, self.longest) + self.spread / 2 for pause in growing)


async def retrying(
    attempt: Callable[[], Awaitable[T]],
    wait: Callable[[T | Exception, float], float | None],
    backoff: Backoff,
    before_pause: Callable[[T | Exception, float, float], None] = lambda *_: None,
) -> T:
    """Await an attempt, and repeat it while that makes sense; return or raise the last result.

    Parameters
    ----------
    attempt
        Makes a request.
    wait
        Called with the result of an attempt, a value or an error, and the pause that would come next.
        Returns the seconds to wait, or None if another attempt makes no sense.
    backoff
        The number of retries, and the pauses.
    before_pause
        Called before each pause with the result of the attempt, the seconds until the next one, and
        the seconds until the request is given up if all attempts fail at once and no server asks for
        longer pauses.
    """
    import tenacity

    growing = tenacity.wait_exponential(multiplier=backoff.first, max=backoff.longest)

    def again(state: tenacity.RetryCallState) -> bool:
        outcome = _outcome(state)
        ended = isinstance(outcome, BaseException) and not isinstance(outcome, Exception)
        return not ended and wait(outcome, 0.0) is not None

    def pause(state: tenacity.RetryCallState) -> float:
        seconds = wait(_outcome(state), growing(state)) or 0.0
        return seconds + random.uniform(0, min(backoff.spread, seconds))

    def tell(state: tenacity.RetryCallState) -> None:
        seconds = state.upcoming_sleep
        before_pause(_outcome(state), seconds, seconds + backoff.left(state.attempt_number))

    async def once() -> T:  # tenacity awaits coroutine functions only
        return await attempt()

    caller = tenacity.AsyncRetrying(
        sleep=asyncio.sleep,
        stop=tenacity.stop_after_attempt(backoff.max_retries + 1),
        wait=pause,
        retry=again,
        before_sleep=tell,
        retry_error_callback=_last,
    )
    return await caller(once)


def _outcome(state: tenacity.RetryCallState) -> Any:
    """Return what came of an attempt."""
    done = state.outcome
    assert done is not None
    return done.exception() or done.result()


def _last(state: tenacity.RetryCallState) -> Any:
    assert state.outcome is not None
    return state.outcome.result()


def http_status(error: object) -> int | None:
    """Return the HTTP status of an error, if it has one."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return int(status)
    return None


def asked_pause(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer's headers ask to wait; None if they do not ask.

    The headers are ``retry-after-ms`` (OpenAI's) and ``Retry-After``, in seconds or as a date (RFC
    9110, 10.2.3). Any other value counts as absent, and a date in the past as 0.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("Retry-After", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        return seconds if 0 <= seconds < math.inf else None
    try:
        moment = parsedate_to_datetime(headers.get("Retry-After", ""))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):  # years and offsets beyond what a number can be
        return None
