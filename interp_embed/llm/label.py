"""Asking what a feature stands for: the request, made without sending it, and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp_embed.core.checks import check_positive
from interp_embed.llm.ask.request import Request, check_settings
from interp_embed.llm.ask.schemas import FeatureLabelResponse
from interp_embed.llm.samples.choice import Chosen, choose
from interp_embed.llm.samples.render import choose_marks, messages

if TYPE_CHECKING:
    from interp_embed.llm.ask.client import LLMClient
    from interp_embed.llm.asking import Asking
    from interp_embed.llm.samples.samples import Samples

__all__ = ["LabelTask", "ask_label", "label_task"]

_PREVIOUS = "The label so far, to be made better in the light of the samples above, and its score:"


@dataclass(frozen=True, slots=True)
class LabelTask:
    """A request for a feature's label, and the material it was made of.

    Attributes
    ----------
    feature : int
    request : Request
        ``request.digest`` identifies it.
    chosen : Chosen
        The excerpts that are shown.
    prompt_version : str
        See `Prompts.version`.
    seed : int
        Seed of the choice of excerpts.
    """

    feature: int
    request: Request[FeatureLabelResponse]
    chosen: Chosen
    prompt_version: str
    seed: int


def label_task(
    positive: Samples,
    negative: Samples,
    feature: int,
    asking: Asking,
    *,
    k: int = 20,
    label_and_score: Mapping[str, Any] | None = None,
) -> LabelTask:
    """Make the request for a feature's label without sending it.

    Parameters
    ----------
    positive, negative
        Sources of positive and negative samples.
    feature
        Feature index.
    asking
        The settings of the question.
    k
        Largest number of samples of either kind.
    label_and_score
        See `Dataset.label_feature`.

    Raises
    ------
    ValueError
        If the feature is active nowhere, or an argument is invalid.
    """
    check_positive(k=k)
    previous = _previous(label_and_score)
    prompts = asking.prompts
    chosen = choose(positive, negative, feature, asking.choice, n_positive=k, n_negative=k)
    marks = choose_marks([e.text for e in (*chosen.positive, *chosen.negative)])
    blocks = {
        "positive": [{"text": marks.around(example)} for example in chosen.positive],
        "negative": [{"text": marks.around(example)} for example in chosen.negative],
        "previous": previous,
    }
    asked = messages(prompts, "label", marks, blocks, around={"previous": _PREVIOUS})
    request = Request(
        asking.model,
        asked,
        FeatureLabelResponse,
        check_settings(asking.settings),
        prompts.text("repair"),
    )
    seed = int(asking.choice.seed)
    return LabelTask(int(feature), request, chosen, asking.version("label"), seed)


async def ask_label(client: LLMClient, task: LabelTask) -> FeatureLabelResponse:
    """Return the answer to a task; see `LLMClient.ask` for the errors."""
    return await client.ask(task.request)


def _previous(label_and_score: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return what is known of a feature, as plain values."""
    if label_and_score is None:
        return []
    if not isinstance(label_and_score, Mapping) or "label" not in label_and_score:
        raise ValueError(
            "label_and_score must be a dictionary with a label and its score, such as "
            f"{{'label': 'cats', 'score': 0.7}}, got {label_and_score!r:.100}"
        )
    found: dict[str, Any] = {}
    for name, value in label_and_score.items():
        if isinstance(value, FeatureLabelResponse):
            found.update(value.model_dump(exclude_none=True))
        elif isinstance(value, (str, int, float, bool)):
            found[str(name)] = value
    return [found]
