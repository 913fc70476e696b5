"""Sending a request to a server until it answers, or until another attempt makes no sense.

Owns connections, the time limit of an attempt, the failures that are retried, and the pauses. The
caller reads the content of an answer.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import openai

from interp_embed.llm.ask.errors import LLMConnectionError, LLMError, LLMTimeoutError
from interp_embed.llm.ask.failures import (
    LONGEST_PAUSE,
    error_within,
    explain,
    refused_parameter,
    wanted_pause,
)
from interp_embed.net.retries import Backoff, retrying
from interp_embed.net.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from openai.types.chat import ChatCompletion

    from interp_embed.llm.ask.endpoint import Endpoint
    from interp_embed.llm.ask.request import Message

__all__ = ["Outcome", "Transport", "check_patience"]

_FIRST_PAUSE, _LAST_PAUSE = 0.5, 8.0
_SPREAD = 0.5
"""Largest number of seconds added to a pause, so that many requests are not retried at once."""
_PATIENCE_SECONDS = 20.0
_PASSING = (408, 409, 429)
"""Statuses that may change at the next attempt, besides those of server failures."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a request, or of one attempt.

    Attributes
    ----------
    completion
        The server's answer; None if it failed.
    error : LLMError or None
        The error, if there is no answer.
    refused : str or None
        The parameter that the server does not know, if that caused the error.
    again : bool
        Whether another attempt may succeed.
    pause : float or None
        Seconds that the server asks to wait.
    charged
        Usage that the server counted for attempts that ended in an error.
    """

    completion: ChatCompletion | Any = None
    error: LLMError | None = None
    refused: str | None = None
    again: bool = False
    pause: float | None = None
    charged: tuple[Any, ...] = ()


class Transport:
    """Connections to one server; ``open`` before use, ``close`` after it.

    Parameters
    ----------
    endpoint
        Which server and model.
    timeout
        Time limit of one attempt in seconds, from connecting to the last byte.
    max_retries
        Attempts after the first.
    """

    def __init__(self, endpoint: Endpoint, timeout: float, max_retries: int) -> None:
        self.endpoint = endpoint
        self._timeout = timeout
        self._max_retries = max_retries
        self._openai: openai.AsyncOpenAI | None = None
        self._waiting = self._patience()

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return self._openai is not None

    def open(self) -> None:
        """Read the key; connections are made when they are needed."""
        self._openai = openai.AsyncOpenAI(
            api_key=self.endpoint.read_key()
            or "none",  # servers without keys ignore it, the client insists on one
            base_url=self.endpoint.base_url,
            timeout=self._timeout,
            max_retries=0,  # its own would see neither failures with status 200 nor who waits
        )
        if self.endpoint.key_variable != "OPENAI_API_KEY":
            # Taken from the environment by the client, and nobody else's business.
            self._openai.organization = self._openai.project = None
        self._waiting = self._patience()  # belongs to the loop

    async def close(self) -> None:
        """Close connections; may be called twice."""
        client, self._openai = self._openai, None
        if client is not None:
            await client.close()

    async def send(
        self, messages: Sequence[Message], body: Mapping[str, Any], negotiable: Sequence[str]
    ) -> Outcome:
        """Return the result of a request, after as many attempts as make sense.

        Parameters
        ----------
        messages
            The conversation.
        body
            The other parameters, except the model.
        negotiable
            The parameters that the request can do without.
        """
        if self._openai is None:
            raise RuntimeError("the transport has no open connections; call its open() first")
        charged: tuple[Any, ...] = ()
        waiting = self._waiting
        with waiting.request() as wait:

            async def attempt() -> Outcome:
                nonlocal charged
                waiting.attempts(wait, self._timeout)
                came = await self._attempt(messages, body, negotiable, wait.attempt)
                charged += came.charged
                return came

            def tell(outcome: Outcome | Exception, seconds: float, left: float) -> None:
                error = outcome.error if isinstance(outcome, Outcome) else None
                reached = not isinstance(error, LLMConnectionError)
                late = isinstance(error, LLMTimeoutError)
                waiting.pauses(wait, _trouble(error), seconds, left, gone=not (reached or late))

            backoff = Backoff(self._max_retries, _FIRST_PAUSE, _LAST_PAUSE, _SPREAD)
            found = await retrying(attempt, _wait, backoff, tell)
            if not isinstance(found.error, LLMConnectionError):
                waiting.answers(wait)
        return replace(found, charged=charged)

    def _patience(self) -> Waiting:
        server = self.endpoint.base_url
        return Waiting(lambda: server, self._max_retries + 1, patience=_PATIENCE_SECONDS)

    async def _attempt(
        self,
        messages: Sequence[Message],
        body: Mapping[str, Any],
        negotiable: Sequence[str],
        number: int,
    ) -> Outcome:
        """Send a request once.

        No error is raised: as the context of another one, the client's would keep the request, with
        the key in its headers.
        """
        assert self._openai is not None
        try:
            async with asyncio.timeout(self._timeout):
                completion = await self._openai.chat.completions.create(
                    model=self.endpoint.model,
                    messages=[m.as_dict() for m in messages],  # type: ignore[misc]
                    extra_body=dict(body),
                )
        except (openai.OpenAIError, ValueError, TimeoutError) as error:
            refused = refused_parameter(error, negotiable)
            if refused is not None:
                return Outcome(error=explain(error, self.endpoint, number), refused=refused)
            pause = wanted_pause(error)
            found = explain(error, self.endpoint, number)
            return Outcome(error=found, again=_passes(found, error, pause), pause=pause)
        within = error_within(completion, self.endpoint, number)
        if within is None:
            return Outcome(completion)
        # Without the completion, in which a server may have repeated the key.
        usage = getattr(completion, "usage", None)
        charged = () if usage is None else (usage,)
        return Outcome(error=within, again=_passes(within, None, None), charged=charged)


def check_patience(timeout: float, max_retries: int) -> None:
    """Raise ValueError unless these are a valid timeout and number of retries."""
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not timeout > 0 or not math.isfinite(timeout):
        raise ValueError(f"timeout must be a number of seconds above 0, got {timeout!r}")
    if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
        raise ValueError(f"max_retries must be an integer, 0 or more, got {max_retries!r}")


def _passes(found: LLMError, error: Exception | None, pause: float | None) -> bool:
    """Return whether a failure may be over the next time."""
    if pause is not None and pause > LONGEST_PAUSE:
        return False
    if isinstance(error, openai.APIStatusError):
        said = error.response.headers.get("x-should-retry")  # OpenAI's way to say it
        if said in ("true", "false"):
            return bool(said == "true")
    status = getattr(found, "status", None)
    if isinstance(status, int):
        return status in _PASSING or status >= 500
    return isinstance(found, LLMConnectionError)


def _wait(outcome: Outcome | Exception, growing: float) -> float | None:
    """Return how long to wait before the next attempt, in seconds; None where none makes sense."""
    if not isinstance(outcome, Outcome) or not outcome.again:
        return None
    return growing if outcome.pause is None else outcome.pause


def _trouble(error: LLMError | None) -> str:
    """Return why there is a pause."""
    if isinstance(error, LLMTimeoutError):
        return "it did not answer in time"
    if isinstance(error, LLMConnectionError):
        return "it cannot be reached, or broke the connection"
    return f"it said {getattr(error, 'status', None)}"
