"""Excerpts of documents: where they are cut, and marks on them.

Owns the cutting; `interp_embed.llm.samples.choice` chooses the documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from interp_embed.llm.samples.samples import Samples
    from interp_embed.selection.row import DatasetRow

__all__ = ["Example", "anywhere", "around_peak", "quiet", "scattered"]

_BEFORE = 2 / 3
"""Share of a window before the strongest token: the cause of its activation is there."""
_QUIET = 8
"""Least number of tokens in a row for an excerpt without the feature from a document with it."""


@dataclass(frozen=True, slots=True)
class Example:
    """An excerpt of a document, with the feature's activations on its tokens.

    Attributes
    ----------
    document : int
        Number of the document in its store.
    position : int
        Position of the document in the data set that it was chosen from.
    start, stop : int
        Range of the document's tokens, counting special ones.
    tokens : tuple of str
        The tokens in this range that are not special; they join to a part of the text.
    activations : tuple of float
        One per token.
    cut_before, cut_after : bool
        Whether the text continues there.
    """

    document: int
    position: int
    start: int
    stop: int
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    cut_before: bool
    cut_after: bool

    @property
    def active(self) -> list[bool]:
        """Whether the feature is active, for each token."""
        return [value > 0 for value in self.activations]

    @property
    def text(self) -> str:
        """The excerpt without marks."""
        return "".join(self.tokens)


def scattered(example: Example, rng: np.random.Generator) -> list[bool] | None:
    """Return marks as long as an excerpt's runs of active tokens, on tokens that are not active.

    Returns
    -------
    list of bool
        One per token; None if the excerpt has no room for them.
    """
    active = _units(example.tokens, np.array(example.active))
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate(([0], active.astype(int), [0])))))[::2]
    free = ~active
    marks = np.zeros(len(active), np.bool_)
    for length in rng.permutation(runs).tolist():
        starts = [
            at for at in range(len(free) - length + 1) if free[at : at + length].all()
        ]  # fmt: skip
        if not starts:
            return None
        at = int(rng.choice(starts))
        marks[at : at + length] = True
        free[max(0, at - 1) : at + length + 1] = False  # so that runs do not join
    whole = iter(marks.tolist())
    return [
        next(whole) if token or not number else False for number, token in enumerate(example.tokens)
    ]


def _units(tokens: tuple[str, ...], active: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which characters' tokens are active: of several that share one, all are where one is."""
    starts = [number for number, token in enumerate(tokens) if token or not number]
    return np.logical_or.reduceat(active, starts) if starts else active


def _ordinary(
    row: DatasetRow, feature: int
) -> tuple[NDArray[np.int64], list[str], NDArray[np.float32]]:
    """Return a document's ordinary tokens: where they are, their strings and activations."""
    where = np.flatnonzero(~row.special_tokens)
    # A fifth of the time that scipy takes to cut out a column.
    matrix = row.activations
    entries = np.flatnonzero(matrix.indices == feature)
    values = np.zeros(row.n_tokens, np.float32)
    values[np.searchsorted(matrix.indptr, entries, "right") - 1] = matrix.data[entries]
    return where, [row.tokenized_document[at] for at in where.tolist()], values[where]


def around_peak(
    samples: Samples, position: int, row: DatasetRow, feature: int, length: int
) -> Example | None:
    """Return the excerpt around the token on which a feature is strongest."""
    where, strings, values = _ordinary(row, feature)
    if len(values) == 0 or values.max() <= 0:
        return None  # active on special tokens alone
    first = max(0, int(values.argmax()) - int(_BEFORE * length))
    first = max(0, min(first, len(strings) - length))
    return _example(samples, position, where, strings, values, first, first + length)


def anywhere(
    samples: Samples,
    position: int,
    row: DatasetRow,
    feature: int,
    length: int,
    rng: np.random.Generator,
) -> Example | None:
    """Return an excerpt from anywhere in a document."""
    where, strings, values = _ordinary(row, feature)
    if len(strings) == 0:
        return None
    first = int(rng.integers(max(0, len(strings) - length) + 1))
    return _example(samples, position, where, strings, values, first, first + length)


def quiet(
    samples: Samples,
    position: int,
    row: DatasetRow,
    feature: int,
    length: int,
    rng: np.random.Generator,
) -> Example | None:
    """Take an excerpt from the longest run of tokens on which the feature is not active."""
    where, strings, values = _ordinary(row, feature)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], values <= 0, [False])).astype(int)))
    starts, ends = edges[::2], edges[1::2]
    if len(starts) == 0:
        return None
    longest = int((ends - starts).argmax())
    begin, end = int(starts[longest]), int(ends[longest])
    while begin < end and strings[begin] == "":  # the rest of a character that is active
        begin += 1
    while end < len(strings) and end > begin and strings[end] == "":
        end -= 1
    if end - begin < _QUIET:
        return None
    first = begin + int(rng.integers(max(0, end - begin - length) + 1))
    return _example(samples, position, where, strings, values, first, min(end, first + length))


def _example(
    samples: Samples,
    position: int,
    where: NDArray[np.int64],
    strings: list[str],
    values: NDArray[np.float32],
    first: int,
    last: int,
) -> Example:
    """Return the excerpt of some ordinary tokens; characters that tokens share are kept whole."""
    last = min(last, len(strings))
    while first > 0 and strings[first] == "":
        first -= 1
    while last < len(strings) and strings[last] == "":
        last += 1
    return Example(
        document=samples.document(position),
        position=position,
        start=int(where[first]),
        stop=int(where[last - 1]) + 1,
        tokens=tuple(strings[first:last]),
        activations=tuple(values[first:last].tolist()),
        cut_before=_has_text(strings[:first]),
        cut_after=_has_text(strings[last:]),
    )


def _has_text(strings: Iterable[Any]) -> bool:
    return any(string != "" for string in strings)
