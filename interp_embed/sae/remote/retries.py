"""What to make of an error of a service: try again, blame the document, or give up."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from interp_embed.errors import SAEUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = [
    "Pause", "Trouble", "http_status", "parse_retry_after", "retrying", "seconds_to_wait", "trouble",
]  # fmt: skip

T = TypeVar("T")
_LONGEST_PAUSE = 60.0
_LONGEST_ASKED_PAUSE = 300.0
"""Seconds; a service that asks for more is asked again after so many."""
_REFUSALS = frozenset({401, 402, 403})
_OVERLOADED = frozenset({429, 502, 503, 504, 529})
# How the HTTP libraries that SDKs are built on, and some SDKs, call a connection that failed.
_CONNECTION_ERRORS = frozenset(
    {"TransportError", "APIConnectionError", "ClientConnectionError", "ClientPayloadError",
     "ConnectionError"}
)  # fmt: skip
_NOT_CONNECTED = frozenset({"ConnectTimeout", "ConnectionTimeoutError"})
_TIMEOUTS = frozenset({"TimeoutException", "APITimeoutError", "Timeout"})


class Trouble(Enum):
    """What kind of failure a request ended in."""

    UNREACHABLE = "unreachable"
    """Nobody answers, or only to say that it is too much. Worth trying again; then the run ends."""
    BROKEN = "broken"
    """The service tried and failed, or took too long. Worth trying again; then the documents of the
    request are to blame, if it encodes others."""
    SLOW = "slow"
    """As BROKEN, but so late that the same request is not worth trying again."""
    REFUSED = "refused"
    """The service knows who asks and says no, as it would to any other document."""
    DOCUMENT = "document"
    """Anything else: the same request would fail again."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Between a request that failed and its repetition.

    Attributes
    ----------
    error : BaseException
        What it failed with.
    since : float
        Seconds since the request was first made.
    seconds : float
        Until it is repeated.
    left : float
        Seconds until it is given up, if it fails at once each time and nobody asks for longer pauses.
    """

    error: BaseException
    since: float
    seconds: float
    left: float


def trouble(error: BaseException) -> Trouble:
    """Return what kind of failure an error is, by its HTTP status or its class.

    Known are the built-in errors, those of httpx, requests and aiohttp, and those of SDKs that have a
    ``status_code``, or a ``response`` with one.
    """
    if isinstance(error, SAEUnavailableError):
        return Trouble.REFUSED
    status = http_status(error)
    if status is not None:
        if status in _REFUSALS:
            return Trouble.REFUSED
        if status in _OVERLOADED:
            return Trouble.UNREACHABLE
        return Trouble.BROKEN if status >= 500 or status in (408, 425) else Trouble.DOCUMENT
    names = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, TimeoutError) or names & _TIMEOUTS:
        return Trouble.UNREACHABLE if names & _NOT_CONNECTED else Trouble.BROKEN
    if isinstance(error, ConnectionError) or names & _CONNECTION_ERRORS:
        return Trouble.UNREACHABLE
    return Trouble.DOCUMENT


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that an error stands for, where it has one."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return int(status)
    return None


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for (RFC 9110, 10.2.3).

    Parameters
    ----------
    value : str or None
        A number of seconds or a date; anything else counts as absent.
    """
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):  # years and offsets beyond what a number can be
        return None


def seconds_to_wait(error: BaseException | None) -> float:
    """Return the pause that the service itself asked for; 0 where it did not."""
    asked = getattr(error, "retry_after", None)
    if asked is None:
        # httpx has the answer's headers on the answer, aiohttp on the error itself.
        for holder in (getattr(error, "response", None), error):
            headers = getattr(holder, "headers", None)
            if headers is not None:
                asked = parse_retry_after(headers.get("Retry-After"))
                break
    if not isinstance(asked, int | float):
        return 0.0
    return max(0.0, min(float(asked), _LONGEST_ASKED_PAUSE))


async def retrying(
    request: Callable[[], Awaitable[T]],
    classify: Callable[[BaseException], Trouble],
    *,
    max_retries: int,
    base_delay: float,
    before_pause: Callable[[Pause], None] = lambda pause: None,
) -> T:
    """Await a request, and again while its failure is worth it.

    The pause before retry n is ``base_delay * 2 ** (n - 1)`` seconds, at most a minute, or what the
    service asks for if that is longer, and up to ``base_delay`` more, so that many clients do not
    come back at once. ``before_pause`` is told of each pause before it begins.
    """
    import tenacity

    growing = tenacity.wait_exponential(multiplier=base_delay, max=_LONGEST_PAUSE)
    spread = tenacity.wait_random(0, base_delay)

    def pause(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        return max(growing(state), seconds_to_wait(error)) + spread(state)

    def again(error: BaseException) -> bool:
        worth: Any = (Trouble.UNREACHABLE, Trouble.BROKEN)
        return isinstance(error, Exception) and classify(error) in worth

    def tell(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if error is None:
            return
        seconds = state.upcoming_sleep
        left = seconds + _pauses(base_delay, state.attempt_number, max_retries)
        before_pause(Pause(error, state.seconds_since_start or 0.0, seconds, left))

    caller = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(max_retries + 1),
        wait=pause,
        retry=tenacity.retry_if_exception(again),
        before_sleep=tell,
        reraise=True,
    )

    async def attempt() -> T:  # tenacity awaits coroutine functions only
        return await request()

    return await caller(attempt)


def _pauses(base_delay: float, done: int, max_retries: int) -> float:
    """Return the seconds of all pauses after the first ``done``, as long as they are on average."""
    doubled = [min(base_delay * 2.0**n, _LONGEST_PAUSE) for n in range(done, min(max_retries, 64))]
    rest = max(0, max_retries - max(done, 64)) * min(base_delay * 2.0**64, _LONGEST_PAUSE)
    return sum(doubled) + rest + max(0, max_retries - done) * base_delay / 2
