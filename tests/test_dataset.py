"""Every method of `Dataset`, as the reference documents it, through real stores."""

from __future__ import annotations

import inspect
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from interp_embed import Dataset, DatasetRow
from interp_embed.errors import (
    CorruptStoreError,
    FingerprintMismatchError,
    NotAStoreError,
    ResultTooLargeError,
    StoreExistsError,
    UnsafePickleError,
)
from interp_embed.store import is_store
from interp_embed.store.verify.verifier import verify
from interp_embed.testing import random_chunk, store_from_chunk
from tests.support.fake_sae import (
    BIG,
    D_SAE,
    EMOJI,
    FAIL,
    INF,
    NAN,
    NONE,
    WideSAE,
    WordSAE,
    expected,
    words,
)
from tests.support.hypotheses import examples


def made(texts, sae=None, **kwargs):
    return Dataset([{"text": t} for t in texts], sae or WordSAE(), **kwargs)


def texts_of(dataset):
    return dataset.documents()


def by_oracle(texts, failed=()):
    """Each document's highest activations, dense; NaN for those that failed."""
    out = np.zeros((len(texts), D_SAE))
    for i, text in enumerate(texts):
        if i in failed:
            out[i] = np.nan
        elif words(text):
            out[i] = expected(text).max(axis=0)
    return out


# --- the reference -------------------------------------------------------------------------------

REQUIRED = inspect.Parameter.empty
SIGNATURES = {
    "__init__": [
        ("data", REQUIRED),
        ("sae", REQUIRED),
        ("dataset_description", ""),
        ("rows", None),
        ("field", "text"),
        ("compute_activations", True),
        ("feature_labels", None),
        ("save_path", None),
        ("save_every_batch", 5),
        ("batch_size", 8),
    ],
    "save_to_file": [("file_path", None), ("dtype", np.float32)],
    "feature_labels": [],
    "latents": [("aggregation_method", "max"), ("compress", False), ("activated_threshold", 0)],
    "top_documents_for_feature": [
        ("feature", REQUIRED),
        ("aggregation_type", "max"),
        ("document_only", True),
        ("k", 10),
        ("select_top", True),
        ("include_nonactive_samples", False),
    ],
    "token_activations": [("feature", REQUIRED)],
    "sort_by_columns": [("columns", REQUIRED), ("descending", True)],
    "sort_by_features": [
        ("features", REQUIRED),
        ("aggregation_type", "max"),
        ("descending", True),
        ("include_top_feature", True),
        ("include_nonactive_samples", True),
    ],
    "filter_na_rows": [],
    "dataset_rows": [],
    "pandas": [],
    "list": [],
    "documents": [],
    "load_from_file": [
        ("file_path", REQUIRED),
        ("resume", False),
        ("batch_size", 8),
        ("device", "cuda:0"),
    ],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_parameters_have_the_names_order_and_defaults_of_the_reference(name):
    parameters = inspect.signature(getattr(Dataset, name)).parameters.values()
    found = [
        (p.name, p.default)
        for p in parameters
        if p.name != "self" and p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert found == SIGNATURES[name]
    others = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert all(p.default is not REQUIRED for p in others)


def test_attributes_are_those_of_the_reference(dataset):
    assert isinstance(dataset.id, str)
    assert len(dataset.id) == 6
    assert isinstance(dataset.dataset, pd.DataFrame)
    assert dataset.num_documents == len(dataset) == 11
    assert dataset.field == "text"
    assert dataset.dataset_description == "a description"
    assert isinstance(dataset.sae, WideSAE)
    assert dataset.columns == ["text", "score", "source"]
    assert dataset.token_count == sum(
        len(words(t)) for i, t in enumerate(texts_of(dataset)) if i not in (3, 8)
    )
    assert [row is None for row in dataset.rows] == [i in (3, 8) for i in range(11)]
    assert all(isinstance(row, DatasetRow) for row in dataset.rows if row is not None)
    assert is_store(dataset.path)


def test_two_datasets_have_two_ids(data):
    assert Dataset(data, WordSAE()).id != Dataset(data, WordSAE()).id


def test_plain_views_of_the_documents(dataset, data):
    assert isinstance(dataset.list(), list)
    assert dataset.list() == data
    assert dataset.documents() == [record["text"] for record in data]
    pd.testing.assert_frame_equal(dataset.pandas(), pd.DataFrame(data))
    pd.testing.assert_frame_equal(dataset.pandas(), dataset.dataset)
    assert len(dataset.dataset_rows()) == 11
    assert dataset.dataset_rows()[-1].document() == data[-1]["text"]
    assert [r and r.document() for r in dataset.dataset_rows()[2:5]] == ["", None, data[4]["text"]]


def test_a_data_frame_keeps_its_columns_and_loses_its_index(sae):
    frame = pd.DataFrame(
        {
            "body": ["one two", "three"],
            "when": pd.to_datetime(["2020-01-01", None]),
            "kind": pd.Categorical(["x", "y"]),
            3: [1.5, np.nan],
        },
        index=[10, 7],
    )
    dataset = Dataset(frame, sae, field="body")
    pd.testing.assert_frame_equal(dataset.pandas(), frame.reset_index(drop=True))
    assert dataset.columns == ["body", "when", "kind", 3]
    assert dataset[0].field == "body"
    assert dataset[0].document() == "one two"
    assert frame.index.tolist() == [10, 7]


def test_a_changed_frame_changes_no_dataset(data, sae):
    frame = pd.DataFrame(data)
    dataset = Dataset(frame, sae)
    frame.loc[0, "text"] = "something else"
    assert dataset[0].document() == data[0]["text"]


def test_texts_are_encoded_once_each(texts):
    sae = WordSAE()
    made(texts, sae, batch_size=3)
    assert sorted(sae.seen) == sorted(t for t in texts if t)


def test_the_sae_is_loaded_and_destroyed_unless_it_was_loaded(texts):
    fresh, loaded = WordSAE(), WordSAE()
    loaded.load()
    made(texts, fresh)
    made(texts, loaded)
    assert not fresh.is_loaded()
    assert loaded.is_loaded()


def test_labels_come_from_the_argument_else_the_sae_and_survive_the_disk(data, tmp_path):
    assert Dataset(data, WordSAE()).feature_labels() == {0: "zeroth", 7: "<b>seventh</b>"}
    own = Dataset(data, WordSAE(), feature_labels={"3": "three"}, save_path=tmp_path / "own")
    assert own.feature_labels() == {3: "three"}
    own.feature_labels()[4] = "changed"
    assert own.feature_labels() == {3: "three"}
    assert Dataset.load_from_file(own.path).feature_labels() == {3: "three"}
    theirs = Dataset(data, WordSAE(), save_path=tmp_path / "theirs")
    assert Dataset.load_from_file(theirs.path).feature_labels()[7] == "<b>seventh</b>"
    assert own[:2].feature_labels() == {3: "three"}


# --- activations ---------------------------------------------------------------------------------


def test_latents_are_the_sae_s_numbers(dataset):
    want = by_oracle(["" if t is None else t for t in texts_of(dataset)], failed=(3, 8))
    found = dataset.latents()
    assert type(found) is np.ndarray
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, want.astype(np.float32))
    sparse = dataset.latents("max", compress=True)
    assert type(sparse) is csr_matrix
    assert sparse.shape == (11, D_SAE)
    np.testing.assert_array_equal(sparse.toarray(), found)


@pytest.mark.parametrize("method", ["max", "mean", "sum", "binarize", "count"])
@pytest.mark.parametrize("threshold", [0, 1.5])
def test_dense_sparse_and_rows_agree_and_failed_documents_are_nan(dataset, method, threshold):
    dense = dataset.latents(method, activated_threshold=threshold)
    sparse = dataset.latents(method, compress=True, activated_threshold=threshold)
    np.testing.assert_array_equal(sparse.toarray(), dense)
    assert (sparse.data != 0).all()
    assert sparse.has_sorted_indices
    assert np.isnan(dense[[3, 8]]).all()
    for row, values in zip(dataset.rows, dense, strict=True):
        if row is not None:
            found = row.latents(method, activated_threshold=threshold)
            np.testing.assert_allclose(found[0], values, rtol=1e-6)


def test_all_latents_are_one_matrix_a_document(dataset):
    dense = dataset.latents("all")
    assert dense.dtype == object
    assert dense.shape == (11,)
    sparse = dataset.latents("all", compress=True)
    assert isinstance(sparse, list)
    assert all(type(m) is csr_matrix for m in sparse)
    for i, text in enumerate(texts_of(dataset)):
        np.testing.assert_array_equal(sparse[i].toarray(), dense[i])
        if i in (3, 8):
            assert dense[i].shape == (1, D_SAE)
            assert np.isnan(dense[i]).all()
        else:
            np.testing.assert_array_equal(dense[i], expected(text))


def test_all_latents_of_documents_of_one_length_are_still_one_matrix_a_document(sae):
    assert made(["a b", "c d"], sae).latents("all").shape == (2,)


@pytest.mark.parametrize("bad", [-1, float("nan"), -1e-9])
def test_thresholds_below_zero_are_refused(dataset, bad):
    with pytest.raises(ValueError, match="activated_threshold must be 0 or more"):
        dataset.latents("count", activated_threshold=bad)


def test_unknown_methods_are_refused_with_the_known_ones(dataset):
    with pytest.raises(ValueError, match=r"one of \['max', 'sum', .*'all'\], got 'median'"):
        dataset.latents("median")
    with pytest.raises(ValueError, match="got 'all'"):
        dataset.sort_by_features([1], aggregation_type="all")


def test_thresholds_are_compared_exactly(tmp_path):
    # float32(0.1) is above 0.1 and float32(0.7) below 0.7: rounding the threshold would say no
    # for one and hide the other.
    for dtype, value in [("float32", 0.1), ("float32", 0.7), ("float16", 0.1), ("float16", 0.3)]:
        stored = np.float32(np.dtype(dtype).type(value))
        rows = [DatasetRow({"text": "a"}, ["a"], csr_matrix([[0, stored]], dtype=np.float32))]
        dataset = made(["a"], rows=rows, dtype=dtype)
        above = float(float(stored) > value)
        for method in ("binarize", "count"):
            assert dataset.latents(method, activated_threshold=value)[0, 1] == above, (dtype, value)
            assert dataset[0].latents(method, activated_threshold=value)[0, 1] == above
            assert dataset.latents(method, activated_threshold=float(stored))[0, 1] == 0
            assert dataset.latents(method, activated_threshold=1e30)[0, 1] == 0


def test_what_does_not_fit_in_memory_is_refused_before_work(dataset, monkeypatch):
    monkeypatch.setenv("INTERP_EMBED_MEMORY", "1KiB")
    with pytest.raises(ResultTooLargeError, match=r"1\.4 KiB.*1\.0 KiB.*compress=True"):
        dataset.latents()
    with pytest.raises(MemoryError, match=r"dense activations of .* tokens .*compress=True"):
        dataset.latents("all")
    with pytest.raises(MemoryError, match=r"sparse activations of .* tokens"):
        dataset[[0] * 50].latents("all", compress=True)
    with pytest.raises(MemoryError, match="sparse matrix"):
        dataset.latents(compress=True)
    assert dataset[:3].latents().shape == (3, D_SAE)
    assert len(dataset.top_documents_for_feature(0)) > 0
    monkeypatch.setenv("INTERP_EMBED_MEMORY", "lots")
    with pytest.raises(ValueError, match="INTERP_EMBED_MEMORY must be a size"):
        dataset.latents()


# --- brackets ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eleven():
    return made([f"word{i} and w{i}" for i in range(11)])


N = 11
SLICES = st.slices(N)
INTEGERS = st.lists(st.integers(-N, N - 1), max_size=15)
MASKS = st.lists(st.booleans(), min_size=N, max_size=N)


@settings(max_examples=examples(60))
@given(
    SLICES
    | INTEGERS
    | INTEGERS.map(lambda v: np.array(v, np.int64))
    | INTEGERS.map(lambda v: np.array(v, np.int8))
    | st.lists(st.integers(0, N - 1)).map(lambda v: np.array(v, np.uint16))
    | INTEGERS.map(lambda v: pd.Series(v, dtype="int64"))
    | MASKS
    | MASKS.map(np.array)
    | MASKS.map(pd.Series)
    | MASKS.map(lambda v: pd.Series(v, dtype="boolean"))
)
def test_indexing_selects_what_numpy_selects(eleven, index):
    whole = np.array(texts_of(eleven), object)
    as_numpy = index if isinstance(index, slice) else np.asarray(index)
    if not isinstance(as_numpy, slice) and as_numpy.dtype.hasobject:
        as_numpy = as_numpy.astype(bool)
    if not isinstance(as_numpy, slice) and as_numpy.size == 0:
        as_numpy = as_numpy.astype(int)
    view = eleven[index]
    assert type(view) is Dataset
    assert view.documents() == whole[as_numpy].tolist()
    assert view.path == eleven.path
    np.testing.assert_array_equal(view.latents(), eleven.latents()[as_numpy])


@pytest.mark.parametrize("kind", [int, np.int64, np.int8])
def test_integers_give_rows_negative_ones_from_the_end(eleven, kind):
    for i in range(-N, N):
        row = eleven[kind(i)]
        assert isinstance(row, DatasetRow)
        assert row.document() == texts_of(eleven)[i]
    for outside in (N, -N - 1):
        with pytest.raises(IndexError, match=f"document {outside} is out of range for 11"):
            eleven[kind(outside)]


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ("text", TypeError, "index must be .* got str"),
        (1.0, TypeError, "got float"),
        (None, TypeError, "got NoneType"),
        (True, TypeError, "got bool"),
        ([1.5], TypeError, "got float64"),
        ([None] * N, TypeError, "got object"),
        (["a"], TypeError, "got <U1"),
        ((1, 2), TypeError, "got tuple"),
        ([True], IndexError, "mask of length 1 does not fit 11"),
        (np.ones(12, bool), IndexError, "mask of length 12"),
        ([0, N], IndexError, "document 11 is out of range"),
        ([-N - 1], IndexError, "document -12 is out of range"),
        (np.array([2**64 - 1], np.uint64), IndexError, "document 18446744073709551615 is out of"),
        (np.zeros((2, 2), int), IndexError, "one dimension, got shape"),
        (slice(0, 4, 0), ValueError, "step"),
    ],
)
def test_bad_indices_are_refused(eleven, index, error, message):
    with pytest.raises(error, match=message):
        eleven[index]


