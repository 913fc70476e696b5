"""After a run: merging neighbouring small chunks into large ones, and deleting what no reader needs.

Merging is one more write-then-commit: the merged chunk is committed with a higher generation, from
then on readers take it, and only then are its parts deleted. Dying anywhere in between leaves a store
that reads the same; the next call continues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from interp_embed.core.allocation import release_freed_memory
from interp_embed.core.chunk import Chunk
from interp_embed.store.format.layout import (
    CHUNKS,
    DOCUMENTS,
    INDEX,
    MANIFEST,
    MAX_CHUNK_NNZ,
    PLANNING,
    TARGET_CHUNK_NNZ,
)
from interp_embed.store.index.records import index_leftovers, read_index_commits
from interp_embed.store.ledger import Interval, Ledger, commit_keys, read_commits, write_manifest
from interp_embed.store.write.indexing import build_index, delete_superseded

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from interp_embed.kernels.document_level import Pooled
    from interp_embed.store.ledger import Commit
    from interp_embed.store.store import Store
    from interp_embed.store.write.writer import StoreWriter

__all__ = ["collect_garbage", "compact", "finish", "leftovers", "merge_groups"]

_INDEXED_ENTRIES = 2**22
"""From so many entries of the document level on, a finished store has an index."""
_READ_TOGETHER = 256
"""Small chunks whose bytes are read ahead together, on a storage that is far away."""


def merge_groups(
    ledger: Ledger, target: int = TARGET_CHUNK_NNZ, limit: int = MAX_CHUNK_NNZ
) -> list[list[Interval]]:
    """Return the runs of neighbouring intervals that should become one chunk each.

    Deterministic in the ledger, so that two processes that compact at once want the same merges and
    one of each loses, rather than both writing something different.

    Parameters
    ----------
    ledger
        The ledger to improve.
    target
        A run is complete once it has this many nonzeros (or tokens, should there be more of them).
    limit
        A run of more than one interval has at most this many.
    """
    groups: list[list[Interval]] = []
    run: list[Interval] = []
    held = 0

    def close() -> None:
        nonlocal run, held
        if run and (len(run) > 1 or not _whole(run[0])):
            groups.append(run)
        run, held = [], 0

    for interval in ledger.intervals:
        size = _size(interval)
        follows = bool(run) and run[-1].stop == interval.start
        if run and (not follows or held + size > limit or held >= target):
            close()
        run.append(interval)
        held += size
    close()
    return groups


def _whole(interval: Interval) -> bool:
    return (interval.start, interval.stop) == (interval.commit.start, interval.commit.stop)


def _size(interval: Interval) -> int:
    """Return the length of the interval's longest array, estimated for a part of its chunk."""
    commit = interval.commit
    longest = max(commit.nnz, commit.n_tokens, commit.stop - commit.start)
    return round(longest * (interval.stop - interval.start) / max(1, commit.stop - commit.start))


def compact(
    writer: StoreWriter,
    *,
    target: int = TARGET_CHUNK_NNZ,
    limit: int = MAX_CHUNK_NNZ,
    progress: bool = False,
) -> int:
    """Merge small chunks; return how many merged chunks were written.

    Holds one merged chunk in memory at a time.
    """
    store = writer.store
    store.refresh(manifest=False)
    groups = merge_groups(store.ledger, target, limit)
    generation = store.ledger.next_generation
    merged = 0
    for group in tqdm(groups, desc="Merging chunks", unit="chunk", disable=not progress):
        chunk, pooled = store.consistently(lambda group=group: _read_group(store, group))  # type: ignore[misc]
        commit = writer.write(chunk, generation=generation, pooled=pooled)
        if commit is not None:
            merged += 1
            start, stop = commit.start, commit.stop
            parts = dict.fromkeys(interval.commit for interval in group)
            _delete_commits(store, [c for c in parts if start <= c.start and c.stop <= stop])
        del chunk, pooled
        release_freed_memory()
    store.refresh(manifest=False)
    _delete_commits(store, store.ledger.superseded)
    return merged


