"""Labels for the features of a selection, made from the words that they prefer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interp_embed.aggregate.matrices import aggregate_blocks
from interp_embed.aggregate.reductions import REDUCTIONS
from interp_embed.analysis.lexical import Strongest, WordsOfFeatures, strongest_documents
from interp_embed.core.checks import check_features

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from interp_embed.core.chunk import Chunk
    from interp_embed.labels.record import FeatureLabel
    from interp_embed.selection.selection import Selection

__all__ = ["feature_mask", "labels_from_tokens"]

_READ_DOCUMENTS = 256
_CANDIDATES = 3
"""Documents that are read for each that counts: some may have the same text."""
_USUAL_DOCUMENTS, _USUAL_CHARACTERS = 2048, 4096
_PAIRS = 2**18
"""Pairs of a feature and a document that are read together: 8 words of each are held."""


def feature_mask(features: Sequence[int] | None, width: int) -> NDArray[np.bool_]:
    """Return which of ``width`` features are named; all of them for None.

    Raises
    ------
    TypeError
        If they are not a list of integers.
    IndexError
        If the SAE has no such feature.
    """
    mask = np.full(width, features is None)
    if features is not None:
        mask[check_features(features, width)] = True
    return mask


def labels_from_tokens(
    selection: Selection, wanted: NDArray[np.bool_], *, k: int, words: int
) -> list[FeatureLabel]:
    """Name features by the words that they prefer; see `Dataset.label_features_from_tokens`.

    Parameters
    ----------
    selection
        The documents that show the features.
    wanted
        For each feature of the SAE whether it is to be named.
    k
        Documents per feature, of different texts.
    words
        Words per label at most.

    Returns
    -------
    list of FeatureLabel
        In order of features. A feature that is never active gets no label.
    """
    width, candidates = len(wanted), _CANDIDATES * k
    blocks = aggregate_blocks(selection.store, selection.documents, REDUCTIONS["max"], 0.0)
    strongest = strongest_documents(blocks, width, candidates).of(wanted)
    usual = _usual_texts(selection) if len(strongest.document) else []
    chosen = np.flatnonzero(wanted)
    found: list[FeatureLabel] = []
    for begin in range(0, len(chosen), step := max(1, _PAIRS // candidates)):
        part = np.zeros(width, np.bool_)
        part[chosen[begin : begin + step]] = True
        counted = WordsOfFeatures(width)
        counted.add_usual(usual)
        for chunk, texts, pairs in _token_blocks(selection, strongest.of(part)):
            counted.add(chunk, texts, pairs)
        found += counted.labels(k, words)
    return found


def _usual_texts(selection: Selection) -> list[str]:
    """Return the beginnings of some documents, evenly spread: what is usual among them."""
    count = min(len(selection), _USUAL_DOCUMENTS)
    some = np.linspace(0, len(selection) - 1, count).astype(np.int64)
    return [t[:_USUAL_CHARACTERS] for t in selection.texts(some) if isinstance(t, str)]


def _token_blocks(
    selection: Selection, strongest: Strongest
) -> Iterator[tuple[Chunk, list[str], Strongest]]:
    """Yield the documents that are named, some at a time, with their texts."""
    positions = np.unique(strongest.document)
    for begin in range(0, len(positions), _READ_DOCUMENTS):
        some = positions[begin : begin + _READ_DOCUMENTS]
        chunk = selection.store.chunk(selection.documents[some])
        low, high = np.searchsorted(strongest.document, [some[0], some[-1] + 1])
        at = np.searchsorted(some, strongest.document[low:high])
        yield chunk, selection.texts(some), Strongest(at, strongest.feature[low:high])
