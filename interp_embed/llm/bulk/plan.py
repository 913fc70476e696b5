"""The requests for labelling many features, and an estimate of their usage. Sends nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from interp_embed.core.checks import check_positive
from interp_embed.llm.ask.schemas import BatchResponse
from interp_embed.llm.bulk.budget import dollars, request_size, rough_tokens
from interp_embed.llm.label import LabelTask, label_task
from interp_embed.llm.score import Method, ScoreTask, method_prompt, score_task

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from interp_embed.labels.record import FeatureLabel
    from interp_embed.llm.ask.answers import Answers
    from interp_embed.llm.ask.request import Request
    from interp_embed.llm.asking import Asking
    from interp_embed.llm.bulk.budget import Prices
    from interp_embed.llm.samples.samples import Samples

__all__ = [
    "BulkAsking",
    "Estimate",
    "Work",
    "check_methods",
    "estimate",
    "plan_work",
]

_SAMPLED = 32
"""Number of features whose requests are made to estimate those of all."""
_LABEL = "a phrase of about so many characters as labels have"
_LABEL_TOKENS = 150
"""Tokens of an answer with a label, a sentence and an explanation, without a model's thoughts."""
_SINGLE_TOKENS = 60
_VERDICT_TOKENS = 12
"""Of ``{"sample": 1, "matches": true},`` in an answer for several samples."""


@dataclass(frozen=True, slots=True)
class BulkAsking:
    """The questions about each of many features; see `Dataset.label_features`.

    Parameters
    ----------
    asking : Asking
        The settings of the questions.
    methods : tuple of Method
        The methods that score labels.
    k, score_k : int
        Samples of either kind per label, and per score.
    """

    asking: Asking
    methods: tuple[Method, ...] = ()
    k: int = 20
    score_k: int = 10

    def __post_init__(self) -> None:
        check_positive(k=self.k, score_k=self.score_k)

    @property
    def model(self) -> str:
        """The language model."""
        return self.asking.model

    @property
    def label_version(self) -> str:
        """The version of the prompts for labels."""
        return self.asking.version("label")

    def label_task(self, samples: Samples, feature: int) -> LabelTask:
        """Make the request for a feature's label."""
        return label_task(samples, samples, feature, self.asking, k=self.k)

    def score_task(self, samples: Samples, feature: int, label: str, method: Method) -> ScoreTask:
        """Make the requests for the score of a label."""
        return score_task(
            samples, samples, feature, label, self.asking, k=self.score_k, method=method
        )

    def score_requests(
        self, samples: Samples, feature: int, label: str | None, methods: Iterable[Method]
    ) -> list[Request[Any]]:
        """Make the requests of all scores; without a label, with a typical one in its place.

        A method that has no samples has no requests: it fails when its turn comes, and costs nothing.
        """
        found: list[Request[Any]] = []
        for method in methods:
            try:
                task = self.score_task(samples, feature, label or _LABEL, method)
            except (ValueError, OSError):
                continue
            found += [question.request for question in task.questions]
        return found

    def is_own(self, label: FeatureLabel) -> bool:
        """Whether a label is of this model and these prompts."""
        return (label.source, label.model, label.prompt_version) == (
            "llm",
            self.model,
            self.label_version,
        )

    def unscored(self, label: FeatureLabel) -> tuple[Method, ...]:
        """Return the methods by which this model has not scored a label."""
        there = {(s.method, s.model, s.prompt_version) for s in label.scores}
        return tuple(
            m
            for m in self.methods
            if (m, self.model, self.asking.version(method_prompt(m))) not in there
        )


