"""`interp-embed label`."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from interp_embed import Dataset
from interp_embed.cli.facts import thousands
from interp_embed.cli.interrupts import says

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from interp_embed.llm.bulk.result import BulkLabels

__all__ = ["read_features", "read_prices", "run_label"]

T = TypeVar("T")

_KEPT = (
    "the answers and labels received so far are in the store. Run the same command again to resume; "
    "none of them is paid for again"
)
_OPTIONS = {
    "base_url": "--base-url",
    "features": "--features",
    "k": "-k",
    "max_concurrency": "--concurrency",
    "max_cost": "--max-cost",
    "max_retries": "--retries",
    "max_tokens": "--max-tokens",
    "model": "--model",
    "prices": "--prices",
    "prompts": "--prompts",
    "requests_per_minute": "--requests-per-minute",
    "score": "--score",
    "seed": "--seed",
    "timeout": "--timeout",
    "tokens_per_minute": "--tokens-per-minute",
}
"""Names on the command line of the library's arguments."""


def read_features(text: str) -> list[int]:
    """Return the features of a list such as ``1,5-9``, each once.

    Raises
    ------
    ValueError
        If it is not such a list.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise ValueError(f"features must be numbers and ranges such as 1,5-9, got {part!r:.60}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"a range of features must go from low to high, got {part.strip()!r}")
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


def read_prices(text: str) -> tuple[float, float]:
    """Return two prices given as ``0.30,2.50``.

    Raises
    ------
    ValueError
        If it is not two numbers.
    """
    try:
        prompt, completion = (float(part) for part in text.strip(" ()").split(","))
    except ValueError:
        raise ValueError(
            "prices must be two numbers such as 0.30,2.50: US dollars per million tokens of prompts "
            f"and of answers, got {text!r:.60}"
        ) from None
    return prompt, completion


def run_label(
    path: str,
    *,
    features: list[int] | None,
    prices: tuple[float, float] | None,
    only_estimate: bool,
    choice: dict[str, Any],
    limits: dict[str, Any],
) -> bool:
    """Label features, or print an estimate; return False if a limit ended it, or if all failed.

    Parameters
    ----------
    path
        Of the store.
    features
        Which; None for those without a label.
    prices
        US dollars per million tokens of prompts, and of answers.
    only_estimate
        Send nothing.
    choice
        Arguments of `Dataset.estimate_labels`.
    limits
        The others of `Dataset.label_features`.
    """
    dataset = Dataset.load_from_file(path)
    with _in_words_of_the_command():
        if only_estimate:
            print(dataset.estimate_labels(features, prices=prices, **choice))
            return True
        with says(_KEPT):
            found = _interruptibly(
                dataset.label_features(features, prices=prices, **choice, **limits)
            )
    _print(path, found)
    in_vain = len(found.failures) > 0 and not (found.table["label"] != "").any()
    return found.stopped is None and not in_vain


@contextmanager
def _in_words_of_the_command() -> Iterator[None]:
    """Have what the library says of an argument name the option; an answer that is lost is printed."""
    from interp_embed.llm.ask.errors import AnswersNotKeptError, LLMError

    try:
        yield
    except AnswersNotKeptError as error:
        for digest, text in error.answers.items():
            error.add_note(f"the answer to request {digest}: {text}")
        raise
    except LLMError:
        raise  # some are ValueErrors too; they name no argument
    except (ValueError, TypeError) as error:
        if type(error) not in (ValueError, TypeError):
            raise
        # An argument is named where the message begins, or with a value behind it.
        said = re.sub(r"^(\w+)\b|\b(\w+)=(?=[\w(])", _option, str(error))
        raise type(error)(said).with_traceback(error.__traceback__) from None


def _option(found: re.Match[str]) -> str:
    option = _OPTIONS.get(found[1] or found[2])
    if option is None:
        return found[0]
    return option if found[1] else f"{option} "


def _interruptibly(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; the first Ctrl-C has it end early, the second one ends the process at once.

    What is on disk then is as good as after a kill: whole. Nothing less would do, as Python waits for
    threads that read when a process ends.
    """
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    interrupts = 0

    async def run() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def interrupt(number: int, frame: Any) -> None:
            nonlocal interrupts
            interrupts += 1
            if interrupts > 1:
                print(f"interrupted\nnote: {_KEPT}", file=sys.stderr, flush=True)
                os._exit(128 + number)
            loop.call_soon_threadsafe(task.cancel)

        # In place of the loop's own, and for as long as the loop is being closed.
        signal.signal(signal.SIGINT, interrupt)
        return await work

    before = signal.getsignal(signal.SIGINT)
    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        if not interrupts:
            raise
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


def _print(path: str, found: BulkLabels) -> None:
    from interp_embed.llm.bulk.budget import dollars
    from interp_embed.llm.bulk.failure_counts import lines_of

    labelled = int((found.table["label"] != "").sum())
    cost = "" if math.isnan(found.cost) else f", {dollars(found.cost)}"
    print(f"{path}")
    print(
        f"  {thousands(labelled)} feature{'s' * (labelled != 1)} labelled, "
        f"{thousands(found.requests)} requests, {thousands(round(found.tokens))} tokens{cost}"
    )
    if found.kept:
        print(f"  {thousands(found.kept)} more requests were already answered")
    if len(found.unscored):
        print(f"  {thousands(len(found.unscored))} not scored: the budget is spent")
    for line in lines_of(found.table):
        print(f"  {line}")
    if found.stopped is not None:
        print(f"stopped: {found.stopped}", file=sys.stderr)
        print(f"note: {_KEPT}", file=sys.stderr)
