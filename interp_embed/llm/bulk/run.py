"""Labelling thousands of features: many at once, committed as they come, with a result for each.

Owns the order of the work and the decision to stop. The client owns requests and their limits. Samples
are chosen in a separate thread. The caller stores the labels.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from tqdm.auto import tqdm

from interp_embed.llm.ask.errors import LLMAnswerError, LLMError
from interp_embed.llm.bulk.budget import BudgetReachedError, dollars
from interp_embed.llm.bulk.budgeted_client import held_for, spent_on
from interp_embed.llm.bulk.kept_reads import KeptReads
from interp_embed.llm.bulk.result import Outcome
from interp_embed.llm.judging import ask_score
from interp_embed.llm.label import ask_label
from interp_embed.llm.label_records import label_record, score_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from interp_embed.labels.record import FeatureLabel, Score
    from interp_embed.llm.ask.request import Request
    from interp_embed.llm.bulk.budget import Hold
    from interp_embed.llm.bulk.budgeted_client import BulkClient
    from interp_embed.llm.bulk.plan import BulkAsking, Work
    from interp_embed.llm.label import LabelTask
    from interp_embed.llm.samples.samples import Samples
    from interp_embed.llm.score import Method

__all__ = ["BulkRun"]

T = TypeVar("T")

_HOPELESS = (401, 402, 404)
"""Statuses after which no other request makes sense: no key, no credit, no such model."""
_FORBIDDEN = 403
"""The key is refused, or only this request, as by servers that moderate: the others tell which."""
_MANY_FAILURES = 10


class BulkRun:
    """Labels features, several at a time.

    Parameters
    ----------
    samples, scored
        Where samples of labels and of scores come from.
    work, asking
        What is to be done.
    client
        An open client.
    known
        Existing labels, so that none is scored twice in the same way.
    add
        Commits labels durably; called on a thread, one call at a time.
    concurrency
        Largest number of requests in flight.
    progress
        Whether to show a bar.
    """

    def __init__(
        self,
        samples: Samples,
        scored: Samples,
        work: Sequence[Work],
        asking: BulkAsking,
        client: BulkClient,
        *,
        known: Iterable[FeatureLabel],
        add: Callable[[list[FeatureLabel]], object],
        concurrency: int,
        progress: bool,
    ) -> None:
        features = [item.feature for item in work]
        self._samples = KeptReads(samples, features)
        self._scored = self._samples if scored is samples else KeptReads(scored, features)
        self._work = work
        self._asking = asking
        self._client = client
        labels = list(known)
        self._known = {label.key: label for label in labels if asking.is_own(label)}
        self._add = add
        self._concurrency = concurrency
        self._bar = tqdm(total=len(work), unit=" features", disable=not progress)
        self._chooser = ThreadPoolExecutor(1, "interp-embed-samples")
        self._outcomes: list[Outcome] = []
        self._waiting: list[FeatureLabel] = []
        self._committing = asyncio.Lock()
        self._in_a_row = 0
        # A label that there is was an answer.
        self._answered = ("llm", asking.model) in [(label.source, label.model) for label in labels]
        self._busy: set[asyncio.Task[None]] = set()  # workers that may still get the first answer
        self._clear = asyncio.Event()  # there was an answer, or nobody is left to get one
        self._stopped: str | None = None

    @property
    def outcomes(self) -> list[Outcome]:
        """The results of the features that were begun, in order of features."""
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
            If the server refuses every request, or fails for many features in a row.
        """
        todo = iter(self._work)
        # Twice as many as requests may be in flight: samples are chosen while others are answered.
        count = min(len(self._work), 2 * self._concurrency)
        workers = [asyncio.ensure_future(self._label(todo)) for _ in range(count)]
        self._busy.update(workers)
        for worker in workers:
            worker.add_done_callback(self._settle)
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
        begun = sum(bool(outcome.label) for outcome in self._outcomes)
        lacking = sum(bool(outcome.not_scored) for outcome in self._outcomes)
        unscored = f", {lacking:,} of them without a requested score" if lacking else ""
        return (
            f"{self._stopped}. {begun:,} of {len(self._work):,} features are labelled{unscored} and in "
            "the store; make the same call again, with a new limit, to resume"
        )

    async def _label(self, todo: Iterator[Work]) -> None:
        for item in todo:
            outcome = Outcome(item.feature)
            self._outcomes.append(outcome)
            spent_on.set(outcome.spent)
            try:
                with self._holding() as hold:
                    await self._one(item, outcome, hold)
            except BudgetReachedError as error:
                # The others end what they have begun, and then find the same.
                self._stopped = self._stopped or str(error)
                if outcome.label:
                    outcome.not_scored = str(error)
            except LLMError as error:
                await self._fail(outcome, error)
            self._show(outcome)
            if self._stopped is not None:
                return

    @contextmanager
    def _holding(self) -> Iterator[Hold | None]:
        """Have all requests of a feature be held for, where there is a budget to hold."""
        budget = self._client.budget
        if not budget.is_limited:
            yield None
            return
        with budget.holding() as hold:
            held_for.set(hold)
            yield hold

    async def _one(self, item: Work, outcome: Outcome, hold: Hold | None) -> None:
        label = item.label
        if label is None:
            try:
                task = await self._choose(self._asking.label_task, self._samples, item.feature)
            except (ValueError, OSError) as error:
                outcome.failed = str(error)
                return
            new = not await self._client.is_kept(task.request)
            if new:
                await self._hold(hold, item, task, None)
            response = await ask_label(self._client, task)
            self._succeed()
            try:
                label = label_record(task, response)
            except ValueError as error:
                outcome.failed = str(error)
                return
            await self._commit(label)
            outcome.label = label.label
            if not new:
                await self._hold(hold, item, None, label.label)
        else:
            outcome.label = label.label
            await self._hold(hold, item, None, label.label)
        for method in item.methods:
            await self._score(label, method, outcome)

    async def _hold(
        self, hold: Hold | None, item: Work, task: LabelTask | None, label: str | None
    ) -> None:
        """Wait until the budget has room for all that a feature takes: no label without its scores."""
        if hold is None:
            return
        requests: list[Request[Any]] = [] if task is None else [task.request]
        scores = await self._choose(
            self._asking.score_requests, self._scored, item.feature, label, item.methods
        )
        requests += [request for request in scores if not await self._client.is_kept(request)]
        await self._client.budget.hold(hold, requests)

    async def _score(self, label: FeatureLabel, method: Method, outcome: Outcome) -> None:
        try:
            questions = await self._choose(
                self._asking.score_task, self._scored, label.feature, label.label, method
            )
        except (ValueError, OSError) as error:
            outcome.failed = f"{method}: {error}"
            return
        result = await ask_score(self._client, questions, warn=False)
        self._succeed()
        score = score_record(result)
        outcome.scores.append(score)
        if failures := result["failures"]:
            lost = sum(len(failure["documents"]) for failure in failures)
            outcome.failed = (
                f"{method}: {lost} of {lost + result['total_count']} samples were not judged; the first "
                f"reason: {failures[0]['reason']}"
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
        self._clear.set()

    def _settle(self, worker: asyncio.Task[None] | None) -> None:
        """Expect no first answer of a worker: it has ended, or waits for the others."""
        if worker is not None:
            self._busy.discard(worker)
        if not self._busy:
            self._clear.set()

    async def _others_are_answered(self) -> bool:
        """Wait for the first answer; return whether there was one before all others had failed."""
        self._settle(asyncio.current_task())
        await self._clear.wait()
        return self._answered

    async def _fail(self, outcome: Outcome, error: LLMError) -> None:
        """Record a failure; raise it if those that come after would fail too."""
        outcome.failed = str(error)
        status = getattr(error, "status", None)
        if status in _HOPELESS:
            self._give_up(error)
        if status == _FORBIDDEN and not self._answered:
            if not await self._others_are_answered():
                self._give_up(error)
            return  # the answer came after it, so that it is none of those in a row
        if isinstance(error, LLMAnswerError):
            self._answered = True  # although nobody can read it
            self._clear.set()
            if not outcome.spent.requests:
                return  # an answer of an earlier run
        self._in_a_row += 1
        if self._in_a_row >= max(_MANY_FAILURES, 2 * self._concurrency):
            error.args = (f"{self._in_a_row} features in a row failed; the last: {error}",)
            self._give_up(error)

    def _give_up(self, error: LLMError) -> NoReturn:
        done = sum(bool(outcome.label) for outcome in self._outcomes)
        error.add_note(
            f"{done:,} of {len(self._work):,} features were labelled before that and are in the store; "
            "make the same call again to resume"
        )
        raise error

    def _show(self, outcome: Outcome) -> None:
        if not (outcome.label or outcome.failed):
            return
        usage = self._client.usage
        shown = f"{usage.requests:,} requests, {self._client.budget.tokens:,.0f} tokens"
        if self._client.budget.cost:
            shown += f", {dollars(self._client.budget.cost)}"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update()
