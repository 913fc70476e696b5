"""The questions that score how well a label says where a feature is active. Sends nothing.

There are three methods, which show a model different material. `judging` evaluates the answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from interp_embed.core.checks import check_one_of, check_positive
from interp_embed.llm.ask.request import Request, check_settings
from interp_embed.llm.ask.schemas import BatchResponse, SingleSampleScoringResponse
from interp_embed.llm.samples.choice import choose, scattered
from interp_embed.llm.samples.render import choose_marks, messages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interp_embed.llm.asking import Asking
    from interp_embed.llm.samples.choice import Example
    from interp_embed.llm.samples.samples import Samples

__all__ = [
    "Method",
    "Question",
    "Sample",
    "ScoreTask",
    "method_prompt",
    "score_task",
]

Method = Literal["reference", "detection", "fuzzing"]

_BATCH = 10
"""Samples per request, for methods with several samples per request."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An excerpt as shown to the model, and whether the label should fit it."""

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
    """The questions of a score.

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
    positive: Samples,
    negative: Samples,
    feature: int,
    label: str,
    asking: Asking,
    *,
    k: int = 10,
    method: Method = "reference",
) -> ScoreTask:
    """Make the requests for a label's score without sending them.

    See `Dataset.score_feature` for the parameters, and `label.label_task`.

    Raises
    ------
    ValueError
        If the feature is active nowhere, if there are no samples to compare with, or if an argument
        is invalid.
    """
    check_positive(k=k)
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"label must be a text that describes the feature, got {label!r:.100}")
    check_one_of("method", method, get_args(Method))
    checked, prompts = check_settings(asking.settings), asking.prompts
    fuzzing = method == "fuzzing"
    chosen = choose(
        positive,
        negative,
        feature,
        asking.choice,
        n_positive=2 * k if fuzzing else k,
        n_negative=0 if fuzzing else k,
    )
    marks = choose_marks([e.text for e in (*chosen.positive, *chosen.negative)])
    rng = np.random.default_rng([asking.choice.seed, int(feature), 1])
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
        request = Request(asking.model, asked, schema, checked, prompts.text("repair"))
        questions.append(Question(request, tuple(group)))
    return ScoreTask(
        int(feature),
        label,
        method,
        tuple(questions),
        asking.version(method_prompt(method)),
        int(asking.choice.seed),
    )


def method_prompt(method: Method) -> str:
    """Return the prompt of a method."""
    return "score" if method == "reference" else method


def _require_both(
    samples: Sequence[tuple[Example, list[bool], bool]], feature: int, method: str
) -> None:
    right = sum(expected for _, _, expected in samples)
    if 0 < right < len(samples):
        return
    if method == "fuzzing":
        raise ValueError(
            f"fuzzing compares excerpts that are marked where feature {feature} is active with excerpts "
            "that are marked elsewhere. It needs at least two documents in which the feature is active, "
            "one of them with tokens on which it is not active; give more documents, or use detection"
        )
    raise ValueError(
        f"{method} compares samples that have feature {feature} with samples that do not, but there "
        f"are {right} and {len(samples) - right}; give more documents, or take those without it from "
        "another data set"
    )


def _fuzzed(
    examples: Sequence[Example], k: int, rng: np.random.Generator
) -> list[tuple[Example, list[bool], bool]]:
    """Mark half of the excerpts where the feature is active, and half elsewhere.

    An excerpt that has no room for marks elsewhere is marked rightly. Where there are fewer of one
    half, there are as many of the other: otherwise a model that calls all of them right would be
    right more often than not.
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
    half = min(len(right), len(wrong))
    return right[:half] + wrong[:half]
