"""A name for a feature from the words on which it is active: which of them tell it from others.

The words of a feature are compared with those of a sample of all documents, by the log-odds ratio with
an informative Dirichlet prior [1]_, which ranks a word that is surely over-represented above one that
is seldom and happened to occur.

References
----------
.. [1] B. L. Monroe, M. P. Colaresi and K. M. Quinn, "Fightin' words: lexical feature selection and
   evaluation for identifying the content of political conflict", Political Analysis 16 (2008),
   372-403, section 3.5.1, equations 15, 16, 19, 20 and 22.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from interp_embed.labels.record import FeatureLabel, LabelExample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["METHOD", "SPECIAL", "START", "Uses", "log_odds", "name_feature"]

METHOD = "log-odds-1"
"""What stands in a label for how it was made; another number where the same texts give other names."""
START = "\0start"
"""What stands for the word before the first."""
SPECIAL = "\0special"
"""What a special token's name begins with, so that no word is taken for it."""
_PRIOR = 10.0
"""Words that the prior is worth, beside the few dozen that a feature is active on."""
_SURE = 1.96
"""Standard deviations from which on a word counts as over-represented: 95 %, two-sided."""
_LEAST = 0.01
_CLEARLY = 0.2
"""How much more of the activation what stands before must explain to become the name."""
_EXAMPLES = 5
_LONGEST_WORD = 100
"""Characters of a word that are shown."""


def log_odds(
    count: ArrayLike, total: float, other: ArrayLike, other_total: float, prior: ArrayLike
) -> NDArray[np.float64]:
    """Return how surely words are more frequent in one text than in another, as z-scores.

    The log-odds ratio of a word, each side's counts smoothed with its prior, divided by the ratio's
    approximate standard deviation [1]_.

    Parameters
    ----------
    count, other
        How often each word occurs on the one side and on the other; need not be whole.
    total, other_total
        How many words there are on each side.
    prior
        Pseudo-counts above 0, one per word. Their sum is taken to be that of the whole vocabulary.

    References
    ----------
    .. [1] Monroe, Colaresi and Quinn (2008); see the module.
    """
    y1, y2, alpha = (np.asarray(x, np.float64) for x in (count, other, prior))
    rest1 = np.maximum(total + _PRIOR - y1 - alpha, _LEAST)  # where a word is all there is
    rest2 = np.maximum(other_total + _PRIOR - y2 - alpha, _LEAST)
    difference = np.log((y1 + alpha) / rest1) - np.log((y2 + alpha) / rest2)
    return np.asarray(difference / np.sqrt(1 / (y1 + alpha) + 1 / (y2 + alpha)), np.float64)


@dataclass(frozen=True, slots=True)
class Uses:
    """Words on which features are active: one entry per word of a document and feature.

    Attributes
    ----------
    feature : ndarray of int64
    word, before, before_that : ndarray of int64
        Numbers of the word, and of the one and the other before it.
    document, token : ndarray of int64
        Where it is: the document's number, and the token's in the document.
    text : ndarray of int64
        The same for documents of the same text.
    activation : ndarray of float64
        Highest activation on the word's tokens, above 0.
    """

    feature: NDArray[np.int64]
    word: NDArray[np.int64]
    before: NDArray[np.int64]
    before_that: NDArray[np.int64]
    document: NDArray[np.int64]
    token: NDArray[np.int64]
    text: NDArray[np.int64]
    activation: NDArray[np.float64]

    @classmethod
    def concatenate(cls, parts: Sequence[Uses]) -> Uses:
        """Join uses end to end."""
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in cls.__slots__))

    def take(self, index: NDArray[np.int64] | slice) -> Uses:
        """Return the uses at ``index``, in that order."""
        return Uses(*(getattr(self, name)[index] for name in self.__slots__))

    def of_strongest(self, k: int) -> Uses:
        """Return the uses in the ``k`` strongest documents; of those with one text, in the first."""
        documents, where = np.unique(self.document, return_inverse=True)
        highest = np.zeros(len(documents))
        np.maximum.at(highest, where, self.activation)
        text = np.empty(len(documents), np.int64)
        text[where] = self.text
        order = np.lexsort((documents, -highest))
        _, first = np.unique(text[order], return_index=True)
        chosen = order[np.sort(first)][:k]
        return self.take(np.flatnonzero(np.isin(where, chosen)))

    def __len__(self) -> int:
        return len(self.feature)


class _Preferred(NamedTuple):
    """Words that a feature prefers, the surest first, and how much of its activation they have."""

    words: list[int]
    share: float
    z: list[float]
    documents: list[int]


def name_feature(
    uses: Uses, names: Sequence[str], counts: NDArray[np.float64], words: int
) -> FeatureLabel:
    """Return a label of one feature.

    Parameters
    ----------
    uses
        Words on which it is active; at least one.
    names
        The strings of words, by number.
    counts
        How often each word is in a sample of all documents.
    words
        How many words a label has at most.
    """
    return _Naming(uses, names, counts).label(words)


