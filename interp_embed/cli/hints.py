"""Words that hint at what a feature without a label stands for."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from interp_embed.selection.row import DatasetRow

__all__ = ["telling_words", "words_of_tokens"]

_WORD = re.compile(r"\w[\w'-]*\w|\w|[^\w\s]+")


def telling_words(rows: Iterable[DatasetRow], feature: int, k: int = 5) -> list[str]:
    """Return the words on which a feature is strong and that seldom occur without it.

    A word's score is the sum of the activations on its tokens, times the share of its occurrences in
    these documents on which the feature is active. So *the* does not win by being everywhere.

    Parameters
    ----------
    rows
        Documents in which the feature is active.
    feature
        Feature index.
    k
        Largest number of words.

    Returns
    -------
    list of str
        Lower case, the most telling first.
    """
    strength: defaultdict[str, float] = defaultdict(float)
    active: Counter[str] = Counter()
    occurrences: Counter[str] = Counter()
    for row in rows:
        values = row.activations[:, [feature]].toarray()[:, 0]
        ordinary = [i for i, special in enumerate(row.special_tokens.tolist()) if not special]
        tokens = [row.tokenized_document[i] for i in ordinary]
        for word, members in words_of_tokens(tokens):
            value = max(float(values[ordinary[i]]) for i in members)
            occurrences[word] += 1
            active[word] += value > 0
            strength[word] += max(value, 0.0)
    score = {word: strength[word] * active[word] / occurrences[word] for word in strength}
    ranked = sorted((w for w in score if score[w] > 0), key=lambda w: (-score[w], w))
    return ranked[:k]


def words_of_tokens(tokens: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Return the words (and runs of punctuation) of joined tokens, with the tokens of each.

    Models split words: *custard* is *c*, *ust*, *ard* to them, which says little to people.
    """
    text = "".join(tokens)
    owner = [i for i, token in enumerate(tokens) for _ in token]
    return [
        (match[0].lower(), sorted(set(owner[match.start() : match.end()])))
        for match in _WORD.finditer(text)
    ]
