"""The index says what the chunks say, by feature; it may be old, partial, damaged or gone."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp_embed import Dataset
from interp_embed.core.chunk import Chunk
from interp_embed.errors import CorruptIndexError
from interp_embed.store import Store, StoreWriter, collect_garbage, compact, finish
from interp_embed.store.arrays.folder import FolderWriter
from interp_embed.store.format.layout import index_arrays
from interp_embed.store.format.sealed import seal, unseal
from interp_embed.store.index import records as index_ledger
from interp_embed.store.index import segment as index_segment
from interp_embed.store.storage import LocalStorage, open_storage
from interp_embed.store.verify.verifier import verify
from interp_embed.store.write import compaction
from interp_embed.store.write import indexing as index_writer
from interp_embed.store.write.compaction import leftovers
from interp_embed.store.write.indexing import build_index
from interp_embed.testing import (
    FaultyStorage,
    InjectedError,
    LostResponseStorage,
    chunks,
    dense,
    oracle,
    random_chunk,
    store_from_chunk,
)
from tests.support.hypotheses import examples


def small(seed=0, n=14, **options):
    return random_chunk(seed, n, d_sae=60, mean_tokens=5, active=4, **options)


@pytest.fixture
def tiny(monkeypatch):
    """Segments of at most 50 entries, read a few entries at a time."""
    use_tiny(monkeypatch, 50, 20)


def use_tiny(patch, limit, block):
    patch.setattr(index_writer, "_SMALLEST", limit)
    patch.setattr(index_segment, "_BLOCK", block)
    patch.setattr(index_segment, "_MERGED", 7 * index_segment.INDEX_TOP)


def build(path, **options):
    return build_index(Store(path), memory=0, **options)


def errors(path):
    return {p.key: p.what for p in verify(path) if p.severity == "error"}


def notes(path):
    return {p.key: p.what for p in verify(path) if p.severity == "note"}


def index_folders(path):
    return sorted(p for p in (path / "index").glob("*") if p.is_dir())


def index_files(path):
    return sorted((path / "index").glob("*.json"))


class Expected:
    """What an index must say of some documents, from dense float64 numpy."""

    def __init__(self, chunk: Chunk) -> None:
        documents = dense(chunk)
        empty = np.zeros((0, chunk.d_sae))
        self.documents = [empty if m is None else m for m in documents]
        self.failed = [m is None for m in documents]
        self.max = np.nan_to_num(oracle(documents, "max", d_sae=chunk.d_sae))
        self.count = np.array([(m != 0).sum(axis=0) for m in self.documents])
        self.positive = np.array([(m > 0).sum(axis=0) for m in self.documents])
        self.sum = sum((m.sum(axis=0) for m in self.documents), np.zeros(chunk.d_sae))

    def top(self, feature, k):
        held = np.flatnonzero(self.max[:, feature])
        return held[np.argsort(-self.max[held, feature], kind="stable")][:k]


def assert_right(index, chunk, covered=None):
    """Compare all that an index says with the oracle; ``covered`` are the documents it knows."""
    n = chunk.n_documents
    covered = np.ones(n, bool) if covered is None else covered
    expected = Expected(chunk.with_failures(dict.fromkeys(np.flatnonzero(~covered).tolist(), "")))
    assert index.documents_covered == covered.sum()
    assert (index.uncovered(np.arange(n)) == ~covered).all()
    used = np.flatnonzero(expected.count.any(axis=0))
    some = np.unique(np.append(used, [0, chunk.d_sae - 1]))
    frequency = index.frequency(some)
    for feature, entries in zip(some.tolist(), frequency.tolist(), strict=True):
        held = np.flatnonzero(expected.count[:, feature])
        postings = index.postings(feature)
        assert postings.document.tolist() == held.tolist()
        assert entries == len(held)
        for name in ("max", "count", "positive"):
            np.testing.assert_array_equal(
                getattr(postings, name), getattr(expected, name)[held, feature], err_msg=name
            )
    if not index.is_complete:
        assert index.statistics() is None
        assert index.top(0, 1) is None
        return
    for feature in some.tolist():
        found = index.top(feature, 5)
        documents, values = found
        assert documents.tolist() == expected.top(feature, 5).tolist()
        np.testing.assert_array_equal(values, expected.max[documents, feature])
    assert_statistics(index, expected)


def assert_statistics(index, expected):
    statistics = index.statistics()
    exact = {
        "document_frequency": (expected.max > 0).sum(axis=0),
        "token_frequency": expected.positive.sum(axis=0),
        "nonzero_documents": (expected.count > 0).sum(axis=0),
        "nonzero_tokens": expected.count.sum(axis=0),
        "max": np.where(
            (expected.count > 0).any(axis=0),
            np.where(expected.count > 0, expected.max, -np.inf).max(axis=0),
            0,
        ),
    }
    for name, values in exact.items():
        np.testing.assert_array_equal(statistics[name], values, err_msg=name)
    size = sum((np.abs(m).sum(axis=0) for m in expected.documents), np.zeros(len(expected.sum)))
    # A document's sum is rounded to float32 before it is added.
    assert (np.abs(statistics["sum"] - expected.sum) <= 2.0**-22 * size).all()
    assert index.commit.n_documents == expected.failed.count(False)
    assert index.commit.n_tokens == sum(len(m) for m in expected.documents)


# What it says


@st.composite
def stores(draw):
    """Documents, how to commit them, which of them fail at first, and how to index them."""
    chunk = draw(chunks(max_documents=7))
    retried = draw(st.sets(st.integers(0, chunk.n_documents - 1), max_size=2))
    per_chunk = draw(st.integers(1, 7))
    return chunk, sorted(retried), per_chunk, draw(st.integers(1, 12)), draw(st.booleans())


@settings(max_examples=examples(40), suppress_health_check=list(HealthCheck))
@given(stores())
def test_an_index_says_what_the_documents_say(tmp_path_factory, drawn):
    chunk, retried, per_chunk, limit, merged = drawn
    path = tmp_path_factory.mktemp("s")
    failing = chunk.with_failures(dict.fromkeys(retried, "once"))
    store = store_from_chunk(path, failing, documents_per_chunk=per_chunk, finished=False)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch, limit, max(1, limit // 2))
        assert_right(build(path), failing)
        with StoreWriter(store) as writer:
            for number in retried:
                writer.write(chunk.take([number]), generation=store.ledger.next_generation)
            if merged:
                compact(writer)
        index = build(path)
        assert index.is_complete
        assert_right(index, chunk)
        assert all(s.n_entries <= max(limit, chunk.d_sae) for s in index.segments)
        assert errors(path) == {}
    assert leftovers(Store(path)) == set()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("segments", ["one", "many"])
def test_a_larger_index_is_right(tmp_path, monkeypatch, dtype, negative, segments):
    chunk = random_chunk(
        3, 90, d_sae=66_000, mean_tokens=30, active=20, dtype=dtype, negative=negative
    )
    store_from_chunk(tmp_path / "s", chunk, documents_per_chunk=20, finished=False)
    monkeypatch.setattr(index_segment, "_BLOCK", 1000)
    if segments == "many":
        monkeypatch.setattr(index_writer, "_SMALLEST", 5000)
    index = build(tmp_path / "s", progress=True)
    assert (len(index.segments) > 3) == (segments == "many")
    assert_right(index, chunk)
    assert errors(tmp_path / "s") == {}
    assert ("positive" in index.segments[0].folder.arrays) == negative


def test_the_index_is_the_same_whatever_the_number_of_threads(tmp_path, monkeypatch, tiny):
    chunk = small(n=40)
    store_from_chunk(tmp_path / "a", chunk, documents_per_chunk=9)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found = []
    for name, threads in (("a", 1), ("b", 7)):
        monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
        build(tmp_path / name)
        folders = [s.folder for s in Store(tmp_path / name).index().segments]
        found.append([sorted(sha for _, sha in folder.objects.values()) for folder in folders])
    assert len(found[0]) > 2
    assert found[0] == found[1]


def test_columns_of_postings_are_read_as_they_are_asked_for(tmp_path):
    store_from_chunk(tmp_path / "s", small())
    build(tmp_path / "s")
    storage = FaultyStorage(open_storage(tmp_path / "s"))
    index = Store(storage).index()
    storage.calls.clear()
    postings = index.postings(3, ["count"])
    read = {key.split("/")[2] for _, key in storage.calls}
    assert read == {"feature_ptr", "document", "count"}
    assert postings.max is None
    assert list(postings.arrays()) == ["count"]
    with pytest.raises(ValueError, match="columns must be among"):
        index.postings(3, ["sum"])


@pytest.mark.parametrize("feature", [-1, 60])
def test_there_is_no_such_feature(tmp_path, feature):
    store_from_chunk(tmp_path / "s", small())
    index = build(tmp_path / "s")
    for ask in (index.postings, lambda f: index.top(f, 1), lambda f: index.frequency([0, f])):
        with pytest.raises(IndexError, match="not among the 60 features"):
            ask(feature)


def of_values(columns):
    """Documents of one token each, with the given activations of feature 0."""
    from scipy.sparse import csr_matrix

    from interp_embed.core.chunk import TokenTable

    def table():
        u32 = np.zeros(1, np.uint32)
        return TokenTable(u32, u32, u32 + np.uint32(1), np.zeros(1, bool))

    matrices = [csr_matrix(np.array([[v, 1.0]], np.float32)) for v in columns]
    return Chunk.from_documents(2, matrices, [table() for _ in matrices])


def test_ties_among_the_top_documents_go_by_document(tmp_path, monkeypatch):
    values = [1, 2, 0, 2, -1, 1, 2, -1, 3]
    store_from_chunk(tmp_path / "s", of_values(values), documents_per_chunk=2, finished=False)
    for limit in (2**20, 3):
        monkeypatch.setattr(index_writer, "_SMALLEST", limit)
        documents, found = build(tmp_path / "s", rebuild=True).top(0, 99)
        assert documents.tolist() == [8, 1, 3, 6, 0, 5, 4, 7]
        assert found.tolist() == [3, 2, 2, 2, 1, 1, -1, -1]
    assert build(tmp_path / "s").top(0, 3)[0].tolist() == [8, 1, 3]


@pytest.mark.parametrize("limit", [2**20, 60])
def test_more_top_documents_than_are_listed(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(index_writer, "_SMALLEST", limit)
    values = np.random.default_rng(0).integers(1, 20, 130)
    store_from_chunk(tmp_path / "s", of_values(values), documents_per_chunk=40)
    index = build(tmp_path / "s")
    documents, _ = index.top(0, 100)
    assert documents.tolist() == np.argsort(-values, kind="stable")[:100].tolist()
    assert index.top(0, 101) is None
    exactly = store_from_chunk(tmp_path / "t", of_values(values[:100]), documents_per_chunk=40)
    documents, _ = build_index(exactly).top(0, 10**6)
    assert documents.tolist() == np.argsort(-values[:100], kind="stable").tolist()


def test_a_store_without_any_entries_has_an_index(tmp_path):
    chunk = small(n=4).with_failures(dict.fromkeys(range(4), "lost"))
    store_from_chunk(tmp_path / "s", chunk)
    index = build(tmp_path / "s")
    assert index.is_complete
    assert index.n_entries == 0
    assert_right(index, chunk)
    assert errors(tmp_path / "s") == {}


def test_nothing_encoded_is_nothing_to_index(tmp_path):
    store = store_from_chunk(tmp_path / "s", small(n=4).take([]), finished=False)
    with pytest.raises(ValueError, match="nothing was encoded yet"):
        build_index(store)
    assert store.index() is None


@pytest.mark.filterwarnings("ignore:.*numcodecs")
def test_plain_zarr_reads_an_index(tmp_path):
    chunk = small(negative=False)
    store_from_chunk(tmp_path / "s", chunk)
    build(tmp_path / "s")
    expected = Expected(chunk)
    commit = json.loads(index_files(tmp_path / "s")[0].read_text())
    group = zarr.open_group(tmp_path / "s", mode="r")
    segment = group[commit["segments"][0]["folder"]["key"]]
    begin, end = (int(x) for x in segment["feature_ptr"][7:9])
    documents = segment["document"][begin:end]
    assert documents.tolist() == np.flatnonzero(expected.count[:, 7]).tolist()


# Documents that are added, tried again, merged


def test_what_is_indexed_already_is_kept(tmp_path, tiny):
    chunk = small(n=40)
    store = store_from_chunk(
        tmp_path / "s", chunk.take(np.arange(25)), frame_of(chunk), documents_per_chunk=5,
        finished=False,
    )  # fmt: skip
    first = build(tmp_path / "s")
    known = np.arange(40) < 25
    assert_right(first, chunk, known)
    assert first.statistics() is not None  # of what the ledger holds
    with StoreWriter(store) as writer:
        writer.write(chunk.take(np.arange(30, 40)))
    partial = Store(tmp_path / "s").index()
    assert not partial.is_complete
    assert_right(partial, chunk, known)
    assert partial.covered == [(0, 25)]
    assert "adds what is missing" in next(iter(index_notes(tmp_path / "s").values()))
    second = build(tmp_path / "s")
    kept = {s.folder.key for s in first.segments} & {s.folder.key for s in second.segments}
    assert len(kept) >= len(first.segments) - 1
    assert len(index_files(tmp_path / "s")) == 1
    with StoreWriter(store) as writer:  # between others: their segments must not interleave
        writer.write(chunk.take(np.arange(25, 30)))
    third = build(tmp_path / "s")
    assert_right(third, chunk)
    assert errors(tmp_path / "s") == {}
    assert len(index_folders(tmp_path / "s")) == len(third.segments) + 1
    build(tmp_path / "s")
    assert {s.folder.key for s in Store(tmp_path / "s").index().segments} == {
        s.folder.key for s in third.segments
    }


def index_notes(path):
    return {key: what for key, what in notes(path).items() if key.startswith("index/")}


def frame_of(chunk):
    import pandas as pd

    from interp_embed.testing import texts_of

    return pd.DataFrame({"text": texts_of(chunk)}, dtype=object)


def test_documents_added_inside_of_a_segment_come_in_order(tmp_path):
    chunk = small(n=15)
    store = store_from_chunk(
        tmp_path / "s", chunk.take(np.arange(5)), frame_of(chunk), documents_per_chunk=5,
        finished=False,
    )  # fmt: skip
    with StoreWriter(store) as writer:
        writer.write(chunk.take(np.arange(10, 15)))
        assert_right(build(tmp_path / "s"), chunk, ~np.isin(np.arange(15), np.arange(5, 10)))
        writer.write(chunk.take(np.arange(5, 10)))
    assert Store(tmp_path / "s").index().covered == [(0, 5), (10, 15)]
    assert_right(build(tmp_path / "s"), chunk)


def test_many_little_segments_become_one(tmp_path):
    chunk = small(n=20)
    store = store_from_chunk(tmp_path / "s", chunk.take([0]), frame_of(chunk), finished=False)
    with StoreWriter(store) as writer:
        for number in range(1, 20):
            build(tmp_path / "s")
            writer.write(chunk.take([number]))
    index = build(tmp_path / "s")
    assert len(index.segments) == 1
    assert_right(index, chunk)


def test_a_document_that_is_tried_again_is_answered_anew(tmp_path, tiny):
    chunk = small(failures=False)
    store = store_from_chunk(tmp_path / "s", chunk.with_failures({4: "once"}), finished=False)
    build(tmp_path / "s")
    with StoreWriter(store) as writer:
        writer.write(chunk.take([4]), generation=1)
    partial = Store(tmp_path / "s").index()
    assert partial.uncovered(np.array([4])).all()
    assert_right(build(tmp_path / "s"), chunk)


def test_merged_chunks_leave_nothing_of_the_index(tmp_path):
    chunk = small()
    store = store_from_chunk(tmp_path / "s", chunk, finished=False)
    build(tmp_path / "s")
    with StoreWriter(store) as writer:
        compact(writer)
    assert Store(tmp_path / "s").index() is None
    assert set(index_notes(tmp_path / "s")) == {
        f"index/{p.name}" for p in index_files(tmp_path / "s")
    }
    assert collect_garbage(Store(tmp_path / "s")) == 1
    assert index_folders(tmp_path / "s") == index_files(tmp_path / "s") == []


def test_finishing_indexes_a_store_of_some_size(tmp_path, monkeypatch):
    chunk = small()
    store_from_chunk(tmp_path / "little", chunk, finished=True)
    assert Store(tmp_path / "little").index() is None
    monkeypatch.setattr(compaction, "_INDEXED_ENTRIES", 10)
    store_from_chunk(tmp_path / "large", chunk, finished=True)
    assert_right(Store(tmp_path / "large").index(), chunk)
    assert verify(tmp_path / "large") == []


def test_finishing_renews_an_index_that_was_there(tmp_path):
    chunk = small()
    store = store_from_chunk(tmp_path / "s", chunk, finished=False)
    build(tmp_path / "s")
    with StoreWriter(store) as writer:
        assert finish(writer)
    assert_right(Store(tmp_path / "s").index(), chunk)
    assert verify(tmp_path / "s") == []


# Several processes, and dying


def test_of_two_that_index_at_once_one_wins(tmp_path, tiny):
    chunk = small(n=30)
    store_from_chunk(tmp_path / "s", chunk, documents_per_chunk=6, finished=False)
    barrier, found, problems = threading.Barrier(3), [], []

    def run():
        try:
            store = Store(tmp_path / "s")
            barrier.wait()
            found.append(build_index(store, memory=0))
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            problems.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(index_files(tmp_path / "s")) == 1
    for index in found:
        assert_right(index, chunk)
    assert len(index_folders(tmp_path / "s")) == len(found[0].segments) + 1
    assert errors(tmp_path / "s") == {}


@pytest.mark.parametrize("dead", [True, False], ids=["killed", "failed"])
def test_indexing_that_is_interrupted_anywhere_can_be_repeated(quick_path, dead, tiny):
    chunk = small(n=8)
    origin = quick_path / "origin"
    store_from_chunk(origin, chunk, documents_per_chunk=4, finished=True)
    fail_at, step = 0, 19 if dead else 31
    while True:
        path = Path(shutil.copytree(origin, quick_path / "copy"))
        storage = FaultyStorage(open_storage(path), fail_at, dead=dead)
        try:
            build_index(Store(storage), memory=0)
        except (InjectedError, OSError):
            interrupted = True
        else:
            interrupted = False
        assert errors(path) == {}
        if (between := Store(path).index()) is not None:
            assert_right(between, chunk)
        elif not dead and fail_at > 20:
            assert index_folders(path) == []
        assert_right(build(path), chunk)
        collect_garbage(Store(path))
        assert verify(path) == []
        shutil.rmtree(path)
        if not interrupted:
            break
        fail_at += step
    assert fail_at > 60


def test_a_kill_between_the_folder_and_the_commit_leaves_only_a_folder(tmp_path, monkeypatch):
    chunk = small()
    store = store_from_chunk(tmp_path / "s", chunk)

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    monkeypatch.setattr(index_ledger.IndexCommit, "publish", die)
    monkeypatch.setattr(type(store.storage), "delete_folders", die)
    with pytest.raises(Killed):
        build_index(store)
    monkeypatch.undo()
    folders = {f"index/{p.name}" for p in index_folders(tmp_path / "s")}
    assert len(folders) == 1
    assert Store(tmp_path / "s").index() is None
    assert folders <= leftovers(store)
    assert set(index_notes(tmp_path / "s")) == folders
    build(tmp_path / "s")
    assert collect_garbage(Store(tmp_path / "s")) == 1
    assert verify(tmp_path / "s") == []


@pytest.mark.parametrize("answer", ["raise", "false"])
def test_a_lost_answer_to_the_commit_loses_no_folder(tmp_path, answer):
    chunk = small()
    store_from_chunk(tmp_path / "s", chunk)
    storage = LostResponseStorage(open_storage(tmp_path / "s"), "index/", answer)
    if answer == "raise":
        with pytest.raises(InjectedError):
            build_index(Store(storage))
    else:
        build_index(Store(storage))
    assert_right(Store(tmp_path / "s").index(), chunk)
    assert errors(tmp_path / "s") == {}


def test_an_index_whose_folder_was_taken_for_garbage_is_built_again(tmp_path, monkeypatch):
    chunk = small()
    store = store_from_chunk(tmp_path / "s", chunk)
    publish = index_ledger.IndexCommit.publish
    cleared = []

    def clear_first(commit, storage):
        if not cleared:
            cleared.append(collect_garbage(Store(tmp_path / "s")))
        return publish(commit, storage)

    monkeypatch.setattr(index_ledger.IndexCommit, "publish", clear_first)
    assert_right(build_index(store), chunk)
    assert cleared == [1]
    assert errors(tmp_path / "s") == {}


def test_documents_that_are_added_while_it_is_built_are_left_out(tmp_path, monkeypatch):
    chunk = small(n=10)
    store = store_from_chunk(
        tmp_path / "s", chunk.take(np.arange(5)), frame_of(chunk), documents_per_chunk=5,
        finished=False,
    )  # fmt: skip
    publish = index_ledger.IndexCommit.publish

    def add_first(commit, storage):
        with StoreWriter(Store(tmp_path / "s")) as writer:
            writer.write(chunk.take(np.arange(5, 10)))
        return publish(commit, storage)

    monkeypatch.setattr(index_ledger.IndexCommit, "publish", add_first)
    index = build_index(store)
    assert_right(index, chunk, np.arange(10) < 5)
    monkeypatch.undo()
    assert_right(build(tmp_path / "s"), chunk)


def test_chunks_that_are_merged_while_it_is_built_are_read_merged(tmp_path, monkeypatch):
    chunk = small(n=12)
    store = store_from_chunk(tmp_path / "s", chunk, documents_per_chunk=3, finished=False)
    write, merged = index_writer.write_segment, []

    def merge_first(*arguments):
        if not merged:
            with StoreWriter(Store(tmp_path / "s")) as writer:
                merged.append(compact(writer))
        return write(*arguments)

    monkeypatch.setattr(index_writer, "write_segment", merge_first)
    assert_right(build_index(store), chunk)
    assert merged == [1]
    assert len(index_folders(tmp_path / "s")) == 1


def test_garbage_spares_the_index_and_what_is_being_written(tmp_path):
    chunk = small()
    store = store_from_chunk(tmp_path / "s", chunk)
    build(tmp_path / "s")
    store.storage.put_new("index/0123456789ab/document/zarr.json", b"half")
    store.storage.put_new("index/.tmp-1", b"half")
    assert collect_garbage(store, among=set()) == 0
    assert collect_garbage(store) == 1
    assert verify(tmp_path / "s") == []
    assert_right(Store(tmp_path / "s").index(), chunk)


def test_the_top_ten_are_three_arrays_away(tmp_path, tiny):
    """A few requests, whatever the number of chunks and segments."""
    read = []
    for n in (12, 120):
        store_from_chunk(tmp_path / str(n), small(n=n), documents_per_chunk=3)
        build(tmp_path / str(n))
        storage = FaultyStorage(open_storage(tmp_path / str(n)))
        store = Store(storage)
        storage.calls.clear()
        store.index().top(5, 10)
        assert {name for name, _ in storage.calls} == {"get", "get_range"}
        read.append(len(storage.calls))
    assert read[0] == read[1] <= 8


# Damage


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "s"
    chunk = small(5, 20)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch, 60, 20)
        store_from_chunk(path, chunk, documents_per_chunk=5, finished=False)
        build(path)
    assert errors(path) == {}
    return path, chunk


@pytest.fixture
def copy(indexed, tmp_path):
    path, chunk = indexed
    return Path(shutil.copytree(path, tmp_path / "copy")), chunk


def data_files(path):
    return sorted(p for p in (path / "index").rglob("*") if p.is_file())


def read_everything(path):
    """Ask an index for all it knows; None where there is none."""
    index = Store(path).index()
    if index is None:
        return None
    features = range(index.d_sae)
    return (
        [index.postings(f).arrays() | {"document": index.postings(f).document} for f in features],
        [index.top(f, 5) for f in features],
        index.statistics(),
    )


def test_every_damaged_object_is_named(copy):
    path, _ = copy
    rng = np.random.default_rng(0)
    for file in data_files(path)[:: 1 + len(data_files(path)) // 15]:
        content = file.read_bytes()
        for damage in ("flip", "cut", "delete"):
            data = bytearray(content)
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
            if damage == "delete":
                file.unlink()
            else:
                file.write_bytes(data if damage == "flip" else content[:-1])
            found = errors(path)
            name = file.relative_to(path).as_posix()
            if damage == "delete" and file.suffix == ".json" and file.parent.name == "index":
                assert found == {}  # as if it had not been indexed
            else:
                assert name in found, damage
                assert "interp-embed index --rebuild" in found[name]
                assert all(key.startswith("index/") for key in found)
            file.write_bytes(content)
    assert errors(path) == {}


def test_reading_a_damaged_index_raises_or_gives_the_right_answer(copy):
    path, _ = copy
    expected = read_everything(path)
    rng = np.random.default_rng(1)
    raised = missed = 0
    for file in data_files(path):
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        commit = file.parent.name == "index"
        try:
            found = read_everything(path)
        except CorruptIndexError as error:
            message = str(error)
            raised += 1
        else:
            message = "interp-embed index --rebuild"
            # Its JSON is not needed to read an array, and a damaged commit is none.
            np.testing.assert_equal(found, None if commit else expected)
        assert "interp-embed index --rebuild" in message
        file.unlink()
        try:
            found = read_everything(path)
        except FileNotFoundError:
            missed += 1
        else:
            np.testing.assert_equal(found, None if commit else expected)
        file.write_bytes(content)
    assert raised > 20
    assert missed > 20


def resealed(path, change):
    """Change the one index commit of a store, and make its checksum right again."""
    file = index_files(path)[0]
    document = unseal(file.read_bytes(), "")
    change(document)
    file.write_bytes(seal(document))
    return f"index/{file.name}"


@pytest.mark.parametrize("where", ["segment", "summary"])
def test_an_index_that_is_sound_but_wrong_is_found_out(indexed, tmp_path, monkeypatch, where):
    """Each array in turn is written with one element changed."""
    path, chunk = tmp_path / "s", indexed[1]
    store_from_chunk(path, chunk, documents_per_chunk=5, finished=False)
    if where == "summary":
        use_tiny(monkeypatch, 60, 20)
    add, function = FolderWriter.add, f"write_{where}"
    write = getattr(index_writer, function)
    names = index_arrays(np.dtype(np.float32), np.dtype(np.uint8), np.dtype(np.uint32))
    changed = set()
    for target in names:
        done = []

        def change(self, name, spec, values, *rest, target=target, done=done):
            if name == target:
                values = values.copy()
                values[len(values) // 2] += 1
                done.append(f"{self.key}/")
            add(self, name, spec, values, *rest)

        def wrong(*arguments, change=change):
            with monkeypatch.context() as patch:
                patch.setattr(FolderWriter, "add", change)
                write(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(index_writer, function, wrong)
            build(path, rebuild=True)
        found = errors(path)
        assert bool(done) == any(key.startswith(tuple(done)) for key in found if done), target
        assert all("interp-embed index --rebuild" in what for what in found.values())
        changed |= {target for _ in done}
    written = {name for name in names if not name.startswith("summary/top_") or name[-3:] == "ptr"}
    if where == "summary":
        written = {name for name in written if name.startswith("summary/")}
    assert changed == written


def test_an_index_that_lists_other_top_documents_is_found_out(tmp_path, monkeypatch):
    chunk = of_values([1, 2, 0, 2, -1, 1, 2, -1, 3])
    store_from_chunk(tmp_path / "s", chunk, documents_per_chunk=2, finished=False)
    append = FolderWriter.append

    def change(self, name, spec, values, *rest):
        if name == "summary/top_document":
            values = values.copy()
            values[1], values[3] = 3, 1  # two that tie
        append(self, name, spec, values, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(FolderWriter, "append", change)
        build(tmp_path / "s")
    assert "does not list documents by their max" in next(iter(errors(tmp_path / "s").values()))

    def swap(self, name, spec, values, *rest):
        if name == "summary/top_document":
            values = values.copy()
            values[0] = 2  # where the feature is not active
        append(self, name, spec, values, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(FolderWriter, "append", swap)
        build(tmp_path / "s", rebuild=True)
    assert "the top documents of feature 0" in next(iter(errors(tmp_path / "s").values()))


def test_an_index_commit_that_does_not_fit_is_found_out(copy):
    path, _ = copy
    original = index_files(path)[0].read_bytes()

    def found(change):
        key = resealed(path, change)
        what = [p.what for p in verify(path) if p.key == key and p.severity == "error"]
        (path / key).write_bytes(original)
        return " ".join(what)

    assert "does not cover what its name says" in found(lambda d: d["coverage"].pop())
    assert "do not cover its documents" in found(lambda d: d["segments"].pop(0))
    assert "says n_tokens 7" in found(lambda d: d.update(n_tokens=7))
    assert "no summary of them" in found(lambda d: d.update(summary=None))
    assert errors(path) == {}


def test_an_index_that_may_not_be_read_costs_time_and_nothing_else(copy, monkeypatch):
    path, _ = copy
    expected = Dataset.load_from_file(path).top_documents_for_feature(3, k=5)
    get = LocalStorage.get

    def guarded(self, key):
        if key.startswith("index/"):
            raise PermissionError(13, "Permission denied", key)
        return get(self, key)

    monkeypatch.setattr(LocalStorage, "get", guarded)
    dataset = Dataset.load_from_file(path)
    with pytest.warns(UserWarning, match="chunks are read instead"):
        assert dataset.top_documents_for_feature(3, k=5) == expected


def test_a_damaged_index_is_made_anew_on_request(copy):
    path, chunk = copy
    (folder,) = [f for f in index_folders(path) if (f / "summary").exists()][:1]
    file = folder / "summary/document_frequency/c/0"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    dataset = Dataset.load_from_file(path)
    dataset.build_index()
    assert errors(path) != {}
    dataset.build_index(rebuild=True)
    assert errors(path) == {}
    assert_right(Store(path).index(), chunk)


def test_a_segment_that_lost_an_object_is_not_kept(copy, tiny):
    path, chunk = copy
    segments = Store(path).index().segments
    (path / segments[0].folder.key / "count/c/0").unlink()
    with StoreWriter(Store(path)) as writer:  # only the last segment's documents change
        writer.write(chunk.take([19]), generation=1)
    index = build(path)
    assert_right(index, chunk)
    kept = {s.folder.key for s in index.segments} & {s.folder.key for s in segments}
    assert 0 < len(kept) < len(segments) - 1
    assert errors(path) == {}


def test_a_missing_object_that_the_ledger_does_not_name_is_rebuilt(copy):
    path, chunk = copy
    shutil.rmtree(index_folders(path)[0])
    assert errors(path) != {}
    assert_right(build(path), chunk)
    assert errors(path) == {}
    assert collect_garbage(Store(path)) == 0
