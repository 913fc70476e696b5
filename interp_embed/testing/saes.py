"""An SAE that runs no model, for measuring and testing the code around one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.chunk import Chunk, TokenTable
from interp_embed.sae.base import BaseSAE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

__all__ = ["ReplaySAE"]


class ReplaySAE(BaseSAE):
    """Returns known activations, as fast as memory allows.

    A text begins with a number, such as ``"17"`` or ``"17 and more"``. It has the activations of the
    document at that position, modulo the number of documents. Its first ordinary token is the whole
    text; later ordinary tokens are empty.

    Parameters
    ----------
    chunk : Chunk, optional
        Documents to take activations from, each with at least one token. Without it the SAE has
        metadata, but cannot be loaded.
    """

    recorded_as = "interp_embed.testing:ReplaySAE"
    makes_batches = True

    def __init__(self, chunk: Chunk | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._chunk = chunk
        if chunk is not None:
            self._d_sae = chunk.d_sae

    def load_models(self) -> None:
        """Check that there is something to replay."""
        if self._chunk is None:
            raise ValueError("ReplaySAE has no activations to replay; pass chunk=")
        starts = self._chunk.doc_ptr[:-1]
        if (np.diff(self._chunk.doc_ptr) == 0).any():
            raise ValueError("every document to replay needs a token")
        ordinary = np.flatnonzero(~self._chunk.tokens.special)
        where = np.searchsorted(ordinary, starts)
        found = ordinary[np.minimum(where, len(ordinary) - 1)] if len(ordinary) else starts - 1
        inside = (found >= starts) & (found < self._chunk.doc_ptr[1:])
        if not inside.all():
            raise ValueError("every document to replay needs an ordinary token")
        self._first_ordinary = found - starts

    def destroy_models(self) -> None:
        """Do nothing: the replayed documents stay."""

    def encode(self, texts: Sequence[str]) -> list[csr_matrix | None]:
        """Return the activations of each text."""
        chunk = self.encode_chunk(texts)
        return [chunk.csr(i) for i in range(chunk.n_documents)]

    def tokenize(
        self, documents: Sequence[str], as_tokens: bool = True, padding: bool = False
    ) -> list[list[str]]:
        """Return each text's tokens as strings."""
        chunk = self.encode_chunk(documents)
        rows = []
        for position, text in enumerate(documents):
            table = chunk.tokens.take(
                slice(int(chunk.doc_ptr[position]), int(chunk.doc_ptr[position + 1]))
            )
            rows.append([text[a:b] for a, b in zip(table.start, table.end, strict=True)])
        return rows

    def encode_chunk(self, texts: Sequence[str]) -> Chunk:
        """Return the activations that the texts' numbers name; the arrays are shared if they can be."""
        self._require_loaded()
        base = self._chunk
        if base is None:  # pragma: no cover - it cannot be loaded then
            raise ValueError("ReplaySAE has no activations to replay; pass chunk=")
        rows = np.array([int(t.split(" ", 1)[0]) for t in texts], np.int64) % base.n_documents
        taken = base.take(rows)
        lengths = np.array([len(text) for text in texts], np.uint32)
        tokens = _respan(taken, lengths, taken.doc_ptr[:-1] + self._first_ordinary[rows])
        return replace(taken, doc_id=np.arange(len(texts)), tokens=tokens)


def _respan(chunk: Chunk, lengths: NDArray[np.uint32], first: NDArray[np.int64]) -> TokenTable:
    """Return the tokens with spans of texts of other lengths."""
    special = chunk.tokens.special
    end = np.repeat(lengths, np.diff(chunk.doc_ptr))
    end[special] = 0
    start = end.copy()
    start[first] = 0
    return TokenTable(chunk.tokens.id, start, end, special)