def test_views_of_views_select_from_the_view(eleven):
    view = eleven[::-1][[1, 1, 4]][[True, False, True]]
    assert view.documents() == [texts_of(eleven)[9], texts_of(eleven)[6]]
    assert [r.document() for r in view] == view.documents()
    assert view.dataset_description == eleven.dataset_description
    assert view.id != eleven.id


def test_iteration_gives_every_row_in_order(dataset):
    rows = list(dataset)
    assert [None if r is None else r.document() for r in rows] == [
        None if i in (3, 8) else t for i, t in enumerate(texts_of(dataset))
    ]
    assert len(rows) == len(dataset)
    assert [r.document() for r in reversed(dataset[:2].rows)] == texts_of(dataset)[1::-1]


def test_rows_take_integers_only(eleven):
    with pytest.raises(TypeError):
        eleven.rows[1.5]


def size_on_disk(path):
    return {p: p.stat().st_mtime_ns for p in Path(path).rglob("*") if p.is_file()}


def test_views_copy_no_activations_and_leave_their_parent_alone(dataset):
    before, columns, text = size_on_disk(dataset.path), dataset.columns, repr(dataset)
    frame = dataset.pandas().copy()
    view = dataset[1:].sort_by_features([0, 5]).sort_by_columns("score").filter_na_rows()
    view.pandas()["new"] = 1
    view[0].row["text"] = "changed"
    view.latents()[:] = 7
    view[:3].latents(compress=True).data[:] = 7
    view[0].activations.data[:] = 7
    assert size_on_disk(dataset.path) == before
    assert dataset.columns == columns
    assert repr(dataset) == text
    pd.testing.assert_frame_equal(dataset.pandas(), frame)
    np.testing.assert_array_equal(dataset[0].latents("all"), expected(dataset[0].document()))


# --- sorting -------------------------------------------------------------------------------------


def test_columns_sort_descending_by_default_ties_in_document_order(dataset, data):
    score = np.array([r["score"] for r in data])
    down = dataset.sort_by_columns(["score"])
    assert down.list() == [data[i] for i in np.argsort(-score, kind="stable")]
    up = dataset.sort_by_columns("score", descending=False)
    assert up.list() == [data[i] for i in np.argsort(score, kind="stable")]
    np.testing.assert_array_equal(up.latents(), dataset.latents()[np.argsort(score, kind="stable")])


