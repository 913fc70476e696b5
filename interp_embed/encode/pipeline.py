"""Encoding the missing documents of a store while the next are prepared and the last committed.

Three threads share bounded work: one reads and tokenises the next documents, the main thread runs the
device, and one commits. Documents that are encoded but not committed are never more than a crash may
lose, so the device waits for a slow disk. The reader is at most one piece ahead of the device.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp_embed.core.checks import check_positive
from interp_embed.core.progress import chosen_log
from interp_embed.encode.commits import ATTEMPTS, Committer
from interp_embed.encode.interrupts import kept_interrupts
from interp_embed.encode.isolate import encode_isolated, prepare_isolated
from interp_embed.encode.monitor import Monitor
from interp_embed.encode.pipeline_thread import Stage
from interp_embed.encode.portions import commit_size, cut, retries
from interp_embed.sae.batch_budget import Budget
from interp_embed.store.fingerprint import check_fingerprint
from interp_embed.store.ledger import read_manifest
from interp_embed.store.write import compaction
from interp_embed.store.write.writer import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from concurrent.futures import Future

    from interp_embed.encode.isolate import EncodedDocuments, PreparedDocuments
    from interp_embed.encode.monitor import Counts
    from interp_embed.encode.portions import Piece
    from interp_embed.sae.base import BaseSAE
    from interp_embed.store.store import Store

__all__ = ["EncodeReport", "encode_store"]

_AHEAD = 2
"""Pieces taken from the work before their turn, the next one included."""
_GRACE_SECONDS = 5.0
_PATIENCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """The result of a run.

    Attributes
    ----------
    encoded, failed : int
        Documents that were encoded, and documents that could not be encoded.
    n_tokens, nnz : int
        Of the documents encoded.
    seconds, device_seconds : float
        Duration without loading the SAE and merging chunks, and the time in which the device waited
        neither for texts nor for the store.
    """

    encoded: int
    failed: int
    n_tokens: int
    nnz: int
    seconds: float = 0.0
    device_seconds: float = 0.0


def encode_store(
    store: Store,
    sae: BaseSAE,
    *,
    batch_size: int = 8,
    documents_per_commit: int | None = None,
    work: Iterable[tuple[int, int]] | None = None,
    finish: bool = True,
    log: str | None = None,
) -> EncodeReport:
    """Encode every missing document, and retry those that failed.

    Documents are committed while the next ones are encoded, about half of ``documents_per_commit`` at
    a time. An SAE that is not loaded is loaded first and destroyed at the end. When no document is
    missing, small chunks are merged (see `interp_embed.store.write.compaction`).

    In the main thread, SIGTERM ends a run as Ctrl-C does. Encoded documents are then committed if that
    takes only seconds, and are given up otherwise.

    Parameters
    ----------
    store
        The store with the documents, which receives the activations.
    sae
        The SAE to encode with. It must be the one that the store was made with.
    batch_size
        Documents per batch, for an SAE that makes no batches itself. It is reduced for a while if
        memory is too short.
    documents_per_commit
        Number of finished documents that a crash may lose. The default is the number that the store
        was created with.
    work
        Runs of missing documents to encode, each taken shortly before its turn. The default is all
        missing documents, and failed documents that may be tried again. With ``work`` and without
        ``finish``, the store's snapshot of the ledger is not renewed.
    finish
        Whether to finish the store, for example by merging small chunks, once no document is missing.
    log
        ``"bar"``, ``"json"`` (a line on stderr every few seconds) or ``"none"``; by default a bar
        if the output is likely to be watched.

    Raises
    ------
    FingerprintMismatchError
        If the SAE or its settings are not those of the store.
    RuntimeError
        If too many documents in a row fail in the same way, so that the SAE must be at fault.
    ValueError
        If an argument that must be positive is not.
    """
    check_positive(batch_size=batch_size)
    if documents_per_commit is not None:
        check_positive(documents_per_commit=documents_per_commit)
    log = chosen_log(log)
    check_fingerprint(store, sae.fingerprint())
    with kept_interrupts() as check:
        try:
            return _encode(store, sae, batch_size, documents_per_commit, work, finish, log, check)
        except BaseException as error:
            error.add_note(
                f"Everything committed is safe. To resume, pass the same data and save_path again, "
                f"or call Dataset.load_from_file({store.storage.url!r}, resume=True)"
            )
            raise


def _encode(
    store: Store,
    sae: BaseSAE,
    batch_size: int,
    documents_per_commit: int | None,
    work: Iterable[tuple[int, int]] | None,
    finish: bool,
    log: str,
    check: Callable[[], None],
) -> EncodeReport:
    everything = work is None or finish
    if everything:  # whoever is given work need not know of all others' commits
        store.refresh(manifest=False)
    most = documents_per_commit or store.plan.documents_per_chunk
    size = commit_size(most, batch_size)
    again = retries(store) if work is None else []
    missing = list(store.ledger.missing) if work is None else work
    pieces = itertools.chain(
        cut(store.plan, missing, most, size), cut(store.plan, again, most, size, again=True)
    )
    first = next(pieces, None)
    # Looked for before this run writes anything: what is nobody's now is a dead run's.
    unfinished = finish and (first is not None or _needs_finish(store))
    abandoned = compaction.leftovers(store) if unfinished else set()
    if first is None:
        if unfinished:
            with StoreWriter(store) as writer:
                _finish(writer, abandoned, log)
        return EncodeReport(0, 0, 0, 0)
    total = None
    if work is None:
        total = sum(stop - start for start, stop in itertools.chain(missing, again))
    pipeline: _Pipeline | None = None
    loaded_here = not sae.is_loaded()
    if loaded_here:
        sae.load()
    try:
        # Once loaded, the SAE knows more of itself than before: the hash of its weights.
        with StoreWriter(store, sae.fingerprint(), sae.d_sae) as writer:
            monitor = Monitor(total, log)
            pipeline = _Pipeline(writer, sae, Budget(batch_size), most, monitor, check)
            pipeline.run(itertools.chain([first], pieces))
            if finish:
                check()
                _finish(writer, abandoned, log)
    finally:
        if loaded_here:
            sae.destroy()
        if everything and not (pipeline is not None and pipeline.gave_up):
            store.refresh()
    return pipeline.report()


def _needs_finish(store: Store) -> bool:
    """Return whether the manifest is missing, or is not of the commits that there are."""
    stated = read_manifest(store.storage)
    return stated is None or {c.key for c in stated} != {c.key for c in store.ledger.commits}


def _finish(writer: StoreWriter, abandoned: Collection[str], log: str) -> None:
    """Merge and clear up, of what nobody names only what was there before this run began."""
    for attempt in range(ATTEMPTS):
        try:
            compaction.finish(writer, progress=log == "bar", among=abandoned)
        except FileNotFoundError:  # another process that does the same was faster
            if attempt == ATTEMPTS - 1:
                raise
        else:
            return


class _Pipeline:
    """Pieces of a store on their way through preparing, encoding and committing.

    Parameters
    ----------
    writer
        Of the store.
    sae
        Loaded.
    budget
        Documents that an SAE is given at once.
    most
        Documents that may be encoded and not committed.
    monitor
        Is told what was done.
    check
        Raises an interrupt that something swallowed.

    Attributes
    ----------
    gave_up : bool
        Whether a commit was given up because the storage took too long.
    """

    def __init__(
        self,
        writer: StoreWriter,
        sae: BaseSAE,
        budget: Budget,
        most: int,
        monitor: Monitor,
        check: Callable[[], None],
    ) -> None:
        self._writer = writer
        self._store = writer.store
        self._sae = sae
        self._budget = budget
        self._most = most
        self._monitor = monitor
        self._check_interrupt = check
        self._committer = Committer(writer, sae)
        self._ahead: deque[tuple[Piece, Future[PreparedDocuments]]] = deque()
        self._behind: deque[tuple[Piece, Future[Counts]]] = deque()
        self._seconds = self._device_seconds = 0.0
        self.gave_up = False

    def report(self) -> EncodeReport:
        """Return the result of the run."""
        counts = self._monitor.counts
        return EncodeReport(
            counts.encoded,
            counts.failed,
            counts.n_tokens,
            counts.nnz,
            self._seconds,
            self._device_seconds,
        )

    def run(self, pieces: Iterator[Piece]) -> None:
        """Encode and commit all pieces. If a stage fails, all stages end and its error is raised."""
        self._reader = Stage("interp-embed-read")
        self._commits = Stage("interp-embed-commit")
        try:
            while (taken := self._next(pieces)) is not None:
                piece, prepared = taken
                self._make_room(len(piece))
                with self._monitor.device():
                    encoded = encode_isolated(self._sae, prepared, self._budget, self._check)
                self._submit(piece, encoded)
                del taken, prepared, encoded  # the committer has them, and nobody else
            while self._behind:
                self._settle()
            self._seconds = self._monitor.seconds
            self._device_seconds = self._seconds * self._monitor.device_share
        except BaseException as error:
            self._wind_up(error)
            raise
        else:
            self._reader.close()
            self._commits.close()
        finally:
            self._monitor.close()

    def _next(self, pieces: Iterator[Piece]) -> tuple[Piece, PreparedDocuments] | None:
        """Return the next piece once it is prepared, with another one being prepared behind it."""
        self._check()
        while len(self._ahead) < _AHEAD and (piece := next(pieces, None)) is not None:
            self._ahead.append((piece, self._reader.submit(self._prepare, piece)))
        if not self._ahead:
            return None
        piece, future = self._ahead.popleft()
        return piece, future.result()

    def _prepare(self, piece: Piece) -> PreparedDocuments:
        """Read and tokenise; on the reader's thread."""
        documents = np.arange(piece.start, piece.stop)
        texts = self._store.frame(documents, [self._store.field]).iloc[:, 0].tolist()
        return prepare_isolated(self._sae, texts, self._check_reader)

    def _make_room(self, documents: int) -> None:
        """Wait until so many more documents may be encoded."""
        while self._behind and (
            self._behind[0][1].done()
            or sum(len(piece) for piece, _ in self._behind) + documents > self._most
        ):
            self._settle()

    def _submit(self, piece: Piece, encoded: EncodedDocuments) -> None:
        self._behind.append((piece, self._commits.submit(self._committer.commit, piece, encoded)))

    def _settle(self) -> None:
        """Wait for the oldest commit in progress."""
        self._monitor.committed(self._behind[0][1].result())
        self._behind.popleft()

    def _check(self) -> None:
        """Raise what should end the run: an interrupt, or the error of a commit."""
        self._check_interrupt()
        for _, future in self._behind:
            if future.done():
                future.result()

    def _check_reader(self) -> None:
        if self._reader.stopped:
            raise InterruptedError("encoding was cancelled")

    def _wind_up(self, error: BaseException) -> None:
        """End the other stages; what is encoded is committed, in a few seconds after an interrupt."""
        interrupted = isinstance(error, KeyboardInterrupt)
        self._reader.stop()
        if not self._commits.close(_GRACE_SECONDS if interrupted else None):
            self._commits.stop()
            self._writer.give_up()
            self.gave_up = True
            if not self._commits.close(_PATIENCE_SECONDS):
                error.add_note("A commit in progress took too long and was abandoned")
        self._reader.close(_PATIENCE_SECONDS if interrupted else None)
