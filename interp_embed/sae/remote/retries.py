"""How to treat an error of a service: try again, mark the document as failed, or give up."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, TypeVar

from interp_embed.errors import SAEUnavailableError
from interp_embed.net.retries import Backoff, asked_pause, http_status
from interp_embed.net.retries import retrying as net_retrying

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Trouble", "retrying", "seconds_to_wait", "trouble"]

T = TypeVar("T")
_LONGEST_PAUSE = 60.0
_LONGEST_ASKED_PAUSE = 300.0
"""Longest pause in seconds, even if a service asks for a longer one."""
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
    """The kind of failure that a request ended in."""

    UNREACHABLE = "unreachable"
    """The service does not answer, or says that it is overloaded. Try again; then the run ends."""
    BROKEN = "broken"
    """The service failed, or took too long. Try again; then the documents of the request are marked as
    failed, if the service encodes others."""
    SLOW = "slow"
    """Like BROKEN, but after so long that the same request is not tried again."""
    REFUSED = "refused"
    """The service refuses the client, as it would for any other document."""
    DOCUMENT = "document"
    """Anything else: the same request would fail again."""


def trouble(error: BaseException) -> Trouble:
    """Return what kind of failure an error is, by its HTTP status or its class.

    It recognises the built-in errors, those of httpx, requests and aiohttp, and those of SDKs that have
    a ``status_code``, or a ``response`` with one.
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


def seconds_to_wait(error: BaseException | None) -> float:
    """Return the pause that the service asked for; 0 if it asked for none."""
    asked = getattr(error, "retry_after", None)
    if asked is None:
        # httpx has the answer's headers on the answer, aiohttp on the error itself.
        for holder in (getattr(error, "response", None), error):
            headers = getattr(holder, "headers", None)
            if headers is not None:
                asked = asked_pause(headers)
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
    before_pause: Callable[[T | Exception, float, float], None] = lambda *_: None,
) -> T:
    """Await a request, and repeat it while another attempt may succeed.

    The pause before retry n is ``base_delay * 2 ** (n - 1)`` seconds, at most a minute, or the pause
    that the service asks for if that is longer. Up to ``base_delay`` is added, so that many clients do
    not retry at once. ``before_pause`` is called before each pause; see `net.retries`.
    """

    def wait(outcome: T | Exception, growing: float) -> float | None:
        if not isinstance(outcome, Exception):
            return None
        if classify(outcome) not in (Trouble.UNREACHABLE, Trouble.BROKEN):
            return None
        return max(growing, seconds_to_wait(outcome))

    backoff = Backoff(max_retries, base_delay, _LONGEST_PAUSE, base_delay)
    return await net_retrying(request, wait, backoff, before_pause)
