"""Questions about a few features have the same answers with an index and without one."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp_embed import Dataset
from interp_embed.aggregate import by_index as columns
from interp_embed.aggregate.by_index import feature_columns, holders, top_documents
from interp_embed.aggregate.matrices import aggregate_dense
from interp_embed.aggregate.reductions import REDUCTIONS
from interp_embed.store import Store, StoreWriter, compact
from interp_embed.store.storage import open_storage
from interp_embed.store.write import indexing as index_writer
from interp_embed.store.write.indexing import build_index
from interp_embed.testing import (
    FaultyStorage,
    dense,
    oracle,
    random_chunk,
    store_from_chunk,
    texts_of,
)
from tests.support.hypotheses import examples

N, D_SAE = 40, 50


@pytest.fixture
def eager(monkeypatch):
    """Ask the index even where a pass over so few documents is less work."""
    monkeypatch.setattr(columns, "_READ_ENTRIES", -(10**9))


def documents(**options):
    return random_chunk(7, N, d_sae=D_SAE, mean_tokens=6, active=3, **options)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The same documents with an index, without one, and with one of some of them."""
    folder = tmp_path_factory.mktemp("stores")
    chunk = documents().with_failures({5: "once", 30: "once"})
    frame = pd.DataFrame({"text": texts_of(complete_chunk())}, dtype=object)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_writer, "_SMALLEST", 70)
        for name in ("none", "complete", "partial"):
            store = store_from_chunk(
                folder / name, chunk, frame, documents_per_chunk=7, finished=False
            )
            if name == "partial":
                build_index(store, memory=0)
            with StoreWriter(store) as writer:
                again = documents(failures=False)
                writer.write(again.take([5]), generation=1)
                writer.write(again.take([30]), generation=1)
            if name == "complete":
                build_index(store, memory=0)
    return folder


def complete_chunk():
    chunk, again = documents(), documents(failures=False)
    parts = [again.take([i]) if i in (5, 30) else chunk.take([i]) for i in range(N)]
    return type(chunk).concatenate(parts)


def test_the_indexes_cover_what_they_should(paths):
    assert Store(paths / "none").index() is None
    assert Store(paths / "complete").index().is_complete
    partial = Store(paths / "partial").index()
    assert not partial.is_complete
    assert 0 < partial.documents_covered < N


ORDERS = st.one_of(
    st.just(np.arange(N)),
    st.lists(st.integers(0, N - 1), max_size=60).map(lambda v: np.array(v, np.int64)),
    st.permutations(range(N)).map(lambda v: np.array(v, np.int64)),
    st.lists(st.booleans(), min_size=N, max_size=N).map(lambda v: np.flatnonzero(v)),
)
FEATURES = st.lists(st.integers(0, D_SAE - 1), min_size=1, max_size=8, unique=True)
METHODS = st.sampled_from(
    [(name, 0.0) for name in REDUCTIONS] + [("binarize", 1.5), ("count", 1.5), ("count", 1e9)]
)


@settings(max_examples=examples(120), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ORDERS, FEATURES, METHODS, st.sampled_from(["none", "complete", "partial"]))
def test_columns_equal_a_pass_over_the_chunks(paths, eager, wanted, features, method, which):
    name, threshold = method
    store = Store(paths / which)
    features = np.array(features)
    found = feature_columns(store, wanted, features, REDUCTIONS[name], threshold)
    expected = aggregate_dense(store, wanted, REDUCTIONS[name], threshold, features)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    if name in ("max", "binarize", "count"):
        reference = oracle(dense(complete_chunk()), name, threshold, d_sae=D_SAE)
        np.testing.assert_array_equal(found, reference[wanted][:, features])


def read_arrays(storage):
    """The arrays that were read of chunks, and of an index."""
    found = {"chunks": set(), "index": set()}
    for name, key in storage.calls:
        parts = key.split("/")
        if name == "get_range" and parts[0] in found:
            found[parts[0]].add("/".join(parts[2:-2]))
    return found


