"""How well a label says where a feature is active: questions, answers, and what they come to.

Three methods, that differ in what a model is shown. Each answer says of a sample whether the label
fits it; from all of them follow an accuracy and its uncertainty.
"""

from __future__ import annotations

import asyncio
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from interp_embed.analysis.diff import newcombe_interval
from interp_embed.inputs import check_positive
from interp_embed.llm.errors import LLMAuthenticationError, LLMError, LLMStatusError
from interp_embed.llm.examples import check_choice, choose, scattered
from interp_embed.llm.prompt_files import Prompts
from interp_embed.llm.render import choose_marks, messages
from interp_embed.llm.request import Request, check_settings
from interp_embed.llm.schemas import BatchResponse, ScoredSample, SingleSampleScoringResponse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interp_embed.activations import Activations
    from interp_embed.llm.client import LLMClient
    from interp_embed.llm.examples import Example, NegativeChoice, PositiveChoice

__all__ = [
    "Method",
    "Question",
    "Sample",
    "ScoreTask",
    "ask_score",
    "balanced_accuracy",
    "score_task",
]

Method = Literal["reference", "detection", "fuzzing"]

_BATCH = 10
"""Samples in a request, where a request has several."""
_HOPELESS = (401, 402, 403, 404)
"""After these no other request of a score is worth sending."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An excerpt as it is shown, and whether the label should fit it."""

    example: Example
    text: str
    expected: bool


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and the samples in it."""

    request: Request[Any]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """The questions that a score is made of.

    Attributes
    ----------
    feature : int
    label : str
    method : {"reference", "detection", "fuzzing"}
    questions : tuple of Question
    prompt_version : str
    seed : int
    """

    feature: int
    label: str
    method: Method
    questions: tuple[Question, ...]
    prompt_version: str
    seed: int


def score_task(
    positive: Activations,
    negative: Activations,
    feature: int,
    label: str,
    model: str,
    *,
    k: int = 10,
    method: Method = "reference",
    examples: PositiveChoice = "top",
    negatives: NegativeChoice = "random",
    seed: int = 0,
    window_tokens: int = 64,
    prompts: Prompts | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ScoreTask:
    """Make the requests for a label's score; nothing is sent.

    See `Dataset.score_feature` for the parameters, and `label.label_task`.

    Raises
    ------
    ValueError
        If the feature is active nowhere, if there are no samples to compare with, or an argument
        makes no sense.
    """
    check_positive(k=k, window_tokens=window_tokens)
    check_choice(examples, negatives, seed)
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"label must be a text that says what the feature is, got {label!r:.100}")
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    checked = check_settings(settings)
    prompts = prompts or Prompts()
    fuzzing = method == "fuzzing"
    chosen = choose(
        positive,
        negative,
        feature,
        n_positive=2 * k if fuzzing else k,
        n_negative=0 if fuzzing else k,
        examples=examples,
        negatives=negatives,
        seed=seed,
        window_tokens=window_tokens,
    )
    marks = choose_marks([e.text for e in (*chosen.positive, *chosen.negative)])
    rng = np.random.default_rng([seed, int(feature), 1])
    if fuzzing:
        samples = _fuzzed(chosen.positive, k, rng)
    else:
        marked = method == "reference"
        samples = [(e, e.active if marked else [], True) for e in chosen.positive]
        samples += [(e, [], False) for e in chosen.negative]
    if method != "reference":
        _require_both(samples, feature, method)
        samples = [samples[n] for n in rng.permutation(len(samples))]
    shown = [
        Sample(e, marks.around(e, active or [False] * len(e.tokens)), expected)
        for e, active, expected in samples
    ]
    schema: type[Any] = BatchResponse
    groups: list[list[Sample]]
    if method == "reference":
        schema = SingleSampleScoringResponse
        groups = [[sample] for sample in shown]
    else:
        parts = np.array_split(np.arange(len(shown)), -(-len(shown) // _BATCH))
        groups = [[shown[n] for n in part] for part in parts]
    questions = []
    for group in groups:
        blocks: dict[str, list[dict[str, Any]]] = {"label": [{"description": label.strip()}]}
        if method == "reference":
            blocks["sample"] = [{"text": group[0].text}]
        else:
            blocks["samples"] = [{"sample": n, "text": s.text} for n, s in enumerate(group, 1)]
        asked = messages(prompts, method_prompt(method), marks, blocks)
        questions.append(Question(Request(model, asked, schema, checked), tuple(group)))
    return ScoreTask(
        int(feature),
        label,
        method,
        tuple(questions),
        prompts.version(method_prompt(method)),
        int(seed),
    )


def method_prompt(method: Method) -> str:
    """Return the prompt of a method."""
    return "score" if method == "reference" else method


def _require_both(
    samples: Sequence[tuple[Example, list[bool], bool]], feature: int, method: str
) -> None:
    right = sum(expected for _, _, expected in samples)
    if right == len(samples) or right == 0:
        raise ValueError(
            f"{method} compares samples that have feature {feature} with samples that do not, and "
            f"there are {right} and {len(samples) - right}; give more documents, or another "
            "negative_dataset="
        )


def _fuzzed(
    examples: Sequence[Example], k: int, rng: np.random.Generator
) -> list[tuple[Example, list[bool], bool]]:
    """Mark half of the excerpts where the feature is active, and half elsewhere.

    An excerpt that has no room for marks elsewhere is marked rightly.
    """
    right: list[tuple[Example, list[bool], bool]] = []
    wrong: list[tuple[Example, list[bool], bool]] = []
    for number in rng.permutation(len(examples)).tolist():
        example = examples[number]
        elsewhere = scattered(example, rng) if len(wrong) < min(k, len(examples) // 2) else None
        if elsewhere is not None:
            wrong.append((example, elsewhere, False))
        elif len(right) < k:
            right.append((example, example.active, True))
    return right + wrong


async def ask_score(client: LLMClient, task: ScoreTask, *, warn: bool = True) -> dict[str, Any]:
    """Ask the questions of a task, several at a time, and return the score.

    A question without a usable answer is left out of the score, is in ``failures``, and is warned of
    unless ``warn`` is False.

    Returns
    -------
    dict
        See `Dataset.score_feature`.

    Raises
    ------
    LLMError
        If no question was answered, or those with all samples of one kind were not, so that there is
        no score; or the server says what holds for all of them: that the key, the model or the
        account is not good.
    """

    async def ask(question: Question) -> list[ScoredSample] | LLMError:
        try:
            return await _ask_question(client, question)
        except LLMError as error:
            if isinstance(error, LLMAuthenticationError):
                raise
            if isinstance(error, LLMStatusError) and error.status in _HOPELESS:
                raise
            return error

    found = await _together([ask(question) for question in task.questions])
    failed = [
        (question, outcome)
        for question, outcome in zip(task.questions, found, strict=True)
        if isinstance(outcome, LLMError)
    ]
    responses = [sample for outcome in found if isinstance(outcome, list) for sample in outcome]
    kinds = {response.expected for response in responses}
    if failed:
        first = failed[0][1]
        if not responses or (task.method != "reference" and len(kinds) < 2):
            raise first
        if warn:
            warnings.warn(
                f"{len(failed)} of {len(task.questions)} requests for the score of feature "
                f"{task.feature} failed, and {len(responses)} samples count; see ['failures']. The "
                f"first: {first}",
                stacklevel=3,
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
            {"documents": [s.example.document for s in question.samples], "reason": str(error)}
            for question, error in failed
        ],
        "model": client.model,
        "prompt_version": task.prompt_version,
        "seed": task.seed,
    }


async def _ask_question(client: LLMClient, question: Question) -> list[ScoredSample]:
    samples = question.samples
    if question.request.schema is BatchResponse:
        answer = await client.ask(question.request, lambda found: _incomplete(found, len(samples)))
        matches = {verdict.sample: verdict.matches for verdict in answer.verdicts}
        judged = [matches[number] for number in range(1, len(samples) + 1)]
        reasons = [""] * len(samples)
    else:
        said = await client.ask(question.request)
        judged = [sample.expected == bool(said.score) for sample in samples]
        reasons = [said.explanation]
    return [
        ScoredSample(
            explanation=reason,
            score=int(verdict == sample.expected),
            document=sample.example.document,
            text=sample.text,
            expected=sample.expected,
            judged=verdict,
        )
        for sample, verdict, reason in zip(samples, judged, reasons, strict=True)
    ]


def _incomplete(found: BatchResponse, n: int) -> str | None:
    """Say what is wrong with a batch of verdicts: there has to be one for each sample."""
    numbers = [verdict.sample for verdict in found.verdicts]
    wanted = set(range(1, n + 1))
    if unknown := sorted(set(numbers) - wanted):
        return f"verdicts: there is no sample {unknown[0]}; the samples are 1 to {n}"
    if lacking := sorted(wanted - set(numbers)):
        return f"verdicts: there is none for sample {', '.join(map(str, lacking))}"
    if len(numbers) > n:
        twice = next(number for number in numbers if numbers.count(number) > 1)
        return f"verdicts: there are several for sample {twice}"
    return None


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
        What is true of each sample, and what was said of it.
    confidence
        Level of the interval.

    Returns
    -------
    accuracy, low, high : float
        NaN where there are no positive or no negative samples.

    Notes
    -----
    Balanced accuracy is ``(1 + J) / 2``, with Youden's ``J``: the share of positive samples that are
    said to be positive minus that of negative samples. The interval is Newcombe's hybrid score
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
