"""Encoding what a store still misses, chunk by chunk, and committing each chunk as it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from interp_embed.chunk import DocumentStatus
from interp_embed.encode.interrupts import kept_interrupts
from interp_embed.encode.isolate import encode_isolated
from interp_embed.progress import show_progress
from interp_embed.sae.tokens import reason_not_text
from interp_embed.store.compaction import finish, leftovers
from interp_embed.store.fingerprint import check_fingerprint
from interp_embed.store.ledger import read_manifest
from interp_embed.store.writer import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from interp_embed.chunk import Chunk
    from interp_embed.sae.base import BaseSAE
    from interp_embed.store.reader import Store

__all__ = ["EncodeReport", "encode_store"]


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What a run did.

    Attributes
    ----------
    encoded, failed : int
        Documents encoded, and documents that could not be.
    n_tokens, nnz : int
        Of the documents encoded.
    """

    encoded: int
    failed: int
    n_tokens: int
    nnz: int


def encode_store(
    store: Store, sae: BaseSAE, *, batch_size: int = 8, documents_per_commit: int | None = None
) -> EncodeReport:
    """Encode every document that is missing, and try again those that failed.

    Documents are committed before the next ones are encoded, so that a crash loses what one commit
    holds at most. An SAE that was not loaded is loaded, and destroyed at the end. When no document is
    missing any more, small chunks are merged (see `interp_embed.store.compaction`).

    Parameters
    ----------
    store
        Where the documents are and the activations go.
    sae
        What encodes them; it must be what the store was made with.
    batch_size
        Documents a batch.
    documents_per_commit
        By default what the store was created with.

    Raises
    ------
    FingerprintMismatchError
        If the SAE or its settings are not those of the store.
    RuntimeError
        If so many documents in a row fail in the same way that the SAE must be at fault.
    """
    check_fingerprint(store, sae.fingerprint())
    store.refresh(manifest=False)
    missing = list(store.ledger.missing)
    retries = _retries(store)
    unfinished = bool(missing or retries) or _needs_finish(store)
    # Looked for before this run writes anything: what is nobody's now is a dead run's.
    abandoned = leftovers(store) if unfinished else set()
    if not missing and not retries:
        if unfinished:
            with StoreWriter(store) as writer:
                _finish(writer, abandoned)
        return EncodeReport(0, 0, 0, 0)
    loaded_here = not sae.is_loaded()
    if loaded_here:
        sae.load()
    try:
        # Once loaded, the SAE knows more of itself than before: the hash of its weights.
        with StoreWriter(store, sae.fingerprint(), sae.d_sae) as writer:
            step = documents_per_commit or store.plan.documents_per_chunk
            pieces = [(p, False) for gap in missing for p in store.plan.pieces(*gap, step)]
            pieces += [(p, True) for run in retries for p in store.plan.pieces(*run, step)]
            report = _run(writer, sae, pieces, batch_size)
            _finish(writer, abandoned)
    except BaseException as error:
        error.add_note(
            f"What was committed is safe. To continue, pass the same data and save_path again, or "
            f"call Dataset.load_from_file({store.storage.url!r}, resume=True)"
        )
        raise
    finally:
        if loaded_here:
            sae.destroy()
        store.refresh()
    return report


def _needs_finish(store: Store) -> bool:
    """Return whether the manifest is missing, or is not of the commits that there are."""
    stated = read_manifest(store.storage)
    return stated is None or {c.key for c in stated} != {c.key for c in store.ledger.commits}


_ATTEMPTS = 5
_HOPELESS = 100


def _finish(writer: StoreWriter, abandoned: Collection[str]) -> None:
    """Merge and clear up, of what nobody names only what was there before this run began."""
    for attempt in range(_ATTEMPTS):
        try:
            finish(writer, progress=show_progress(), among=abandoned)
        except FileNotFoundError:  # another process that does the same was faster
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return


def _write(writer: StoreWriter, chunk: Chunk, generation: int = 0) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            writer.write(chunk, generation=generation)
        except FileNotFoundError:  # another process finished the store and cleared this away
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return


def _retries(store: Store) -> list[tuple[int, int]]:
    """Return runs of documents that failed though their text is text."""
    suspects = []
    for interval in store.ledger.intervals:
        if interval.commit.n_failed:
            documents = np.arange(interval.start, interval.stop)
            failed = documents[store.status(documents) == DocumentStatus.FAILED]
            texts = store.frame(failed, [store.field]).iloc[:, 0].tolist()
            suspects += [
                int(d) for d, t in zip(failed, texts, strict=True) if reason_not_text(t) is None
            ]
    return _runs(suspects)


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Group ascending numbers into half-open runs of neighbours."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def _run(
    writer: StoreWriter,
    sae: BaseSAE,
    pieces: Sequence[tuple[tuple[int, int], bool]],
    batch_size: int,
) -> EncodeReport:
    """Encode and commit runs of documents; True marks those that replace failed ones."""
    store = writer.store
    streak = _Streak()
    generation = store.ledger.next_generation
    encoded = failed = n_tokens = nnz = 0
    total = sum(stop - start for (start, stop), _ in pieces)
    bar = tqdm(total=total, desc="Encoding", unit="doc", disable=not show_progress())
    with bar, kept_interrupts() as check_interrupt:
        for (start, stop), again in pieces:
            check_interrupt()
            chunk = _encode_piece(store, sae, start, stop, batch_size)
            streak.check(chunk)
            ok = np.flatnonzero(chunk.status != DocumentStatus.FAILED)
            if again:  # a document that fails again stays as it is
                for low, high in _runs(ok.tolist()):
                    _write(writer, chunk.take(np.arange(low, high)), generation)
            else:
                _write(writer, chunk)
            encoded += len(ok)
            failed += chunk.n_documents - len(ok)
            n_tokens += chunk.n_tokens
            nnz += chunk.nnz
            bar.update(stop - start)
            rate = n_tokens / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(
                f"{n_tokens:,} tokens, {rate:,.0f}/s, {failed} failed", refresh=False
            )
    return EncodeReport(encoded, failed, n_tokens, nnz)


class _Streak:
    """Notices that not the documents are bad but what encodes them."""

    def __init__(self) -> None:
        self._kind = ""
        self._length = 0

    def check(self, chunk: Chunk) -> None:
        """Raise RuntimeError if too many documents in a row, up to now, failed in the same way."""
        for position in range(chunk.n_documents):
            reason = chunk.reasons.get(position, "")
            kind = reason.partition(":")[0]
            if reason.startswith("the text is"):
                continue  # says nothing of the SAE
            self._length = self._length + 1 if kind and kind == self._kind else bool(kind)
            self._kind = kind
            if self._length >= _HOPELESS:
                raise RuntimeError(
                    f"the last {self._length} documents all failed in the same way, so that the SAE "
                    f"or its device must be at fault: {reason}. Mend that and resume"
                )


def _encode_piece(store: Store, sae: BaseSAE, start: int, stop: int, batch_size: int) -> Chunk:
    texts = store.frame(np.arange(start, stop), [store.field]).iloc[:, 0].tolist()
    chunk = encode_isolated(sae, range(start, stop), texts, batch_size)
    return chunk.with_failures(chunk.beyond_range(store.dtype))
