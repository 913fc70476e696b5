"""The labels of a store as a dataset sees them: showing, adding, importing and exporting them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp_embed.core.checks import check_feature
from interp_embed.exchange.label_files import check_writable, read_labels, write_labels
from interp_embed.exchange.paths import expanded
from interp_embed.labels.record import FeatureLabel, best_labels
from interp_embed.labels.report import LabelsAdded, Shown

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

    from interp_embed.store import Store

__all__ = ["SeenLabels", "label_records"]

_DTYPES: dict[str, Any] = {
    "feature": "int64", "label": object, "best": bool, "source": object,
    "brief_description": object, "detailed_explanation": object, "model": object,
    "prompt_version": object, "seed": "Int64", "origin": object, "created": object,
    "score_method": object, "score": "float64", "low": "float64", "high": "float64",
    "n": "Int64", "n_scores": "int64", "n_examples": "int64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SeenLabels:
    """The labels of a store, where a dataset's own names replace those that the store began with.

    Parameters
    ----------
    store : Store
        Keeps the labels.
    own : mapping of int to str or None
        Names of features in place of those that the store began with; None for the store's.
    source : str
        Where ``own`` comes from; see `FeatureLabel`.
    n_features : int or None
        Number of features of the SAE, if known.
    """

    store: Store
    own: Mapping[int, str] | None
    source: str
    n_features: int | None

    def shown(self) -> dict[int, str]:
        """Return the label that is shown for each feature."""
        return self.store.labels.shown(self.own, self.source)

    def records(self) -> list[FeatureLabel]:
        """Return every label of every feature, sorted by feature, then by time."""
        self.store.labels.refresh()
        return self.store.labels.all(self.own, self.source)

    def table(self) -> pd.DataFrame:
        """Return every label of every feature as a table; see `Dataset.labels`."""
        self.store.labels.refresh()
        lights = self.store.labels.lights(self.own, self.source)
        best = {label.key for label in best_labels(light.label for light in lights).values()}
        rows = []
        for light in lights:
            label, score = light.label, light.label.score
            rows.append(
                {
                    "feature": label.feature,
                    "label": label.label,
                    "best": label.key in best,
                    "source": label.source,
                    "brief_description": label.brief_description,
                    "detailed_explanation": label.detailed_explanation,
                    "model": label.model,
                    "prompt_version": label.prompt_version,
                    "seed": label.seed,
                    "origin": label.origin,
                    "created": label.created,
                    "score_method": "" if score is None else score.method,
                    "score": None if score is None else score.value,
                    "low": None if score is None else score.low,
                    "high": None if score is None else score.high,
                    "n": None if score is None else score.n,
                    "n_scores": len(label.scores),
                    "n_examples": light.n_examples,
                }
            )
        return pd.DataFrame(rows, columns=list(_DTYPES)).astype(_DTYPES)

    def check(self, records: Iterable[FeatureLabel], where: str = "") -> None:
        """Raise IndexError if the SAE lacks a feature; ``where`` begins the message."""
        if self.n_features is None:
            return
        try:
            for record in records:
                check_feature(record.feature, self.n_features)
        except IndexError as error:
            raise IndexError(f"{where}{error}") from None

    def add(self, records: Sequence[FeatureLabel]) -> LabelsAdded:
        """Commit labels; see `Dataset.add_labels`."""
        self.check(records)
        labels, features = self.store.labels, {record.feature for record in records}
        before = labels.best(features, self.own, self.source)
        added = labels.add(records)
        shown = Shown.of(records, before, labels.best(features, self.own, self.source))
        return LabelsAdded(added.new, added.scored, added.again, added.same, shown)

    def preview(self, records: Sequence[FeatureLabel]) -> Shown:
        """Return which of these labels would be shown if they were added."""
        labels, features = self.store.labels, [record.feature for record in records]
        before = labels.best(features, self.own, self.source)
        return Shown.of(
            records, before, labels.best(features, self.own, self.source, beside=records)
        )

    def export(self, path: str | os.PathLike[str], *, best: bool) -> int:
        """Write labels to a file; see `Dataset.export_labels`."""
        target = expanded(path)
        check_writable(target)
        records = self.records()
        if best:
            records = list(best_labels(records).values())
        write_labels(target, records)
        return len(records)

    def import_from(
        self, path: str | os.PathLike[str], *, source: str | None, only: str | None
    ) -> LabelsAdded:
        """Add the labels of files; see `Dataset.import_labels`."""
        records = read_labels(expanded(path), source=source, only=only)
        self.check(records, f"{path}: ")
        held = self.store.n_documents
        if any(example.document >= held for record in records for example in record.examples):
            warnings.warn(
                f"{path}: its labels were made from documents of another store: they refer to documents "
                f"that this store, which has {held}, lacks. They are added without their examples",
                stacklevel=3,
            )
            records = [replace(record, examples=()) for record in records]
        return self.add(records)


def label_records(
    labels: Mapping[int, str] | Iterable[FeatureLabel] | FeatureLabel, source: str
) -> Iterator[FeatureLabel]:
    """Yield the labels that a caller passed by feature, as one record, or as several records.

    Raises
    ------
    TypeError, ValueError
        If something is not a label.
    """
    if isinstance(labels, Mapping) or hasattr(labels, "items"):
        for feature, label in labels.items():
            # A number as text, as keys of JSON are; what else is no integer is refused.
            number = int(feature) if isinstance(feature, str) else feature
            yield FeatureLabel(number, label, source=source)
        return
    if isinstance(labels, FeatureLabel):
        yield labels
        return
    for record in labels:
        if not isinstance(record, FeatureLabel):
            raise TypeError(
                f"labels must be a dictionary of labels by feature, or FeatureLabel objects, got "
                f"{record!r:.80}"
            )
        yield record
