"""`interp-embed label`."""

from __future__ import annotations

import asyncio
import math
import re
import sys
from typing import TYPE_CHECKING, Any

from interp_embed import Dataset
from interp_embed.cli.facts import thousands
from interp_embed.cli.interrupts import says

if TYPE_CHECKING:
    from interp_embed.llm.bulk import BulkLabels

__all__ = ["read_features", "read_prices", "run_label"]

_KEPT = (
    "answers and labels that came are in the store. The same command again goes on from there, and "
    "pays for none of them again"
)
_SHOWN_FAILURES = 5


def read_features(text: str) -> list[int]:
    """Return the features of a list such as ``1,5-9``, each once.

    Raises
    ------
    ValueError
        If it is no such list.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise ValueError(f"features are numbers and ranges such as 1,5-9; got {part!r:.60}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"a range of features goes from low to high; got {part.strip()!r}")
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


def read_prices(text: str) -> tuple[float, float]:
    """Return two prices that are given as ``0.30,2.50``.

    Raises
    ------
    ValueError
        If it is not two numbers.
    """
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            "prices are two numbers such as 0.30,2.50: US dollars for a million tokens of prompts, and "
            f"of answers; got {text!r:.60}"
        ) from None
    return prompt, completion


def run_label(
    path: str,
    *,
    features: list[int] | None,
    prices: tuple[float, float] | None,
    only_estimate: bool,
    choice: dict[str, Any],
    limits: dict[str, Any],
) -> bool:
    """Label features, or print what it would take; return whether all of it was done.

    Parameters
    ----------
    path
        Of the store.
    features
        Which; None for those without a label.
    prices
        US dollars for a million tokens of prompts, and of answers.
    only_estimate
        Send nothing.
    choice
        Arguments of `Dataset.estimate_labels`.
    limits
        The others of `Dataset.label_features`.
    """
    dataset = Dataset.load_from_file(path)
    if only_estimate:
        print(dataset.estimate_labels(features, prices=prices, **choice))
        return True
    with says(_KEPT):
        found = asyncio.run(dataset.label_features(features, prices=prices, **choice, **limits))
    _print(path, found)
    return found.stopped is None


def _print(path: str, found: BulkLabels) -> None:
    labelled = int((found.table["label"] != "").sum())
    failed = found.failures
    cost = "" if math.isnan(found.cost) else f", ${found.cost:.4g}"
    print(f"{path}")
    print(
        f"  {thousands(labelled)} feature{'s' * (labelled != 1)} labelled, "
        f"{thousands(found.requests)} requests, {thousands(round(found.tokens))} tokens{cost}"
    )
    if found.kept:
        print(f"  {thousands(found.kept)} more requests were answered before")
    if len(failed):
        print(f"  {thousands(len(failed))} failed:")
        for feature, reason in (
            failed[["feature", "failed"]].head(_SHOWN_FAILURES).itertuples(index=False)
        ):
            print(f"    feature {feature}: {' '.join(reason.split())}")
        if len(failed) > _SHOWN_FAILURES:
            print("    ...")
    if found.stopped is not None:
        print(f"stopped: {found.stopped}", file=sys.stderr)
        print(f"note: {_KEPT}", file=sys.stderr)
