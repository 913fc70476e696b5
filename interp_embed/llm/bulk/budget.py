"""The budget of requests: tokens and US dollars, estimated before sending and counted afterwards.

Owns the rule of thumb for tokens, prices, and the limits of one call. Sends nothing.
"""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from interp_embed.llm.ask.request import Request

__all__ = [
    "Budget",
    "BudgetReachedError",
    "Hold",
    "Prices",
    "Reserved",
    "check_limit",
    "check_prices",
    "dollars",
    "request_size",
    "rough_tokens",
]

_BYTES_A_TOKEN = 4
"""Of English text (help.openai.com, "What are tokens and how to count them?"); other scripts have fewer
characters per token, and more bytes per character."""
_CAUTIOUS_BYTES_A_TOKEN = 3
"""Before a server has counted anything: texts with marks and JSON have shorter tokens."""
_MARGIN = 1.1
"""For prompts with more tokens per byte than any before."""
_FIRST_COMPLETION = 500
"""Assumed tokens of an answer before the first one."""
_LONGER, _LEAST_COMPLETION = 1.5, 200
"""Assumed length of an answer relative to the longest before, and the least assumed length."""
_MILLION = 1_000_000


class BudgetReachedError(RuntimeError):
    """The next request may exceed the rest of a budget."""


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars per million tokens, of prompts and of answers."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return US dollars."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / _MILLION


def check_prices(prices: tuple[float, float] | None, max_cost: float | None) -> Prices | None:
    """Return checked prices.

    Raises
    ------
    ValueError
        If they are not two numbers, or if they are missing although there is a limit on cost.
    """
    if prices is None:
        if max_cost is not None:
            raise ValueError(
                f"max_cost={max_cost:g} needs the model's prices, for example prices=(0.30, 2.50), "
                "in US dollars per million tokens of prompts and of answers"
            )
        return None
    try:
        prompt, completion = (float(value) for value in prices)
        sound = all(math.isfinite(value) and value >= 0 for value in (prompt, completion))
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(
            "prices must be two numbers, 0 or more: US dollars per million tokens of prompts and "
            f"of answers, got {prices!r:.80}"
        )
    if max_cost is not None and prompt == completion == 0:
        raise ValueError("prices must not both be 0 if there is a limit on cost, got (0, 0)")
    return Prices(prompt, completion)


def check_limit(name: str, value: float | None) -> None:
    """Raise ValueError unless a limit is a number above 0, or None for no limit."""
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not value > 0 or not math.isfinite(value):
        raise ValueError(f"{name} must be a number above 0, or None for no limit, got {value!r}")


def dollars(cost: float) -> str:
    """Return US dollars as text: with cents, or with as many digits as a smaller amount needs."""
    if cost >= 1 or cost == 0:
        return f"${cost:,.2f}"
    if cost < 1e-4:
        return "less than $0.0001"
    digits = 1 - math.floor(math.log10(cost))
    return f"${cost:.{max(2, digits)}f}"


def request_size(request: Request[Any]) -> int:
    """Return the number of bytes (UTF-8) of a request whose tokens a server counts, with its schema."""
    said = sum(len(message.content.encode(errors="replace")) for message in request.messages)
    return said + len(json.dumps(request.json_schema))


def rough_tokens(size: float) -> int:
    """Return the approximate number of tokens of so many bytes of text."""
    return math.ceil(size / _BYTES_A_TOKEN)


@dataclass(eq=False, slots=True)
class Reserved:
    """The budget reserved for a request, from before it is sent until its answer is counted.

    Attributes
    ----------
    size : int
        Bytes of the request.
    prompt_tokens, completion_tokens : float
    """

    size: int
    prompt_tokens: float
    completion_tokens: float


@dataclass(eq=False, slots=True)
class Hold:
    """The budget held for requests that belong together, so that none is begun and not finished."""

    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    waits: bool = False

    def add(self, reserved: Reserved) -> None:
        """Hold more."""
        self.prompt_tokens += reserved.prompt_tokens
        self.completion_tokens += reserved.completion_tokens

    def take(self, reserved: Reserved) -> None:
        """Release the part for a request that is sent now."""
        self.prompt_tokens = max(0.0, self.prompt_tokens - reserved.prompt_tokens)
        self.completion_tokens = max(0.0, self.completion_tokens - reserved.completion_tokens)


