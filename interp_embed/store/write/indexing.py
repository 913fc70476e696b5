"""Building the index in bounded memory: it turns chunks into segments in order of the features.

A segment is the transpose of as many documents as fit. Its entries are counted, given their places,
and then copied there block by block, while threads decode the next blocks.
"""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from interp_embed.core.allocation import release_freed_memory
from interp_embed.core.chunk import DocumentStatus, feature_dtype
from interp_embed.core.threads import available_cpus
from interp_embed.store.arrays.folder import FolderWriter
from interp_embed.store.chunks import StoredChunk
from interp_embed.store.format.layout import INDEX
from interp_embed.store.index.records import (
    IndexCommit,
    Part,
    Segment,
    is_there,
    read_index_commit,
    read_index_commits,
    superseded_indexes,
)
from interp_embed.store.index.segment import Source, Workspace, write_segment, write_summary
from interp_embed.store.ledger import Ledger, read_commits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Executor

    from interp_embed.store.arrays.folder import Folder
    from interp_embed.store.index.feature_index import FeatureIndex
    from interp_embed.store.storage import Storage
    from interp_embed.store.store import Store

__all__ = ["DEFAULT_MEMORY", "build_index", "delete_superseded"]

DEFAULT_MEMORY = 2**29
_RESERVED = 3 * 2**26
"""What the blocks in flight and compiled code take of the memory."""
_SMALLEST = 2**20
"""Entries that a segment may have, however little memory there is."""
_ATTEMPTS = 3


def build_index(
    store: Store,
    *,
    memory: int = DEFAULT_MEMORY,
    rebuild: bool = False,
    progress: bool = False,
) -> FeatureIndex:
    """Index those documents of a store that are encoded by feature.

    Segments of an earlier index that are still right are kept. Any number of processes may do this
    at once, and documents be added meanwhile: what counts is decided when an index is complete.

    Parameters
    ----------
    store
        The store; its snapshot of the ledger is renewed.
    memory
        Bytes that this may use in addition to what the process already holds. Less memory means more
        segments, and so more reads to find the documents of a feature. A segment takes about 10 bytes
        per entry of the document level.
    rebuild
        Delete the existing index first, and build all of it.
    progress
        Whether to show a progress bar.

    Returns
    -------
    FeatureIndex
        The index. It lacks documents that were added while it was built.

    Raises
    ------
    ValueError
        If nothing was encoded yet.
    CorruptStoreError
        If a chunk is damaged.
    """
    store.refresh(manifest=False)
    if rebuild:
        _delete_all(store)
    for _ in range(_ATTEMPTS):
        store.consistently(lambda: _build(store, memory, progress))
        store.refresh(manifest=False)
        delete_superseded(store)
        if (found := store.index()) is not None:
            return found
    raise FileNotFoundError(
        f"another process that cleans up {store.storage.url} deleted the index while it was built. "
        "Build the index again when that process is done"
    )


def _build(store: Store, memory: int, progress: bool) -> None:
    """Build the index of the snapshot, unless there is one; none where another process was first."""
    storage, ledger = store.storage, store.ledger
    d_sae = store.d_sae
    if d_sae is None or not ledger.intervals:
        raise ValueError(
            f"nothing was encoded yet in {storage.url}, so there is nothing to index. Compute the "
            "activations first: load_from_file(path, resume=True)"
        )
    present = read_index_commit(storage, ledger.state)
    if present is not None:
        if present.is_whole(storage):
            storage.sync_names([INDEX])
            return
        _discard(storage, [present.key], present.folders)
    document = np.dtype(np.uint32 if store.n_documents <= 2**32 else np.uint64)
    room = (memory - _RESERVED) // _bytes_an_entry(store, d_sae, document)
    plan = _plan(store, max(_SMALLEST, room))
    sizes = [sum(s.n_entries for s in run) for run in plan if isinstance(run, list)]
    release_freed_memory()  # of what came before, on top of which the workspace would come
    workspace = Workspace(max(sizes, default=0))
    segments: list[Segment] = []
    written: list[str] = []  # folders that nothing names yet
    try:
        with (
            ThreadPoolExecutor(available_cpus() + 2, "interp-embed-index") as executor,
            tqdm(total=sum(sizes), desc="Indexing", unit_scale=True, disable=not progress) as bar,
        ):
            for run in plan:
                if isinstance(run, Segment):
                    segments.append(run)
                    continue
                with _new_folder(storage, executor) as folder:
                    write_segment(
                        folder, run, d_sae, store.dtype, document, workspace, executor, bar.update
                    )
                    segments.append(Segment(tuple(s.part for s in run), folder.close()))
                written.append(segments[-1].folder.key)
            summary = None
            del workspace
            if len(segments) > 1:
                with _new_folder(storage, executor) as folder:
                    write_summary(folder, storage, [s.folder for s in segments], store.dtype)
                    summary = folder.close()
                written.append(summary.key)
        _commit(store, d_sae, segments, summary, written)
    except BaseException:
        # Unless the commit was made, and only the answer to it lost.
        made = read_index_commit(storage, ledger.state)
        if made is None or made.folders.isdisjoint(written):
            storage.delete_folders(written)
        raise


def _new_folder(storage: Storage, executor: Executor) -> FolderWriter:
    return FolderWriter(storage, f"{INDEX}/{uuid.uuid4().hex[:12]}", executor)


def _bytes_an_entry(store: Store, d_sae: int, document: np.dtype[Any]) -> int:
    live = store.ledger.live
    count = max(np.dtype(c.folder.arrays["pooled/count"].dtype).itemsize for c in live)
    counts = count * (2 if any(c.has_negative for c in live) else 1)
    return feature_dtype(d_sae).itemsize + document.itemsize + store.dtype.itemsize + counts