class _Naming:
    """One feature's words."""

    def __init__(self, uses: Uses, names: Sequence[str], counts: NDArray[np.float64]) -> None:
        self.uses = uses
        self.names = names
        self.counts = counts
        self.weight = uses.activation / uses.activation.max()
        self.n_documents = len(np.unique(uses.document))

    def label(self, words: int) -> FeatureLabel:
        on = self._preferred(self.uses.word, words, fill=True)
        after = self._preferred(self.uses.before, 2)
        if after.share >= max(0.5, on.share + _CLEARLY):
            said, share, chosen = self._phrase(after), after.share, after
        else:
            said, share, chosen = self._listed(on), on.share, on
            if len(on.words) == 1 and on.share >= 0.5 and after.share >= 0.8 and self._sure(after):
                said = f"{said}, as {self._phrase(after)}"
        place = "document" if self.n_documents == 1 else "documents"
        where = f"in the {self.n_documents} {place} where it is strongest"
        facts = "; ".join(
            f"{self._quoted(w)} z = {z:.1f}, in {n}"
            for w, z, n in zip(chosen.words, chosen.z, chosen.documents, strict=True)
        )
        strongest = np.argsort(-self.uses.activation, kind="stable")[:_EXAMPLES]
        return FeatureLabel(
            feature=int(self.uses.feature[0]),
            label=said,
            brief_description=f"{share:.0%} of its activation {where} is on {said}.",
            detailed_explanation=f"Log-odds with a Dirichlet prior, and number of documents: {facts}.",
            source="tokens",
            prompt_version=METHOD,
            examples=tuple(
                LabelExample(document, token, token + 1, activation)
                for document, token, activation in zip(
                    self.uses.document[strongest].tolist(),
                    self.uses.token[strongest].tolist(),
                    self.uses.activation[strongest].tolist(),
                    strict=True,
                )
            ),
        )

    def _preferred(self, words: NDArray[np.int64], most: int, *, fill: bool = False) -> _Preferred:
        found, where = np.unique(words, return_inverse=True)
        mine = np.bincount(where, self.weight)
        total, everything = float(mine.sum()), float(self.counts.sum())
        # At least as often as it was seen here: the sample need not have it.
        usual = np.maximum(self.counts[found], np.bincount(where))
        everything += float((usual - self.counts[found]).sum())
        z = log_odds(mine, total, usual, everything, _PRIOR * usual / everything)
        pairs = np.unique(np.stack([where, self.uses.document]), axis=1)[0]
        documents = np.bincount(pairs, minlength=len(found))
        sure = z >= _SURE
        if self.n_documents > 3:  # what is in one document may be about anything in it
            sure &= documents > 1
        spelled = [self.names[word] for word in found.tolist()]
        chosen = sorted(np.flatnonzero(sure).tolist(), key=lambda i: (-z[i], spelled[i]))[:most]
        if fill and mine[chosen].sum() < 0.5 * total:  # then also what there is most of
            others = np.setdiff1d(np.arange(len(found)), chosen).tolist()
            others.sort(key=lambda i: (-mine[i], spelled[i]))
            chosen += others[: most - len(chosen)]
        return _Preferred(
            found[chosen].tolist(),
            float(mine[chosen].sum() / total),
            z[chosen].tolist(),
            documents[chosen].tolist(),
        )

    def _listed(self, on: _Preferred) -> str:
        words = ", ".join(self._quoted(word) for word in on.words)
        return words if on.share >= 0.5 else f"{words}, …"

    def _phrase(self, after: _Preferred) -> str:
        """Return what a word follows: one or two words, each with the one before if it is always that."""
        if self.names[after.words[0]] == START:
            return "the first word"
        mine = [np.sum(self.weight[self.uses.before == word]) for word in after.words]
        said = []
        for word, share in zip(after.words, mine, strict=True):
            if self.names[word] == START or share < 0.25 * sum(mine):
                continue
            members = self.uses.before == word
            earlier, where = np.unique(self.uses.before_that[members], return_inverse=True)
            shares = np.bincount(where, self.weight[members])
            best = int(shares.argmax())
            whole = shares[best] >= 0.8 * shares.sum() and earlier[best] != 0
            told = _cut(self.names[int(earlier[best])]) + " " if whole and len(members) > 1 else ""
            said.append(f'"{told}{_cut(self.names[word])}"')
        return f"the word after {' or '.join(said)}"

    def _sure(self, after: _Preferred) -> bool:
        return self.n_documents > 1 and after.z[0] >= _SURE

    def _quoted(self, word: int) -> str:
        name = self.names[word]
        if name.startswith(SPECIAL):
            return f"the token {_cut(name.removeprefix(SPECIAL))}"
        return f'"{_cut(name)}"'


def _cut(word: str) -> str:
    """Return a word, cut where it is none: data in Base64, or a text without spaces."""
    return word if len(word) <= _LONGEST_WORD else f"{word[:_LONGEST_WORD]}…"
