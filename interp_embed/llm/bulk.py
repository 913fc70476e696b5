"""Labelling thousands of features: many at once, committed as they come, and what became of each.

Owns the order of things and when to stop. Requests and their limits are the client's, samples are chosen
on a thread of their own, and how labels are stored is up to whoever is given them.
"""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pandas as pd
from tqdm.auto import tqdm

from interp_embed.label import FeatureLabel
from interp_embed.llm.budget import BudgetReachedError
from interp_embed.llm.bulk_client import Spent, spent_on
from interp_embed.llm.bulk_reads import SharedReads
from interp_embed.llm.errors import LLMAnswerError, LLMError
from interp_embed.llm.label import ask_label
from interp_embed.llm.records import label_record, score_record
from interp_embed.llm.score import ask_score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from interp_embed.activations import Activations
    from interp_embed.label import Score
    from interp_embed.llm.bulk_client import BulkClient
    from interp_embed.llm.bulk_plan import Asking, Estimate, Work

__all__ = ["BulkLabels", "BulkRun", "Outcome", "bulk_result"]

T = TypeVar("T")

_HOPELESS = (401, 402, 404)
"""After these no other request is worth sending: no key, no credit, no such model."""
_FORBIDDEN = 403
"""The key is refused; where others were answered, this request was: some servers moderate."""
_MANY_FAILURES = 10


@dataclass(slots=True)
class Outcome:
    """What became of one feature."""

    feature: int
    label: str = ""
    scores: list[Score] = field(default_factory=list)
    failed: str = ""
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True)
class BulkLabels:
    """What came of labelling many features.

    Attributes
    ----------
    table : DataFrame
        A row for each feature that was begun, in order of features: ``feature``; ``label``, empty
        where there is none; ``score``, ``low`` and ``high``, as `FeatureLabel.score`, NaN where there
        is none; ``failed``, why something is missing, empty where nothing is; ``requests``,
        ``prompt_tokens`` and ``completion_tokens`` that were paid for; ``cost`` in US dollars, NaN
        where it is not known. Where several scores were asked for, one column each as
        ``score_detection`` and so on.
    stopped : str or None
        Why it ended before all features were labelled, and how to go on; None where it did not.
    estimate : Estimate
        What was expected before.
    requests, kept : int
        Answers that were paid for, and questions that were answered from the store.
    tokens, cost : float
        Taken altogether; the cost is NaN where it is not known.
    """

    table: pd.DataFrame
    stopped: str | None
    estimate: Estimate
    requests: int
    kept: int
    tokens: int
    cost: float

    @property
    def failures(self) -> pd.DataFrame:
        """The rows of features of which something is missing."""
        return self.table[self.table["failed"] != ""]

    def __str__(self) -> str:
        labelled, failed = int((self.table["label"] != "").sum()), len(self.failures)
        cost = "" if math.isnan(self.cost) else f", ${self.cost:.4g}"
        more = f". Stopped: {self.stopped}" if self.stopped else ""
        return (
            f"{labelled:,} feature{'s' * (labelled != 1)} labelled, {failed:,} failed, "
            f"{self.requests:,} requests ({self.kept:,} more were answered before), "
            f"{self.tokens:,} tokens{cost}{more}"
        )

    __repr__ = __str__


