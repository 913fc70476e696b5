"""Grouping failed features by reason: the number per reason, and the first of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from typing_extensions import override

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Reason", "bulk_html", "lines_of", "reasons"]

_NAMED = 5
"""Largest number of reasons, and of features per reason, that are named."""
_LONGEST = 200
_ROWS = 20


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason for which some features failed.

    Attributes
    ----------
    said : str
        The reason of the first of them.
    features : list of int
        The features that failed for this reason, or for one that differs only in its numbers.
    """

    said: str
    features: list[int]

    @override
    def __str__(self) -> str:
        said = " ".join(self.said.split())
        said = said if len(said) <= _LONGEST else f"{said[: _LONGEST - 1].rstrip()}…"
        count = len(self.features)
        first = ", ".join(map(str, self.features[:_NAMED])) + ", …" * (count > _NAMED)
        return f"{count:,} failed: {said} (feature{'s' * (count != 1)} {first})"


def reasons(table: pd.DataFrame) -> list[Reason]:
    """Return why features of a table failed, the most frequent reason first.

    Parameters
    ----------
    table
        With the columns ``feature`` and ``failed``, which is empty if nothing went wrong.
    """
    found: dict[str, Reason] = {}
    for feature, said in zip(table["feature"].tolist(), table["failed"].tolist(), strict=True):
        if said:
            # One message names its feature, its document, or how many samples there were.
            kind = re.sub(r"[0-9]+", "0", said)
            found.setdefault(kind, Reason(said, [])).features.append(feature)
    return sorted(found.values(), key=lambda reason: -len(reason.features))


def lines_of(table: pd.DataFrame) -> list[str]:
    """Return one line per reason for the most frequent ones, and one line for the others."""
    known = reasons(table)
    more = len(known) - _NAMED
    left = sum(len(reason.features) for reason in known[_NAMED:])
    shown = [str(reason) for reason in known[:_NAMED]]
    if more > 0:
        shown.append(
            f"{left:,} failed for {more:,} other reason{'s' * (more != 1)}: see `failures`"
        )
    return shown


def bulk_html(summary: str, table: pd.DataFrame) -> str:
    """Return a table of labels for a notebook: the totals, the reasons of failures, the first rows."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines_of(table))
    rows = table.head(_ROWS).to_html(index=False, border=0, max_cols=None)
    more = len(table) - _ROWS
    rest = f"<p>and {more:,} more rows in <code>table</code></p>" if more > 0 else ""
    return f"<p>{escape(summary)}</p>{f'<ul>{items}</ul>' if items else ''}{rows}{rest}"
