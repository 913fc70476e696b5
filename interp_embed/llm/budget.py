"""What requests may take: tokens and US dollars, estimated before they are sent and counted after.

Owns the rule of thumb for tokens, prices, and the limits of one call. Sends nothing.
"""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from interp_embed.llm.request import Request

__all__ = [
    "Budget",
    "BudgetReachedError",
    "Prices",
    "Reserved",
    "check_limit",
    "check_prices",
    "request_characters",
    "rough_tokens",
]

_CHARACTERS_A_TOKEN = 4
"""Of English text (help.openai.com, "What are tokens and how to count them?")."""
_CAUTIOUS_CHARACTERS_A_TOKEN = 3
"""Before a server has counted anything: texts with marks and JSON have shorter tokens."""
_FIRST_COMPLETION = 500
"""Tokens that an answer is taken to have before there was any."""
_MILLION = 1_000_000


class BudgetReachedError(RuntimeError):
    """The next request may take more than what is left of a budget."""


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars for a million tokens, of prompts and of answers."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return US dollars."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / _MILLION


def check_prices(prices: tuple[float, float] | None, max_cost: float | None) -> Prices | None:
    """Return prices as they were given.

    Raises
    ------
    ValueError
        If they are not two numbers, or lacking where there is a limit of cost.
    """
    if prices is None:
        if max_cost is not None:
            raise ValueError(
                f"max_cost={max_cost:g} needs the model's prices, which are not guessed: "
                "prices=(0.30, 2.50), US dollars for a million tokens of prompts and of answers"
            )
        return None
    try:
        prompt, completion = (float(value) for value in prices)
        sound = all(math.isfinite(value) and value >= 0 for value in (prompt, completion))
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(
            "prices must be two numbers, 0 or more: US dollars for a million tokens of prompts and "
            f"of answers, got {prices!r:.80}"
        )
    if max_cost is not None and prompt == completion == 0:
        raise ValueError("max_cost is no limit where prices=(0, 0)")
    return Prices(prompt, completion)


def check_limit(name: str, value: float | None) -> None:
    """Raise ValueError unless a limit is a number above 0, or None for no limit."""
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not value > 0 or not math.isfinite(value):
        raise ValueError(f"{name} must be a number above 0, or None for no limit, got {value!r}")


def request_characters(request: Request[Any]) -> int:
    """Return the characters of a request that a server counts tokens of; its schema is one part."""
    said = sum(len(message.content) for message in request.messages)
    return said + len(json.dumps(request.json_schema))


def rough_tokens(characters: float) -> int:
    """Return about how many tokens so many characters are."""
    return math.ceil(characters / _CHARACTERS_A_TOKEN)


@dataclass(slots=True)
class Reserved:
    """What a request may take, from before it is sent until its answer is counted."""

    characters: int
    prompt_tokens: float
    completion_tokens: float


class Budget:
    """The limits of one call, and what was taken of them.

    What a request will take is estimated from those before it: as many tokens a character as they had
    on average, and an answer as long as their longest. All requests in flight count in full.

    Parameters
    ----------
    max_tokens
        Of prompts and answers together; None for no limit.
    max_cost
        In US dollars; None for no limit.
    prices
        Needed for ``max_cost``.

    Attributes
    ----------
    tokens, cost : float
        What was taken so far. The cost is the server's own where it says it, else follows from the
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
        self._settled = asyncio.Event()
        self._characters = 0
        self._prompt_tokens = 0.0
        self._longest = 0.0
        self._priced = self._said = 0.0  # what the server has put a price on, by ours and its own

    def expect(self, request: Request[Any]) -> Reserved:
        """Return what a request may take."""
        characters = request_characters(request)
        ratio = 1 / _CAUTIOUS_CHARACTERS_A_TOKEN
        if self._characters:
            ratio = self._prompt_tokens / self._characters
        answer = self._longest or _FIRST_COMPLETION
        for name in ("max_tokens", "max_completion_tokens"):
            bound = request.settings.get(name)
            if isinstance(bound, (int, float)) and bound > 0:
                answer = min(answer, bound)
        return Reserved(characters, characters * ratio, answer)

    async def reserve(self, request: Request[Any]) -> Reserved:
        """Wait until a request fits beside those in flight.

        Raises
        ------
        BudgetReachedError
            If it does not, with nothing in flight.
        """
        while True:
            wanted = self.expect(request)
            problem = self._exceeded(wanted)
            if problem is None:
                self._open[id(wanted)] = wanted
                return wanted
            if not self._open:
                raise BudgetReachedError(problem)
            self._settled.clear()
            await self._settled.wait()

    def settle(
        self, reserved: Reserved, took: Iterable[Mapping[str, float]], answered: int = 0
    ) -> tuple[float, float, float | None]:
        """Count what a request took, and give back what it did not.

        Parameters
        ----------
        reserved
            What `reserve` returned.
        took
            What the server has counted, for each answer that it gave.
        answered
            Characters of the answer, for servers that count nothing.

        Returns
        -------
        prompt_tokens, completion_tokens : float
        cost : float or None
            None where neither the server nor prices tell.
        """
        del self._open[id(reserved)]
        prompt = completion = 0.0
        cost: float | None = 0.0
        for counted in took:
            more = counted.get("prompt_tokens")
            if more is None:
                more = rough_tokens(reserved.characters)
            else:
                self._characters += reserved.characters
                self._prompt_tokens += more
            said = counted.get("completion_tokens", rough_tokens(answered))
            self._longest = max(self._longest, said)
            prompt, completion = prompt + more, completion + said
            paid = counted.get("cost")
            if self.prices is not None:
                priced = self.prices.cost(more, said)
                if paid is None:
                    paid = priced
                self._priced, self._said = self._priced + priced, self._said + paid
            cost = None if paid is None or cost is None else cost + paid
        self.tokens += prompt + completion
        self.cost += cost or 0.0
        self._settled.set()
        return prompt, completion, cost

    def _exceeded(self, wanted: Reserved) -> str | None:
        """Say which limit a request would exceed; None for none."""
        there = [*self._open.values(), wanted]
        tokens = self.tokens + sum(r.prompt_tokens + r.completion_tokens for r in there)
        if self.max_tokens is not None and tokens > self.max_tokens:
            return (
                f"max_tokens={self.max_tokens:,} is reached: {self.tokens:,.0f} tokens are taken, and "
                f"the next request may take {wanted.prompt_tokens + wanted.completion_tokens:,.0f}"
            )
        if self.max_cost is None or self.prices is None:
            return None
        more = sum(self._cost(reserved, self.prices) for reserved in there)
        if self.cost + more > self.max_cost:
            return (
                f"max_cost={self.max_cost:g} is reached: ${self.cost:.4g} is spent, and the next "
                f"request may take ${self._cost(wanted, self.prices):.2g}"
            )
        return None

    def _cost(self, reserved: Reserved, prices: Prices) -> float:
        """Return what a request may cost: more than the prices say where the server took more."""
        dearer = max(1.0, self._said / self._priced) if self._priced else 1.0
        return dearer * prices.cost(reserved.prompt_tokens, reserved.completion_tokens)