def test_several_columns_sort_by_the_first_first(dataset, data):
    want = sorted(range(11), key=lambda i: (data[i]["source"], data[i]["score"]))
    assert dataset.sort_by_columns(["source", "score"], False).list() == [data[i] for i in want]


def test_missing_values_sort_last(sae):
    dataset = Dataset([{"text": str(i), "x": x} for i, x in enumerate([2.0, None, 3.0])], sae)
    assert dataset.sort_by_columns("x").documents() == ["2", "0", "1"]
    assert dataset.sort_by_columns("x", descending=False).documents() == ["0", "2", "1"]


def test_columns_whose_names_are_numbers_sort_too(sae):
    dataset = Dataset(pd.DataFrame({"text": ["a", "b"], 1: [1, 2]}), sae)
    assert dataset.sort_by_columns(1).documents() == dataset.sort_by_columns([1]).documents()
    assert dataset.sort_by_columns(1).documents() == ["b", "a"]
    with pytest.raises(ValueError, match="no column 2"):
        dataset.sort_by_columns(2)


def test_a_column_whose_values_have_no_order_is_named(sae):
    records = [{"text": t, "n": 1, "meta": {"a": i}} for i, t in enumerate("abc")]
    dataset = Dataset(records, sae)
    for columns in ("meta", ["n", "meta"], ["meta", "n"]):
        with pytest.raises(TypeError, match=r"column 'meta' cannot be used for sorting, .*'dict'"):
            dataset.sort_by_columns(columns)
    mixed = Dataset([{"text": t, "x": x} for t, x in zip("ab", [1, "one"], strict=True)], sae)
    with pytest.raises(TypeError, match="column 'x' cannot be used for sorting"):
        mixed.sort_by_columns("x")


def test_sorting_by_unknown_columns_is_refused(dataset):
    with pytest.raises(ValueError, match="no column 'size'; the columns are"):
        dataset.sort_by_columns(["score", "size"])
    with pytest.raises(ValueError, match="at least one column"):
        dataset.sort_by_columns([])


@pytest.mark.parametrize("method", ["max", "mean", "sum", "binarize", "count"])
@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("nonactive", [True, False])
def test_features_sort_by_the_highest_among_them(dataset, method, descending, nonactive):
    features = [5, 0, 12, 30]
    values = dataset.latents(method)[:, features]
    ok = ~np.isnan(values).any(axis=1)
    active = ok & (np.nan_to_num(values) != 0).any(axis=1)
    score = np.where(values != 0, values, -np.inf).max(axis=1)
    hit = sorted(np.flatnonzero(active), key=lambda i: -score[i] if descending else score[i])
    silent = np.flatnonzero(ok & ~active).tolist()
    want = list(hit)
    if nonactive:
        want = [*hit, *silent] if descending else [*silent, *hit]
        want += [3, 8]
    found = dataset.sort_by_features(
        features, method, descending=descending, include_nonactive_samples=nonactive
    )
    assert found.pandas().index.tolist() == list(range(len(want)))
    assert found.documents() == [texts_of(dataset)[i] for i in want]
    frame = found.pandas()
    for position, i in enumerate(want):
        top, index = frame["feature_activation"][position], frame["top_feature_index"][position]
        if not ok[i]:
            assert np.isnan(top)
        if not active[i]:
            assert index == -1
            assert frame["top_feature_label"][position] == "NA"
        else:
            assert top == np.float32(score[i])
            assert index in features
            assert values[i, features.index(index)] == score[i]
    assert dataset.columns == ["text", "score", "source"]


def test_sorting_by_a_feature_names_it(dataset):
    found = dataset.sort_by_features([0])
    assert found.columns[-3:] == ["feature_activation", "top_feature_label", "top_feature_index"]
    assert found.pandas()["top_feature_label"][0] == "zeroth"
    assert found[0].row["top_feature_index"] == 0
    assert found[:2].list()[0]["feature_activation"] == found.latents()[0, 0]
    plain = dataset.sort_by_features([0], include_top_feature=False)
    assert plain.columns == dataset.columns
    assert plain.documents() == found.documents()
    twice = found.sort_by_features([1])
    assert twice.columns == found.columns
    by_extra = found.sort_by_columns("feature_activation", descending=False).pandas()
    assert by_extra["feature_activation"].dropna().is_monotonic_increasing


@pytest.mark.parametrize("kind", [int, np.int64, np.uint16])
def test_one_feature_may_be_given_as_a_number(dataset, kind):
    found, want = dataset.sort_by_features(kind(5)), dataset.sort_by_features([5])
    pd.testing.assert_frame_equal(found.pandas(), want.pandas())


def test_ties_between_documents_and_features_go_to_the_first(sae):
    dataset = made(["b the", "the", "c", "the the"], sae)
    feature = int(np.flatnonzero(expected("the")[0] > 0)[0])
    assert dataset.sort_by_features([feature], descending=True).documents()[-1] == "c"
    found = dataset[[3, 1]].sort_by_features([feature, feature])
    assert found.documents() == ["the the", "the"]
    assert dataset[[1, 3]].sort_by_features([feature], descending=False).documents() == [
        "the",
        "the the",
    ]


@pytest.mark.parametrize(
    ("features", "error"),
    [([], TypeError), ([1.5], TypeError), (["a"], TypeError), ([True], TypeError),
     (1.5, TypeError), (True, TypeError), ("a", TypeError), (None, TypeError),
     ([D_SAE], IndexError), ([0, -1], IndexError), (D_SAE, IndexError)],
)  # fmt: skip
def test_features_that_do_not_exist_are_refused(dataset, features, error):
    with pytest.raises(error, match="feature"):
        dataset.sort_by_features(features)


# --- top documents -------------------------------------------------------------------------------


def test_top_documents_are_the_highest_first(dataset):
    values = dataset.latents()[:, 0]
    for feature in range(D_SAE):
        values = dataset.latents()[:, feature]
        candidates = np.flatnonzero(~np.isnan(values) & (values != 0))
        want = candidates[np.argsort(-values[candidates], kind="stable")]
        rows = dataset.top_documents_for_feature(feature, document_only=False, k=100)
        assert [r.document() for r in rows] == [texts_of(dataset)[i] for i in want]
        low = dataset.top_documents_for_feature(feature, document_only=False, select_top=False, k=2)
        want = candidates[np.argsort(values[candidates], kind="stable")][:2]
        assert [r.document() for r in low] == [texts_of(dataset)[i] for i in want]


def test_top_documents_are_strings_with_the_active_tokens_marked(dataset):
    feature = int(np.argmax(expected("the")[0]))
    found = dataset.top_documents_for_feature(feature)
    assert isinstance(found, list)
    assert "<<the>> end" in found
    assert "<<the the the>>" in found
    assert len(dataset.top_documents_for_feature(feature, k=1)) == 1
    assert len(dataset.top_documents_for_feature(feature, k=np.int64(2))) == 2


def test_top_documents_with_the_silent_ones_leave_out_failed_ones_only(dataset):
    rows = dataset.top_documents_for_feature(
        0, document_only=False, k=50, include_nonactive_samples=True
    )
    assert len(rows) == 9
    lowest = dataset.top_documents_for_feature(
        0, document_only=False, k=50, select_top=False, include_nonactive_samples=True
    )
    values = [r.latents()[0, 0] for r in lowest]
    assert values == sorted(values)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "3"])
def test_top_documents_need_a_positive_k(dataset, k):
    with pytest.raises(ValueError, match="k must be a positive integer"):
        dataset.top_documents_for_feature(0, k=k)


def test_top_documents_of_no_such_feature_is_an_index_error(dataset):
    with pytest.raises(IndexError, match="feature 32 is not among the 32 features"):
        dataset.top_documents_for_feature(32)
    with pytest.raises(IndexError, match="feature -1"):
        dataset.token_activations(-1)
    with pytest.raises(TypeError, match="feature must be an integer, got 'x'"):
        dataset.token_activations("x")


# --- token strings -------------------------------------------------------------------------------


