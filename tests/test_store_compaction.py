"""Merging keeps every number, survives death at any moment, and disturbs no reader."""

from __future__ import annotations

import itertools
import shutil
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp_embed.core.chunk import DocumentStatus
from interp_embed.store import Store, StoreWriter, collect_garbage, compact, finish
from interp_embed.store.arrays.folder import Folder
from interp_embed.store.ledger import Commit, Ledger
from interp_embed.store.storage import open_storage
from interp_embed.store.verify.verifier import verify
from interp_embed.store.write.compaction import merge_groups
from interp_embed.testing import (
    FaultyStorage,
    InjectedError,
    assert_chunks_equal,
    random_chunk,
    read_everything,
    store_from_chunk,
)

LEVEL = ("max", "sum", "count", "positive")


def documents_level(store):
    """The document level as rows that do not depend on how documents are cut into chunks."""
    rows = {}
    for chunk, positions, where in store.parts(np.arange(store.n_documents)):
        level = chunk.pooled(LEVEL)
        for position, document in zip(positions.tolist(), where.tolist(), strict=True):
            entries = slice(*level["doc_ptr"][position : position + 2].tolist())
            rows[document] = {n: level[n][entries].tolist() for n in ("feature", *LEVEL)}
    return rows


def assert_sound(path):
    assert [p for p in verify(path) if p.severity == "error"] == []


def small(seed=0, n=14, **options):
    return random_chunk(seed, n, d_sae=200, mean_tokens=5, active=4, **options)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("negative", [False, True])
def test_a_merged_store_is_equal_in_everything(tmp_path, dtype, negative):
    chunk = small(dtype=dtype, negative=negative)
    parts = store_from_chunk(tmp_path / "s", chunk, documents_per_chunk=3, finished=False)
    assert len(parts.ledger.live) == 5
    before = documents_level(parts)
    with StoreWriter(Store(tmp_path / "s")) as writer:
        assert finish(writer, progress=True)
    merged = Store(tmp_path / "s")
    assert len(merged.ledger.live) == 1
    assert_chunks_equal(read_everything(merged), chunk)
    assert documents_level(merged) == before
    assert merged.failures(np.arange(14)) == parts_failures(chunk)
    assert verify(tmp_path / "s") == []
    files = sum(1 for p in (tmp_path / "s").rglob("*") if p.is_file())
    with StoreWriter(merged) as writer:
        assert finish(writer)
    assert files == sum(1 for p in (tmp_path / "s").rglob("*") if p.is_file())
    assert Store(tmp_path / "s").ledger.live[0].folder.key == merged.ledger.live[0].folder.key


def parts_failures(chunk):
    failed = np.flatnonzero(chunk.status == DocumentStatus.FAILED).tolist()
    return {i: chunk.reasons[i] for i in failed}


def test_chunks_with_and_without_negative_values_merge(tmp_path):
    plain, mixed = small(1, negative=False), small(2, negative=True)
    chunk = plain.take(np.arange(7))
    chunk = type(chunk).concatenate([chunk, mixed.take(np.arange(7, 14))])
    before = store_from_chunk(tmp_path / "a", chunk, documents_per_chunk=7, finished=False)
    after = store_from_chunk(tmp_path / "b", chunk, documents_per_chunk=7)
    assert [c.has_negative for c in before.ledger.live] == [False, True]
    assert documents_level(after) == documents_level(before)
    assert_sound(tmp_path / "b")


def test_a_retried_document_replaces_its_failed_self(tmp_path):
    chunk = small(failures=False)
    failed = chunk.with_failures({4: "once", 9: "once"})
    store = store_from_chunk(tmp_path / "s", failed, documents_per_chunk=7, finished=True)
    with StoreWriter(store) as writer:
        generation = store.ledger.next_generation
        writer.write(chunk.take([4]), generation=generation)
        writer.write(chunk.take([9]), generation=generation)
        found = Store(tmp_path / "s")
        assert len(found.ledger.intervals) == 5
        assert_chunks_equal(read_everything(found), chunk)
        assert_sound(tmp_path / "s")
        assert finish(writer)
    merged = Store(tmp_path / "s")
    assert len(merged.ledger.live) == 1
    assert_chunks_equal(read_everything(merged), chunk)
    assert verify(tmp_path / "s") == []


def test_merging_stops_at_the_size_that_was_asked_for(tmp_path):
    chunk = small(n=40, failures=False)
    store = store_from_chunk(tmp_path / "s", chunk, documents_per_chunk=2, finished=False)
    biggest = max(c.nnz for c in store.ledger.live)
    with StoreWriter(store) as writer:
        merged = compact(writer, target=3 * biggest, limit=5 * biggest)
        assert compact(writer, target=1, limit=1) == 0
    live = Store(tmp_path / "s").ledger.live
    assert merged == sum(c.generation > 0 for c in live) > 1
    assert all(c.nnz >= 3 * biggest for c in live[:-1])
    assert all(c.nnz <= 5 * biggest for c in live)
    assert_chunks_equal(read_everything(Store(tmp_path / "s")), chunk)


