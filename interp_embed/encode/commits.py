"""The end of the pipeline: encoded documents become chunks, and chunks are committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interp_embed.core.chunk import DocumentStatus
from interp_embed.encode.monitor import Counts
from interp_embed.encode.portions import neighbours

if TYPE_CHECKING:
    from interp_embed.core.chunk import Chunk
    from interp_embed.encode.isolate import EncodedDocuments
    from interp_embed.encode.portions import Piece
    from interp_embed.sae.base import BaseSAE
    from interp_embed.store.write.writer import StoreWriter

__all__ = ["ATTEMPTS", "Committer"]

ATTEMPTS = 5
"""How often something is done again that another process cleared away meanwhile."""
_HOPELESS = 100
_OF_THE_DOCUMENT = ("the text is", "the document has")
"""Beginnings of reasons that do not concern the SAE or its device: no text, or too long a text."""


class Committer:
    """Commits pieces in the order in which they come.

    Parameters
    ----------
    writer
        Of the store.
    sae
        The SAE that encodes; only its number of features is used.
    """

    def __init__(self, writer: StoreWriter, sae: BaseSAE) -> None:
        self._writer = writer
        self._sae = sae
        self._generation = writer.store.ledger.next_generation
        self._streak = _Streak()

    def commit(self, piece: Piece, encoded: EncodedDocuments) -> Counts:
        """Commit a piece. Of documents that failed before, commit only those that did not fail again.

        Raises
        ------
        RuntimeError
            If too many documents in a row failed in the same way, so that the SAE must be at fault.
        """
        chunk = encoded.chunk(piece.start, self._sae.d_sae)
        chunk = chunk.with_failures(chunk.beyond_range(self._writer.dtype))
        if (
            not piece.again
        ):  # documents known to be bad, from all over the store, are now neighbours
            self._streak.check(chunk)
        ok = np.flatnonzero(chunk.status != DocumentStatus.FAILED)
        if piece.again:
            for low, high in neighbours(ok.tolist()):
                self._write(chunk.take(np.arange(low, high)), self._generation)
        else:
            self._write(chunk, 0)
        return Counts(len(ok), len(piece) - len(ok), chunk.n_tokens, chunk.nnz)

    def _write(self, chunk: Chunk, generation: int) -> None:
        for attempt in range(ATTEMPTS):
            try:
                self._writer.write(chunk, generation=generation)
            except FileNotFoundError:  # another process finished the store and cleared this away
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                return


class _Streak:
    """Notices that not the documents are bad but what encodes them."""

    def __init__(self) -> None:
        self._kind = ""
        self._length = 0

    def check(self, chunk: Chunk) -> None:
        """Raise RuntimeError if too many documents in a row, up to now, failed in the same way."""
        if not chunk.reasons:
            self._kind, self._length = "", 0
            return
        for position in range(chunk.n_documents):
            reason = chunk.reasons.get(position, "")
            kind = reason.partition(":")[0]
            if reason.startswith(_OF_THE_DOCUMENT):
                continue
            self._length = self._length + 1 if kind and kind == self._kind else bool(kind)
            self._kind = kind
            if self._length >= _HOPELESS:
                raise RuntimeError(
                    f"the last {self._length} documents all failed in the same way, so the SAE "
                    f"or its device must be at fault: {reason}. Fix that and resume"
                )