def test_token_activations_mark_runs_of_active_tokens(dataset):
    for feature in range(D_SAE):
        for found, text in zip(dataset.token_activations(feature), texts_of(dataset), strict=True):
            if text is None or FAIL in text:
                assert found is None
            else:
                assert found.replace("<<", "").replace(">>", "") == text
                active = (expected(text)[:, feature] > 0).astype(int)
                assert found.count("<<") == found.count(">>")
                if EMOJI not in text:
                    assert found.count("<<") == (np.diff(active, prepend=0) == 1).sum()


def test_an_emoji_split_across_tokens_is_marked_whole(sae):
    dataset = made([f"a {EMOJI}b"], sae)
    first, rest = (expected(f"a {EMOJI}b")[i] for i in (1, 2))
    for feature in np.flatnonzero((first > 0) | (rest > 0)):
        found = dataset.token_activations(int(feature))[0]
        assert EMOJI in found
        assert found.replace("<<", "").replace(">>", "") == f"a {EMOJI}b"
        assert "<<>>" not in found


class TemplateSAE(WordSAE):
    """Puts a token before and after the text, as chat templates do."""

    def tokenize(self, documents, as_tokens=True, padding=False):
        if not as_tokens:
            raise NotImplementedError
        return [["<bos>", *words(d), "<end>"] for d in documents]

    def _one(self, text):
        inner = super()._one(text)
        edge = csr_matrix(([9.0], ([0], [31])), shape=(1, D_SAE))
        from scipy.sparse import vstack

        return csr_matrix(vstack([edge, inner, edge]))


def test_special_tokens_are_shown_only_where_active(data):
    dataset = Dataset(data, TemplateSAE())
    text = data[0]["text"]
    row = dataset[0]
    assert row.tokenized_document == ["<bos>", *words(text), "<end>"]
    assert row.special_tokens.tolist() == [True, *[False] * len(words(text)), True]
    assert row.n_tokens == len(words(text)) + 2
    assert dataset.token_activations(31)[0] == f"<<<bos>>>{text}<<<end>>>"
    assert dataset.token_activations(30)[0].replace("<<", "").replace(">>", "") == text
    assert dataset.latents()[0, 31] == 9
    assert dataset[2].tokenized_document == []


# --- failures ------------------------------------------------------------------------------------


def test_failures_are_a_table_of_documents_and_reasons(dataset):
    table = dataset.failures()
    assert list(table.columns) == ["document", "reason"]
    assert table["document"].tolist() == [3, 8]
    assert table["document"].dtype == np.int64
    assert table["reason"][0] == "RuntimeError: this text cannot be encoded"
    assert "missing" in table["reason"][1]
    assert dataset[7:].failures()["document"].tolist() == [1]
    assert len(dataset[:3].failures()) == 0
    assert list(dataset[:3].failures().columns) == ["document", "reason"]


def test_status_says_what_became_of_each_document(dataset, data):
    assert np.flatnonzero(dataset.status() == "failed").tolist() == [3, 8]
    assert set(dataset.filter_na_rows().status()) == {"ok"}
    rows = [row if i < 9 else None for i, row in enumerate(dataset)]
    part = Dataset(data, WideSAE(), rows=rows, compute_activations=False)
    missing = part.status() == "missing"
    assert np.flatnonzero(missing).tolist() == [3, 8, 9, 10]
    assert part[missing][:0].status().tolist() == []
    assert part.status().dtype == part[:0].status().dtype
    assert part[::-1].status().tolist() == part.status().tolist()[::-1]


@pytest.mark.parametrize("seed", range(3))
def test_status_and_repr_know_every_kind(seed, tmp_path):
    chunk = random_chunk(seed, 40, d_sae=20)
    chunk = replace(chunk, status=np.where(chunk.status == 2, 2, np.arange(40) % 2).astype("u1"))
    store_from_chunk(tmp_path / "s", chunk)
    dataset = Dataset.load_from_file(tmp_path / "s")
    assert dataset.status().tolist() == [("ok", "truncated", "failed")[s] for s in chunk.status]
    failed, truncated = (int((chunk.status == s).sum()) for s in (2, 1))
    said = f"{failed} failed, " * (failed > 0) + f"{truncated} truncated"
    assert f"(40 documents, {said}, 20 features)" in repr(dataset)
    assert f"40 ({said})" in dataset._repr_html_()


def test_filter_na_rows_leaves_failed_documents_out(dataset):
    clean = dataset.filter_na_rows()
    assert len(clean) == 9
    assert None not in list(clean.rows)
    assert not np.isnan(clean.latents()).any()
    assert len(dataset) == 11


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing"),
        (float("nan"), "missing"),
        (5, "the text must be a string, got int: 5"),
        (1.5, "the text must be a string, got float"),
        (["a"], "the text must be a string, got list"),
        ({"a": 1}, "the text must be a string, got dict"),
        (b"bytes", "missing"),
        (object(), "missing"),
        (pd.Timestamp(0), "missing"),
        (f"word {FAIL}", "RuntimeError: this text cannot be encoded"),
        (f"word {NONE}", "returned None"),
        (f"word {NAN}", "not finite"),
        (f"word {INF}", "not finite"),
    ],
)
def test_one_bad_document_fails_by_itself(value, reason):
    texts = ["first words", value, "last words", ""]
    dataset = made(texts)
    assert dataset.failures()["document"].tolist() == [1]
    assert reason in dataset.failures()["reason"][0]
    assert [row is None for row in dataset] == [False, True, False, False]
    np.testing.assert_array_equal(
        dataset.latents(),
        by_oracle(["first words", "", "last words", ""], failed=[1]),
        strict=False,
    )


@pytest.mark.parametrize(
    "text",
    [
        "emoji \U0001f469‍\U0001f680 é",
        "lone \ud800 surrogate",
        "nul \0 byte",
        "a\u2028b\x85c",
        "<script>alert(1)</script>",
    ],
)
def test_odd_texts_come_back_exactly_and_disturb_no_other(text, tmp_path):
    made(["before it", text, "after it"], save_path=tmp_path / "s")
    dataset = Dataset.load_from_file(tmp_path / "s")
    assert dataset.documents() == ["before it", text, "after it"]
    assert len(dataset.failures()) == 0
    np.testing.assert_array_equal(dataset[1].latents("all"), expected(text))
    assert "".join(dataset[1].tokenized_document) == text
    np.testing.assert_array_equal(dataset[2].latents("all"), expected("after it"))


def test_a_text_of_two_megabytes_is_one_document():
    text = " ".join(f"{i} " + "long" * 5_000 for i in range(100))
    assert len(text) > 2_000_000
    dataset = made(["short", text, "also short"])
    assert dataset[1].document() == text
    assert dataset[1].n_tokens == 200
    np.testing.assert_array_equal(dataset[2].latents("all"), expected("also short"))


def test_a_dataset_of_failures_says_so():
    dataset = made([None, f"a {FAIL}", 3], WideSAE())
    assert len(dataset.failures()) == 3
    assert list(dataset) == [None] * 3
    assert dataset.latents().shape == (3, D_SAE)
    assert np.isnan(dataset.latents()).all()
    assert np.isnan(dataset.latents(compress=True).toarray()).all()
    assert len(dataset.filter_na_rows()) == 0
    assert dataset.filter_na_rows().latents().shape == (0, D_SAE)
    assert dataset.token_activations(1) == [None] * 3
    assert dataset.top_documents_for_feature(1) == []
    assert "None" in repr(dataset)
    assert len(dataset.sort_by_features([1])) == 3


def test_failures_of_an_sae_whose_width_is_unknown_leave_latents_unknown():
    with pytest.raises(ValueError, match="the number of features is unknown"):
        made([None, f"a {FAIL}"]).latents()


@pytest.mark.parametrize("data", [[], pd.DataFrame(), pd.DataFrame({"text": []})])
def test_an_empty_dataset_works(data, tmp_path):
    dataset = Dataset(data, WideSAE(), save_path=tmp_path / "s")
    for each in (dataset, Dataset.load_from_file(tmp_path / "s")):
        assert len(each) == each.num_documents == each.token_count == 0
        assert repr(each) == "Dataset(<EMPTY>)"
        assert each.documents() == each.list() == list(each) == []
        assert each.latents().shape == (0, D_SAE)
        assert each.latents("count", True, 2).shape == (0, D_SAE)
        assert each.latents("all", compress=True) == []
        assert each.columns == ["text"]
        assert len(each.failures()) == len(each[::-1]) == len(each[[]]) == 0
        assert each.top_documents_for_feature(3) == []
        assert len(each.sort_by_features([1])) == len(each.sort_by_columns("text")) == 0
        assert "<" in each._repr_html_()
        each.save_to_file(tmp_path / f"copy-{each.id}-{each is dataset}.zarr")
        with pytest.raises(IndexError):
            each[0]


