"""Evaluating the answers to a score's questions: verdicts, an accuracy and its uncertainty.

Each verdict says whether the label fits a sample. Missing verdicts are requested once more. Samples
that still have none are left out and reported.
"""

from __future__ import annotations

import asyncio
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.analysis.diff import newcombe_interval
from interp_embed.llm.ask.errors import LLMAuthenticationError, LLMError, LLMStatusError
from interp_embed.llm.ask.schemas import BatchResponse, ScoredSample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interp_embed.llm.ask.client import LLMClient
    from interp_embed.llm.score import Question, Sample, ScoreTask

__all__ = ["ask_score", "balanced_accuracy"]

_HOPELESS = (401, 402, 404)
"""Statuses after which no other request of a score makes sense."""
_FORBIDDEN = 403
"""The key is refused, or only this request, as by servers that moderate."""


@dataclass(frozen=True, slots=True)
class _Judged:
    """What came of a question: samples with a verdict, those without, and why."""

    samples: list[ScoredSample]
    lacking: Sequence[Sample] = ()
    error: LLMError | None = None


async def ask_score(client: LLMClient, task: ScoreTask, *, warn: bool = True) -> dict[str, Any]:
    """Ask the questions of a task, several at a time, and return the score.

    A sample without a verdict is left out of the score and listed in ``failures``. A warning is given
    unless ``warn`` is False.

    Returns
    -------
    dict
        See `Dataset.score_feature`.

    Raises
    ------
    LLMError
        If there is no verdict at all or none for the samples of one kind, so that there is no score; or
        if the server refuses the key, the model or the account.
    """
    judged = await _together([_ask_question(client, question) for question in task.questions])
    responses = [sample for part in judged for sample in part.samples]
    failures = [(part.lacking, part.error) for part in judged if part.error is not None]
    kinds = {response.expected for response in responses}
    if failures:
        first = failures[0][1]
        if not responses or (task.method != "reference" and len(kinds) < 2):
            raise first
        if warn:
            lost = sum(len(lacking) for lacking, _ in failures)
            warnings.warn(
                f"{lost} of {lost + len(responses)} samples for the score of feature {task.feature} "
                f"were not judged; only the others count; see ['failures']. The first: {first}",
                stacklevel=4,
            )
    accuracy = balanced_accuracy([r.expected for r in responses], [r.judged for r in responses])
    mean = sum(response.score for response in responses) / len(responses)
    return {
        "score": mean if task.method == "reference" else accuracy[0],
        "total_count": len(responses),
        "responses": responses,
        "method": task.method,
        "balanced_accuracy": accuracy[0],
        "interval": accuracy[1:],
        "n_positive": sum(response.expected for response in responses),
        "n_negative": sum(not response.expected for response in responses),
        "failures": [
            {"documents": [s.example.document for s in lacking], "reason": str(error)}
            for lacking, error in failures
        ],
        "model": client.model,
        "prompt_version": task.prompt_version,
        "seed": task.seed,
    }


async def _ask_question(client: LLMClient, question: Question) -> _Judged:
    """Return what came of a question; raise what every other question would end in, too."""
    verdicts: dict[int, tuple[bool, str]] = {}  # by the number of the sample, from 1
    error: LLMError | None = None
    try:
        if question.request.schema is BatchResponse:
            await client.ask(question.request, lambda found: _take(verdicts, found, question))
        else:
            said = await client.ask(question.request)
            fits = question.samples[0].expected == bool(said.score)
            verdicts[1] = fits, said.explanation
    except LLMError as failure:
        status = failure.status if isinstance(failure, LLMStatusError) else None
        refused = isinstance(failure, LLMAuthenticationError) and status != _FORBIDDEN
        if refused or status in _HOPELESS:
            raise
        error = failure
    judged = [
        _scored(question.samples[number - 1], *verdict)
        for number, verdict in sorted(verdicts.items())
    ]
    lacking = [s for n, s in enumerate(question.samples, 1) if n not in verdicts]
    if error is not None and not lacking:
        error = None
    return _Judged(judged, lacking, error)


def _take(
    verdicts: dict[int, tuple[bool, str]], found: BatchResponse, question: Question
) -> str | None:
    """Take the verdicts of a batch that can be used; say which are lacking.

    A verdict for a sample that there is not is passed over. One sample with two different verdicts has
    none; a verdict that was taken from an answer before this one stays.
    """
    said: dict[int, set[bool]] = {}
    for verdict in found.verdicts:
        said.setdefault(verdict.sample, set()).add(verdict.matches)
    wanted = range(1, len(question.samples) + 1)
    for number in wanted:
        if number not in verdicts and len(said.get(number, ())) == 1:
            verdicts[number] = said[number].pop(), ""
    lacking = [number for number in wanted if number not in verdicts]
    if not lacking:
        return None
    problem = f"verdicts: there is none, or no clear one, for sample {', '.join(map(str, lacking))}"
    return f"{problem}; give those alone" if verdicts else problem


def _scored(sample: Sample, judged: bool, reason: str) -> ScoredSample:
    return ScoredSample(
        explanation=reason,
        score=int(judged == sample.expected),
        document=sample.example.document,
        text=sample.text,
        expected=sample.expected,
        judged=judged,
    )


async def _together(coroutines: Sequence[Any]) -> list[Any]:
    """Await all; where one raises, the others are given up and waited for."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def balanced_accuracy(
    expected: Sequence[bool], judged: Sequence[bool], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the mean of the accuracies on positive and on negative samples, and its interval.

    Parameters
    ----------
    expected, judged
        The truth about each sample, and the verdict on it.
    confidence
        Level of the interval.

    Returns
    -------
    accuracy, low, high : float
        NaN if there are no positive or no negative samples.

    Notes
    -----
    Balanced accuracy is ``(1 + J) / 2``, with Youden's ``J``: the share of positive samples that are
    judged positive minus the share of negative samples that are judged positive. The interval is
    Newcombe's hybrid score
    interval for that difference of two independent proportions, scaled in the same way.

    References
    ----------
    .. [1] K. H. Brodersen et al., "The balanced accuracy and its posterior distribution",
       International Conference on Pattern Recognition (2010), 3121-3124.
    .. [2] W. J. Youden, "Index for rating diagnostic tests", Cancer 3 (1950), 32-35.
    .. [3] R. G. Newcombe, "Interval estimation for the difference between independent proportions:
       comparison of eleven methods", Statistics in Medicine 17 (1998), 873-890, method 10.
    """
    truth, said = np.asarray(expected, np.bool_), np.asarray(judged, np.bool_)
    n_positive, n_negative = int(truth.sum()), int((~truth).sum())
    if n_positive == 0 or n_negative == 0:
        return float("nan"), float("nan"), float("nan")
    hits, alarms = int((truth & said).sum()), int((~truth & said).sum())
    difference = hits / n_positive - alarms / n_negative
    low, high = newcombe_interval(hits, n_positive, alarms, n_negative, confidence)
    return (1 + difference) / 2, (1 + float(low)) / 2, (1 + float(high)) / 2
