"""What a model has to answer, and what is returned of it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, ValidationError, field_validator

from interp_embed.labels.record import LONGEST

__all__ = [
    "BatchResponse",
    "FeatureLabelResponse",
    "SampleVerdict",
    "ScoredSample",
    "SingleSampleScoringResponse",
]

# As long as a record may be, so that what was paid for is no label that cannot be kept.
_Said = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST)]


class FeatureLabelResponse(BaseModel):
    """What a feature stands for.

    Attributes
    ----------
    label : str
        A concise phrase.
    brief_description : str
        One sentence that expands on it.
    detailed_explanation : str or None
        More of it, where the model gave some.
    """

    label: _Said
    brief_description: _Said
    detailed_explanation: Annotated[str, StringConstraints(max_length=LONGEST)] | None = None


class SingleSampleScoringResponse(BaseModel):
    """Whether a label fits one sample.

    Attributes
    ----------
    score : int
        1 where the label says rightly whether, and where, the feature is active in the sample; else 0.
    explanation : str
        The model's reason; empty where it gives none.
    """

    explanation: str = ""
    score: int = Field(ge=0, le=1)


class ScoredSample(SingleSampleScoringResponse):
    """A sample, what is true of it, and what was made of it.

    Attributes
    ----------
    document : int
        Number of the document in its store.
    text : str
        What the model was shown.
    expected : bool
        Whether the feature is active in the sample (for fuzzing: whether the highlights are where it
        is active).
    judged : bool
        What follows from the model's answer about that.
    """

    document: int
    text: str
    expected: bool
    judged: bool


class SampleVerdict(BaseModel):
    """The answer for one sample of a batch."""

    sample: int
    matches: bool


class BatchResponse(BaseModel):
    """The answers for a batch of samples; what is no verdict among them is passed over."""

    verdicts: list[SampleVerdict]

    @field_validator("verdicts", mode="before")
    @classmethod
    def _verdicts_only(cls, given: Any) -> Any:
        """Leave out what cannot be read, so that one entry takes no others with it."""
        return [each for each in given if _is_verdict(each)] if isinstance(given, list) else given


def _is_verdict(given: Any) -> bool:
    try:
        SampleVerdict.model_validate(given)
    except ValidationError:
        return False
    return True