# --- arguments -----------------------------------------------------------------------------------


class NeverSAE(WordSAE):
    def load_models(self):
        raise AssertionError("the SAE was loaded though the arguments are wrong")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": "a text"}, FileNotFoundError, "No such file or directory: 'a text'"),
        ({"data": {"text": ["a"]}}, TypeError, "got dict"),
        ({"data": None}, TypeError, "got NoneType"),
        ({"data": 5}, TypeError, "data must be a DataFrame, .*; got int"),
        ({"data": ["text", "more"]}, FileNotFoundError, "No such file or directory: 'text'"),
        ({"data": [{"text": "a"}, "b"]}, TypeError, r"data\[1\] must be a .*got str. For texts"),
        ({"data": [{"text": "a"}, None]}, TypeError, r"data\[1\]"),
        ({"field": "body"}, ValueError, r"field 'body' not found in data; .*\['text'"),
        ({"sae": None}, TypeError, "subclass of BaseSAE"),
        ({"sae": WordSAE}, TypeError, "an instance, not the class"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer"),
        ({"batch_size": 2.0}, ValueError, "batch_size"),
        ({"save_every_batch": -1}, ValueError, "save_every_batch"),
        ({"dtype": np.int32}, ValueError, "dtype must be float16 or float32, got int32"),
        ({"dtype": np.float64}, ValueError, "dtype must be float16 or float32, got float64"),
        ({"dtype": "half of it"}, ValueError, "dtype must be float16 or float32, got 'half of it'"),
        ({"rows": [None]}, ValueError, "1 rows for 2 documents"),
        ({"rows": [None, "row"]}, TypeError, r"rows\[1\] must be a DatasetRow or None, got str"),
        ({"save_path": ""}, ValueError, "a path or a URL"),
        ({"data": pd.DataFrame([["a", "b"]], columns=["text", "text"])}, ValueError, "more than"),
        ({"data": [{"text": "a", "x": object()}]}, TypeError, "column 'x'"),
    ],
)
def test_wrong_arguments_fail_before_the_sae_is_loaded(change, error, message):
    arguments = {"data": [{"text": "a"}, {"text": "b"}], "sae": NeverSAE(), **change}
    with pytest.raises(error, match=message):
        Dataset(**arguments)


def test_numbers_of_numpy_are_numbers(tmp_path):
    made(["a", "b"], batch_size=np.int64(1), save_every_batch=np.int32(2), save_path=tmp_path / "s")
    loaded = Dataset.load_from_file(tmp_path / "s", batch_size=np.int64(4))
    assert loaded.selection.store.plan.documents_per_chunk == 2


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_a_save_path_that_holds_something_else_is_left_alone(taken, tmp_path):
    path = tmp_path / "taken"
    path.write_text("mine") if taken == "file" else (path.mkdir(), (path / "x").write_text("mine"))
    with pytest.raises(StoreExistsError, match="Give a"):
        made(["a"], NeverSAE(), save_path=path)
    assert (path if taken == "file" else path / "x").read_text() == "mine"


# --- the disk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "a.zarr", "x.pkl", "y.pickle"])
def test_a_save_path_is_a_store_whatever_its_name(data, name, tmp_path):
    dataset = Dataset(data, WordSAE(), save_path=tmp_path / name)
    assert dataset.path == str(tmp_path / name)
    assert is_store(tmp_path / name)
    loaded = Dataset.load_from_file(str(tmp_path / name))
    assert_same(loaded, dataset)
    assert loaded.id == dataset.id


def assert_same(found, wanted):
    pd.testing.assert_frame_equal(found.pandas(), wanted.pandas(), check_dtype=False)
    np.testing.assert_array_equal(found.latents(), wanted.latents())
    pd.testing.assert_frame_equal(found.failures(), wanted.failures())
    assert found.feature_labels() == wanted.feature_labels()
    assert found.field == wanted.field
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.tokenized_document == b.tokenized_document
            assert a.special_tokens.tolist() == b.special_tokens.tolist()
            np.testing.assert_array_equal(a.latents("all"), b.latents("all"))


def test_saving_and_loading_gives_the_same_dataset(dataset, tmp_path):
    assert dataset.save_to_file(tmp_path / "copy.zarr") is None
    loaded = Dataset.load_from_file(tmp_path / "copy.zarr")
    assert_same(loaded, dataset)
    assert loaded.dataset_description == "a description"
    assert loaded.path != dataset.path
    assert isinstance(loaded.sae, WideSAE)
    assert not loaded.sae.is_loaded()


def test_the_default_name_has_the_id(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset.save_to_file()
    assert [p.name for p in tmp_path.iterdir()] == [f"dataset_{dataset.id}.zarr"]
    assert Dataset.load_from_file(f"dataset_{dataset.id}.zarr").id == dataset.id


def test_a_view_is_saved_with_its_documents_and_extra_columns_only(dataset, tmp_path):
    view = dataset[[9, 8, 0, 0, 4]].sort_by_features([0, 5])
    view.save_to_file(tmp_path / "view")
    loaded = Dataset.load_from_file(tmp_path / "view")
    assert_same(loaded, view)
    assert loaded.columns == view.columns
    assert loaded.selection.store.n_documents == 5


def test_saving_replaces_a_store_and_nothing_is_left_over(dataset, tmp_path):
    made(["something else"], save_path=tmp_path / "s")
    dataset.save_to_file(tmp_path / "s")
    assert_same(Dataset.load_from_file(tmp_path / "s"), dataset)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def interrupted(monkeypatch, dataset, path):
    """Save, and be cut off between the two renames."""
    rename = Path.rename

    def once(self, target):
        if Path(target) == path and not self.name.endswith("-old"):
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", once)
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            dataset.save_to_file(path)
    assert not path.exists()
    assert len(list(path.parent.iterdir())) == 2


@pytest.mark.parametrize("then", ["load", "save", "go on"])
def test_a_save_that_was_cut_off_loses_nothing(then, dataset, tmp_path, monkeypatch):
    path = tmp_path / "s"
    old = made(["the old one"], save_path=path)
    want = old.latents()
    interrupted(monkeypatch, dataset, path)
    if then == "load":
        np.testing.assert_array_equal(Dataset.load_from_file(path).latents(), want)
    elif then == "go on":
        sae = WordSAE()
        made(["the old one"], sae, save_path=path)
        assert sae.seen == []
    dataset.save_to_file(path)
    assert_same(Dataset.load_from_file(path), dataset)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_several_saves_that_were_cut_off_are_named(dataset, tmp_path):
    for number in (1, 2):
        dataset.save_to_file(tmp_path / f".s-0000000{number}-old")
    dataset.save_to_file(tmp_path / ".s-other-00000000-old")  # of another name
    with pytest.raises(NotAStoreError, match=r"\.s-00000001-old, \.s-00000002-old beside it"):
        Dataset.load_from_file(tmp_path / "s")
    dataset.save_to_file(tmp_path / "s")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".s-other-00000000-old", "s"]


def test_a_save_that_is_under_way_elsewhere_is_left_alone(dataset, tmp_path):
    from interp_embed.exchange import replacing

    elsewhere = tmp_path / ".s-0123abcd"
    elsewhere.mkdir()
    with replacing.locked(elsewhere) as held:
        assert held
        dataset.save_to_file(tmp_path / "s")
        assert elsewhere.exists()
    dataset.save_to_file(tmp_path / "s")
    assert not elsewhere.exists()


def test_what_was_opened_before_a_store_was_replaced_is_not_read_from_the_new_one(tmp_path):
    store_from_chunk(tmp_path / "a.zarr", random_chunk(1, 12, d_sae=9))
    store_from_chunk(tmp_path / "b.zarr", random_chunk(2, 12, d_sae=9))
    old = Dataset.load_from_file(tmp_path / "a.zarr")
    assert len(old.documents()) == 12
    sent = pickle.dumps(old.selection.store)
    Dataset.load_from_file(tmp_path / "b.zarr").save_to_file(tmp_path / "a.zarr")
    with pytest.raises(CorruptStoreError, match="another store was saved in its place"):
        old.latents("max")
    with pytest.raises(CorruptStoreError, match="replaced by another store"):
        pickle.loads(sent).n_documents  # noqa: B018  (where it is opened)


