"""Joining stores: their folders unchanged, under a ledger that renumbers their documents.

A chunk keeps the document numbers of its own store, and the commit says by how much they are shifted.
So nothing is decoded or encoded again. On one disk objects are linked; elsewhere their bytes are copied.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from interp_embed.core.threads import REQUESTS, bounded_map
from interp_embed.errors import CorruptStoreError, FingerprintMismatchError, StoreExistsError
from interp_embed.store.arrays.folder import group_metadata
from interp_embed.store.fingerprint import encoder_digest, fingerprint_differences
from interp_embed.store.format.columns import Column
from interp_embed.store.format.document_hash import combined_hashes
from interp_embed.store.format.layout import CHUNKS, DOCUMENTS, FORMAT_VERSION, PLAN, ROOT
from interp_embed.store.format.root import read_root, root_document
from interp_embed.store.format.schema import unified_schema
from interp_embed.store.format.sealed import seal
from interp_embed.store.index.records import read_index_commits
from interp_embed.store.labels.collection import copy_labels
from interp_embed.store.ledger import Plan, PlannedBlock, read_commits, read_plan
from interp_embed.store.storage import LocalStorage
from interp_embed.store.storage.wrapped import WrappedStorage
from interp_embed.store.store import Store
from interp_embed.store.write.compaction import publish_manifest, wants_index
from interp_embed.store.write.indexing import build_index
from interp_embed.store.write.writer import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interp_embed.store.arrays.folder import Folder
    from interp_embed.store.ledger import Commit
    from interp_embed.store.storage import Storage

__all__ = ["check_mergeable", "is_merged", "merge_stores"]


def check_mergeable(stores: Sequence[Store]) -> None:
    """Check that the activations of several stores belong together.

    Raises
    ------
    FingerprintMismatchError
        The message names each part that differs, with both values.
    """
    # First those that hold activations: of the others less may be known.
    ordered = sorted(stores, key=lambda store: not _has_activations(store))
    first = ordered[0]
    for store in ordered[1:]:
        a, b = _settings(first), _settings(store)
        parts = [f"{name}: {x!r} and {y!r}" for name, x, y in fingerprint_differences(a, b)]
        if _has_activations(store):
            parts += [f"{name} is known for only one of them" for name in sorted(set(a) ^ set(b))]
        if parts:
            raise FingerprintMismatchError(
                f"the stores at {first.storage.url} and {store.storage.url} were made with different "
                f"SAEs or settings, so their activations do not belong together: {'; '.join(parts)}. "
                "Encode the documents of one of them again"
            )


def _has_activations(store: Store) -> bool:
    """Return whether any document was encoded. If all failed, nothing may be known about the SAE."""
    return any(commit.n_failed < commit.stop - commit.start for commit in store.ledger.live)


def _settings(store: Store) -> dict[str, Any]:
    width = {} if store.d_sae is None else {"d_sae": store.d_sae}
    return {**store.attributes["fingerprint"], **width}


def merge_stores(
    sources: Sequence[Store],
    target: Storage,
    attributes: Mapping[str, Any],
    *,
    progress: bool = False,
) -> Store:
    """Write a store with the documents of several stores, one store after the other.

    If the call is interrupted, call it again with the same arguments to continue. Documents that are
    not encoded in their store are not encoded in this one.

    Parameters
    ----------
    sources
        The stores.
    target
        Where to write the new store.
    attributes
        Attributes of the new store's root.
    progress
        Whether to show a progress bar.

    Raises
    ------
    FingerprintMismatchError
        If the stores were not made with the same SAE and settings.
    StoreExistsError
        If another store was begun at ``target``.
    CorruptStoreError
        If copying finds that an object of a source is damaged.
    """
    check_mergeable(sources)
    live = [_live(store) for store in sources]  # before documents are counted
    starts = [0]
    for store in sources:
        starts.append(starts[-1] + store.n_documents)
    if not target.put_if_absent(ROOT, root_document(dict(attributes))) and fingerprint_differences(
        read_root(target)["fingerprint"], attributes["fingerprint"]
    ):
        raise _begun(target)
    for parent in (CHUNKS, DOCUMENTS):
        target.put(f"{parent}/zarr.json", group_metadata())
    for store, start in zip(sources, starts, strict=False):  # the first that has some wins
        copy_labels(store.storage, target, start)
    commits = [(s, c, at) for s, held, at in zip(sources, live, starts, strict=False) for c in held]
    _publish_plan(sources, _blocks(sources), target, progress)
    with StoreWriter(Store(target)) as writer:
        done = {commit.key for commit in read_commits(target)}
        for source, commit, shift in tqdm(
            commits, desc="Copying chunks", unit="chunk", disable=not progress
        ):
            moved = replace(
                commit,
                start=commit.start + shift,
                stop=commit.stop + shift,
                shift=commit.shift + shift,
                encoder=_encoder(commit, source, writer),
            )
            if moved.key not in done:
                folder = _copy(
                    source.storage, commit.folder, target, CHUNKS, moved.start, moved.stop
                )
                replace(moved, folder=folder).publish(target)
        store = writer.store
        store.refresh(manifest=False)
        indexed = any(read_index_commits(source.storage) for source in sources)
        if wants_index(store) or (indexed and store.ledger.intervals):
            build_index(store, progress=progress)
        if store.is_complete:
            publish_manifest(store)
    return store


def _encoder(commit: Commit, source: Store, writer: StoreWriter) -> str:
    """Return what a commit says in the new store of the settings that its documents have.

    The settings of two stores are the same and may be written differently: a class has had several
    names. A commit that was made under other settings than its own store's keeps what it says.
    """
    regular = commit.encoder == encoder_digest(source.attributes["fingerprint"])
    return writer.encoder if regular else commit.encoder


def is_merged(sources: Sequence[Store], target: Storage) -> bool:
    """Return whether a store has the documents of several, one store after the other, and their SAE."""
    try:
        check_mergeable([*sources, Store(target)])
    except FingerprintMismatchError:
        return False
    plan = read_plan(target)
    return plan is not None and plan.hashes == _hashes(_blocks(sources))


def _blocks(sources: Sequence[Store]) -> list[tuple[Store, PlannedBlock, int]]:
    """Return the blocks of several stores, each with how far its documents move."""
    found: list[tuple[Store, PlannedBlock, int]] = []
    start = 0
    for store in sources:
        found += [(store, block, start) for block in store.plan.blocks if block.start < block.stop]
        start += store.n_documents
    return found or [(sources[0], sources[0].plan.blocks[0], 0)]


def _hashes(blocks: Sequence[tuple[Store, PlannedBlock, int]]) -> dict[str, str]:
    return combined_hashes([block.hashes for _, block, _ in blocks])


def _begun(target: Storage) -> StoreExistsError:
    return StoreExistsError(
        f"another store was begun at {target.url} and not finished. Delete it, or give another path"
    )


def _live(store: Store) -> list[Commit]:
    """Return the commits that count, with the hashes of their objects, as they are now.

    Documents that were added since the store was opened may be in them: they count from here on.
    """
    store.refresh(manifest=False)
    return [*store.ledger.live]


def _publish_plan(
    sources: Sequence[Store],
    blocks: Sequence[tuple[Store, PlannedBlock, int]],
    target: Storage,
    progress: bool,
) -> None:
    schema = sources[0].schema
    for store in sources[1:]:
        schema = unified_schema(schema, store.schema)
    columns = [column.to_json() for column in schema]
    hashes = _hashes(blocks)
    stored = read_plan(target)
    if stored is not None:
        if stored.hashes != hashes:
            raise _begun(target)
        return
    moved = []
    for source, block, shift in tqdm(
        blocks, desc="Copying documents", unit="block", disable=not progress
    ):
        start, stop = block.start + shift, block.stop + shift
        own = source.plan.columns if block.columns is None else block.columns
        same = [Column(**value) for value in own] == schema
        folder = _copy(source.storage, block.folder, target, DOCUMENTS, start, stop)
        moved.append(PlannedBlock(start, stop, folder, None if same else own, block.hashes))
    plan = Plan(
        n_documents=moved[-1].stop,
        documents_per_chunk=sources[0].plan.documents_per_chunk,
        columns=columns,
        blocks=moved,
        hashes=hashes,
    )
    target.put_if_absent(PLAN, seal({"format_version": FORMAT_VERSION, **plan.to_json()}))


def _copy(
    source: Storage, folder: Folder, target: Storage, parent: str, start: int, stop: int
) -> Folder:
    """Copy or link the objects of a folder; return it under its new name."""
    key = f"{parent}/{start:012d}-{stop:012d}-{folder.key.rsplit('-', 1)[1]}"
    near = target.inner if isinstance(target, WrappedStorage) else target
    linked = isinstance(source, LocalStorage) and isinstance(near, LocalStorage)

    def copy(item: tuple[str, tuple[int, str]]) -> None:
        relative, (size, sha256) = item
        if linked and near.link(source.root / folder.key / relative, f"{key}/{relative}"):  # type: ignore[attr-defined]
            return
        data = source.get(f"{folder.key}/{relative}")
        if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptStoreError(
                f"{folder.key}/{relative} in {source.url} is not what was committed. Run "
                "'interp-embed verify' on that store, and restore the object from a copy"
            )
        target.put_new(f"{key}/{relative}", data)

    executor = target.requests() or source.requests()
    for _ in bounded_map(executor, copy, folder.objects.items(), ahead=REQUESTS):
        pass
    target.sync(f"{key}/{relative}" for relative in folder.objects)
    sizes = dict(target.list(key))
    for relative, (size, _) in folder.objects.items():
        if sizes.get(f"{key}/{relative}") != size:
            raise CorruptStoreError(
                f"{key}/{relative} in {target.url} does not have the length of its copied original: the "
                f"disk or the object store is losing data, or {source.url} is damaged"
            )
    return replace(folder, key=key)
