"""From tokenised documents to a chunk: batches, failures of single documents, and the order.

The language model and the SAE are callables here; nothing is known of how they were loaded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.chunk import Chunk, DocumentStatus, TokenTable, feature_dtype
from interp_embed.sae.assemble import NOT_FINITE, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from interp_embed.sae.runner import Runner
    from interp_embed.sae.sparsify import SparseEncoder, SparseTokens
    from interp_embed.sae.tokenizing import TokenizedDocument

__all__ = ["ChunkEncoder"]

# Tokens that the model is run on at once, and padding that costs no more than another batch would
# (on a CPU a batch costs about as much as 24 tokens; on a GPU, starting its kernels).
_BATCH_TOKENS = {"cpu": 1024, "gpu": 16384}
_PADDING_TOKENS = {"cpu": 32, "gpu": 2048}


class ChunkEncoder:
    """Encode tokenised documents, those of similar length together.

    Parameters
    ----------
    runner : Runner
        The language model.
    sparse : SparseEncoder
        The SAE.
    silent_token : int or None
        A BOS token whose activations are dropped; its row stays, empty.
    on_cpu : bool
        Whether the language model runs on a CPU.
    batch_tokens : int, optional
        Largest number of tokens, padding included, that the model is run on at once.
    """

    def __init__(
        self,
        runner: Runner,
        sparse: SparseEncoder,
        *,
        silent_token: int | None,
        on_cpu: bool,
        batch_tokens: int | None = None,
    ) -> None:
        self.silent_token = silent_token
        self._runner = runner
        self._sparse = sparse
        kind = "cpu" if on_cpu else "gpu"
        self._most_tokens = batch_tokens or _BATCH_TOKENS[kind]
        self._most_padding = _PADDING_TOKENS[kind]

    def __call__(
        self, documents: Sequence[TokenizedDocument], vocabulary: Mapping[int, str]
    ) -> Chunk:
        """Return the documents' activations in the order of the documents.

        A document that cannot be encoded (its own ``reason``, not enough memory for it alone,
        activations that are not finite) fails by itself.
        """
        import torch

        reasons = {i: d.reason for i, d in enumerate(documents) if d.reason is not None}
        order: list[int] = []
        parts: list[SparseTokens] = []
        with torch.inference_mode():
            for batch in self._batches(documents):
                for number, result in self._run(documents, batch):
                    if isinstance(result, str):
                        reasons[number] = result
                    else:
                        order.append(number)
                        parts.append(result)
        done = set(order)
        order += [i for i in range(len(documents)) if i not in done]
        tables = [documents[i].tokens if i in done else TokenTable.empty() for i in order]
        d_sae = self._sparse.d_sae
        chunk = Chunk(
            d_sae=d_sae,
            doc_id=np.array(order, np.int64),
            status=np.array([_status(documents[i], i in reasons) for i in order], np.uint8),
            doc_ptr=_pointer(np.array([len(t) for t in tables], np.int64)),
            token_ptr=_pointer(_join([p.count for p in parts], np.int64)),
            feature=_join([p.feature for p in parts], np.int32).astype(feature_dtype(d_sae)),
            activation=_join([p.activation for p in parts], np.float32),
            tokens=TokenTable.concatenate(tables),
            reasons={k: reasons[i] for k, i in enumerate(order) if i in reasons},
            vocabulary=dict(vocabulary),
        )
        return chunk.take(np.argsort(order)) if order else chunk

    def _batches(self, documents: Sequence[TokenizedDocument]) -> Iterator[list[int]]:
        """Yield documents of similar length, the longest first, within the budget of tokens.

        A batch is closed when its padding would cost more than running another one.
        """
        lengths = {i: len(d.tokens) for i, d in enumerate(documents) if len(d.tokens)}
        batch: list[int] = []
        longest = padding = 0
        for number in sorted(lengths, key=lambda i: -lengths[i]):
            padding += longest - lengths[number]
            too_long = (len(batch) + 1) * longest > self._most_tokens
            if batch and (too_long or padding > self._most_padding):
                yield batch
                batch = []
            if not batch:
                longest, padding = lengths[number], 0
            batch.append(number)
        if batch:
            yield batch

    def _run(
        self, documents: Sequence[TokenizedDocument], batch: list[int]
    ) -> Iterator[tuple[int, SparseTokens | str]]:
        """Yield the activations of each document of a batch, or why it failed."""
        import torch

        tables = [documents[i].tokens for i in batch]
        lengths = [len(t) for t in tables]
        try:
            sparse = self._sparse(self._runner([t.id for t in tables]), lengths)
        except (torch.OutOfMemoryError, IndexError) as error:
            # Too much at once, or an id that the model does not have: find the document to blame.
            if len(batch) == 1:
                yield batch[0], one_line(error)
                return
            middle = len(batch) // 2
            yield from self._run(documents, batch[:middle])
            yield from self._run(documents, batch[middle:])
            return
        if self.silent_token is not None:
            sparse = _without(sparse, self._silent_rows(tables))
        pointer = _pointer(sparse.count)
        token = 0
        for number, length in zip(batch, lengths, strict=True):
            rows = slice(token, token + length)
            where = slice(pointer[token], pointer[token + length])
            token += length
            if not sparse.finite[rows].all():
                yield number, NOT_FINITE
                continue
            yield (
                number,
                replace(
                    sparse,
                    count=sparse.count[rows],
                    feature=sparse.feature[where],
                    activation=sparse.activation[where],
                    finite=sparse.finite[rows],
                ),
            )

    def _silent_rows(self, tables: Sequence[TokenTable]) -> NDArray[np.bool_]:
        """Return which rows are those of the silent token in front of a document."""
        rows = np.zeros(sum(len(t) for t in tables), np.bool_)
        first = 0
        for table in tables:
            rows[first] = bool(table.special[0]) and int(table.id[0]) == self.silent_token
            first += len(table)
        return rows


def _status(document: TokenizedDocument, failed: bool) -> DocumentStatus:
    if failed:
        return DocumentStatus.FAILED
    return DocumentStatus.TRUNCATED if document.truncated else DocumentStatus.OK


def _without(sparse: SparseTokens, rows: NDArray[np.bool_]) -> SparseTokens:
    """Drop the activations of some tokens."""
    keep = ~np.repeat(rows, sparse.count)
    return replace(
        sparse,
        count=np.where(rows, 0, sparse.count),
        feature=sparse.feature[keep],
        activation=sparse.activation[keep],
    )


def _join(parts: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts])


def _pointer(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
