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
    """Return a label as a record, with its origin.

    Parameters
    ----------
    task, response
        The question and its answer.
    scores
        Of this label; see `score_record`.
    with_examples
        Record the samples that were shown. Their documents are numbers in the store that they came
        from, so this must be False if the label goes into another store.
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
    """Return the result of `score_feature` as a record.

    Its value is the balanced accuracy, whatever the method, so that records can be compared. If all
    samples have the feature, or none has it, the value is the score itself, without an interval.
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