@dataclass(frozen=True, slots=True)
class Work:
    """A feature, its label if there is one that only lacks scores, and the methods to score it."""

    feature: int
    label: FeatureLabel | None
    methods: tuple[Method, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """The approximate usage of labelling some features.

    Attributes
    ----------
    features : int
        Number of features to label or score.
    requests : int
        Number of requests to send, not counting repairs and retries.
    kept : int
        Labels whose answer is in the store, so that they cost nothing.
    prompt_tokens, completion_tokens : int
        Tokens of the requests, at four bytes per token, with answers of usual length and without a
        model's thoughts before it answers.
    cost : float or None
        In US dollars; None without prices.
    """

    features: int
    requests: int
    kept: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    def __str__(self) -> str:
        cost = "cost unknown without prices"
        if self.cost is not None:
            shown = dollars(self.cost)
            cost = f"about {shown}" if shown.startswith("$") else shown
        kept = f" ({self.kept:,} more are already answered)" if self.kept else ""
        return (
            f"{self.features:,} feature{'s' * (self.features != 1)}: about {self.requests:,} "
            f"requests{kept}, {self.prompt_tokens:,} prompt tokens and {self.completion_tokens:,} "
            f"of answers, {cost}"
        )


def check_methods(score: Method | Sequence[Method] | None) -> tuple[Method, ...]:
    """Return the scoring methods, each once.

    Raises
    ------
    ValueError
        If one is unknown.
    """
    methods: Iterable[Any] = [] if score is None else [score] if isinstance(score, str) else score
    found = tuple(dict.fromkeys(methods))
    for method in found:
        if method not in get_args(Method):
            raise ValueError(
                f"score must be one or several of {', '.join(get_args(Method))}, or None, "
                f"got {method!r:.80}"
            )
    return found


def plan_work(
    features: Sequence[int] | None,
    occurring: NDArray[np.bool_] | None,
    known: Iterable[FeatureLabel],
    asking: BulkAsking,
) -> list[Work]:
    """Return the work to do.

    Parameters
    ----------
    features
        The features to label. None for those that occur and have no label of this model and these
        prompts, or one without a requested score.
    occurring
        For each feature whether it occurs; for ``features=None``.
    known
        All labels, in order of time for each feature.
    asking
        The questions.
    """
    if features is not None:
        return [Work(feature, None, asking.methods) for feature in features]
    assert occurring is not None
    own = {label.feature: label for label in known if asking.is_own(label)}  # the newest of each
    work = []
    for feature in np.flatnonzero(occurring).tolist():
        label = own.get(feature)
        methods = asking.methods if label is None else asking.unscored(label)
        if label is None or methods:
            work.append(Work(feature, label, methods))
    return work


def estimate(
    samples: Samples,
    scored: Samples,
    work: Sequence[Work],
    asking: BulkAsking,
    answers: Answers,
    prices: Prices | None,
) -> Estimate:
    """Return the approximate usage of some work, from the requests of up to 32 of its features.

    Parameters
    ----------
    samples, scored
        Samples for labels and for scores.
    work, asking
        The work, and its questions.
    answers
        The kept answers.
    prices
        None if they are not known.
    """
    some = np.unique(np.linspace(0, len(work) - 1, min(len(work), _SAMPLED)).astype(np.int64))
    requests = kept = size = completion = 0
    for item in (work[number] for number in some.tolist()):
        if item.label is None:
            try:
                label = asking.label_task(samples, item.feature)
            except (ValueError, OSError):  # it fails when its turn comes, and costs nothing
                continue
            if answers.get(label.request.digest) is not None:
                kept += 1
            else:
                requests += 1
                size += request_size(label.request)
                completion += _LABEL_TOKENS
        for method in item.methods:
            text = _LABEL if item.label is None else item.label.label
            try:
                score = asking.score_task(scored, item.feature, text, method)
            except (ValueError, OSError):
                continue
            for question in score.questions:
                requests += 1
                size += request_size(question.request)
                batch = question.request.schema is BatchResponse
                completion += _VERDICT_TOKENS * len(question.samples) if batch else _SINGLE_TOKENS
    scale = len(work) / max(1, len(some))
    prompt_tokens = rough_tokens(size * scale)
    completion_tokens = round(completion * scale)
    return Estimate(
        features=len(work),
        requests=round(requests * scale),
        kept=round(kept * scale),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost=None if prices is None else prices.cost(prompt_tokens, completion_tokens),
    )
