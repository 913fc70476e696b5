"""Choosing the documents and excerpts that show a feature.

Owns the choice of documents; `interp_embed.llm.samples.excerpts` cuts them, and
`interp_embed.llm.samples.render` turns excerpts into text. Everything follows from the seed. A
feature's documents come from the index if there is one, and only the needed documents are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from interp_embed.core.checks import check_one_of, check_positive, is_integer
from interp_embed.llm.samples.excerpts import Example, anywhere, around_peak, quiet, scattered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from interp_embed.llm.samples.samples import Samples
    from interp_embed.selection.row import DatasetRow

__all__ = [
    "Choice",
    "Chosen",
    "Example",
    "NegativeChoice",
    "PositiveChoice",
    "choose",
    "scattered",
]

PositiveChoice = Literal["top", "quantile", "random"]
NegativeChoice = Literal["random", "hard"]

_POOL = 3
"""Number of top documents considered, relative to the number wanted: as in the original."""
_PATIENCE = 20
"""Largest number of documents read, relative to the number wanted, if some turn out useless."""
_TOKENS = 2**16
"""Of the documents that are read together, if they are more than one. A token takes some 200 bytes."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Excerpts in which a feature is active, and excerpts in which it is not."""

    positive: tuple[Example, ...]
    negative: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The way in which samples of a feature are chosen.

    Parameters
    ----------
    examples : {"top", "quantile", "random"}
        ``"top"``: a choice from three times as many documents, those in which the feature is
        strongest. ``"quantile"``: the documents in which it is active are ranked by its strength and
        cut into as many parts of equal size; one document per part. ``"random"``: any documents in
        which it is active.
    negatives : {"random", "hard"}
        ``"random"``: any documents in which it is not active. ``"hard"``: those of them whose other
        features are most similar to those of the positive ones. If there are too few, excerpts
        without the feature from documents that have it are added.
    seed : int
        The same seed chooses the same excerpts of the same documents.
    window_tokens : int
        Length of an excerpt in tokens. It surrounds the strongest token, two thirds of it before.

    Raises
    ------
    ValueError
        If an argument is invalid.
    """

    examples: PositiveChoice = "top"
    negatives: NegativeChoice = "random"
    seed: int = 0
    window_tokens: int = 64

    def __post_init__(self) -> None:
        check_positive(window_tokens=self.window_tokens)
        for name, given, known in (
            ("examples", self.examples, get_args(PositiveChoice)),
            ("negatives", self.negatives, get_args(NegativeChoice)),
        ):
            check_one_of(name, given, known)
        seed: object = self.seed
        if not is_integer(seed) or not 0 <= seed < 2**63:
            raise ValueError(f"seed must be an integer from 0 to 2**63 - 1, got {seed!r}")


def choose(
    positive: Samples,
    negative: Samples,
    feature: int,
    choice: Choice,
    *,
    n_positive: int,
    n_negative: int,
) -> Chosen:
    """Choose excerpts that show a feature.

    Parameters
    ----------
    positive, negative
        Documents to choose from; they may be the same.
    feature
        Feature index.
    choice
        The way to choose.
    n_positive, n_negative
        Largest numbers of excerpts. There are fewer if there are few documents, or if they repeat.

    Raises
    ------
    ValueError
        If no document has the feature active outside special tokens.
    IndexError
        If there is no such feature.
    """
    values = positive.strengths([feature])[:, 0]
    same = negative is positive
    others = values if same else negative.strengths([feature])[:, 0]
    length = choice.window_tokens
    rng = np.random.default_rng([choice.seed, feature])
    seen: set[str] = set()
    active = np.flatnonzero(values > 0)  # NaN, of documents without activations, is not

    found = _read(
        positive,
        _candidates(active, values[active], n_positive, choice.examples, rng),
        n_positive,
        lambda position, row: around_peak(positive, position, row, feature, length),
        seen,
    )
    if not found:
        where = "outside special tokens" if len(active) else "at all"
        raise ValueError(
            f"feature {feature} is not active {where} in any of the {len(positive)} documents, so "
            "there are no samples of it; take samples from documents that have it"
        )
    lacking = np.flatnonzero(others <= 0)
    if choice.negatives == "hard":
        order = _nearest(negative, lacking, positive, [e.position for e in found], n_negative, rng)
    else:
        order = _shuffled(lacking, n_negative, rng)
    without = _read(
        negative,
        order,
        n_negative,
        lambda position, row: anywhere(negative, position, row, feature, length, rng),
        seen,
    )
    if len(without) < n_negative:
        without += _read(
            negative,
            _shuffled(np.flatnonzero(others > 0), n_negative, rng),
            n_negative - len(without),
            lambda position, row: quiet(negative, position, row, feature, length, rng),
            seen,
        )
    strongest = sorted(found, key=lambda e: (-max(e.activations), e.position))
    return Chosen(tuple(strongest), tuple(without))


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
    samples: Samples,
    lacking: NDArray[np.int64],
    positive: Samples,
    examples: list[int],
    k: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    from interp_embed.llm.samples.neighbours import nearest

    return nearest(samples, lacking, positive, np.array(sorted(examples)), _PATIENCE * k, rng)


def _read(
    samples: Samples,
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
        for some in _bounded(samples, positions):
            for example in _excerpts(samples, some, excerpt):
                if example is not None and example.text.strip() and example.text not in seen:
                    seen.add(example.text)
                    found.append(example)
    return found


def _bounded(samples: Samples, positions: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Cut documents into groups that are held at once: a longer one than `_TOKENS` is alone."""
    end = np.cumsum(samples.n_tokens(positions))
    begin = 0
    while begin < len(positions):
        before = int(end[begin - 1]) if begin else 0
        stop = max(begin + 1, int(np.searchsorted(end, before + _TOKENS, "right")))
        yield positions[begin:stop]
        begin = stop


def _excerpts(
    samples: Samples,
    positions: NDArray[np.int64],
    excerpt: Callable[[int, DatasetRow], Example | None],
) -> list[Example | None]:
    """Return an excerpt a document; when it returns, none of the documents is held any more."""
    rows = samples.rows(positions)
    return [
        None if row is None else excerpt(position, row)
        for position, row in zip(positions.tolist(), rows, strict=True)
    ]
