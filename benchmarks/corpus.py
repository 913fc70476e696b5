"""A corpus of any size, resampled from real activations: chunk by chunk, never whole in memory.

A document is one of the documents of `base_chunk` followed by the first tokens of another (without its
BOS), which gives 106 tokens of 32 nonzeros on average and as many different documents as anyone asks for. What a
model does on the first tokens does not depend on those that follow, so all of it did come from a
model. A document's activations are scaled by a number between 0.9 and 1.1: otherwise a million
documents would tie for a feature's top 10.

The text of a document is its first sentence, and the tokens after it have an empty span at its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from real_activations import base_chunk, sentences

from interp_embed.core.chunk import Chunk, TokenTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_CHUNK_NNZ = 1.02 * 2**24  # a little more than compaction wants, so that it has nothing to merge


@dataclass(frozen=True)
class Corpus:
    """Resampled documents.

    A smaller corpus is the beginning of a larger one.

    Parameters
    ----------
    n_documents
        How many.
    """

    n_documents: int

    @cached_property
    def base(self) -> Chunk:
        """Return the documents that are resampled."""
        return base_chunk()

    def _random(self, column: int) -> np.random.Generator:
        return np.random.default_rng([0, column])

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        return self._random(0).integers(0, self.base.n_documents, self.n_documents)

    @cached_property
    def _second(self) -> NDArray[np.int64]:
        return self._random(1).integers(0, self.base.n_documents, self.n_documents)

    @cached_property
    def _cut(self) -> NDArray[np.int64]:
        """How many tokens of the second behind its BOS: none to all."""
        share = self._random(2).random(self.n_documents)
        length = np.diff(self.base.doc_ptr)[self._second]
        return np.floor(share * length).astype(np.int64)

    @cached_property
    def _scale(self) -> NDArray[np.float32]:
        return self._random(3).uniform(0.9, 1.1, self.n_documents).astype(np.float32)

    @cached_property
    def _spans(self) -> NDArray[np.int64]:
        """First and last token of each document's two parts, (documents, 2, 2)."""
        pointer = self.base.doc_ptr
        first, second = pointer[self._first], pointer[self._second] + 1
        return np.stack(
            [
                np.stack([first, pointer[self._first + 1]], axis=1),
                np.stack([second, second + self._cut], axis=1),
            ],
            axis=1,
        )

    @cached_property
    def n_tokens(self) -> NDArray[np.int64]:
        """Return the tokens of each document."""
        return np.diff(self._spans, axis=2).sum(axis=(1, 2))

    @cached_property
    def nnz(self) -> NDArray[np.int64]:
        """Return the nonzeros of each document."""
        return np.diff(self.base.token_ptr[self._spans], axis=2).sum(axis=(1, 2))

    @property
    def documents_per_chunk(self) -> int:
        """Return how many documents have about 2^24 nonzeros."""
        return int(np.ceil(_CHUNK_NNZ / self.nnz.mean()))

    @cached_property
    def _sentences(self) -> list[str]:
        return [parts[0] for parts in sentences()]

    def texts(self) -> list[str]:
        """Return the documents' texts."""
        return [self._sentences[i] for i in self._first.tolist()]

    def threshold(self, kept: float) -> float:
        """Return a threshold that about a share ``kept`` of the nonzeros are above."""
        return float(np.float16(np.quantile(self.base.activation, 1 - kept)))

    def chunk(self, start: int, stop: int) -> Chunk:
        """Return documents ``start:stop``; float32, but rounded to float16.

        So everything that is measured works on the same numbers.
        """
        base, spans = self.base, self._spans[start:stop]
        tokens = spans.reshape(-1, 2).tolist()
        nonzeros = base.token_ptr[spans].reshape(-1, 2).tolist()
        activation = np.concatenate([base.activation[a:b] for a, b in nonzeros])
        activation *= np.repeat(self._scale[start:stop], self.nnz[start:stop])
        length = np.diff(base.token_ptr)
        table = TokenTable.concatenate([base.tokens.take(slice(a, b)) for a, b in tokens])
        shown = np.array([len(s) for s in self._sentences], np.uint32)[self._first[start:stop]]
        end_of_text = np.repeat(shown, self.n_tokens[start:stop])
        # The tokens of the second part stand behind the text, too.
        second = np.repeat(np.tile([False, True], stop - start), np.diff(spans, axis=2).reshape(-1))
        begin = np.where(second, end_of_text, np.minimum(table.start, end_of_text))
        end = np.where(second, end_of_text, np.minimum(table.end, end_of_text))
        return Chunk(
            d_sae=base.d_sae,
            doc_id=np.arange(start, stop),
            status=np.zeros(stop - start, np.uint8),
            doc_ptr=_pointer(self.n_tokens[start:stop]),
            token_ptr=_pointer(np.concatenate([length[a:b] for a, b in tokens])),
            feature=np.concatenate([base.feature[a:b] for a, b in nonzeros]),
            activation=activation.astype(np.float16).astype(np.float32),
            tokens=TokenTable(table.id, begin, end, table.special),
            vocabulary=base.vocabulary,
        )

    def chunks(self) -> Iterator[Chunk]:
        """Yield all documents."""
        step = self.documents_per_chunk
        for start in range(0, self.n_documents, step):
            yield self.chunk(start, min(start + step, self.n_documents))


def _pointer(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)])
