"""Names of features without a language model: the words that a feature prefers, and what they follow.

Finds the documents in which features are strongest, and collects the words on which they are active
there, from blocks of tokens that whoever calls it reads. Which of the words become a name is decided in
`interp_embed.analysis.lexical_names`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from interp_embed.analysis.lexical_names import SPECIAL, START, Uses, name_feature

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from interp_embed.core.chunk import Chunk
    from interp_embed.labels.record import FeatureLabel

__all__ = ["Strongest", "WordsOfFeatures", "strongest_documents"]

_WORD = re.compile(r"\w[\w'-]*\w|\w|[^\w\s]+")
_MOST_WORDS = 8
"""Words of one document that count for a feature: a long document is not to decide alone."""


class Strongest(NamedTuple):
    """Documents in which features are strongest, ordered by document.

    Attributes
    ----------
    document : ndarray of int64
        Positions of documents.
    feature : ndarray of int64
        A feature that is among its strongest in that document.
    """

    document: NDArray[np.int64]
    feature: NDArray[np.int64]

    def of(self, features: NDArray[np.bool_]) -> Strongest:
        """Return the part that is about some features."""
        chosen = features[self.feature]
        return Strongest(self.document[chosen], self.feature[chosen])


def strongest_documents(
    blocks: Iterable[tuple[NDArray[np.int64], csr_matrix]], d_sae: int, k: int
) -> Strongest:
    """Return the ``k`` documents of each feature in which its highest activation is highest.

    Parameters
    ----------
    blocks
        Positions of documents and their pooled activations (documents, d_sae), as
        `Dataset.iter_latents` gives them.
    d_sae, k
        Number of features, and of documents per feature.

    Returns
    -------
    Strongest
        Documents in which a feature is not above zero are not among them. Ties go to the document
        that came first. Takes the memory of ``d_sae * k`` entries and one block.
    """
    feature, value = np.empty(0, np.int64), np.empty(0, np.float32)
    document = np.empty(0, np.int64)
    least = np.zeros(d_sae, np.float32)
    for positions, matrix in blocks:
        with np.errstate(invalid="ignore"):  # a document without activations is a row of NaN
            keep = matrix.data > least[matrix.indices]
        rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))[keep]
        feature = np.concatenate([feature, matrix.indices[keep].astype(np.int64)])
        value = np.concatenate([value, matrix.data[keep]])
        document = np.concatenate([document, positions[rows]])
        # Stable, so that of equal values the earlier ones stay in front.
        order = np.lexsort((-value, feature))
        order = order[_rank_in_run(feature[order]) < k]
        feature, value, document = feature[order], value[order], document[order]
        last = np.flatnonzero(_rank_in_run(feature) == k - 1)
        least[feature[last]] = value[last]
    order = np.lexsort((feature, document))
    return Strongest(document[order], feature[order])


def _rank_in_run(ordered: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, 1, ... within each run of equal values."""
    at = np.arange(len(ordered))
    first = np.diff(ordered, prepend=-1) != 0
    return at - np.maximum.accumulate(np.where(first, at, 0)) if len(at) else at


class _Words(NamedTuple):
    """The words of some documents, one document after the other."""

    word: NDArray[np.int64]
    start: NDArray[np.int64]  # in the texts joined end to end
    end: NDArray[np.int64]
    first: NDArray[np.int64]  # of each document, the position of its first word
    offset: NDArray[np.int64]  # of each document, where its text begins