@pytest.mark.parametrize(
    ("method", "threshold", "arrays"),
    [("max", 0.0, {"max"}), ("nnz", 0.0, {"count"}), ("count", 0.0, {"positive"}),
     ("binarize", 2.0, {"max"})],
)  # fmt: skip
def test_what_the_index_knows_is_not_read_from_the_chunks(paths, eager, method, threshold, arrays):
    storage = FaultyStorage(open_storage(paths / "complete"))
    store = Store(storage)
    storage.calls.clear()
    feature_columns(store, np.arange(N), np.array([3]), REDUCTIONS[method], threshold)
    read = read_arrays(storage)
    assert read["chunks"] <= {"status"}
    assert read["index"] == {"feature_ptr", "document"} | arrays


@pytest.mark.parametrize(("method", "threshold"), [("sum", 0.0), ("var", 0.0), ("count", 2.5)])
def test_other_reductions_read_the_documents_that_have_the_feature(paths, eager, method, threshold):
    store = Store(paths / "complete")
    rare = int(np.argmin(store.index().statistics()["nonzero_documents"]))
    asked = []

    def count(store, documents, *rest):
        asked.append(documents)
        return aggregate_dense(store, documents, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "aggregate_dense", count)
        feature_columns(store, np.arange(N), np.array([rare]), REDUCTIONS[method], threshold)
    held = store.index().postings(rare).document
    assert all(np.isin(documents, held).all() for documents in asked)
    assert sum(map(len, asked)) < N / 2


def test_little_is_read_from_the_chunks_without_asking_the_index(paths):
    storage = FaultyStorage(open_storage(paths / "complete"))
    store = Store(storage)
    storage.calls.clear()
    feature_columns(store, np.arange(3), np.array([3]), REDUCTIONS["max"])
    assert read_arrays(storage)["index"] == set()


# Datasets


def views():
    rng = np.random.default_rng(0)
    return {
        "whole": slice(None),
        "reversed": slice(None, None, -1),
        "some": slice(3, 30, 2),
        "mask": rng.random(N) < 0.5,
        "repeated": rng.integers(0, N, 60),
        "none": slice(0, 0),
    }


@pytest.mark.parametrize("view", views())
@pytest.mark.parametrize("which", ["complete", "partial"])
def test_datasets_answer_the_same(paths, eager, view, which):
    plain = Dataset.load_from_file(paths / "none")[views()[view]]
    indexed = Dataset.load_from_file(paths / which)[views()[view]]
    for feature in (0, 7, 49):
        assert indexed.token_activations(feature) == plain.token_activations(feature)
        for kind in ("max", "sum", "count", "mean"):
            for highest in (True, False):
                for inactive in (True, False):
                    asked = (feature, kind, True, 12, highest, inactive)
                    assert indexed.top_documents_for_feature(
                        *asked
                    ) == plain.top_documents_for_feature(*asked)
    ours, theirs = (d.sort_by_features([7, 3, 7], "max") for d in (indexed, plain))
    pd.testing.assert_frame_equal(ours.dataset, theirs.dataset)
    ours, theirs = (d.feature_statistics() for d in (indexed, plain))
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-12, err_msg=name)
    assert ours.attrs == theirs.attrs


@pytest.mark.parametrize("k", [1, 5, 30, 1000])
@pytest.mark.parametrize("inactive", [False, True])
def test_listed_top_documents_are_those_of_a_pass(paths, k, inactive):
    plain = Dataset.load_from_file(paths / "none")
    indexed = Dataset.load_from_file(paths / "complete")
    for feature in range(D_SAE):
        found = [
            d.top_documents_for_feature(feature, k=k, include_nonactive_samples=inactive)
            for d in (indexed, plain)
        ]
        assert found[0] == found[1]


def test_the_top_documents_of_a_whole_store_take_a_few_requests(paths):
    storage = FaultyStorage(open_storage(paths / "complete"))
    store = Store(storage)
    storage.calls.clear()
    documents, values = top_documents(store, np.arange(N), 4, 10)
    assert len(documents) == len(values) == 10
    assert read_arrays(storage)["chunks"] == set()
    assert len(storage.calls) <= 8
    assert top_documents(store, np.arange(N)[::-1], 4, 10) is None
    assert top_documents(store, np.arange(N - 1), 4, 10) is None


