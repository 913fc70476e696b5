"""The result of labelling many features: one row per feature, and totals."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp_embed.labels.record import FeatureLabel
from interp_embed.llm.bulk.budget import dollars
from interp_embed.llm.bulk.budgeted_client import Spent
from interp_embed.llm.bulk.failure_counts import bulk_html, lines_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interp_embed.labels.record import Score
    from interp_embed.llm.bulk.budgeted_client import BulkClient
    from interp_embed.llm.bulk.plan import Estimate
    from interp_embed.llm.score import Method

__all__ = ["BulkLabels", "Outcome", "bulk_result"]


@dataclass(slots=True)
class Outcome:
    """The result for one feature."""

    feature: int
    label: str = ""
    scores: list[Score] = field(default_factory=list)
    failed: str = ""
    not_scored: str = ""
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True)
class BulkLabels:
    """The result of labelling many features.

    Attributes
    ----------
    table : DataFrame
        One row per feature that was begun, in order of features: ``feature``; ``label``, empty if
        there is none; ``score``, ``low`` and ``high``, as in `FeatureLabel.score`, NaN if there is
        none; ``failed``, the reason of a failure, empty if there was none; ``not_scored``, the reason
        why no score was requested, such as a spent budget; ``requests``, ``prompt_tokens`` and
        ``completion_tokens`` that were paid for; ``cost`` in US dollars, NaN if it is not known. If
        several scores were requested, there is one column per score, such as ``score_detection``.
    stopped : str or None
        Why it ended before all features were labelled, and how to resume; None if it did not.
    estimate : Estimate
        The estimate made before.
    requests, kept : int
        Number of paid answers, and of questions that were answered from the store.
    tokens, cost : float
        Total usage; the cost is NaN if it is not known.
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
        """The rows of features that failed."""
        return self.table[self.table["failed"] != ""]

    @property
    def unscored(self) -> pd.DataFrame:
        """The rows of features without a score because the budget was spent before it was requested."""
        return self.table[self.table["not_scored"] != ""]

    @property
    def _summary(self) -> str:
        labelled, failed = int((self.table["label"] != "").sum()), len(self.failures)
        cost = "" if math.isnan(self.cost) else f", {dollars(self.cost)}"
        more = f". Stopped: {self.stopped}" if self.stopped else ""
        unscored = f", {len(self.unscored):,} not scored" if len(self.unscored) else ""
        return (
            f"{labelled:,} feature{'s' * (labelled != 1)} labelled{unscored}, {failed:,} failed, "
            f"{self.requests:,} requests ({self.kept:,} more were already answered), "
            f"{self.tokens:,} tokens{cost}{more}"
        )

    def __str__(self) -> str:
        return "\n  ".join([self._summary, *lines_of(self.table)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return bulk_html(self._summary, self.table)


def bulk_result(
    outcomes: Sequence[Outcome],
    stopped: str | None,
    expected: Estimate,
    methods: Sequence[Method],
    client: BulkClient,
) -> BulkLabels:
    """Return the result of a run, as a table and totals."""
    rows = []
    for outcome in outcomes:
        best = _counting(outcome.scores)
        row: dict[str, Any] = {
            "feature": outcome.feature,
            "label": outcome.label,
            "score": None if best is None else best.value,
            "low": None if best is None else best.low,
            "high": None if best is None else best.high,
        }
        if len(methods) > 1:
            values = {score.method: score.value for score in outcome.scores}
            row |= {f"score_{method}": values.get(method) for method in methods}
        spent = outcome.spent
        row |= {
            "failed": outcome.failed,
            "not_scored": outcome.not_scored,
            "requests": spent.requests,
            "prompt_tokens": round(spent.prompt_tokens),
            "completion_tokens": round(spent.completion_tokens),
            "cost": spent.cost,
        }
        rows.append(row)
    names = ["feature", "label", "score", "low", "high"]
    if len(methods) > 1:
        names += [f"score_{method}" for method in methods]
    names += ["failed", "not_scored", "requests", "prompt_tokens", "completion_tokens", "cost"]
    whole = ("feature", "requests", "prompt_tokens", "completion_tokens")
    types: dict[str, Any] = {name: "int64" if name in whole else "float64" for name in names}
    types |= {"label": object, "failed": object, "not_scored": object}
    table = pd.DataFrame(rows, columns=names).astype(types)
    known = [outcome.spent.cost for outcome in outcomes]
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