def commit(start, stop, nnz, generation=0):
    return Commit(
        start=start, stop=stop, generation=generation, d_sae=1, n_tokens=1, n_special=0, nnz=nnz,
        pooled_nnz=0, n_failed=0, n_truncated=0, has_negative=False, encoder="", vocabulary={},
        folder=Folder(f"chunks/{start}-{stop}-{generation}", {}, {}),
    )  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 30), st.booleans()), max_size=20),
    st.integers(1, 40),
    st.integers(0, 40),
)
def test_groups_are_neighbours_within_the_limits(runs, target, extra):
    limit = target + extra
    found, at = [], 0
    for length, nnz, gap in runs:
        at += gap
        found.append(commit(at, at + length, nnz))
        at += length
    groups = merge_groups(Ledger(found, at), target, limit)
    for group in groups:
        assert len(group) > 1
        assert sum(i.commit.nnz for i in group) <= limit
        assert sum(i.commit.nnz for i in group[:-1]) < target
        assert all(a.stop == b.start for a, b in itertools.pairwise(group))
    covered = [i.start for g in groups for i in g]
    assert covered == sorted(set(covered))
    assert groups == merge_groups(Ledger(found[::-1], at), target, limit)


def test_a_chunk_of_which_a_part_was_replaced_is_written_anew():
    groups = merge_groups(Ledger([commit(0, 9, 50), commit(3, 4, 50, 1)], 9), 10, 10)
    assert [[(i.start, i.stop) for i in g] for g in groups] == [[(0, 3)], [(4, 9)]]


@pytest.mark.parametrize("dead", [True, False], ids=["killed", "failed"])
def test_finishing_that_is_interrupted_anywhere_can_be_repeated(tmp_path, dead):
    chunk = small(n=6, failures=False).with_failures({1: "why"})
    origin = tmp_path / "origin"
    store = store_from_chunk(origin, chunk, documents_per_chunk=2, finished=False)
    before = documents_level(store)
    fail_at, step = 0, 9 if dead else 23
    while True:
        path = shutil.copytree(origin, tmp_path / "copy")
        storage = FaultyStorage(open_storage(path), fail_at, dead=dead)
        try:
            with StoreWriter(Store(storage)) as writer:
                finish(writer)
        except InjectedError:
            interrupted = True
        else:
            interrupted = False
        between = Store(path)
        assert_chunks_equal(read_everything(between), chunk)
        assert documents_level(between) == before
        if fail_at % 4 == 0:
            assert_sound(path)
        with StoreWriter(between) as writer:
            assert finish(writer)
        after = Store(path)
        assert len(after.ledger.live) == 1
        assert_chunks_equal(read_everything(after), chunk)
        assert verify(path) == []
        shutil.rmtree(path)
        if not interrupted:
            break
        fail_at += step
    assert fail_at > 90


def test_readers_get_the_right_data_while_chunks_are_merged(tmp_path):
    chunk = small(n=24)
    store_from_chunk(tmp_path / "s", chunk, documents_per_chunk=2, finished=False)
    stop, read, problems = threading.Event(), [], []

    def reader(seed):
        rng = np.random.default_rng(seed)
        store = Store(tmp_path / "s")
        while not stop.is_set():
            try:
                wanted = rng.permutation(24)[:10]
                assert_chunks_equal(store.chunk(wanted), chunk.take(wanted))
                assert store.status(wanted).tolist() == chunk.status[wanted].tolist()
                document = int(wanted[0])
                matrix, tokens, _ = store.document(document)
                assert (matrix != chunk.csr(document)).nnz == 0
                assert len(tokens) == matrix.shape[0]
                store.frame(wanted)
                read.append(seed)
            except BaseException as error:  # noqa: BLE001 - reported by the main thread
                problems.append(error)
                return
            if rng.random() < 0.2:
                store = Store(tmp_path / "s")

    threads = [threading.Thread(target=reader, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    try:
        with StoreWriter(Store(tmp_path / "s")) as writer:
            biggest = max(c.nnz for c in writer.store.ledger.live)
            for factor in (2, 5):  # several rounds: snapshots get old more than once
                compact(writer, target=factor * biggest, limit=2 * factor * biggest)
            finish(writer)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert problems == []
    assert len(read) > 3
    assert_chunks_equal(read_everything(Store(tmp_path / "s")), chunk)


def test_two_processes_may_merge_at_once(tmp_path):
    chunk = small(n=30)
    store_from_chunk(tmp_path / "s", chunk, documents_per_chunk=2, finished=False)
    barrier, problems = threading.Barrier(3), []

    def run():
        try:
            with StoreWriter(Store(tmp_path / "s")) as writer:
                barrier.wait()
                compact(writer)
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            problems.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    found = Store(tmp_path / "s")
    assert len(found.ledger.live) == 1
    assert_chunks_equal(read_everything(found), chunk)
    assert_sound(tmp_path / "s")


def test_garbage_is_what_nothing_names(tmp_path):
    chunk = small()
    store = store_from_chunk(tmp_path / "s", chunk, documents_per_chunk=7, finished=False)
    left = ["chunks/9-9-left/zarr.json", "documents/9-9-left/zarr.json", "commits/.tmp-1", ".tmp-2"]
    for key in left:
        store.storage.put_new(key, b"half")
    with StoreWriter(store) as writer:
        writer.write(chunk.take(np.arange(7)), generation=1)
        assert collect_garbage(store) == 3
    assert not any(store.storage.exists(key) for key in left)
    found = Store(tmp_path / "s")
    assert [c.generation for c in found.ledger.commits if c.start == 0] == [1]
    assert_chunks_equal(read_everything(found), chunk)
    assert [p.key for p in verify(tmp_path / "s")] == ["manifest.json"]
