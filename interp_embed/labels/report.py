"""Reports on added labels: how many were new, and which of them are shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from typing_extensions import override

from interp_embed.labels.record import CHANCE, best_labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from interp_embed.labels.record import FeatureLabel

__all__ = ["LabelsAdded", "NamedFeatures", "Shown"]

_SOURCES = {
    "given": "given by a person",
    "llm": "written by a language model",
    "import": "imported",
    "sae": "the SAE's own",
    "tokens": "made from tokens",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """Which labels are shown, and which labels the other features show instead.

    Attributes
    ----------
    features : int
        Number of features that show one of these labels.
    replaced : int
        Number of these features that showed another text before.
    others : dict of str to int
        Number of features that show another label, by the reason why it is preferred.
    """

    features: int
    replaced: int
    others: dict[str, int]

    @classmethod
    def of(
        cls,
        labels: Iterable[FeatureLabel],
        before: Mapping[int, FeatureLabel],
        after: Mapping[int, FeatureLabel],
    ) -> Self:
        """Say so of some labels.

        Parameters
        ----------
        labels
            Which.
        before, after
            The best label of each of their features without them and with them; see `best_labels`.
        """
        labels = list(labels)
        keys = {label.key for label in labels}
        own = best_labels(labels)
        shown = [feature for feature in own if after[feature].key in keys]
        replaced = [f for f in shown if f in before and before[f].label != after[f].label]
        others = Counter(
            _preferred(after[feature], label)
            for feature, label in own.items()
            if after[feature].key not in keys
        )
        return cls(len(shown), len(replaced), dict(others.most_common()))

    @override
    def __str__(self) -> str:
        said = f"{_features(self.features)} show{'s' * (self.features == 1)} one of them"
        if self.replaced:
            said += f", {self.replaced:,} in place of another label"
        if self.others:
            why = ", ".join(f"{reason} ({count:,})" for reason, count in self.others.items())
            count = sum(self.others.values())
            said += f"; {count:,} show{'s' * (count == 1)} a label that comes before: {why}"
        return said


class LabelsAdded(int):
    """The number of labels written to a store, and what happened to the others.

    It is an integer: ``new + scored + again``.

    Attributes
    ----------
    new : int
        Labels that the store did not have.
    scored : int
        Labels that it had, now with more scores.
    again : int
        Labels by a person that it had and that were added again. They now count as the newest.
    same : int
        Labels that it already had unchanged. Nothing was written for them.
    shown : Shown or None
        Which of them are shown now.
    """

    new: int
    scored: int
    again: int
    same: int
    shown: Shown | None

    def __new__(
        cls, new: int, scored: int, again: int, same: int, shown: Shown | None = None
    ) -> Self:
        """Make the integer from the counts."""
        found = super().__new__(cls, new + scored + again)
        found.new, found.scored, found.again, found.same = new, scored, again, same
        found.shown = shown
        return found

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        """Return what a copy is made with."""
        return type(self), (self.new, self.scored, self.again, self.same, self.shown)

    @override
    def __str__(self) -> str:
        counts = [f"{self.new:,} new label{'s' * (self.new != 1)}"]
        if self.scored:
            counts.append(f"{self.scored:,} with new scores")
        if self.again:
            counts.append(f"{self.again:,} said again")
        if self.same:
            counts.append(f"{self.same:,} there already")
        return ", ".join(counts) + ("" if self.shown is None else f"; {self.shown}")

    __repr__ = __str__
    __format__ = int.__format__


class NamedFeatures(list["FeatureLabel"]):
    """Labels that were made from tokens, and whether they show.

    A list of `FeatureLabel`. It prints as a sentence.

    Attributes
    ----------
    added : LabelsAdded or None
        What happened to them in the store; None if they were not added.
    shown : Shown
        Which of them the store shows, or would show.
    """

    added: LabelsAdded | None
    shown: Shown

    def __init__(
        self, labels: Iterable[FeatureLabel], added: LabelsAdded | None, shown: Shown
    ) -> None:
        super().__init__(labels)
        self.added = added
        self.shown = shown

    @override
    def __str__(self) -> str:
        said = f"{len(self):,} label{'s' * (len(self) != 1)} made from tokens: "
        if self.added is None:
            return f"{said}not added; in the store, {self.shown}"
        return f"{said}{self.added}"

    __repr__ = __str__


def _features(count: int) -> str:
    return f"{count:,} feature{'s' * (count != 1)}"


def _preferred(shown: FeatureLabel, other: FeatureLabel) -> str:
    """Return why a label is shown and not another one; see `best_labels`."""
    source = _SOURCES[shown.source]
    if shown.source == "given":
        return source if other.source != "given" else "given by a person, later"
    score, rival = shown.score, other.score
    if score is not None and score.low is not None and score.low > CHANCE:
        return f"{source}, with a score that is surely better than guessing"
    if rival is not None and rival.low is not None and rival.low <= CHANCE:
        return f"{source}, as these scored no better than guessing"
    return source if shown.source != other.source else f"{source}, later"