class BulkRun:
    """Labels features, several at a time.

    Parameters
    ----------
    dataset, scored
        Where samples of labels and of scores come from.
    work, asking
        What is to be done.
    client
        Open.
    known
        Labels that there are, so that none is scored the same twice.
    add
        Commits labels, durably; called on a thread, once at a time.
    concurrency
        Requests in flight at most.
    progress
        Whether to show a bar.
    """

    def __init__(
        self,
        dataset: Activations,
        scored: Activations,
        work: Sequence[Work],
        asking: Asking,
        client: BulkClient,
        *,
        known: Iterable[FeatureLabel],
        add: Callable[[list[FeatureLabel]], object],
        concurrency: int,
        progress: bool,
    ) -> None:
        features = [item.feature for item in work]
        self._dataset = SharedReads.of(dataset, features)
        self._scored = self._dataset if scored is dataset else SharedReads.of(scored, features)
        self._work = work
        self._asking = asking
        self._client = client
        self._known = {label.key: label for label in known if asking.is_own(label)}
        self._add = add
        self._concurrency = concurrency
        self._bar = tqdm(total=len(work), unit=" features", disable=not progress)
        self._chooser = ThreadPoolExecutor(1, "interp-embed-samples")
        self._outcomes: list[Outcome] = []
        self._waiting: list[FeatureLabel] = []
        self._committing = asyncio.Lock()
        self._in_a_row = 0
        self._answered = False
        self._stopped: str | None = None

    @property
    def outcomes(self) -> list[Outcome]:
        """What became of the features that were begun, in order of features."""
        begun = [o for o in self._outcomes if o.label or o.failed]
        return sorted(begun, key=lambda outcome: outcome.feature)

    async def run(self) -> str | None:
        """Label everything, or as much as the budget allows.

        Returns
        -------
        str or None
            Why it stopped early.

        Raises
        ------
        LLMError
            If the server refuses whatever it is asked, or fails for many features in a row.
        """
        todo = iter(self._work)
        # Twice as many as requests may be in flight: samples are chosen while others are answered.
        count = min(len(self._work), 2 * self._concurrency)
        workers = [asyncio.ensure_future(self._label(todo)) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._chooser.shutdown(wait=False, cancel_futures=True)
            self._bar.close()
        if self._stopped is None:
            return None
        done = sum(bool(outcome.label) for outcome in self._outcomes)
        return (
            f"{self._stopped}. {done:,} of {len(self._work):,} features are labelled, and in the store; "
            "the same call again, with a budget of its own, goes on from there"
        )

    async def _label(self, todo: Iterator[Work]) -> None:
        for item in todo:
            outcome = Outcome(item.feature)
            self._outcomes.append(outcome)
            spent_on.set(outcome.spent)
            try:
                await self._one(item, outcome)
            except BudgetReachedError as error:
                # The others end what they have begun, and then find the same.
                self._stopped = self._stopped or str(error)
                if outcome.label and not outcome.failed:
                    outcome.failed = f"not scored: {error}"
            except LLMError as error:
                self._fail(outcome, error)
            self._show(outcome)
            if self._stopped is not None:
                return

    async def _one(self, item: Work, outcome: Outcome) -> None:
        label = item.label
        if label is None:
            try:
                task = await self._choose(self._asking.label_task, self._dataset, item.feature)
            except (ValueError, OSError) as error:
                outcome.failed = str(error)
                return
            response = await ask_label(self._client, task)
            self._succeed()
            try:
                label = label_record(task, response)
            except ValueError as error:
                outcome.failed = str(error)
                return
            await self._commit(label)
        outcome.label = label.label
        for method in item.methods:
            try:
                questions = await self._choose(
                    self._asking.score_task, self._scored, item.feature, label.label, method
                )
            except (ValueError, OSError) as error:
                outcome.failed = f"{method}: {error}"
                continue
            result = await ask_score(self._client, questions, warn=False)
            self._succeed()
            score = score_record(result)
            outcome.scores.append(score)
            if failures := result["failures"]:
                outcome.failed = (
                    f"{method}: {len(failures)} of {len(questions.questions)} requests failed, the "
                    f"first so: {failures[0]['reason']}"
                )
            if not self._is_known(label, score):
                await self._commit(replace(label, scores=(score,)))

    async def _choose(self, make: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._chooser, make, *arguments)

    def _is_known(self, label: FeatureLabel, score: Score) -> bool:
        """Whether a label has a score that differs at most in when it was made."""
        known = self._known.get(label.key)
        scores = () if known is None else known.scores
        return replace(score, created="") in [replace(s, created="") for s in scores]

    async def _commit(self, label: FeatureLabel) -> None:
        """Return once a label is on disk; what waits meanwhile goes with the next one."""
        self._waiting.append(label)
        async with self._committing:
            if not any(label is waiting for waiting in self._waiting):
                return  # another one took it along
            labels, self._waiting = self._waiting, []
            loop = asyncio.get_running_loop()
            await asyncio.shield(loop.run_in_executor(None, self._add, labels))

    def _succeed(self) -> None:
        self._in_a_row = 0
        self._answered = True

    def _fail(self, outcome: Outcome, error: LLMError) -> None:
        """Record a failure; raise it if those that come after would fail too."""
        outcome.failed = str(error)
        status = getattr(error, "status", None)
        if status in _HOPELESS or (status == _FORBIDDEN and not self._answered):
            self._give_up(error)
        if isinstance(error, LLMAnswerError) and not outcome.spent.requests:
            return  # an answer of an earlier run
        self._in_a_row += 1
        if self._in_a_row >= max(_MANY_FAILURES, 2 * self._concurrency):
            error.args = (f"{self._in_a_row} features in a row failed, the last so: {error}",)
            self._give_up(error)

    def _give_up(self, error: LLMError) -> NoReturn:
        done = sum(bool(outcome.label) for outcome in self._outcomes)
        error.add_note(
            f"{done:,} of {len(self._work):,} features were labelled before that, and are in the store; "
            "the same call again goes on from there"
        )
        raise error

    def _show(self, outcome: Outcome) -> None:
        if not (outcome.label or outcome.failed):
            return
        usage = self._client.usage
        shown = f"{usage.requests:,} requests, {self._client.budget.tokens:,.0f} tokens"
        if self._client.budget.cost:
            shown += f", ${self._client.budget.cost:.4g}"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update()


def bulk_result(
    run: BulkRun, stopped: str | None, expected: Estimate, asking: Asking, client: BulkClient
) -> BulkLabels:
    """Return what came of a run, as tables and totals."""
    rows = []
    for outcome in run.outcomes:
        best = _counting(outcome.scores)
        row: dict[str, Any] = {
            "feature": outcome.feature,
            "label": outcome.label,
            "score": None if best is None else best.value,
            "low": None if best is None else best.low,
            "high": None if best is None else best.high,
        }
        if len(asking.methods) > 1:
            values = {score.method: score.value for score in outcome.scores}
            row |= {f"score_{method}": values.get(method) for method in asking.methods}
        spent = outcome.spent
        row |= {
            "failed": outcome.failed,
            "requests": spent.requests,
            "prompt_tokens": round(spent.prompt_tokens),
            "completion_tokens": round(spent.completion_tokens),
            "cost": spent.cost,
        }
        rows.append(row)
    names = ["feature", "label", "score", "low", "high"]
    if len(asking.methods) > 1:
        names += [f"score_{method}" for method in asking.methods]
    names += ["failed", "requests", "prompt_tokens", "completion_tokens", "cost"]
    whole = ("feature", "requests", "prompt_tokens", "completion_tokens")
    types: dict[str, Any] = {name: "int64" if name in whole else "float64" for name in names}
    types |= {"label": object, "failed": object}
    table = pd.DataFrame(rows, columns=names).astype(types)
    known = [outcome.spent.cost for outcome in run.outcomes]
    return BulkLabels(
        table=table,
        stopped=stopped,
        estimate=expected,
        requests=client.usage.requests,
        kept=client.usage.kept,
        tokens=round(client.budget.tokens),
        cost=float("nan") if None in known else client.budget.cost,
    )


def _counting(scores: Sequence[Score]) -> Score | None:
    """Return the score that counts, as for a label."""
    return FeatureLabel(0, "-", scores=tuple(scores)).score
