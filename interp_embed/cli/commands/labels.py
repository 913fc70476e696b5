"""`interp-embed labels`."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import typer

from interp_embed import Dataset
from interp_embed.cli.facts import thousands
from interp_embed.labels.record import best_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interp_embed.labels.record import FeatureLabel

__all__ = ["run_labels"]

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that move the cursor, clear the screen or reverse text: labels are not trusted."""


def run_labels(
    path: str,
    *,
    features: Sequence[int],
    read: str | None,
    source: str | None,
    only: str | None,
    from_tokens: bool,
    write: str | None,
    every: bool,
    as_json: bool,
) -> None:
    """Add labels to a store, write them to a file, or print them."""
    dataset = Dataset.load_from_file(path)
    if write is not None:
        from interp_embed.exchange.label_files import check_writable

        check_writable(write)  # before anything is added
    _check_features(features, dataset.d_sae)
    if read is not None:
        added = dataset.import_labels(read, source=source, only=only)
        print(f"{path}: {read}: {added}", file=sys.stderr)
    if from_tokens:
        found = dataset.label_features_from_tokens(list(features) or None)
        print(f"{path}: {found}", file=sys.stderr)
    if write is not None:
        count = dataset.export_labels(write, best=not every)
        print(f"{write}: {_labels(count)}")
    if write is None and read is None and not from_tokens:
        _print(dataset, features, every=every, as_json=as_json)


def _check_features(features: Sequence[int], width: int | None) -> None:
    for feature in features:
        if width is not None and not 0 <= feature < width:
            raise typer.BadParameter(
                f"--feature must be between 0 and {width - 1} for this SAE, got {feature}"
            )


def _labels(count: int) -> str:
    return f"{thousands(count)} label{'s' * (count != 1)}"


def _print(dataset: Dataset, features: Sequence[int], *, every: bool, as_json: bool) -> None:
    records = dataset.label_records()
    if not every:
        records = list(best_labels(records).values())
    if features:
        records = [label for label in records if label.feature in features]
    if as_json:
        print(json.dumps([label.to_json() for label in records], indent=1, ensure_ascii=False))
        return
    if not records:
        print("no labels" + (" for " + ", ".join(map(str, features)) if features else ""))
        return
    width = max(len(str(label.feature)) for label in records)
    kinds = max(len(label.source) for label in records)
    for label in records:
        print(f"{label.feature:>{width}}  {label.source:<{kinds}}  {_said(label)}")


def _said(label: FeatureLabel) -> str:
    text = _CONTROL.sub("\ufffd", " ".join(label.label.split()))
    score = label.score
    if score is None:
        return text
    interval = "" if score.low is None else f" [{score.low:.2f}, {score.high:.2f}]"
    return f"{text}  ({score.method} {score.value:.2f}{interval})"