def test_what_another_process_put_back_is_replaced_too(dataset, tmp_path, monkeypatch):
    path = tmp_path / "s"
    made(["the old one"], save_path=path)
    rename, put_back = Path.rename, []

    def race(self, target):
        found = rename(self, target)
        if str(target).endswith("-old") and not put_back:
            put_back.append(rename(Path(target), path))
        return found

    monkeypatch.setattr(Path, "rename", race)
    dataset.save_to_file(path)
    assert put_back
    assert_same(Dataset.load_from_file(path), dataset)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_changed_frames_change_neither_the_dataset_nor_what_is_saved(data, tmp_path):
    dataset = Dataset(data, WordSAE())
    for row, frame in enumerate([dataset.pandas(), dataset.dataset, dataset.pandas()]):
        frame.loc[row, "text"] = "changed"
    dataset.save_to_file(tmp_path / "s")
    dataset.save_to_file(tmp_path / "s.pkl")
    for name in ("s", "s.pkl"):
        assert Dataset.load_from_file(tmp_path / name).documents() == [r["text"] for r in data]
    assert dataset.pandas()["text"].tolist()[:2] == [r["text"] for r in data[:2]]


def test_a_tilde_is_the_home_folder(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("s.zarr", "s.pkl"):
        dataset.save_to_file(f"~/{name}")
        assert (tmp_path / name).exists()
        assert Dataset.load_from_file(f"~/{name}").documents() == dataset.documents()


def test_a_view_goes_to_another_process(data, tmp_path):
    import copy

    dataset = Dataset(data, WordSAE(), save_path=tmp_path / "s", feature_labels={1: "one"})
    view = dataset[::-1].sort_by_features([0, 5])
    sent = pickle.loads(pickle.dumps(view))
    assert_same(sent, view)
    assert (sent.id, sent.path, sent.columns) == (view.id, view.path, view.columns)
    temporary = made(["a b"])
    copies = [copy.copy(temporary), copy.deepcopy(temporary)]
    del temporary
    assert [c.latents().shape for c in copies] == [(1, D_SAE)] * 2


def test_a_small_view_of_much_is_a_small_pickle(tmp_path, monkeypatch):
    dataset = made([f"word{i} and more words" for i in range(400)])
    monkeypatch.setenv("INTERP_EMBED_MEMORY", "2K")
    with pytest.raises(ResultTooLargeError, match="pickle"):
        dataset.save_to_file(tmp_path / "s.pkl")
    dataset[:5].save_to_file(tmp_path / "s.pkl")


def test_a_pickle_does_not_replace_a_store(data, tmp_path):
    dataset = Dataset(data, WordSAE(), save_path=tmp_path / "d.pkl")
    with pytest.raises(StoreExistsError, match=r"d\.pkl is a folder"):
        dataset.save_to_file(tmp_path / "d.pkl")
    assert_same(Dataset.load_from_file(tmp_path / "d.pkl"), dataset)


def test_a_store_is_saved_where_an_empty_folder_is(dataset, tmp_path):
    (tmp_path / "empty").mkdir()
    dataset.save_to_file(tmp_path / "empty")
    dataset.save_to_file(tmp_path / "new" / "deep")
    for path in (tmp_path / "empty", tmp_path / "new" / "deep"):
        assert_same(Dataset.load_from_file(path), dataset)


def test_a_store_is_not_replaced_by_a_view_of_itself(data, tmp_path):
    dataset = Dataset(data, WordSAE(), save_path=tmp_path / "s")
    dataset.save_to_file(tmp_path / "s")  # nothing to do
    with pytest.raises(StoreExistsError, match="save it elsewhere"):
        dataset[:2].save_to_file(tmp_path / "s")
    assert_same(Dataset.load_from_file(tmp_path / "s"), dataset)


def test_saving_over_something_else_is_refused(dataset, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreExistsError):
        dataset.save_to_file(tmp_path)
    with pytest.raises(StoreExistsError):
        dataset.save_to_file(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["copy.zarr", "copy.pkl"])
def test_saving_where_nothing_can_be_written_names_the_path_given(name, dataset, tmp_path):
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / "folder" / name
    with pytest.raises(OSError, match="Not a directory") as caught:
        dataset.save_to_file(path)
    assert caught.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_float16_halves_are_stored_rounded(dataset, tmp_path):
    dataset.save_to_file(tmp_path / "half", dtype=np.float16)
    loaded = Dataset.load_from_file(tmp_path / "half")
    assert loaded.selection.store.dtype == np.float16
    np.testing.assert_array_equal(
        loaded.latents(), dataset.latents().astype(np.float16).astype(np.float32)
    )
    assert loaded.latents().dtype == np.float32


@pytest.mark.parametrize("name", ["half.zarr", "half.pkl"])
@pytest.mark.parametrize("before", [None, "old words"])
def test_float16_never_overflows_silently(name, before, tmp_path):
    dataset = made(["fine words", f"much {BIG}"])
    if before:
        made([before]).save_to_file(tmp_path / name)
    with pytest.raises(OverflowError, match=r"1e\+06.*beyond the range of float16"):
        dataset.save_to_file(tmp_path / name, dtype=np.float16)
    assert [p.name for p in tmp_path.iterdir()] == ([name] if before else [])
    if before:
        assert Dataset.load_from_file(tmp_path / name).documents() == [before]


def test_float16_from_the_start_fails_the_document_that_overflows(tmp_path):
    dataset = made(["fine words", f"much {BIG}"], dtype="float16", save_path=tmp_path / "s")
    assert dataset.failures()["document"].tolist() == [1]
    assert "beyond the range of float16; store float32" in dataset.failures()["reason"][0]
    np.testing.assert_array_equal(
        dataset.latents()[0], expected("fine words").astype(np.float16).max(axis=0)
    )


def test_saving_takes_no_other_dtype(dataset, tmp_path):
    with pytest.raises(ValueError, match="dtype must be float16 or float32, got float64"):
        dataset.save_to_file(tmp_path / "s", dtype=np.float64)
    with pytest.raises(ValueError, match="dtype must be float16 or float32, got 'float8'"):
        dataset.save_to_file(tmp_path / "s", dtype="float8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".PKL"])
def test_a_pickle_goes_out_and_comes_back(dataset, suffix, tmp_path):
    path = tmp_path / f"d{suffix}"
    dataset.save_to_file(path)
    assert path.is_file()
    loaded = Dataset.load_from_file(path)
    assert loaded.documents() == dataset.documents()
    assert loaded.id == dataset.id
    np.testing.assert_array_equal(loaded.latents(), dataset.latents())
    assert [r and r.tokenized_document for r in loaded] == [
        r and r.tokenized_document for r in dataset
    ]
    assert loaded.feature_labels() == dataset.feature_labels()
    assert isinstance(loaded.sae, WideSAE)


@pytest.mark.parametrize("texts", [["a b", None, 5, f"x {FAIL}", "c", ["d"]], [None, 5]])
def test_what_has_no_text_comes_back_from_a_pickle_as_failed_with_its_reason(texts, tmp_path):
    dataset = made(texts, WideSAE())
    dataset.save_to_file(tmp_path / "d.pkl")
    loaded = Dataset.load_from_file(tmp_path / "d.pkl")
    if len(dataset.filter_na_rows()):  # else the pickle does not say how many features there are
        np.testing.assert_array_equal(loaded.latents(), dataset.latents())
    reasons = dict(dataset.failures().itertuples(index=False))
    forgotten = [i for i, text in enumerate(texts) if isinstance(text, str) and FAIL in text]
    assert [i for i in reasons if i not in forgotten] == loaded.failures()["document"].tolist()
    assert all(reasons[i] == why for i, why in loaded.failures().itertuples(index=False))
    assert np.flatnonzero(loaded.status() == "missing").tolist() == forgotten
    assert [problem for problem in verify(loaded.path) if problem.severity == "error"] == []


def test_loading_goes_by_content_not_by_name(dataset, tmp_path):
    dataset.save_to_file(tmp_path / "d.pkl")
    (tmp_path / "d.pkl").rename(tmp_path / "d.zarr")
    assert Dataset.load_from_file(tmp_path / "d.zarr").documents() == dataset.documents()
    dataset.save_to_file(tmp_path / "e.zarr")
    (tmp_path / "e.zarr").rename(tmp_path / "e.pkl")
    assert_same(Dataset.load_from_file(tmp_path / "e.pkl"), dataset)


def test_loading_nonsense_says_what_is_wrong(tmp_path):
    (tmp_path / "text.pkl").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    for name in ("text.pkl", "empty", "folder", "absent", "absent.pkl"):
        with pytest.raises(NotAStoreError, match=name):
            Dataset.load_from_file(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Dataset.load_from_file(str(tmp_path / "absent"))
    with pytest.raises(TypeError, match="file_path must be a path or a URL, got None"):
        Dataset.load_from_file(None)
    (tmp_path / "evil.zarr").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(UnsafePickleError, match="getcwd"):
        Dataset.load_from_file(tmp_path / "evil.zarr")
    import zarr

    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(NotAStoreError, match="not one that interp_embed wrote"):
        Dataset.load_from_file(tmp_path / "other.zarr")


def test_a_store_in_memory_has_a_url(data):
    dataset = Dataset(data, WordSAE(), save_path="memory://test-dataset/one")
    assert dataset.path == "memory://test-dataset/one"
    assert_same(Dataset.load_from_file("memory://test-dataset/one"), dataset)
    dataset[:2].save_to_file("memory://test-dataset/two.pkl")
    assert len(Dataset.load_from_file("memory://test-dataset/two.pkl")) == 2


@pytest.mark.parametrize("gone", ["everything", "chunks", "commits and chunks"])
def test_a_store_that_was_deleted_is_an_error_and_not_empty(data, gone, tmp_path):
    dataset = Dataset(data, WordSAE(), save_path=tmp_path / "s")
    for folder in {"everything": ["."], "chunks": ["chunks"]}.get(gone, ["commits", "chunks"]):
        shutil.rmtree(tmp_path / "s" / folder)
    for ask in (dataset.latents, lambda: dataset.latents(compress=True), lambda: dataset[1]):
        with pytest.raises(OSError, match=r"is missing|no longer exists"):
            ask()


# --- resuming ------------------------------------------------------------------------------------


def test_the_same_call_again_encodes_nothing_again(data, tmp_path):
    first = Dataset(data, WordSAE(), save_path=tmp_path / "s")
    sae = WordSAE()
    again = Dataset(data, sae, save_path=tmp_path / "s")
    assert sae.seen == []
    assert again.id == first.id
    assert_same(again, first)
    frame = Dataset(pd.DataFrame(data), sae, save_path=tmp_path / "s", batch_size=1)
    assert sae.seen == []
    assert len(frame) == len(data)


def test_reopening_keeps_what_was_not_given_again(data, tmp_path):
    Dataset(data, WordSAE(), "a description", compute_activations=False, save_path=tmp_path / "s")
    again = Dataset(data, WordSAE(), save_path=tmp_path / "s", feature_labels={3: "three"})
    assert again.dataset_description == "a description"
    assert Dataset.load_from_file(tmp_path / "s").feature_labels() == {3: "three"}
    own = Dataset(data, WordSAE(), "mine", save_path=tmp_path / "s", feature_labels={4: "four"})
    assert own.feature_labels() == {4: "four"}
    assert own.dataset_description == "mine"
    loaded = Dataset.load_from_file(tmp_path / "s")
    assert loaded.feature_labels() == {3: "three"}
    assert loaded.dataset_description == "a description"


@pytest.mark.parametrize("labelled", [True, False])
def test_a_complete_store_that_is_read_only_is_reopened(labelled, tmp_path, monkeypatch):
    from interp_embed.store.storage import LocalStorage

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    made(["a b"], WordSAE(), save_path=tmp_path / "s")
    if not labelled:
        shutil.rmtree(tmp_path / "s" / "labels")
    monkeypatch.setattr(LocalStorage, "put_if_absent", refuse)
    loaded = WordSAE()
    loaded.load()
    again = made(["a b"], loaded, save_path=tmp_path / "s")
    assert again.feature_labels()[0] == "zeroth"
    own = made(["a b"], WordSAE(), save_path=tmp_path / "s", feature_labels={1: "one"})
    assert own.feature_labels() == {1: "one"}


def test_something_else_at_the_save_path_is_refused_naming_what_differs(data, tmp_path):
    dataset = Dataset(data, WordSAE(), save_path=tmp_path / "s")

    class OtherSAE(NeverSAE):
        pass

    for change, named in [
        ({"sae": NeverSAE(scale=2.0)}, r"scale: stored 1\.0, given 2\.0"),
        ({"sae": NeverSAE(truncate=False)}, "truncate: stored True, given False"),
        ({"sae": OtherSAE()}, "class: stored 'tests.support.fake_sae:WordSAE', given"),
        ({"dtype": np.float16}, "dtype: stored 'float32', given 'float16'"),
        ({"field": "source"}, "field: stored 'text', given 'source'"),
        ({"data": data[:-1]}, r"; the documents \(11 stored, 10 given\)\. Use"),
        (
            {"data": [*data[:-1], {**data[-1], "text": "other"}]},
            r"; the texts of documents 0 to 10\. Use",
        ),
        (
            {"data": [*data[:-1], {**data[-1], "score": 9}]},
            r"; columns other than the text of documents 0 to 10\. Use",
        ),
        (
            {"data": data[::-1]},
            "; the texts of documents 0 to 10; columns other than the text",
        ),
    ]:
        arguments = {"data": data, "sae": NeverSAE(), "save_path": tmp_path / "s", **change}
        with pytest.raises(FingerprintMismatchError, match=named) as caught:
            Dataset(**arguments)
        assert not re.search("[0-9a-f]{40}|another save_path", str(caught.value))
    assert_same(Dataset.load_from_file(tmp_path / "s"), dataset)


def test_hashes_that_differ_are_shortened(tmp_path):
    class HashedSAE(WordSAE):
        weights = "a" * 64

        def fingerprint(self):
            return {**super().fingerprint(), "sha256": self.weights, "folder": f"f:{self.weights}"}

    made(["a"], HashedSAE(), save_path=tmp_path / "s")
    HashedSAE.weights = "b" * 64
    with pytest.raises(FingerprintMismatchError) as caught:
        made(["a"], HashedSAE(), save_path=tmp_path / "s")
    assert f"sha256: stored '{'a' * 12}…', given '{'b' * 12}…'; " in str(caught.value)
    assert f"folder: stored 'f:{'a' * 12}…', given" in str(caught.value)


def test_encoding_can_be_left_for_later(data, tmp_path):
    later = Dataset(data, NeverSAE(), compute_activations=False, save_path=tmp_path / "s")
    assert list(later) == [None] * 11
    assert later.token_count == 0
    assert later.documents() == [r["text"] for r in data]
    assert len(later.failures()) == 0
    for ask in (
        later.latents,
        lambda: later.sort_by_features([1]),
        lambda: later.token_activations(1),
    ):
        with pytest.raises(ValueError, match="nothing was encoded yet"):
            ask()
    with pytest.raises(FingerprintMismatchError):
        Dataset(data, WordSAE(), save_path=tmp_path / "s")


def test_what_was_left_for_later_is_encoded_by_resuming(data, tmp_path):
    Dataset(data, WideSAE(), compute_activations=False, save_path=tmp_path / "s")
    unencoded = Dataset.load_from_file(tmp_path / "s")
    assert np.isnan(unencoded.latents()).all()
    done = Dataset.load_from_file(tmp_path / "s", resume=True, batch_size=3, device="cpu")
    assert len(done.filter_na_rows()) == 11
    np.testing.assert_array_equal(done.latents(), by_oracle([r["text"] for r in data]))
    assert done.feature_labels()[0] == "zeroth"
    assert_same(Dataset.load_from_file(tmp_path / "s"), done)


@pytest.mark.parametrize("device", [None, "cuda:1", {"model": "cuda:0", "sae": "cuda:0"}])
def test_resuming_asks_for_no_gpu_that_is_not_there(device, data, tmp_path, monkeypatch):
    Dataset(data, WordSAE(), compute_activations=False, save_path=tmp_path / "s")
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    if device is None:  # nobody asked for the default: warnings are errors here
        done = Dataset.load_from_file(tmp_path / "s", resume=True)
    else:
        with pytest.warns(UserWarning, match="there is no GPU; encoding on the CPU"):
            done = Dataset.load_from_file(tmp_path / "s", resume=True, device=device)
    assert done.sae.model_device == "cpu"
    assert len(done.filter_na_rows()) == 11


def test_rows_that_are_known_are_not_encoded(data, texts):
    full = Dataset(data, WordSAE())
    rows = [row if i % 2 else None for i, row in enumerate(full)]
    sae = WordSAE()
    dataset = Dataset(data, sae, rows=rows)
    assert sorted(sae.seen) == sorted(t for t in texts[::2] if t)
    assert_same(dataset, full)
    kept = Dataset(data, NeverSAE(), rows=rows, compute_activations=False)
    assert [row is None for row in kept] == [row is None for row in rows]
    assert np.isnan(kept.latents()[::2]).all()
    np.testing.assert_array_equal(kept.latents()[1::2], full.latents()[1::2])
    np.testing.assert_array_equal(kept.latents("sum", compress=True).toarray(), kept.latents("sum"))


def test_rows_of_another_width_or_text_are_refused():
    def row(text, width):
        return DatasetRow({"text": text}, [text], csr_matrix(np.ones((1, width), np.float32)))

    with pytest.raises(ValueError, match="rows must have the same number of features"):
        made(["a", "b"], NeverSAE(), rows=[row("a", 3), row("b", 4)])
    with pytest.raises(ValueError, match="32 features"):
        made(["a"], WideSAE(), rows=[row("a", 3)])
    with pytest.raises(ValueError, match=r"rows\[1\] must have the text of document 1"):
        made(["a", "b"], NeverSAE(), rows=[None, row("c", 3)])


def test_special_tokens_of_known_rows_stay_special(data):
    full = Dataset(data[:3], TemplateSAE())
    again = Dataset(data[:3], TemplateSAE(), rows=list(full), feature_labels=full.feature_labels())
    assert_same(again, full)


def test_a_class_that_cannot_be_found_leaves_a_dataset_to_read(data, tmp_path):
    class LocalClassSAE(WordSAE):
        pass

    data = [*data, {**data[0], "text": FAIL}]  # resuming would try it again
    made_here = Dataset(data, LocalClassSAE(), save_path=tmp_path / "s")
    loaded = Dataset.load_from_file(tmp_path / "s")
    assert loaded.sae is None
    assert_same(loaded, made_here)
    with pytest.raises(ValueError, match=r"cannot be rebuilt .*Pass the data, the SAE and this"):
        Dataset.load_from_file(tmp_path / "s", resume=True)
    Dataset(data, LocalClassSAE(), save_path=tmp_path / "s")


class FolderSAE(WordSAE):
    """One that needs a folder which may move."""

    def __init__(self, folder, **kwargs):
        super().__init__(**kwargs)
        self.folder = str(folder)
        list(Path(folder).iterdir())

    def metadata(self):
        return {**super().metadata(), "folder": self.folder}


@pytest.mark.parametrize("name", ["s", "s.pkl"])
def test_an_sae_whose_folder_has_moved_leaves_a_dataset_to_read(name, data, tmp_path):
    (tmp_path / "weights").mkdir()
    data = [*data, {**data[0], "text": FAIL}]  # resuming would try it again
    made_here = Dataset(data, FolderSAE(tmp_path / "weights"))
    made_here.save_to_file(tmp_path / name)
    (tmp_path / "weights").rename(tmp_path / "moved")
    loaded = Dataset.load_from_file(tmp_path / name)
    assert loaded.sae is None
    np.testing.assert_array_equal(loaded.latents(), made_here.latents())
    with pytest.raises(ValueError, match=r"cannot be rebuilt .*weights"):
        Dataset.load_from_file(tmp_path / name, resume=True)


def test_a_complete_dataset_is_resumed_without_its_sae(tmp_path):
    (tmp_path / "weights").mkdir()
    made(["a", None], FolderSAE(tmp_path / "weights"), save_path=tmp_path / "s")
    (tmp_path / "weights").rmdir()
    assert Dataset.load_from_file(tmp_path / "s", resume=True).documents() == ["a", None]


STRANGER = """
import pathlib
pathlib.Path("imported").touch()
from tests.support.fake_sae import WordSAE
class StrangerSAE(WordSAE):
    pass
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A module in the working directory that nobody has imported, and its name."""
    name = f"stranger_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(STRANGER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def saved_by_stranger(name, path, **kwargs):
    made_here = made(["a b", "c"], __import__(name).StrangerSAE(), **kwargs)
    made_here.save_to_file(path)
    del sys.modules[name]
    Path("imported").unlink()


@pytest.mark.parametrize("path", ["s.zarr", "s.pkl"])
def test_opening_a_file_imports_no_module_that_it_names(stranger, path):
    saved_by_stranger(stranger, path)
    loaded = Dataset.load_from_file(path)
    assert loaded.sae is None
    assert not Path("imported").exists()
    assert len(loaded.filter_na_rows()) == 2
    saved_by_stranger(stranger, "later.zarr", compute_activations=False)
    later = Dataset.load_from_file("later.zarr")
    with pytest.raises(ValueError, match=rf"StrangerSAE of module {stranger} is not imported"):
        later._compute(1)


def test_resuming_imports_the_class_for_a_store_and_never_for_a_pickle(stranger):
    saved_by_stranger(stranger, "s.zarr", compute_activations=False)
    saved_by_stranger(stranger, "s.pkl", compute_activations=False)
    with pytest.raises(ValueError, match="import it first"):
        Dataset.load_from_file("s.pkl", resume=True, device="cpu")
    assert not Path("imported").exists()
    assert len(Dataset.load_from_file("s.zarr", resume=True, device="cpu").filter_na_rows()) == 2


def test_a_module_that_raises_while_imported_leaves_a_dataset_to_read(stranger):
    saved_by_stranger(stranger, "s.zarr")
    Path(f"{stranger}.py").write_text("raise KeyError('no such setting')\n")
    assert Dataset.load_from_file("s.zarr", resume=True, device="cpu").documents() == ["a b", "c"]


# --- display -------------------------------------------------------------------------------------


def test_repr_shows_the_ends_and_the_columns(dataset):
    text = repr(dataset)
    assert f"Dataset {dataset.id} (11 documents, 2 failed, 32 features)" in text
    assert "(1 documents, 32 features)" in repr(dataset[:1])
    assert "columns=['text', 'score', 'source']" in text
    assert "10: DatasetRow('loyal pets sat on python', n_tokens=5)" in text
    assert "..." in text
    assert len(text.splitlines()) < 15
    assert "3: None" in repr(dataset[:4])


def test_html_escapes_the_documents():
    nasty = "<script>alert('x')</script> & <b>"
    dataset = Dataset(
        [{"text": nasty, "<i>": "<u>"}], WordSAE(), dataset_description="<script>2</script>"
    )
    for html in (dataset._repr_html_(), dataset[0]._repr_html_(), dataset[0].html(7, "<em>")):
        assert "<script>" not in html
        assert "<u>" not in html
        assert "<i>" not in html
        assert "<em>" not in html
    assert "&lt;script&gt;2" in dataset._repr_html_()


def test_html_counts_the_failed(dataset):
    html = dataset._repr_html_()
    assert "11 (2 failed)" in html
    assert "a description" in html


# --- the temporary folder ------------------------------------------------------------------------

TEMPORARY = """
import os, sys
from tests.support.fake_sae import WordSAE
from interp_embed import Dataset
dataset = Dataset([{{"text": "a b"}}], WordSAE())
print(dataset.path, flush=True)
view = dataset[:]
del dataset
assert view[0].document() == "a b"
if {fork}:
    child = os.fork()
    if child == 0:
        sys.exit(0)
    os.waitpid(child, 0)
    assert os.path.exists(view.path), "a forked child took the folder with it"
{end}
"""


@pytest.mark.parametrize("fork", [False, True])
@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "raise KeyError('x')"])
def test_the_temporary_store_goes_when_the_process_ends(end, fork):
    code = TEMPORARY.format(end=end, fork=fork)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    path = Path(run.stdout.split()[0])
    assert "took the folder" not in run.stderr
    assert run.returncode == {"": 0, "raise SystemExit(3)": 3}.get(end, 1), run.stderr
    assert path.name.startswith("interp-embed-")
    assert not path.exists()


def test_the_temporary_store_goes_with_the_last_view_of_it():
    import gc

    dataset = made(["a b", "c"])
    path, view = Path(dataset.path), dataset[:1]
    del dataset
    gc.collect()
    assert view.documents() == ["a b"]
    assert path.exists()
    del view
    gc.collect()
    assert not path.exists()
