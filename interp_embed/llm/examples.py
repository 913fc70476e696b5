"""Which excerpts of which documents a feature is shown by.

Owns the choice and the cutting; see `interp_embed.llm.render` for how excerpts become text. Everything
follows from the seed. A feature's documents come from the index where there is one, and only the
documents that are looked at are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from interp_embed.activations import Activations
    from interp_embed.row import DatasetRow

__all__ = [
    "Chosen",
    "Example",
    "NegativeChoice",
    "PositiveChoice",
    "check_choice",
    "choose",
    "scattered",
]

PositiveChoice = Literal["top", "quantile", "random"]
NegativeChoice = Literal["random", "hard"]

_POOL = 3
"""Of the top, so many times as many documents are considered as are wanted: as in the original."""
_PATIENCE = 20
"""So many times as many documents as are wanted are read at most, where some turn out useless."""
_BEFORE = 2 / 3
"""Share of a window that stands before the strongest token: what makes it active is there."""
_QUIET = 8
"""Tokens in a row, at least, that make an excerpt without the feature of a document that has it."""


@dataclass(frozen=True, slots=True)
class Example:
    """An excerpt of a document, and how active the feature is on its tokens.

    Attributes
    ----------
    document : int
        Number of the document in its store.
    position : int
        Its position in the data set that it was chosen from.
    start, stop : int
        Which of the document's tokens it is, special ones counted.
    tokens : tuple of str
        Those of them that are no special tokens; they join to a part of the text.
    activations : tuple of float
        One a token.
    cut_before, cut_after : bool
        Whether the text goes on there.
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
        """On which of the tokens the feature is active."""
        return [value > 0 for value in self.activations]

    @property
    def text(self) -> str:
        """The excerpt without marks."""
        return "".join(self.tokens)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Excerpts in which a feature is active, and excerpts in which it is not."""

    positive: tuple[Example, ...]
    negative: tuple[Example, ...]


def check_choice(examples: str, negatives: str, seed: Any) -> None:
    """Raise ValueError unless these say how to choose."""
    for name, given, known in (
        ("examples", examples, get_args(PositiveChoice)),
        ("negatives", negatives, get_args(NegativeChoice)),
    ):
        if given not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {given!r}")
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**63:
        raise ValueError(f"seed must be an integer, 0 or more and below 2**63, got {seed!r}")


def choose(
    positive: Activations,
    negative: Activations,
    feature: int,
    *,
    n_positive: int,
    n_negative: int,
    examples: PositiveChoice = "top",
    negatives: NegativeChoice = "random",
    seed: int = 0,
    window_tokens: int = 64,
) -> Chosen:
    """Choose excerpts that show a feature.

    Parameters
    ----------
    positive, negative
        Data sets to choose from; they may be the same.
    feature
        Feature index.
    n_positive, n_negative
        How many at most. There are fewer where documents are few, or say the same.
    examples
        ``"top"``: some of the three times as many documents in which the feature is strongest.
        ``"quantile"``: the documents in which it is active are ranked by how strong it is and cut
        into as many parts of equal size; one of each. ``"random"``: any in which it is active.
    negatives
        ``"random"``: any documents in which it is not active. ``"hard"``: those of them that are most
        like the positive ones in their other features. Where there are too few, excerpts without the
        feature of documents that have it.
    seed
        The same seed chooses the same excerpts of the same documents.
    window_tokens
        Length of an excerpt in tokens. It lies around the strongest token, two thirds before it.

    Raises
    ------
    ValueError
        If the feature is active in no document outside special tokens.
    IndexError
        If there is no such feature.
    """
    values = positive._feature_values([feature], "max")[:, 0]
    same = negative is positive
    others = values if same else negative._feature_values([feature], "max")[:, 0]
    rng = np.random.default_rng([seed, feature])
    seen: set[str] = set()
    active = np.flatnonzero(values > 0)  # NaN, of documents without activations, is not

    found = _read(
        positive,
        _candidates(active, values[active], n_positive, examples, rng),
        n_positive,
        lambda position, row: _around_peak(positive, position, row, feature, window_tokens),
        seen,
    )
    if not found:
        where = "outside special tokens" if len(active) else "at all"
        raise ValueError(
            f"feature {feature} is not active {where} in any of the {len(positive)} documents, so "
            "there is nothing to show of it; give another positive_dataset="
        )
    lacking = np.flatnonzero(others <= 0)
    if negatives == "hard":
        order = _nearest(negative, lacking, positive, [e.position for e in found], n_negative, rng)
    else:
        order = _shuffled(lacking, n_negative, rng)
    without = _read(
        negative,
        order,
        n_negative,
        lambda position, row: _anywhere(negative, position, row, feature, window_tokens, rng),
        seen,
    )
    if len(without) < n_negative:
        without += _read(
            negative,
            _shuffled(np.flatnonzero(others > 0), n_negative, rng),
            n_negative - len(without),
            lambda position, row: _quiet(negative, position, row, feature, window_tokens, rng),
            seen,
        )
    strongest = sorted(found, key=lambda e: (-max(e.activations), e.position))
    return Chosen(tuple(strongest), tuple(without))


def scattered(example: Example, rng: np.random.Generator) -> list[bool] | None:
    """Return marks as long as an excerpt's runs of active tokens, on tokens that are not active.

    Returns
    -------
    list of bool
        One a token; None where the excerpt has not room enough for them.
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


