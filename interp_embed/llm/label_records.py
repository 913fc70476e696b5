"""Answers as records that a store keeps; see `interp_embed.labels.record`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from interp_embed.labels.record import FeatureLabel, LabelExample, Score, utc_now

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from interp_embed.llm.ask.schemas import FeatureLabelResponse
    from interp_embed.llm.label import LabelTask

__all__ = ["label_record", "score_record"]


def label_record(
    task: LabelTask,
    response: FeatureLabelResponse,
    *,
    scores: Iterable[Score] = (),
    with_examples: bool = True,
) -> FeatureLabel:
    """Return a label with what it was made of.

    Parameters
    ----------
    task, response
        What was asked, and what came of it.
    scores
        Of this label; see `score_record`.
    with_examples
        Keep which samples were shown. Their documents are numbers in the store that they came from,
        so this has to be False where that is not the store which the label goes into.
    """
    shown = (*task.chosen.positive, *task.chosen.negative) if with_examples else ()
    return FeatureLabel(
        feature=task.feature,
        label=response.label,
        brief_description=response.brief_description,
        detailed_explanation=response.detailed_explanation or "",
        source="llm",
        model=task.request.model,
        prompt_version=task.prompt_version,
        seed=task.seed,
        created=utc_now(),
        examples=tuple(
            LabelExample(e.document, e.start, e.stop, max(0.0, *e.activations)) for e in shown
        ),
        scores=tuple(scores),
    )


def score_record(result: Mapping[str, Any]) -> Score:
    """Return what `score_feature` returned as a record.

    Its value is the balanced accuracy, whatever the method, so that records can be compared; the score
    itself, without an interval, where there were only samples with the feature, or only without.
    """
    balanced = result["balanced_accuracy"]
    known = not math.isnan(balanced)
    low, high = result["interval"] if known else (None, None)
    return Score(
        method=result["method"],
        value=balanced if known else result["score"],
        low=low,
        high=high,
        n=result["total_count"],
        model=result["model"],
        prompt_version=result["prompt_version"],
        created=utc_now(),
    )