def _read_group(store: Store, group: Sequence[Interval]) -> tuple[Chunk, Pooled]:
    from interp_embed.kernels.document_level import Pooled

    chunks, levels, runs = [], [], []
    for interval in group:
        located = store.locate(interval.start)
        if located is None:  # pragma: no cover - a ledger only ever grows
            raise FileNotFoundError(f"document {interval.start}")
        stored, position = located
        runs.append((stored, position, position + interval.stop - interval.start))
    for begin in range(0, len(runs), _READ_TOGETHER):
        some = runs[begin : begin + _READ_TOGETHER]
        with store.ahead(chunk.steps_of_documents(a, b, level=True) for chunk, a, b in some):
            chunks += [chunk.read(a, b) for chunk, a, b in some]
            levels += [chunk.document_level(a, b) for chunk, a, b in some]
    return Chunk.concatenate(chunks), Pooled.concatenate(levels)


def _delete_commits(store: Store, commits: Sequence[Commit]) -> None:
    """Delete commits that others have replaced. This comes first, so that no reader follows them."""
    store.storage.delete_several([commit.key for commit in commits])
    store.storage.delete_folders([commit.folder.key for commit in commits])


def leftovers(store: Store) -> set[str]:
    """Return the folders and temporary files that nothing names, from killed runs or runs in progress.

    This refreshes the store's plan, because another process may have added documents.
    """
    storage = store.storage
    # Listed before the commits are read: what is committed in between must not look forgotten.
    folders = {f"{p}/{name}" for p in (CHUNKS, DOCUMENTS) for name in storage.folders(p)}
    indexed = {f"{INDEX}/{name}" for name in storage.folders(INDEX)}
    aside = {k for k, _ in list(storage.list()) if _is_aside(k)}
    store.refresh_plan()
    ledger = Ledger(read_commits(storage), store.n_documents)
    named = {c.folder.key for c in ledger.commits} | {b.folder.key for b in store.plan.blocks}
    return ((folders | aside) - named) | index_leftovers(storage, indexed)


def _is_aside(key: str) -> bool:
    """Return whether a key is a file that was being written, or a record of unfinished planning."""
    return key.rsplit("/", 1)[-1].startswith(".tmp-") or key.startswith(f"{PLANNING}/")


def collect_garbage(store: Store, among: Collection[str] | None = None) -> int:
    """Delete superseded commits and indexes and what nothing names; return how many of them.

    Parameters
    ----------
    store
        A complete store.
    among
        Of what nothing names, delete only these: what `leftovers` returned some time ago. Without it
        nobody else may be encoding into the store, as an attempt in progress has no name either.
        Documents that are being added meanwhile may go; whoever adds them notices, and says so.
    """
    found = leftovers(store)
    indexes = delete_superseded(store)
    superseded = Ledger(read_commits(store.storage), store.n_documents).superseded
    _delete_commits(store, superseded)
    unnamed = sorted(found if among is None else found.intersection(among))
    # What a killed process was writing aside is a file, an attempt of its a folder.
    aside = [key for key in unnamed if _is_aside(key)]
    store.storage.delete_several(aside)
    folders = [key for key in unnamed if key not in aside]
    store.storage.delete_folders(folders)
    return len(superseded) + indexes + len(folders)


def finish(
    writer: StoreWriter, *, progress: bool = False, among: Collection[str] | None = None
) -> bool:
    """Compact a complete store, clear what is left over, index it, and write its manifest.

    A store of few entries gets an index only if it had one: a pass over its chunks is as fast. Can be
    called again after dying at any point. ``among`` limits what is cleared away, see
    `collect_garbage`.

    Returns
    -------
    bool
        False if documents are still missing; then nothing is done.
    """
    store = writer.store
    store.refresh(manifest=False)
    if not store.is_complete:
        return False
    compact(writer, progress=progress)
    store.refresh(manifest=False)
    if store.is_complete:
        indexed = wants_index(store)
        collect_garbage(store, among)
        if indexed:
            build_index(store, progress=progress)
        publish_manifest(store)
    return True


def wants_index(store: Store) -> bool:
    """Return whether a store is large enough for an index, or had one."""
    entries = sum(commit.pooled_nnz for commit in store.ledger.live)
    return entries >= _INDEXED_ENTRIES or (entries > 0 and bool(read_index_commits(store.storage)))


def publish_manifest(store: Store) -> None:
    """Write the manifest, and take it back if something was committed meanwhile."""
    write_manifest(store.storage, store.ledger.live)
    if commit_keys(store.storage) != {commit.key for commit in store.ledger.live}:
        store.storage.delete(MANIFEST)
