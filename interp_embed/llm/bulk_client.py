"""A client for thousands of requests: rate limits, a budget, and none given up that is under way.

Owns what happens between wanting to send and sending, and what becomes of requests when a run ends
early: those that were sent are waited for, because they will be paid for.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiolimiter import AsyncLimiter
from typing_extensions import override

from interp_embed.llm.client import LLMClient

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from interp_embed.llm.answers import Answer
    from interp_embed.llm.budget import Budget
    from interp_embed.llm.request import Request

__all__ = ["BulkClient", "Spent", "spent_on"]

_MINUTE = 60.0
_TOKEN_SPAN = 10.0
"""Seconds: tokens may come in bursts of what is allowed in so long."""
_GRACE = 20.0
"""Seconds that requests under way are waited for when a run ends early."""


@dataclass(slots=True)
class Spent:
    """What the requests for one feature took; ``cost`` is None where it is not known."""

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
"""Whom a request counts for."""
_counted: ContextVar[list[Mapping[str, float]] | None] = ContextVar("_counted", default=None)


class BulkClient(LLMClient):
    """An `LLMClient` with limits.

    Whoever awaits an answer may be cancelled; the request is not, and its answer is kept. When the
    client is closed, what was not sent yet is given up, and what was sent is waited for, 20 seconds at
    most.

    Parameters
    ----------
    model, base_url, **options
        As for `LLMClient`.
    budget
        Asked before each request, told after each.
    requests_per_minute
        Evenly spread. Attempts after the first are not counted; pauses lie between them anyway.
    tokens_per_minute
        Of prompts and answers, as estimated before they are sent.
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
            if self._asked:
                await asyncio.wait(self._asked, timeout=_GRACE)
        finally:
            for task in self._asked:
                task.cancel()
            await asyncio.gather(*self._asked, return_exceptions=True)
            await super().__aexit__(kind, error, trace)

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
    async def _complete(self, request: Request[Any]) -> tuple[Answer, Mapping[str, float]]:
        reserved = await self.budget.reserve(request)
        took: list[Mapping[str, float]] = []
        answered = 0
        task = asyncio.current_task()
        try:
            await self._wait_turn(reserved.prompt_tokens + reserved.completion_tokens)
            if task is not None:
                self._sent.add(task)
            _counted.set(took)  # each request is a task, with a context of its own
            answer, counted = await super()._complete(request)
            answered = len(answer.text)
        finally:
            spent = spent_on.get()
            found = self.budget.settle(reserved, took, answered)
            if spent is not None and took:
                spent.add(*found, requests=len(took))
        return answer, counted

    @override
    def _count(self, completion: Any) -> Mapping[str, float]:
        found = super()._count(completion)
        counted = _counted.get()
        if counted is not None:
            counted.append(found)
        return found

    async def _wait_turn(self, tokens: float) -> None:
        if self._requests is not None:
            await self._requests.acquire()
        while self._tokens is not None and tokens > 0:
            part = min(tokens, self._tokens.max_rate)
            await self._tokens.acquire(part)
            tokens -= part
