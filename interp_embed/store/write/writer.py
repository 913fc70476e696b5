"""Committing chunks to a store."""

from __future__ import annotations

import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.threads import available_cpus
from interp_embed.errors import (
    FingerprintMismatchError,
    SingleWriterError,
)
from interp_embed.store.arrays.folder import FolderWriter
from interp_embed.store.chunks import write_chunk
from interp_embed.store.fingerprint import check_fingerprint, encoder_digest, merge
from interp_embed.store.format.layout import (
    BINDING,
    CHUNKS,
    COMMITS,
    INDEX,
    MANIFEST,
)
from interp_embed.store.format.sealed import seal, unseal
from interp_embed.store.ledger import Commit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

    from interp_embed.core.chunk import Chunk
    from interp_embed.kernels.document_level import Pooled
    from interp_embed.store.store import Store

__all__ = ["StoreWriter"]


class StoreWriter:
    """Commits chunks to a store.

    Safe to use from any number of processes on a storage that arbitrates between writers; on one
    that does not, the second writer is refused.

    Parameters
    ----------
    store
        The store; its snapshot of the ledger is not used for writing.
    fingerprint
        Everything that determines the activations to come.
    d_sae
        Number of features, if known.

    Raises
    ------
    FingerprintMismatchError
        If the store was made with another SAE or other settings.
    SingleWriterError
        If the storage allows only one writer and already has one.
    """

    _LOCK = "writer.json"

    def __init__(
        self, store: Store, fingerprint: Mapping[str, Any] | None = None, d_sae: int | None = None
    ) -> None:
        self.store = store
        self.storage = store.storage
        self.dtype = store.dtype
        # A few more than there are cores: some wait for the disk.
        self._executor = ThreadPoolExecutor(available_cpus() + 2, "interp-embed-write")
        self._given_up = threading.Event()
        self._holds_lock = False
        self._check(fingerprint or {}, d_sae)
        self._lock()
        try:
            self._bind(dict(fingerprint or {}), d_sae)
            self.storage.sync_names(["", COMMITS, INDEX])  # what was committed is not done again
            self.storage.delete(MANIFEST)  # from here on the ledger may grow
        except BaseException:
            self.close()
            raise

    def _bind(self, fingerprint: dict[str, Any], d_sae: int | None) -> None:
        """Record what was not known when the store was created. This happens only once.

        The first writer that knows everything binds the store with a put-if-absent, so that two runs
        with different settings cannot both go on.
        """
        bound = self.store.refresh_binding()
        self._check(fingerprint, d_sae)
        known = self.store.attributes
        merged = merge(known["fingerprint"], fingerprint)
        width = known["d_sae"] if known["d_sae"] is not None else d_sae
        new = (merged, width) != (known["fingerprint"], known["d_sae"])
        if new and not bound and width is not None:
            self.storage.put_if_absent(BINDING, seal({"fingerprint": merged, "d_sae": width}))
            bound = self.store.refresh_binding()
            self._check(fingerprint, d_sae)
        if bound:
            merged = self.store.attributes["fingerprint"]
        self._fingerprint = merged
        self.encoder = encoder_digest(merged)

    def _check(self, fingerprint: Mapping[str, Any], d_sae: int | None) -> None:
        check_fingerprint(self.store, fingerprint)
        width = self.store.attributes["d_sae"]
        if d_sae is not None and width is not None and width != d_sae:
            raise FingerprintMismatchError(
                f"the store at {self.storage.url} has {width} features, this SAE has {d_sae}"
            )

    def _lock(self) -> None:
        if self.storage.arbitrates():
            return
        owner = f"process {os.getpid()} on {os.uname().nodename}".encode()
        if not self.storage.put_if_absent(self._LOCK, owner):
            raise SingleWriterError(
                f"{self.storage.url} cannot arbitrate between two writers, and "
                f"{self.storage.get(self._LOCK).decode(errors='replace')} is writing to it. If that "
                f"process is gone, delete {self._LOCK} in the store and try again"
            )
        self._holds_lock = True

    def close(self) -> None:
        """Release the locks and threads that the writer holds."""
        given_up = self._given_up.is_set()
        self._executor.shutdown(wait=not given_up, cancel_futures=given_up)
        if self._holds_lock:
            self.storage.delete(self._LOCK)
            self._holds_lock = False

    def give_up(self) -> None:
        """Make a write in progress on another thread end without a commit, as soon as possible."""
        self._given_up.set()

    def _go_on(self) -> None:
        if self._given_up.is_set():
            raise InterruptedError(f"writing to {self.storage.url} was given up")

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(
        self,
        chunk: Chunk,
        *,
        generation: int = 0,
        pooled: Pooled | None = None,
    ) -> Commit | None:
        """Write one attempt at a run of documents and commit it.

        Parameters
        ----------
        chunk
            Documents with consecutive numbers. Activations are rounded to the store's dtype; the
            caller has dealt with those beyond its range (see `Chunk.beyond_range`).
        generation
            Higher than that of every commit that it replaces; 0 for documents that no commit holds.
        pooled
            The document level, if it is already known.

        Returns
        -------
        Commit or None
            None if another attempt at the same documents was committed first.
        """
        start, stop = int(chunk.doc_id[0]), int(chunk.doc_id[-1]) + 1
        if not np.array_equal(chunk.doc_id, np.arange(start, stop)):
            raise ValueError(
                f"doc_id of a chunk must be consecutive, got {chunk.doc_id.tolist()[:9]}"
            )
        if overflow := chunk.beyond_range(self.dtype):
            position, reason = next(iter(overflow.items()))
            raise OverflowError(f"document {start + position}: {reason}")
        if self.store.attributes["d_sae"] is None and chunk.d_sae:
            self._bind(self._fingerprint, chunk.d_sae)
        if chunk.d_sae and chunk.d_sae != self.store.attributes["d_sae"]:
            raise ValueError(
                f"a chunk must have the store's {self.store.attributes['d_sae']} features, got "
                f"{chunk.d_sae}"
            )
        rounded = chunk.as_dtype(self.dtype)
        if chunk.activation.dtype != self.dtype:
            pooled = None  # sums of what was not rounded
        executor = self._threads_for(rounded.nnz)
        if rounded.nnz != chunk.nnz:  # rounding dropped entries: what was known does not hold
            pooled = None
        folder_key = f"{CHUNKS}/{start:012d}-{stop:012d}-{uuid.uuid4().hex[:12]}"
        with FolderWriter(self.storage, folder_key, executor, self._go_on) as arrays:
            statistics = write_chunk(arrays, rounded, self.dtype, pooled, executor)
            extent = {"d_sae": chunk.d_sae, "start": start, "stop": stop}
            folder = arrays.close({**extent, **statistics})
            self._go_on()
        commit = Commit(
            start=start,
            stop=stop,
            generation=generation,
            d_sae=chunk.d_sae,
            encoder=self.encoder,
            vocabulary={str(k): v for k, v in chunk.vocabulary.items()},
            folder=folder,
            **statistics,
        )
        # From here on the folder may be named by a commit, even if the call below fails (a lost
        # response): only a commit that is seen to name another folder allows deleting this one.
        if not commit.publish(self.storage):
            try:
                data = self.storage.get(commit.key)
            except FileNotFoundError:  # the winner was merged into a larger chunk already
                self.storage.delete_folder(folder_key)
                return None
            winner = unseal(data, f"{commit.key} in {self.storage.url}")
            if winner["folder"]["key"] != folder_key:
                self.storage.delete_folder(folder_key)
                return None
        self._require_whole(commit)
        self.storage.delete(MANIFEST)  # should another writer have finished the store meanwhile
        return commit

    def _require_whole(self, commit: Commit) -> None:
        """Take a commit back whose folder another process took for garbage before it was named."""
        prefix = f"{commit.folder.key}/"
        found = {key.removeprefix(prefix) for key, _ in self.storage.list(commit.folder.key)}
        absent = [key for key in commit.folder.objects if key not in found]
        # Some storages list what is new a little late.
        if not all(self.storage.exists(prefix + key) for key in absent):
            self.storage.delete(commit.key)
            raise FileNotFoundError(f"{prefix} in {self.storage.url} was deleted meanwhile")

    def _threads_for(self, nnz: int) -> Executor | None:
        """Return threads to compress with, or None where starting them costs more than it saves."""
        return self._executor if nnz > 2**17 else None