class Budget:
    """The limits of one call, and the part of them that is used.

    A request is sent only if its largest expected usage fits beside that of the requests in flight.
    Its prompt is assumed to have a tenth more tokens per byte than any before it, and no fewer tokens
    than the shortest of them. Its answer is assumed to have as many tokens as its settings allow, or
    otherwise half as many again as the longest before it, and at least 200. The limit is exceeded only
    if a request uses more than that. Nothing is known before the first answer, so the first request is
    sent alone.

    Parameters
    ----------
    max_tokens
        Limit on the tokens of prompts and answers together; None for no limit.
    max_cost
        Limit in US dollars; None for no limit.
    prices
        Needed for ``max_cost``.

    Attributes
    ----------
    tokens, cost : float
        Usage so far. The cost is the server's own if it reports one; otherwise it follows from the
        prices.
    """

    def __init__(
        self,
        max_tokens: int | None = None,
        max_cost: float | None = None,
        prices: Prices | None = None,
    ) -> None:
        self.max_tokens = max_tokens
        self.max_cost = max_cost
        self.prices = prices
        self.tokens = 0.0
        self.cost = 0.0
        self._open: dict[int, Reserved] = {}
        self._holds: dict[int, Hold] = {}
        self._changed = asyncio.Event()
        self._counted = False
        self._densest = 0.0  # tokens a byte of a prompt, at most so far
        self._shortest = math.inf  # prompt, in tokens
        self._longest = 0.0  # answer, in tokens
        self._dearest = 1.0  # what the server took, times what the prices say

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self.max_tokens is not None or self.max_cost is not None

    def expect(self, request: Request[Any]) -> Reserved:
        """Return the largest expected usage of a request."""
        size = request_size(request)
        prompt = size / _CAUTIOUS_BYTES_A_TOKEN
        if self._densest:
            prompt = max(_MARGIN * size * self._densest, self._shortest)
        bounds = [
            bound
            for name in ("max_tokens", "max_completion_tokens")
            if isinstance(bound := request.settings.get(name), (int, float)) and bound > 0
        ]
        answer: float = _FIRST_COMPLETION
        if bounds:
            answer = min(bounds)
        elif self._counted:
            answer = max(_LONGER * self._longest, _LEAST_COMPLETION)
        return Reserved(size, prompt, answer)

    @contextmanager
    def holding(self) -> Iterator[Hold]:
        """Open an empty hold; at the end, release the rest of it."""
        held = Hold()
        self._holds[id(held)] = held
        try:
            yield held
        finally:
            del self._holds[id(held)]
            self._changed.set()

    async def hold(self, held: Hold, requests: Sequence[Request[Any]]) -> None:
        """Wait until requests fit together, beside those in flight and what is held for others.

        Raises
        ------
        BudgetReachedError
            If they do not fit although nothing is in flight and nothing is held.
        """
        wanted = Hold()
        while True:
            wanted.prompt_tokens = wanted.completion_tokens = 0.0
            for request in requests:
                wanted.add(self.expect(request))
            more = Reserved(0, wanted.prompt_tokens, wanted.completion_tokens)
            problem = self._exceeded(more)
            if problem is None:
                held.add(more)
                return
            held.waits = True  # with nothing in it, it keeps nobody waiting
            try:
                await self._change(problem)
            finally:
                held.waits = False

    async def reserve(self, request: Request[Any], held: Hold | None = None) -> Reserved:
        """Wait until a request fits beside those in flight and what is held for others.

        Parameters
        ----------
        request
            The request to send.
        held
            The hold for it and for those that come after it.

        Raises
        ------
        BudgetReachedError
            If it does not fit although nothing is in flight and no other hold may be released.
        """
        while True:
            wanted = self.expect(request)
            problem = self._exceeded(wanted, held)
            if problem is None and self.is_limited and not self._counted and self._open:
                problem = "nothing is counted yet"
            if problem is None:
                if held is not None:
                    held.take(wanted)
                self._open[id(wanted)] = wanted
                return wanted
            if held is not None:
                held.waits = True
            try:
                await self._change(problem)
            finally:
                if held is not None:
                    held.waits = False

    async def _change(self, problem: str) -> None:
        """Wait until there may be more room; raise where there never will be."""
        if not self._open and all(held.waits for held in self._holds.values()):
            raise BudgetReachedError(problem)
        self._changed.clear()
        await self._changed.wait()

    def settle(
        self, reserved: Reserved, took: Iterable[Mapping[str, float]], answered: int = 0
    ) -> tuple[float, float, float | None]:
        """Count the usage of a request, and give back the unused part of its reservation.

        Parameters
        ----------
        reserved
            What `reserve` returned.
        took
            The server's counts, for each answer that it gave.
        answered
            Bytes of the answer, for servers that count nothing.

        Returns
        -------
        prompt_tokens, completion_tokens : float
        cost : float or None
            None if neither the server nor prices tell.
        """
        del self._open[id(reserved)]
        prompt = completion = 0.0
        cost: float | None = 0.0
        for counted in took:
            more = counted.get("prompt_tokens")
            if more is None:
                more = rough_tokens(reserved.size)
            self._counted = True
            self._densest = max(self._densest, more / max(1, reserved.size))
            self._shortest = min(self._shortest, more)
            said = counted.get("completion_tokens", rough_tokens(answered))
            self._longest = max(self._longest, said)
            prompt, completion = prompt + more, completion + said
            paid = counted.get("cost")
            if self.prices is not None:
                priced = self.prices.cost(more, said)
                if paid is None:
                    paid = priced
                elif priced:
                    self._dearest = max(self._dearest, paid / priced)
            cost = None if paid is None or cost is None else cost + paid
        self.tokens += prompt + completion
        self.cost += cost or 0.0
        self._changed.set()
        return prompt, completion, cost

    def _exceeded(self, wanted: Reserved, own: Hold | None = None) -> str | None:
        """Say which limit something would exceed; None for none.

        What is held for it already is not counted twice.
        """
        prompt, completion = wanted.prompt_tokens, wanted.completion_tokens
        for reserved in self._open.values():
            prompt += reserved.prompt_tokens
            completion += reserved.completion_tokens
        for held in self._holds.values():
            prompt += held.prompt_tokens
            completion += held.completion_tokens
        if own is not None:
            prompt -= min(own.prompt_tokens, wanted.prompt_tokens)
            completion -= min(own.completion_tokens, wanted.completion_tokens)
        if self.max_tokens is not None and self.tokens + prompt + completion > self.max_tokens:
            return (
                f"the limit of {self.max_tokens:,} tokens is reached: {self.tokens:,.0f} are used, and "
                f"the next step may use {wanted.prompt_tokens + wanted.completion_tokens:,.0f}"
            )
        if self.max_cost is None or self.prices is None:
            return None
        more = self._dearest * self.prices.cost(prompt, completion)
        if self.cost + more > self.max_cost:
            next_ = self._dearest * self.prices.cost(wanted.prompt_tokens, wanted.completion_tokens)
            return (
                f"the limit of {dollars(self.max_cost)} is reached: {dollars(self.cost)} are spent, and "
                f"the next step may cost {dollars(next_)}"
            )
        return None
