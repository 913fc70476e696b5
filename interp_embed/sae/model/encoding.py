"""From tokenised documents to a chunk: batches, failures of single documents, and the order.

The language model and the SAE are callables here; this module does not know how they were loaded.
One batch is in flight: its results are awaited after the next one has been launched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.bisect import Worklist
from interp_embed.core.chunk import Chunk, DocumentStatus, TokenTable, feature_dtype
from interp_embed.sae.assemble import NOT_FINITE, one_line
from interp_embed.sae.batch_budget import Budget, free_cached, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from interp_embed.sae.model.runner import Runner
    from interp_embed.sae.model.sparsify import PendingTokens, SparseEncoder, SparseTokens
    from interp_embed.sae.model.tokenizing import TokenizedDocument, Window

__all__ = ["ChunkEncoder"]

# Tokens that the model is run on at once, and padding that costs no more than another batch would
# (on a CPU a batch costs about as much as 24 tokens; on a GPU, starting its kernels).
_BATCH_TOKENS = {"cpu": 1024, "gpu": 16384}
_PADDING_TOKENS = {"cpu": 32, "gpu": 2048}


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One row of a batch: a document, or one of its windows."""

    document: int
    part: int
    window: Window

    def __len__(self) -> int:
        return len(self.window.id)


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
        Largest number of tokens, including padding, that the model runs on at once. It is reduced
        for a while after the device runs out of memory.
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
        self.budget = Budget(batch_tokens or _BATCH_TOKENS[kind])
        self._most_padding = _PADDING_TOKENS[kind]

    def __call__(
        self, documents: Sequence[TokenizedDocument], vocabulary: Mapping[int, str]
    ) -> Chunk:
        """Return the documents' activations in the order of the documents.

        A document that cannot be encoded (its own ``reason``, not enough memory for it alone,
        activations that are not finite) fails by itself.
        """
        import torch

        numbers = range(len(documents))
        reasons = {i: str(d.reason) for i, d in enumerate(documents) if d.reason is not None}
        runs = [_Run(i, k, w) for i in numbers for k, w in enumerate(documents[i].runs)]
        found: dict[tuple[int, int], SparseTokens] = {}
        with torch.inference_mode():
            for batch, outcome in self._outcomes(sorted(runs, key=len, reverse=True)):
                if isinstance(outcome, str):
                    reasons.setdefault(batch[0].document, outcome)
                else:
                    self._share_out(documents, batch, outcome, found, reasons)
        parts = [found[r.document, r.part] for r in runs if r.document not in reasons]
        tables = [documents[i].tokens if i not in reasons else TokenTable.empty() for i in numbers]
        d_sae = self._sparse.d_sae
        return Chunk(
            d_sae=d_sae,
            doc_id=np.arange(len(documents)),
            status=np.array([_status(documents[i], i in reasons) for i in numbers], np.uint8),
            doc_ptr=_pointer(np.array([len(t) for t in tables], np.int64)),
            token_ptr=_pointer(_join([p.count for p in parts], np.int64)),
            feature=_join([p.feature for p in parts], np.int32).astype(feature_dtype(d_sae)),
            activation=_join([p.activation for p in parts], np.float32),
            tokens=TokenTable.concatenate(tables),
            reasons=reasons,
            vocabulary=dict(vocabulary),
        )

    def _outcomes(
        self, runs: Sequence[_Run]
    ) -> Iterator[tuple[Sequence[_Run], SparseTokens | str]]:
        """Yield batches with their activations, and single runs with why they failed."""
        todo = Worklist(runs)
        flying: tuple[Sequence[_Run], PendingTokens] | None = None
        while todo or flying is not None:
            batch: Sequence[_Run] = []
            pending: PendingTokens | None = None
            problem: Exception | None = None
            if todo:
                batch = self._next_batch(todo)
                try:
                    pending = self._launch(batch)
                except Exception as error:  # noqa: BLE001 - whatever it is, find the document to blame
                    problem = error.with_traceback(None)  # which would hold the batch's tensors
            crowded = flying is not None
            if flying is not None:
                yield from self._land(*flying, todo)
            flying = None if pending is None else (batch, pending)
            if problem is None:
                continue
            if crowded and len(batch) == 1 and is_out_of_memory(problem):
                free_cached()
                todo.put_back(batch)  # there is more room without the one that was in flight
            else:
                yield from self._blame(batch, problem, todo)

    def _next_batch(self, todo: Worklist[_Run]) -> Sequence[_Run]:
        """Take runs of similar length, the longest first, within the budget of tokens.

        A batch is closed when its padding would cost more than running another one.
        """
        longest, padding, most = len(todo.front[0]), 0, 0
        for run in todo.front:
            padding += longest - len(run)
            if (most + 1) * longest > self.budget.now or padding > self._most_padding:
                break
            most += 1
        return todo.take(most)

    def _launch(self, batch: Sequence[_Run]) -> PendingTokens:
        return self._sparse(self._runner([r.window.id for r in batch]), [len(r) for r in batch])

    def _land(
        self, batch: Sequence[_Run], pending: PendingTokens, todo: Worklist[_Run]
    ) -> Iterator[tuple[Sequence[_Run], SparseTokens | str]]:
        try:
            sparse = pending.result()
        except Exception as error:  # noqa: BLE001 - a GPU's errors may come late
            problem = error.with_traceback(None)
        else:
            self.budget.sufficed(_size(batch))
            yield batch, sparse
            return
        yield from self._blame(batch, problem, todo)

    def _blame(
        self, batch: Sequence[_Run], problem: Exception, todo: Worklist[_Run]
    ) -> Iterator[tuple[Sequence[_Run], str]]:
        """Have the halves of a batch that failed tried again; alone, a run is to blame."""
        if is_out_of_memory(problem):
            self.budget.fell_short(_size(batch))
            free_cached()
        if not todo.split(batch):
            yield batch, one_line(problem)

    def _share_out(
        self,
        documents: Sequence[TokenizedDocument],
        batch: Sequence[_Run],
        sparse: SparseTokens,
        found: dict[tuple[int, int], SparseTokens],
        reasons: dict[int, str],
    ) -> None:
        """Give each run of a batch the rows that are its own."""
        if self.silent_token is not None:
            sparse = _without(sparse, self._silent_rows(documents, batch))
        pointer = _pointer(sparse.count)
        end = 0
        for run in batch:
            begin, end = end + run.window.skip, end + len(run)
            if not sparse.finite[begin:end].all():
                reasons.setdefault(run.document, NOT_FINITE)
                continue
            where = slice(pointer[begin], pointer[end])
            found[run.document, run.part] = replace(
                sparse,
                count=sparse.count[begin:end],
                feature=sparse.feature[where],
                activation=sparse.activation[where],
                finite=sparse.finite[begin:end],
            )

    def _silent_rows(
        self, documents: Sequence[TokenizedDocument], batch: Sequence[_Run]
    ) -> NDArray[np.bool_]:
        """Return which rows are those of the silent token in front of a document."""
        rows = np.zeros(sum(map(len, batch)), np.bool_)
        first = 0
        for run in batch:
            special = bool(documents[run.document].tokens.special[0])
            rows[first] = special and int(run.window.id[0]) == self.silent_token
            first += len(run)
        return rows


def _size(batch: Sequence[_Run]) -> int:
    """Return the tokens that a batch is run on, padding included."""
    return len(batch) * max(map(len, batch))


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
        finite=sparse.finite | rows,
        feature=sparse.feature[keep],
        activation=sparse.activation[keep],
    )


def _join(parts: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts])


def _pointer(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
