"""A client for thousands of requests: rate limits, a budget, and no request in flight abandoned.

Owns the wait before a request is sent, and the requests of a run that ends early: those that were
sent are awaited, because they will be paid for.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiolimiter import AsyncLimiter
from typing_extensions import override

from interp_embed.core.progress import say
from interp_embed.llm.ask.client import LLMClient
from interp_embed.llm.ask.errors import AnswersNotKeptError
from interp_embed.llm.ask.failures import one_line, sentence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

    from interp_embed.llm.ask.answers import Answer
    from interp_embed.llm.ask.request import Request
    from interp_embed.llm.bulk.budget import Budget, Hold, Reserved

__all__ = ["BulkClient", "Spent", "held_for", "spent_on"]

_MINUTE = 60.0
_TOKEN_SPAN = 10.0
"""Seconds whose allowance of tokens may be used in one burst."""
_GRACE = 20.0
"""Seconds for which requests in flight are awaited when a run ends early."""


@dataclass(slots=True)
class Spent:
    """The usage of the requests for one feature; ``cost`` is None if it is not known."""

    requests: int = 0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    cost: float | None = 0.0

    def add(self, prompt: float, completion: float, cost: float | None, requests: int) -> None:
        """Count answers that came."""
        self.requests += requests
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.cost = None if cost is None or self.cost is None else self.cost + cost


spent_on: ContextVar[Spent | None] = ContextVar("spent_on", default=None)
"""The account that a request counts for."""
held_for: ContextVar[Hold | None] = ContextVar("held_for", default=None)
"""The part of the budget that is held for the requests that follow."""


@dataclass(slots=True)
class _Flight:
    """A request that may be sent: what it may take, and what it took."""

    reserved: Reserved
    took: list[Mapping[str, float]] = field(default_factory=list)
    answered: int = 0


_flight: ContextVar[_Flight | None] = ContextVar("_flight", default=None)


class BulkClient(LLMClient):
    """An `LLMClient` with limits.

    An answer that cannot be kept is an error, because thousands may follow.

    If a task that awaits an answer is cancelled, the request continues, and its answer is kept. When
    the client is closed, requests that were not sent are given up, and requests in flight are awaited
    for at most 20 seconds.

    Parameters
    ----------
    model, base_url, **options
        As for `LLMClient`.
    budget
        Consulted before each request, and updated after each.
    requests_per_minute
        Evenly spread. Attempts after the first are not counted; they have pauses anyway.
    tokens_per_minute
        Tokens of prompts and answers, as estimated before they are sent.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        budget: Budget,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, base_url, **options)
        self.budget = budget
        self._requests = self._tokens = None
        if requests_per_minute is not None:
            self._requests = AsyncLimiter(1, _MINUTE / requests_per_minute)
        if tokens_per_minute is not None:
            burst = tokens_per_minute * _TOKEN_SPAN / _MINUTE
            self._tokens = AsyncLimiter(burst, _TOKEN_SPAN)
        self._asked: set[asyncio.Task[Answer]] = set()
        self._sent: set[asyncio.Task[Any]] = set()

    @override
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for task in self._asked - self._sent:
                task.cancel()
            if self._sent:
                many = len(self._sent)
                again = " again" * (kind is asyncio.CancelledError)
                say(
                    f"waiting at most {_GRACE:.0f} s for {many:,} paid request{'s' * (many != 1)}; "
                    f"Ctrl-C{again} to abandon them"
                )
            if self._asked:
                await asyncio.wait(self._asked, timeout=_GRACE)
        finally:
            for task in self._asked:
                task.cancel()
            await asyncio.gather(*self._asked, return_exceptions=True)
            await super().__aexit__(kind, error, trace)
            if isinstance(error, AnswersNotKeptError):
                error.answers.update(self._unkept)  # of all that were under way

    @override
    def _not_kept(self, error: Exception) -> None:
        raise AnswersNotKeptError(
            f"a paid answer could not be kept: {sentence(one_line(str(error)))} No more requests are "
            "sent; the answers that are not kept are in this error's .answers",
            self._unkept,
        ) from error

    async def is_kept(self, request: Request[Any]) -> bool:
        """Return whether the answer to a request is already kept."""
        return await self._kept(request) is not None

    @override
    async def send(self, request: Request[Any]) -> Answer:
        task = asyncio.ensure_future(super().send(request))
        self._asked.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Answer]) -> None:
        self._asked.discard(task)
        self._sent.discard(task)
        if not task.cancelled():
            task.exception()  # there may be nobody any more who wants to know

    @override
    @asynccontextmanager
    async def _allowed(self, request: Request[Any]) -> AsyncIterator[None]:
        # Before there is room for it: what waits for the budget must not keep those from going on that
        # may leave some of it.
        flight = _Flight(await self.budget.reserve(request, held_for.get()))
        _flight.set(flight)  # each request is a task, with a context of its own
        try:
            yield
        finally:
            spent = spent_on.get()
            found = self.budget.settle(flight.reserved, flight.took, flight.answered)
            if spent is not None and flight.took:
                spent.add(*found, requests=len(flight.took))

    @override
    async def _complete(self, request: Request[Any]) -> tuple[Answer, Mapping[str, float]]:
        flight, task = _flight.get(), asyncio.current_task()
        assert flight is not None
        assert task is not None
        await self._wait_turn(flight.reserved.prompt_tokens + flight.reserved.completion_tokens)
        self._sent.add(task)
        answer, counted = await super()._complete(request)
        flight.answered = len(answer.text.encode(errors="replace"))
        return answer, counted

    @override
    def _count(self, counted: Any) -> Mapping[str, float]:
        found = super()._count(counted)
        flight = _flight.get()
        if flight is not None:
            flight.took.append(found)
        return found

    async def _wait_turn(self, tokens: float) -> None:
        if self._requests is not None:
            await self._requests.acquire()
        while self._tokens is not None and tokens > 0:
            part = min(tokens, self._tokens.max_rate)
            await self._tokens.acquire(part)
            tokens -= part