# Which documents


def _candidates(
    active: NDArray[np.int64],
    values: NDArray[np.float32],
    k: int,
    how: PositiveChoice,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return documents in the order in which to look at them."""
    if how == "random":
        return _shuffled(active, k, rng)
    ranked = active[np.argsort(-values, kind="stable")]
    if how == "top":
        pool = rng.permutation(ranked[: _POOL * k])
        return np.concatenate([pool, ranked[_POOL * k : _PATIENCE * k]])
    parts = [part for part in np.array_split(ranked, k) if len(part)]
    drawn = [rng.permutation(part)[:_PATIENCE] for part in parts]
    rounds = [part[n] for n in range(_PATIENCE) for part in drawn if n < len(part)]
    return np.array(rounds, np.int64)


def _shuffled(documents: NDArray[np.int64], k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.choice(documents, min(_PATIENCE * k, len(documents)), replace=False)


def _nearest(
    dataset: Activations,
    lacking: NDArray[np.int64],
    positive: Activations,
    examples: list[int],
    k: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    from interp_embed.llm.neighbours import nearest

    return nearest(dataset, lacking, positive, np.array(sorted(examples)), _PATIENCE * k, rng)


def _read(
    dataset: Activations,
    order: NDArray[np.int64],
    k: int,
    excerpt: Callable[[int, DatasetRow], Example | None],
    seen: set[str],
) -> list[Example]:
    """Look at documents in order until ``k`` of them gave an excerpt that was not seen yet."""
    found: list[Example] = []
    begin = 0
    while len(found) < k and begin < min(len(order), _PATIENCE * k):
        positions = order[begin : begin + k - len(found)]
        begin += len(positions)
        for position, row in zip(positions.tolist(), dataset._read_rows(positions), strict=True):
            example = None if row is None else excerpt(position, row)
            if example is not None and example.text.strip() and example.text not in seen:
                seen.add(example.text)
                found.append(example)
    return found


# Which excerpt


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


def _around_peak(
    dataset: Activations, position: int, row: DatasetRow, feature: int, length: int
) -> Example | None:
    where, strings, values = _ordinary(row, feature)
    if len(values) == 0 or values.max() <= 0:
        return None  # active on special tokens alone
    first = max(0, int(values.argmax()) - int(_BEFORE * length))
    first = max(0, min(first, len(strings) - length))
    return _example(dataset, position, where, strings, values, first, first + length)


def _anywhere(
    dataset: Activations,
    position: int,
    row: DatasetRow,
    feature: int,
    length: int,
    rng: np.random.Generator,
) -> Example | None:
    where, strings, values = _ordinary(row, feature)
    if len(strings) == 0:
        return None
    first = int(rng.integers(max(0, len(strings) - length) + 1))
    return _example(dataset, position, where, strings, values, first, first + length)


def _quiet(
    dataset: Activations,
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
    return _example(dataset, position, where, strings, values, first, min(end, first + length))


def _example(
    dataset: Activations,
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
        document=int(dataset._documents[position]),
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