@pytest.mark.parametrize("feature", [-1, D_SAE, 1.5, "x", True])
def test_no_such_feature(paths, feature):
    indexed = Dataset.load_from_file(paths / "complete")
    with pytest.raises((IndexError, TypeError)):
        indexed.top_documents_for_feature(feature)


def test_texts_of_documents_without_the_feature_are_read_as_far_as_encoded(tmp_path, eager):
    chunk = random_chunk(1, 30, d_sae=400, mean_tokens=5, active=2)
    status = chunk.status.copy()
    status[np.flatnonzero(np.diff(chunk.doc_ptr))[::3]] = 1
    chunk = replace(chunk, status=status)
    store = store_from_chunk(tmp_path / "s", chunk)
    frequency = np.bincount(chunk.feature, minlength=400)
    feature = int(np.flatnonzero(frequency == 2)[0])
    plain = Dataset.load_from_file(tmp_path / "s").token_activations(feature)
    build_index(store)
    held = holders(Store(tmp_path / "s"), np.arange(30), feature)
    assert 0 < held.sum() < 15
    assert Dataset.load_from_file(tmp_path / "s").token_activations(feature) == plain
    texts = texts_of(chunk)
    assert any(found != text for found, text in zip(plain, texts, strict=True) if found)


# An index that goes, or is damaged, while it is in use


@pytest.fixture
def used(paths, tmp_path, eager):
    """A store whose index was read already, and where it is."""
    path = shutil.copytree(paths / "complete", tmp_path / "s")
    store = Store(path)
    assert store.index() is not None
    return store, path


def ask(store):
    return feature_columns(store, np.arange(N), np.arange(0, D_SAE, 7), REDUCTIONS["max"])


def expected():
    return oracle(dense(complete_chunk()), "max", d_sae=D_SAE)[:, ::7]


def test_a_reader_finds_the_index_that_replaced_its_own(used):
    store, path = used
    build_index(Store(path), rebuild=True)
    old = store.index()
    np.testing.assert_array_equal(ask(store), expected())
    assert store.index() is not old


def test_a_reader_of_chunks_that_were_merged_does_without_the_index(used):
    store, path = used
    with StoreWriter(Store(path)) as writer:
        compact(writer)
    shutil.rmtree(path / "index")
    np.testing.assert_array_equal(ask(store), expected())


def test_an_index_without_its_folders_is_done_without(used):
    store, path = used
    for folder in (path / "index").glob("*[0-9a-f]"):
        shutil.rmtree(folder)
    with pytest.warns(UserWarning, match="interp-embed index --rebuild"):
        np.testing.assert_array_equal(ask(store), expected())


def test_a_damaged_index_is_done_without(used):
    store, path = used
    for file in (path / "index").rglob("c/0"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with pytest.warns(UserWarning, match=r"chunks are read instead.*interp-embed index --rebuild"):
        np.testing.assert_array_equal(ask(store), expected())


def test_documents_that_are_added_meanwhile_are_answered_from_one_state(tmp_path, eager):
    chunk = documents(failures=False)
    store = store_from_chunk(tmp_path / "s", chunk.with_failures({4: "once"}), finished=False)
    build_index(store)
    reader = Store(tmp_path / "s")
    features = np.arange(D_SAE)
    unavailable = columns.unavailable

    def retry_first(store, documents):
        if reader.ledger.next_generation == 1:
            with StoreWriter(Store(tmp_path / "s")) as writer:
                writer.write(chunk.take([4]), generation=1)
            reader.refresh(manifest=False)
        return unavailable(store, documents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "unavailable", retry_first)
        found = feature_columns(reader, np.arange(N), features, REDUCTIONS["max"])
    np.testing.assert_array_equal(found, oracle(dense(chunk), "max", d_sae=D_SAE))


def test_a_dataset_builds_its_index(tmp_path, eager):
    chunk = documents()
    store_from_chunk(tmp_path / "s", chunk)
    dataset = Dataset.load_from_file(tmp_path / "s")
    dataset.build_index(memory="100M")
    assert Store(tmp_path / "s").index().is_complete
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset[:7].build_index()
    assert dataset.selection.store.index().documents_covered == N
    with pytest.raises(ValueError, match="memory must be a size"):
        dataset.build_index(memory="much")