def _plan(store: Store, limit: int) -> list[Segment | list[Source]]:
    """Return, in order of the documents, the segments that are kept and what the others are made of.

    A segment is kept if its documents still follow each other in the ledger and are read from the
    same chunks, unless it is small and has a small or new one beside it: many appends would leave
    many little segments, and a feature's documents have to be read from each.
    """
    old = store.index()
    kept = [
        segment
        for segment in (old.segments if old else ())
        if _is_unbroken(segment, store.ledger) and is_there(store.storage, segment.folder)
    ]
    runs = _runs(store, kept, limit)
    small = [not isinstance(r, Segment) or r.n_entries < limit // 4 for r in runs]
    merged = {
        run.folder.key
        for i, run in enumerate(runs)
        if isinstance(run, Segment)
        and small[i]
        and any(small[j] for j in (i - 1, i + 1) if 0 <= j < len(runs))
    }
    return _runs(store, [s for s in kept if s.folder.key not in merged], limit) if merged else runs


def _is_unbroken(segment: Segment, ledger: Ledger) -> bool:
    """Whether the ledger has no other documents between those of the segment."""
    start, stop = segment.start, segment.stop
    held = sum(max(0, min(i.stop, stop) - max(i.start, start)) for i in ledger.intervals)
    return held == segment.n_documents


def _runs(store: Store, kept: Sequence[Segment], limit: int) -> list[Segment | list[Source]]:
    runs: list[Segment | list[Source]] = []
    at = 0
    for segment in [*kept, None]:
        stop = store.n_documents if segment is None else segment.start
        new: list[Segment | list[Source]] = []
        run: list[Source] = []
        held = limit
        for source in _sources(store, at, stop, limit):
            if not run or held + source.n_entries > limit:
                run, held = [], 0
                new.append(run)
            run.append(source)
            held += source.n_entries
        runs += new
        if segment is not None:
            runs.append(segment)
            at = segment.stop
    return runs


def _sources(store: Store, start: int, stop: int, limit: int) -> Iterator[Source]:
    """Return where documents ``start:stop`` are read from, in pieces of at most ``limit`` entries."""
    for interval in store.ledger.intervals:
        low, high = max(interval.start, start), min(interval.stop, stop)
        if low < high:
            # Without the store's cache: everything is read once.
            chunk = StoredChunk(store.storage, interval.commit)
            span = _span(chunk, "pooled/doc_ptr", low, high, interval.commit.pooled_nnz)
            yield from Source(chunk, low, high, *span).pieces(limit)


def _span(chunk: StoredChunk, pointer: str, start: int, stop: int, size: int) -> tuple[int, int]:
    """Return where documents ``start:stop`` begin and end in what a pointer of the chunk points into."""
    commit = chunk.commit
    if (start, stop) == (commit.start, commit.stop):
        return 0, size
    return chunk.span(pointer, start - commit.start, stop - commit.start)


def _commit(
    store: Store,
    d_sae: int,
    segments: Sequence[Segment],
    summary: Folder | None,
    written: Sequence[str],
) -> None:
    """Make the index count, unless another process was first."""
    storage, ledger = store.storage, store.ledger
    n_documents, n_tokens = _totals(store)
    commit = IndexCommit(
        state=ledger.state,
        coverage=tuple(Part(i.start, i.stop, i.commit.folder.key) for i in ledger.intervals),
        d_sae=d_sae,
        n_documents=n_documents,
        n_tokens=n_tokens,
        segments=tuple(segments),
        summary=summary,
    )
    if not commit.publish(storage):
        winner = read_index_commit(storage, ledger.state)
        if winner is None or winner.folders.isdisjoint(written):  # else the first answer was lost
            storage.delete_folders(written)
            return
    # A process that cleared up meanwhile may have taken a folder for garbage: a segment of an index
    # that is superseded, or a new folder that nothing named yet.
    if not commit.is_whole(storage):
        _discard(storage, [commit.key], written)


def _totals(store: Store) -> tuple[int, int]:
    """Return how many documents have activations, and how many tokens they have."""
    documents = tokens = 0
    for interval in store.ledger.intervals:
        commit = interval.commit
        chunk = StoredChunk(store.storage, commit)
        begin, end = _span(chunk, "doc_ptr", interval.start, interval.stop, commit.n_tokens)
        tokens += end - begin
        documents += interval.stop - interval.start
        if commit.n_failed:
            here = slice(interval.start - commit.start, interval.stop - commit.start)
            documents -= int((chunk.status()[here] == DocumentStatus.FAILED).sum())
    return documents, tokens


def delete_superseded(store: Store) -> int:
    """Delete the indexes that a complete one has replaced, or that cover nothing; return how many."""
    # Read before the ledger: no index is of a later state than that then.
    commits = read_index_commits(store.storage)
    ledger = Ledger(read_commits(store.storage), store.n_documents)
    keys, folders = superseded_indexes(commits, ledger)
    _discard(store.storage, keys, folders)
    return len(keys)


def _delete_all(store: Store) -> None:
    commits = read_index_commits(store.storage)
    folders = {key for commit in commits.values() if commit for key in commit.folders}
    _discard(store.storage, commits, folders)


def _discard(storage: Storage, keys: Iterable[str], folders: Iterable[str]) -> None:
    """Delete index commits: first, so that no reader is sent to a hole."""
    storage.delete_several(keys)
    storage.delete_folders(folders)