class WordsOfFeatures:
    """Collects the words on which features are active, and names the features.

    Takes the memory of the vocabulary of the documents that are added, and of ``8`` words for each of
    their pairs of a document and a feature.

    Parameters
    ----------
    d_sae
        Number of features.
    """

    def __init__(self, d_sae: int) -> None:
        self.d_sae = d_sae
        self._ids: dict[str, int] = {START: 0}
        self._counts = np.zeros(1024, np.float64)
        self._parts: list[Uses] = []

    def add(self, chunk: Chunk, texts: Sequence[str], strongest: Strongest) -> None:
        """Take account of some documents.

        Parameters
        ----------
        chunk
            Their tokens and activations. ``doc_id`` is what examples call them.
        texts
            One per document.
        strongest
            Which of the chunk's documents (by position) count for which features.
        """
        same = np.array([hash(text) for text in texts], np.int64)
        self._parts.append(self._uses(chunk, self._split(texts), same, strongest))

    def add_usual(self, texts: Sequence[str]) -> None:
        """Take account of texts for what is usual, whatever any feature likes."""
        ordinary = np.bincount(self._split(texts).word, minlength=len(self._counts))
        if len(ordinary) > len(self._counts):
            grown = np.zeros(2 * len(ordinary), np.float64)
            grown[: len(self._counts)] = self._counts
            self._counts = grown
        self._counts[: len(ordinary)] += ordinary

    def _split(self, texts: Sequence[str]) -> _Words:
        ids = self._ids
        word: list[int] = []
        start: list[int] = []
        end: list[int] = []
        first, offset, at = [], [], 0
        for text in texts:
            first.append(len(word))
            offset.append(at)
            for match in _WORD.finditer(text):
                word.append(ids.setdefault(match[0].lower(), len(ids)))
                start.append(at + match.start())
                end.append(at + match.end())
            at += len(text) + 1
        return _Words(*(np.array(x, np.int64) for x in (word, start, end, first, offset)))

    def _uses(
        self, chunk: Chunk, words: _Words, text: NDArray[np.int64], strongest: Strongest
    ) -> Uses:
        lengths = np.diff(chunk.doc_ptr)
        document = np.repeat(np.arange(chunk.n_documents), lengths)
        # Which nonzeros are of a pair that counts.
        wanted = strongest.document * self.d_sae + strongest.feature
        wanted.sort()
        token = np.repeat(np.arange(chunk.n_tokens), np.diff(chunk.token_ptr))
        pair = document[token] * self.d_sae + chunk.feature.astype(np.int64)
        keep = (chunk.activation > 0) & _isin_sorted(pair, wanted)
        pair, token = pair[keep], token[keep]
        activation = chunk.activation[keep].astype(np.float64)

        at = self._word_of_token(chunk, words, document)
        special = chunk.tokens.special[token]
        place = at[token]
        known = (place >= 0) | special
        pair, token, activation = pair[known], token[known], activation[known]
        place, special = place[known], special[known]
        # A special token stands for itself, behind all words.
        place = np.where(special, len(words.word) + token, place)
        # Of the tokens of a word the strongest counts.
        order = np.lexsort((-activation, place, pair))
        new = np.diff(pair[order], prepend=-1) != 0
        new |= np.diff(place[order], prepend=-1) != 0
        order = order[new]
        order = order[np.lexsort((-activation[order], pair[order]))]
        order = order[_rank_in_run(pair[order]) < _MOST_WORDS]
        pair, token, place, special = pair[order], token[order], place[order], special[order]
        owner = document[token]
        return Uses(
            feature=pair % self.d_sae,
            word=self._named(chunk, words, token, place, special),
            before=self._before(words, owner, place, special, 1),
            before_that=self._before(words, owner, place, special, 2),
            document=chunk.doc_id[owner],
            token=token - chunk.doc_ptr[owner],
            text=text[owner],
            activation=activation[order],
        )

    @staticmethod
    def _word_of_token(
        chunk: Chunk, words: _Words, document: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the position in ``words`` of the word that each token is of; -1 for none."""
        if not len(words.word):
            return np.full(chunk.n_tokens, -1)
        start = chunk.tokens.start.astype(np.int64) + words.offset[document]
        end = chunk.tokens.end.astype(np.int64) + words.offset[document]
        at = np.minimum(np.searchsorted(words.end, start, side="right"), len(words.word) - 1)
        touches = (words.start[at] < end) & (words.end[at] > start)
        return np.where(touches & ~chunk.tokens.special, at, -1)

    def _named(
        self,
        chunk: Chunk,
        words: _Words,
        token: NDArray[np.int64],
        place: NDArray[np.int64],
        special: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        named = np.empty(len(place), np.int64)
        named[~special] = words.word[place[~special]]
        ids = chunk.tokens.id[token[special]].tolist()
        named[special] = [
            self._ids.setdefault(SPECIAL + chunk.vocabulary.get(i, f"#{i}"), len(self._ids))
            for i in ids
        ]
        return named

    def _before(
        self,
        words: _Words,
        owner: NDArray[np.int64],
        place: NDArray[np.int64],
        special: NDArray[np.bool_],
        by: int,
    ) -> NDArray[np.int64]:
        """Return the word that stands ``by`` words before; 0, the start, where there is none."""
        inside = ~special & (place - by >= words.first[owner])
        found = np.zeros(len(place), np.int64)
        found[inside] = words.word[place[inside] - by]
        return found

    def labels(self, k: int = 20, words: int = 3) -> Iterator[FeatureLabel]:
        """Yield a label for each feature that was active somewhere, in order of features.

        Parameters
        ----------
        k
            How many of a feature's documents count, the strongest ones; of those that have the same text
            the first.
        words
            How many words a label has at most.
        """
        if not self._parts:
            return
        uses = Uses.concatenate(self._parts)
        order = np.lexsort((uses.token, uses.document, uses.feature))
        uses = uses.take(order)
        names = list(self._ids)
        counts = np.zeros(len(names), np.float64)
        known = min(len(names), len(self._counts))
        counts[:known] = self._counts[:known]
        bounds = np.flatnonzero(np.diff(uses.feature, prepend=-1)).tolist()
        for begin, end in zip(bounds, [*bounds[1:], len(uses)], strict=True):
            mine = uses.take(slice(begin, end)).of_strongest(k)
            yield name_feature(mine, names, counts, words)


def _isin_sorted(values: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.bool_]:
    if not len(among):
        return np.zeros(len(values), np.bool_)
    at = np.minimum(np.searchsorted(among, values), len(among) - 1)
    return np.asarray(among[at] == values)
