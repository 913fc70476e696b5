"""Lazy arrays give what eager ones give, which is what the oracle says, and read no more than that."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import subprocess
import sys
import tomllib
import tracemalloc
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import sparse
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import override

from interp_embed import Dataset, densify
from interp_embed.aggregate.reductions import REDUCTIONS
from interp_embed.lazy import convert, sources
from interp_embed.lazy.array import Selection, selection_of, stored_array
from interp_embed.lazy.partition import BYTES_AN_ENTRY, as_positions, block_edges
from interp_embed.store import Store, StoreWriter, finish
from interp_embed.store.arrays.folder import Folder
from interp_embed.store.ledger import Commit, Ledger
from interp_embed.testing import dense, oracle, random_chunk, store_from_chunk
from interp_embed.testing.faults import WrappedStorage
from interp_embed.testing.strategies import chunks, frames
from interp_embed.xarray_engine import InterpEmbedBackend
from tests.support.fake_sae import WideSAE, WordSAE
from tests.support.hypotheses import examples
from tests.support.paths import PYTHON_PATH, ROOT

METHODS = list(REDUCTIONS)
quickly = settings(max_examples=examples(25), suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def _in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def blocks_of(size):
    """Make blocks of about this many bytes of token-level activations."""
    return dask.config.set({"array.chunk-size": size})


def opened(path, chunk, **kwargs):
    store_from_chunk(path, chunk, **kwargs)
    return Dataset.load_from_file(path)


def values(lazy):
    """Compute, and check that what was computed is what the graph promised."""
    data = getattr(lazy, "data", lazy)
    found = data.compute()
    assert found.shape == data.shape
    assert found.dtype == data.dtype
    return found.todense() if isinstance(found, sparse.SparseArray) else found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sixty documents in eight chunks; some failed, some are empty, some activations are negative."""
    return opened(
        tmp_path_factory.mktemp("corpus") / "s.zarr",
        random_chunk(1, 60, d_sae=70),
        documents_per_chunk=8,
        finished=False,
        feature_labels={3: "three"},
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same without failures and negative activations."""
    return opened(
        tmp_path_factory.mktemp("plain") / "s.zarr",
        random_chunk(1, 60, d_sae=70, negative=False, failures=False),
        documents_per_chunk=8,
        finished=False,
    )


@st.composite
def selections(draw, n):
    """What may stand in the brackets of an axis of length n, but for single integers."""
    whole = st.integers(-n - 1, n + 1) | st.none()
    steps = st.sampled_from([None, 1, 2, -1, -3])
    index = st.integers(-n, n - 1) if n else st.nothing()
    return draw(
        st.builds(slice, whole, whole, steps)
        | st.lists(st.booleans(), min_size=n, max_size=n).map(lambda v: np.array(v, bool))
        | st.lists(index, max_size=2 * n).map(lambda v: np.array(v, np.int64))
    )


# --- the same numbers ----------------------------------------------------------------------------


@quickly
@given(
    chunks(),
    st.data(),
    st.sampled_from(["1B", "4KiB", "128MiB"]),
    st.booleans(),
    st.sampled_from([0.0, 0.75]),
)
def test_lazy_is_eager_is_the_oracle(tmp_path_factory, chunk, data, size, finished, threshold):
    dataset = opened(
        tmp_path_factory.mktemp("s") / "s", chunk, documents_per_chunk=2, finished=finished
    )
    picked = np.arange(len(dataset))[data.draw(selections(len(dataset)))]
    view = dataset[picked]
    documents = dense(chunk)
    with blocks_of(size):
        for method in METHODS:
            lazy = view.latents(method, activated_threshold=threshold, lazy=True)
            eager = view.latents(method, activated_threshold=threshold)
            assert lazy.dims == ("doc", "feature")
            assert lazy.name == method
            assert lazy.dtype == np.float32
            assert lazy.doc.values.tolist() == picked.tolist()
            found = values(lazy)
            np.testing.assert_array_equal(found, eager)
            with np.errstate(over="ignore"):
                wanted = oracle(documents, method, threshold, d_sae=chunk.d_sae)[picked]
                largest = max(
                    (np.abs(m).max(initial=0) for m in documents if m is not None), default=0
                )
                scale = largest**2 if method == "var" else largest
                # Nor are results below the smallest float32 there is told from 0.
                smallest = np.finfo(np.float32).smallest_subnormal
                rounds = method in ("sum", "mean", "var")
                tolerance = max(1e-5 * scale, smallest) if rounds else 0
                if np.isfinite(np.float32(1e3 * scale)):
                    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=tolerance)


@quickly
@given(chunks(d_sae=40), st.data(), st.sampled_from(["1B", "128MiB"]))
def test_selections_are_those_of_numpy(tmp_path_factory, chunk, data, size):
    dataset = opened(tmp_path_factory.mktemp("s") / "s", chunk, documents_per_chunk=2)
    eager = dataset.latents("max")
    first, second = data.draw(selections(len(dataset))), data.draw(selections(40))
    again = data.draw(selections(len(np.arange(len(dataset))[first])))
    with blocks_of(size):
        lazy = dataset.latents("max", lazy=True)
        for found, wanted in (
            (lazy.isel(doc=first), eager[first]),
            (lazy.isel(feature=second), eager[:, second]),
            (lazy.isel(doc=first, feature=second), eager[first][:, second]),
            (
                lazy.isel(feature=second).isel(doc=first).isel(doc=again),
                eager[first][again][:, second],
            ),
        ):
            assert selection_of(found.data) is not None
            np.testing.assert_array_equal(values(found), wanted)
            assert found.doc.dtype == np.int64


@quickly
@given(chunks(d_sae=12), st.data(), st.sampled_from(["1B", "128MiB"]))
def test_the_activations_are_those_of_the_documents(tmp_path_factory, chunk, data, size):
    dataset = opened(tmp_path_factory.mktemp("s") / "s", chunk, documents_per_chunk=2)
    picked = np.arange(len(dataset))[data.draw(selections(len(dataset)))]
    features, tokens = data.draw(selections(12)), data.draw(selections(3))
    with blocks_of(size):
        lazy = dataset[picked].latents("all", lazy=True)
    length = lazy.sizes["token"]
    wanted = np.zeros((len(picked), length, 12), np.float32)
    for row, document in zip(wanted, picked.tolist(), strict=True):
        matrix = dense(chunk)[document]
        if matrix is None:
            row[0] = np.nan
        else:
            row[: len(matrix)] = matrix
    assert lazy.dims == ("doc", "token", "feature")
    np.testing.assert_array_equal(values(lazy), wanted)
    some = lazy.isel(token=slice(3), feature=features)
    np.testing.assert_array_equal(values(some), wanted[:, :3][:, :, features])
    if length >= 3:
        some = lazy.isel(token=slice(3)).isel(token=tokens, feature=features)
        np.testing.assert_array_equal(values(some), wanted[:, :3][:, tokens][:, :, features])


def test_slices_that_end_before_they_begin_select_nothing(corpus):
    lazy = corpus.latents("all", lazy=True)
    n = lazy.sizes["feature"]
    for nothing in (slice(-n - 1, 0, -1), slice(3, 3), slice(5, 2)):
        some = lazy.isel(token=[0, 0])  # left to dask
        assert values(some.isel(feature=nothing)).shape == (len(corpus), 2, 0)
        assert values(some.isel(doc=[1], feature=nothing)).shape == (1, 2, 0)


def test_integers_and_dots_and_labels_select_too(corpus):
    lazy, eager = corpus.latents("sum", lazy=True), corpus.latents("sum")
    np.testing.assert_array_equal(values(lazy[7]), eager[7])
    np.testing.assert_array_equal(values(lazy[..., -1]), eager[:, -1])
    np.testing.assert_array_equal(values(lazy[4:2:-1, 5]), eager[4:2:-1, 5])
    np.testing.assert_array_equal(values(lazy[3, [1, 1]]), eager[3, [1, 1]])
    np.testing.assert_array_equal(values(lazy.loc[5:7, 3]), eager[5:8, 3])
    np.testing.assert_array_equal(values(lazy.sel(feature=slice(0, 10))), eager[:, :11])
    np.testing.assert_array_equal(values(lazy.head(doc=3).T), eager[:3].T)
    some = corpus[20:].latents("sum", lazy=True)
    np.testing.assert_array_equal(values(some.sel(doc=25)), eager[25])
    mask = xr.DataArray(np.arange(60) % 4 == 1, dims="doc")
    np.testing.assert_array_equal(values(lazy.isel(doc=mask)), eager[mask.values])
    np.testing.assert_array_equal(values(lazy.sel(doc=mask.chunk(doc=7))), eager[mask.values])
    rows = xr.DataArray([9, 2, 9], dims="point")
    assert lazy.isel(doc=rows).dims == ("point", "feature")
    np.testing.assert_array_equal(values(lazy.isel(doc=rows)), eager[rows.values])
    np.testing.assert_array_equal(values(lazy.data[3:5, [1, 1]]), eager[3:5, [1, 1]])
    np.testing.assert_array_equal(values(lazy.variable[...]), eager)
    with pytest.raises(IndexError):
        lazy.isel(feature=[70])
    with pytest.raises(IndexError):
        lazy.isel(doc=60)
    with pytest.raises(IndexError):
        lazy.variable[1, 2, 3]
    with pytest.raises(IndexError):
        lazy.isel(doc=np.array([True, False]))


@pytest.mark.parametrize("size", ["1B", "60KiB", "128MiB"])
def test_reductions_over_documents(corpus, size):
    eager = corpus.latents("max")
    known = ~np.isnan(eager).any(axis=1)
    with blocks_of(size):
        lazy = corpus.latents("max", lazy=True)
    np.testing.assert_allclose(values(lazy.sum("doc")), np.nansum(eager, 0), rtol=1e-5)
    np.testing.assert_array_equal(values(lazy.sum("doc", skipna=False)), np.full(70, np.nan))
    np.testing.assert_array_equal(values(lazy.max("doc")), eager[known].max(0))
    np.testing.assert_allclose(values(lazy.mean("doc")), eager[known].mean(0), rtol=1e-5)
    np.testing.assert_array_equal(values((lazy > 0).sum("doc")), (eager > 0).sum(0))
    np.testing.assert_array_equal(values(lazy.notnull().all("feature")), known)
    np.testing.assert_allclose(
        values(lazy.isel(doc=known).std("doc")), eager[known].std(0), rtol=1e-4
    )


@pytest.mark.parametrize("size", ["1B", "60KiB"])
def test_groups_of_documents(corpus, size):
    eager, group = corpus.latents("max"), np.arange(60) % 3
    with blocks_of(size):
        lazy = corpus.latents("max", lazy=True).assign_coords(group=("doc", group))
        means, highest = lazy.groupby("group").mean(), lazy.groupby("group").max()
        for g in range(3):
            np.testing.assert_allclose(
                values(means)[g], np.nanmean(eager[group == g], 0), rtol=1e-5
            )
            np.testing.assert_array_equal(values(highest)[g], np.nanmax(eager[group == g], 0))


@pytest.mark.parametrize("size", ["1B", "60KiB", "128MiB"])
def test_reductions_over_tokens(plain, size):
    with blocks_of(size):
        found = plain.to_xarray()
        activations = found["activations"]
        for method, lazy in (
            ("sum", activations.sum("token")),
            ("max", activations.max("token")),
            ("count", (activations > 0).sum("token")),
            ("binarize", (activations > 0).any("token")),
            ("mean", activations.weighted(found["token_weight"]).sum("token")),
            ("mean", xr.dot(activations, found["token_weight"], dim="token")),
            ("mean", densify(activations).weighted(densify(found["token_weight"])).mean("token")),
            ("mean", activations.sum("token") / np.maximum(found["n_tokens"], 1)),
        ):
            np.testing.assert_allclose(values(lazy), plain.latents(method), rtol=1e-5, atol=1e-6)
        count = plain.latents("count", activated_threshold=1.5)
        np.testing.assert_array_equal(values((activations > 1.5).sum("token")), count)


def test_reductions_over_tokens_of_documents_that_failed(corpus):
    found = corpus.to_xarray()
    activations = found["activations"]
    for method, lazy in (
        ("sum", activations.sum("token", skipna=False)),
        ("mean", activations.weighted(found["token_weight"]).sum("token", skipna=False)),
        ("mean", densify(activations).weighted(densify(found["token_weight"])).mean("token")),
    ):
        np.testing.assert_allclose(values(lazy), corpus.latents(method), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        values(activations.sum("token")), np.nan_to_num(corpus.latents("sum")), rtol=1e-4, atol=1e-5
    )
    encoded = found.sel(doc=found["status"] < 2)
    assert np.isfinite(values(encoded["max"])).all()
    assert encoded.sizes["doc"] == 60 - len(corpus.failures())


def test_a_sum_holds_no_more_than_what_is_listed(tmp_path):
    chunk = random_chunk(5, 40, d_sae=50_000, mean_tokens=40, active=3)
    dataset = opened(tmp_path / "store", chunk)
    activations = dataset.to_xarray()["activations"]
    expected = np.nan_to_num(dataset.latents("sum"))
    activations[:2].sum("token").compute()  # what is compiled is not what is measured
    tracemalloc.start()
    try:
        found = activations.sum("token").compute()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(found.data.todense(), expected, rtol=1e-5)
    assert peak < activations.nbytes // 4, "as much as a dense block"
    shifted = dataset.to_xarray()["max"]
    shifted.data = shifted.data + 1
    summed = np.nansum(densify(shifted).values, 0)
    np.testing.assert_allclose(values(shifted.sum("doc")), summed, rtol=1e-5)
    np.testing.assert_allclose(
        values(activations.isel(token=slice(0, 2)).sum(["token", "doc"])),
        np.nansum(densify(activations.isel(token=slice(0, 2))).values, axis=(0, 1)),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_masks_and_weights_say_where_the_tokens_are(corpus):
    found = corpus.to_xarray()
    lengths = found["n_tokens"].values
    assert lengths.tolist() == [0 if row is None else row.n_tokens for row in corpus.rows]
    mask, weight = values(found["token_mask"]), values(found["token_weight"])
    np.testing.assert_array_equal(mask, np.arange(found.sizes["token"]) < lengths[:, None])
    np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(weight[lengths > 0] > 0, mask[lengths > 0])
    assert (weight[lengths == 0, 0] == 1).all()
    kept = found["activations"].where(found["token_mask"])
    assert np.isnan(values(kept)[~mask]).all()


@pytest.mark.parametrize("size", ["60KiB", "128MiB"])
def test_products_with_dense_arrays(corpus, size):
    weights = np.random.default_rng(0).random((70, 3)).astype(np.float32)
    named = xr.DataArray(weights, dims=("feature", "k"))
    with blocks_of(size):
        lazy = corpus.filter_na_rows().latents("max", lazy=True)
        wanted = corpus.filter_na_rows().latents("max") @ weights
        for found in (lazy.data @ weights, lazy @ named, xr.dot(lazy, named, dim="feature")):
            np.testing.assert_allclose(values(found), wanted, rtol=1e-4, atol=1e-4)
        eager = corpus.filter_na_rows().latents("max")
        np.testing.assert_allclose(
            values(lazy.data.T @ lazy.data), eager.T @ eager, rtol=1e-4, atol=1e-3
        )
        with_failed = corpus.latents("max", lazy=True) @ named
        np.testing.assert_allclose(
            values(with_failed), corpus.latents("max") @ weights, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_stores_of_either_dtype_are_read_as_float32(tmp_path, dtype):
    chunk = random_chunk(2, 30, d_sae=50, dtype=dtype)
    dataset = opened(tmp_path / "s", chunk, documents_per_chunk=8)
    found = dataset.to_xarray()
    for method in METHODS:
        assert found[method].dtype == np.float32
        np.testing.assert_array_equal(values(found[method]), dataset.latents(method))
    for document in (0, 17):
        row = dataset[document]
        if row is not None:
            padded = values(found["activations"][document])
            np.testing.assert_array_equal(padded[: row.n_tokens], row.activations.toarray())


def test_documents_that_were_not_encoded_yet_are_rows_of_nan(tmp_path):
    chunk = random_chunk(2, 20, d_sae=30, failures=False)
    store = store_from_chunk(tmp_path / "s", chunk, documents_per_chunk=4, finished=False)
    for commit in store.ledger.live[1:4]:
        store.storage.delete(commit.key)
    dataset = Dataset.load_from_file(tmp_path / "s")
    with blocks_of("1KiB"):
        found = dataset.to_xarray()
    assert found["status"].values.tolist() == [0] * 4 + [255] * 12 + [0] * 4
    eager = dataset.latents("max")
    assert np.isnan(eager[4:16]).all()
    np.testing.assert_array_equal(values(found["max"]), eager)
    assert np.isnan(values(found["activations"])[4:16, 0]).all()


def test_a_longer_document_than_there_was_is_refused(tmp_path):
    chunk = random_chunk(2, 8, d_sae=30, failures=False)
    store = store_from_chunk(tmp_path / "s", chunk, documents_per_chunk=4, finished=False)
    length = int(np.diff(chunk.doc_ptr).max())
    short = sources.Tokens(store, 30, length - 1)
    with pytest.raises(ValueError, match=f"more than {length - 1} tokens"):
        values(stored_array(Selection(short, range(8))))


def test_a_store_without_documents_or_features(tmp_path, corpus):
    nothing = corpus[[]].to_xarray()
    assert nothing.sizes == {"doc": 0, "token": 1, "feature": 70}
    assert values(nothing["max"]).shape == (0, 70)
    assert values(nothing["activations"]).shape == (0, 1, 70)
    assert nothing["text"].values.shape == (0,)
    unknown = Dataset(
        [{"text": "a"}], WordSAE(), compute_activations=False, save_path=tmp_path / "s"
    )
    with pytest.raises(ValueError, match="number of features is unknown"):
        Dataset.load_from_file(unknown.path).to_xarray()


def test_blocks_know_no_limit_of_memory(corpus, monkeypatch):
    expected = corpus.latents("max")
    monkeypatch.setenv("INTERP_EMBED_MEMORY", "2K")
    np.testing.assert_array_equal(values(corpus.latents("max", lazy=True)), expected)
    with pytest.raises(ValueError, match=r"array\.chunk-size"):
        corpus.latents("max", lazy=True, memory="2K")


def test_compress_is_refused(corpus):
    with pytest.raises(ValueError, match="leave out compress=True"):
        corpus.latents("max", compress=True, lazy=True)
    with pytest.raises(ValueError, match="aggregation method"):
        corpus.latents("median", lazy=True)


# --- the whole as a Dataset ----------------------------------------------------------------------


def test_a_dataset_has_everything(corpus):
    found = corpus.to_xarray()
    assert found.sizes["doc"] == 60
    assert found.sizes["feature"] == 70
    assert set(found.coords) == {"doc", "token", "feature", "n_tokens", "status", "feature_label"}
    tokens = {"activations", "token_mask", "token_weight"}
    assert set(found.data_vars) == {*REDUCTIONS, *tokens, "text"}
    assert found.attrs == {
        "id": corpus.id,
        "description": "made by a test",
        "path": corpus.path,
        "d_sae": 70,
        "field": "text",
    }
    for method in METHODS:
        np.testing.assert_array_equal(values(found[method]), corpus.latents(method))
    assert found["count"].attrs == {"activated_threshold": 0.0}
    assert found["feature_label"].values.tolist() == ["", "", "", "three"] + [""] * 66
    assert found["text"].values.tolist() == corpus.documents()
    failed = [row is None for row in corpus.rows]
    assert (found["status"].values == 2).tolist() == failed
    names = dict(
        zip(found["status"].flag_values, found["status"].flag_meanings.split(), strict=True)
    )
    assert names == {0: "ok", 1: "truncated", 2: "failed", 255: "missing"}
    assert len({v.data.chunks[0] for v in found.values() if v.chunks}) == 1


def test_a_view_keeps_its_order_its_columns_and_the_numbers_of_its_documents(corpus):
    ranked = corpus.sort_by_features([5, 6])
    found = ranked.to_xarray()
    assert found["doc"].values.tolist() == ranked.selection.documents.tolist()
    assert found["text"].values.tolist() == ranked.documents()
    np.testing.assert_array_equal(found["feature_activation"], ranked.dataset["feature_activation"])
    assert found["top_feature_label"].dtype == object
    np.testing.assert_array_equal(values(found["mean"]), ranked.latents("mean"))
    back = found.sortby("doc")["mean"]
    np.testing.assert_array_equal(values(back), corpus.latents("mean"))


def test_the_texts_of_a_view_that_replaced_a_column_are_its_own(corpus):
    view = Dataset.from_selection(
        corpus.selection.take(np.arange(3), {"text": np.array(["x", "y", "z"], object)})
    )
    assert view.to_xarray()["text"].values.tolist() == ["x", "y", "z"]


def test_columns_whose_names_are_taken_get_another(tmp_path):
    chunk = random_chunk(2, 2, d_sae=30, failures=False)
    frame = pd.DataFrame({"max": ["a", "b"], "doc": [1, 2], "column_doc": [3, 4], 7: [5.0, 6.0]})
    dataset = opened(tmp_path / "s", chunk, frame=frame, field="max")
    found = dataset.to_xarray()
    assert found.attrs["field"] == "column_max"
    assert found["column_max"].values.tolist() == ["a", "b"]
    assert found["7"].values.tolist() == [5.0, 6.0]
    assert found["column_doc"].values.tolist() == [1, 2]
    assert found["column_column_doc"].values.tolist() == [3, 4]
    assert found["max"].dims == ("doc", "feature")


def same(a, b):
    if a is b or (pd.api.types.is_scalar(b) and pd.isna(b) and pd.isna(a)):
        return True
    return bool(a == b)


@quickly
@given(frames(min_rows=1).filter(lambda f: len(f.columns) > 0), st.data())
def test_columns_are_those_of_the_data_frame(tmp_path_factory, frame, data):
    chunk = random_chunk(0, len(frame), d_sae=4, failures=False)
    path = tmp_path_factory.mktemp("s") / "s"
    dataset = opened(path, chunk, frame=frame, field=frame.columns[0])
    index = data.draw(selections(len(frame)))
    found = list(dataset.to_xarray().data_vars.values())[-len(frame.columns) :]
    for number, variable in enumerate(found):
        series = dataset.dataset.iloc[:, number]
        if isinstance(series.dtype, pd.DatetimeTZDtype):
            series = series.dt.tz_convert("UTC").dt.tz_localize(None)
        kind = variable.dtype.kind
        assert (
            kind == "O"
            or variable.dtype == series.to_numpy().dtype
            or str(series.dtype)[0].isupper()
        )
        picked = variable.isel(doc=index)
        assert picked.dtype == variable.dtype
        wanted = series.iloc[np.arange(len(frame))[index]]
        wanted = wanted.to_numpy() if kind in "mM" else wanted.tolist()
        assert len(picked) == len(wanted)
        assert all(map(same, picked.values.tolist() if kind not in "mM" else picked.values, wanted))
        square = xr.DataArray(np.zeros((2, 2), np.int64), dims=("p", "q"))
        assert variable.isel(doc=square).values.shape == (2, 2)
        one = variable.isel(doc=0)
        assert one.shape == ()
        assert one.dtype == variable.dtype


def test_a_temporary_store_lives_as_long_as_what_is_made_of_it():
    dataset = Dataset([{"text": "the cat"}, {"text": "sat"}], WideSAE())
    eager, texts, path = dataset.latents("max"), dataset.documents(), dataset.path
    lazy, found = dataset.latents("max", lazy=True)[::-1], dataset[:1].to_xarray()
    found = found[["text"]].isel(doc=slice(0, 1))
    del dataset
    gc.collect()
    np.testing.assert_array_equal(values(lazy), eager[::-1])
    del lazy
    gc.collect()
    assert found["text"].values.tolist() == texts[:1]
    del found
    gc.collect()
    assert not Path(path).exists()


# --- what is read --------------------------------------------------------------------------------


class Counting(WrappedStorage):
    """Remembers which objects are read, and how much of them."""

    def __init__(self, inner):
        super().__init__(inner)
        self.read = {}

    def forget(self):
        self.read = {}

    @override
    def get(self, key):
        data = super().get(key)
        self.read[key] = self.read.get(key, 0) + len(data)
        return data

    @override
    def get_range(self, key, start, length):
        data = super().get_range(key, start, length)
        self.read[key] = self.read.get(key, 0) + len(data)
        return data

    @property
    def chunks(self):
        return {key.split("/")[1] for key in self.read if key.startswith("chunks/")}


@pytest.fixture
def counted(tmp_path):
    chunk = random_chunk(3, 400, d_sae=200, failures=False)
    frame = pd.DataFrame({"text": [f"text {i} " * 200 for i in range(400)], "number": range(400)})
    store = store_from_chunk(tmp_path / "s", chunk, frame, documents_per_chunk=20, finished=False)
    storage = Counting(store.storage)
    opened_store = Store(storage)
    storage.forget()
    return opened_store, storage


def test_few_documents_read_few_objects(counted):
    store, storage = counted
    with blocks_of("50KiB"):
        lazy = convert.latents(store, np.arange(400), "max", 0.0)
        assert storage.read == {}
        assert len(lazy.chunks[0]) >= 20
    values(lazy.isel(doc=[45, 41, 45]))
    assert len(storage.chunks) == 1
    few = sum(storage.read.values())
    storage.forget()
    values(convert.latents(store, np.arange(400), "max", 0.0))
    assert len(storage.chunks) >= 19
    assert sum(storage.read.values()) > 10 * few


def test_a_dataset_opens_without_its_texts(counted):
    store, storage = counted
    found = convert.to_dataset(store, np.arange(400), extra={}, labels={}, attributes={})
    repr(found), found._repr_html_()
    assert not any(key.startswith("documents/") for key in storage.read)
    assert not any(
        key.endswith(("activation/c/0", "feature/c/0", "max/c/0")) for key in storage.read
    )
    assert found["text"].isel(doc=[399, 7]).values.tolist() == ["text 399 " * 200, "text 7 " * 200]
    assert found["number"].isel(doc=3).item() == 3
    texts = [key for key in storage.read if "/row/text/" in key]
    assert len(texts) == 1


def test_reductions_read_nothing_of_what_is_not_selected(counted):
    store, storage = counted
    with blocks_of("50KiB"):
        found = convert.to_dataset(store, np.arange(400), extra={}, labels={}, attributes={})
        storage.forget()
        found["max"].isel(doc=slice(0, 20)).sum("doc").compute()
    assert len(storage.chunks) == 1
    assert not any("/token" in key or key.endswith("activation/c/0") for key in storage.read)


def test_selected_features_reach_the_reader(counted, monkeypatch):
    store, _ = counted
    asked = []
    real = sources.aggregate_sparse

    def noted(store, documents, reduction, threshold, features=None, **kwargs):
        asked.append((documents.tolist(), None if features is None else features.tolist()))
        return real(store, documents, reduction, threshold, features, **kwargs)

    monkeypatch.setattr(sources, "aggregate_sparse", noted)
    lazy = convert.latents(store, np.arange(400), "max", 0.0)
    eager = values(lazy)
    for found, documents, features in (
        (lazy.isel(feature=[3, 5]), range(400), [3, 5]),
        (lazy.isel(feature=[5, 3, 5]), range(400), [3, 5]),
        (lazy.sel(feature=slice(0, 10)), range(400), [*range(11)]),
        (lazy.isel(doc=slice(10, 13), feature=[3, 5]), [10, 11, 12], [3, 5]),
        (lazy.isel(doc=slice(10, 13)).isel(feature=7), [10, 11, 12], [7]),
        (lazy.isel(feature=slice(4, 8)).isel(doc=[9, 2]).isel(feature=[1]), [9, 2], [5]),
        (lazy.isel(feature=[3]).sum("doc"), range(400), [3]),
        ((lazy.isel(feature=[3, 5]) > 1).mean("doc"), range(400), [3, 5]),
    ):
        asked.clear()
        values(found)
        assert sorted(itertools.chain(*(d for d, _ in asked))) == sorted(documents)
        assert {tuple(f) for _, f in asked} == {tuple(features)}
    np.testing.assert_array_equal(values(lazy.isel(feature=[5, 3, 5])), eager[:, [5, 3, 5]])


# --- graphs --------------------------------------------------------------------------------------


def ledger_of(lengths, *, nnz=1000, gap_after=(), failed=0):
    commits, at = [], 0
    for number, length in enumerate(lengths):
        commits.append(
            Commit(
                start=at,
                stop=at + length,
                generation=0,
                d_sae=64,
                n_tokens=0,
                n_special=0,
                nnz=nnz,
                pooled_nnz=0,
                n_failed=failed,
                n_truncated=0,
                has_negative=False,
                encoder="",
                vocabulary={},
                folder=Folder(f"chunks/{number}", {}, {}),
            )
        )
        at += length + (number in gap_after)
    return SimpleNamespace(ledger=Ledger(commits, at))


@settings(max_examples=examples(200))
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.sets(st.integers(0, 11)),
    st.integers(1, 200_000),
    st.data(),
)
def test_blocks_hold_every_document_once_and_fit(lengths, gaps, nbytes, data):
    store = ledger_of(lengths, gap_after=gaps)
    n = store.ledger.n_documents
    order = data.draw(
        st.sampled_from(["range", "reversed", "some", "any"]).map(
            {
                "range": range(n),
                "reversed": range(n)[::-1],
                "some": np.arange(n)[np.arange(n) % 7 < 3],
                "any": np.random.default_rng(0).integers(0, n, 2 * n),
            }.get
        )
    )
    edges = block_edges(store, order, 64, nbytes)
    assert edges[0] == 0
    assert edges[-1] == len(order)
    assert (np.diff(edges) > 0).all()
    intervals = store.ledger.locate(np.asarray(order))
    sizes = np.array([1000 / length for length in lengths] + [64.0])
    each = BYTES_AN_ENTRY * sizes[intervals] + 1
    for begin, end in itertools.pairwise(edges.tolist()):
        # Cutting evenly, and cutting without looking ahead, may each be one document off.
        assert end - begin == 1 or each[begin:end].sum() <= nbytes + 2 * each[begin:end].max()


def test_blocks_follow_chunks():
    store = ledger_of([10, 20, 30, 5, 5, 5])
    chunk = BYTES_AN_ENTRY * 1000
    everything = range(75)
    assert block_edges(store, everything, 64, 10 * chunk).tolist() == [0, 75]
    assert block_edges(store, everything, 64, chunk + 40).tolist() == [0, 10, 30, 60, 65, 70, 75]
    # Small chunks share a block, and a large one is cut into equal parts.
    assert block_edges(store, everything, 64, 2 * chunk + 80).tolist() == [0, 30, 65, 75]
    halves = block_edges(store, everything, 64, chunk // 2 + 20)
    assert halves.tolist() == [0, 5, 10, 20, 30, 45, 60, 62, 65, 67, 70, 72, 75]
    assert block_edges(store, everything[::-1], 64, chunk + 40).tolist() == [
        0,
        5,
        10,
        15,
        45,
        65,
        75,
    ]
    some = np.array([1, 5, 12, 31, 32])
    assert block_edges(store, some, 64, 10 * chunk).tolist() == [0, 5]
    # What has no activations is a row of NaN, which takes its room.
    failed = ledger_of([10, 20], failed=10)
    assert len(block_edges(failed, range(30), 1000, chunk)) > 10


def test_thousands_of_chunks_are_thousands_of_small_tasks(corpus):
    store = ledger_of([3000] * 5000, nnz=2**22)
    edges = block_edges(store, range(15_000_000), 4096, 2**27)
    assert len(edges) == 5001
    source = sources.Pooled(corpus.selection.store, 70, "max", 0.0)
    with blocks_of("1B"):
        lazy = stored_array(Selection(source, as_positions(np.tile(np.arange(60), 50))))
        view = corpus.latents("max", lazy=True)
    assert len(lazy.dask) == lazy.npartitions == 3000
    assert len(view.data.dask) == 60
    assert len(view[5].data.dask) == 2
    assert len(view.isel(feature=[1, 2]).data.dask.layers) == 1
    for _, block in view.data.dask.values():
        assert isinstance(block.documents, range)
        assert len(pickle.dumps(block)) < 1000


def test_the_same_array_has_the_same_name(corpus):
    again = Dataset.load_from_file(corpus.path)
    a, b = corpus.latents("max", lazy=True), again.latents("max", lazy=True)
    assert a.data.name == b.data.name
    names = {a.data.name, a[::-1].data.name, a[:, :3].data.name, a[:, 1:4].data.name}
    names |= {corpus.latents(m, lazy=True).data.name for m in METHODS[1:]}
    names |= {corpus.latents("count", activated_threshold=1, lazy=True).data.name}
    assert len(names) == 4 + len(METHODS)


def test_what_was_encoded_since_has_another_name(tmp_path):
    chunk = random_chunk(2, 8, d_sae=30, failures=False)
    store = store_from_chunk(tmp_path / "s", chunk, documents_per_chunk=4, finished=False)
    before = Dataset.load_from_file(tmp_path / "s").latents("max", lazy=True)
    eager = values(before)
    with StoreWriter(store) as writer:
        finish(writer)  # merges the two chunks and deletes them
    after = Dataset.load_from_file(tmp_path / "s").latents("max", lazy=True)
    assert after.data.name != before.data.name
    np.testing.assert_array_equal(values(before), eager)
    np.testing.assert_array_equal(values(after), eager)


def test_what_is_computed_from_a_lazy_array_is_dasks(corpus):
    lazy = corpus.latents("max", lazy=True)
    for known in (
        lazy.copy(),
        lazy.copy(deep=True),
        lazy.rename(doc="d"),
        lazy.assign_coords(doc=range(60)),
    ):
        assert selection_of(known.data) is not None
    for other in (lazy * 1, lazy.T, lazy.persist(), lazy.chunk(doc=7)):
        assert selection_of(other.data) is None
        picked = other.isel(doc=[3, 3]).transpose("doc", "feature")
        np.testing.assert_array_equal(values(picked), corpus.latents("max")[[3, 3]])


def test_lazy_arrays_and_dasks_own_are_computed_together(corpus):
    found = corpus.to_xarray()[["max", "mean"]]
    both = found.assign(total=found["max"].sum("doc"), deep=found["max"] - found["mean"]).compute()
    np.testing.assert_array_equal(both["max"].data.todense(), corpus.latents("max"))
    np.testing.assert_allclose(
        both["total"].data.todense(), np.nansum(corpus.latents("max"), 0), rtol=1e-5
    )
    np.testing.assert_array_equal(
        both["deep"].data.todense(), corpus.latents("max") - corpus.latents("mean")
    )
    doubled = xr.apply_ufunc(
        lambda a, b: a + b,
        found["max"],
        found["max"] * 1,
        dask="parallelized",
        output_dtypes=[np.float32],
    )
    np.testing.assert_array_equal(values(doubled), 2 * corpus.latents("max"))


# --- other processes -----------------------------------------------------------------------------


def test_lazy_objects_pickle_as_references(corpus):
    found = corpus.to_xarray()
    for name in ("max", "activations", "token_mask", "token_weight"):
        data = pickle.dumps(found[name])
        assert len(data) < 5000
        again = pickle.loads(data)
        assert again.data.name == found[name].data.name
        assert selection_of(again[1:].data).documents == range(1, 60)
        np.testing.assert_array_equal(values(again[1:]), values(found[name])[1:])
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(values(again["mean"]), corpus.latents("mean"))
    assert again["text"].values.tolist() == corpus.documents()


def test_other_processes_compute_the_same_bits(corpus):
    with blocks_of("60KiB"):
        found = corpus.to_xarray()
        lazy = [found["sum"], found["activations"].sum("token"), found["mean"][::-1, [5, 2, 5]]]
    here = dask.compute(*lazy)
    there = dask.compute(*lazy, scheduler="processes", num_workers=1)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a.data.todense(), b.data.todense())


def test_threads_compute_the_same_bits(corpus):
    with blocks_of("1B"):
        found = corpus.to_xarray()
    here = found["activations"].sum("doc").compute().data.todense()
    there = found["activations"].sum("doc").compute(scheduler="threads", num_workers=4)
    np.testing.assert_array_equal(there.data.todense(), here)


# --- dense, persistent, on disk ------------------------------------------------------------------


def test_densify_is_lazy_and_leaves_alone_what_is_dense(corpus):
    found = corpus.to_xarray()
    full = densify(found)
    assert type(full) is xr.Dataset
    assert isinstance(full["max"].data, da.Array)
    np.testing.assert_array_equal(full["max"].values, corpus.latents("max"))
    assert full["text"].variable is found["text"].variable or not full["text"].variable._in_memory
    assert full["activations"].data._meta.__class__ is np.ndarray
    np.testing.assert_array_equal(densify(found["max"].compute()).values, corpus.latents("max"))
    np.testing.assert_array_equal(densify(found["max"].data).compute(), corpus.latents("max"))
    np.testing.assert_array_equal(densify(found["max"].variable).values, corpus.latents("max"))
    assert densify(found["n_tokens"]).identical(found["n_tokens"])
    assert densify(full["max"]).identical(full["max"])
    with pytest.raises(TypeError, match="got list"):
        densify([1, 2])


def test_persist_and_load(corpus):
    found = corpus.to_xarray()
    kept = found["max"].persist()
    np.testing.assert_array_equal(values(kept), corpus.latents("max"))
    np.testing.assert_array_equal(values(kept[3:5]), corpus[3:5].latents("max"))
    loaded = found[["max", "text"]].load()
    assert isinstance(loaded["max"].data, sparse.COO)
    assert isinstance(loaded["text"].data, np.ndarray)


def test_a_selection_goes_to_zarr_and_back(corpus, tmp_path):
    with blocks_of("60KiB"):
        found = corpus.to_xarray()
    picked = found[["max", "count", "token_weight", "activations"]].isel(doc=slice(5, 40))
    picked = picked.drop_vars("feature_label")
    densify(picked).chunk(doc=16).to_zarr(tmp_path / "out.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "out.zarr", consolidated=False) as again:
        again = again.load()
    np.testing.assert_array_equal(again["max"].values, corpus[5:40].latents("max"))
    np.testing.assert_array_equal(again["count"].values, corpus[5:40].latents("count"))
    np.testing.assert_array_equal(again["activations"], values(picked["activations"]))
    assert again["doc"].values.tolist() == [*range(5, 40)]
    assert again["status"].attrs["flag_values"] == [0, 1, 2, 255]
    assert again.attrs["d_sae"] == 70


# --- the engine ----------------------------------------------------------------------------------


def assert_same(a, b):
    assert list(a.variables) == list(b.variables)
    assert a.attrs == b.attrs
    assert a.chunks == b.chunks
    xr.testing.assert_identical(densify(a.compute()), densify(b.compute()))


@pytest.mark.parametrize("chunks", [None, {}])
def test_the_engine_opens_what_to_xarray_gives(corpus, chunks):
    with blocks_of("60KiB"):
        wanted = corpus.to_xarray()
        found = xr.open_dataset(corpus.path, engine=InterpEmbedBackend, chunks=chunks)
    assert isinstance(found["max"].data, da.Array)
    assert selection_of(found["activations"].isel(feature=[1, 2]).data).features == range(1, 3)
    assert found["max"].chunks == wanted["max"].chunks
    assert_same(found, wanted)
    assert isinstance(found["max"].compute().data, sparse.COO)
    assert isinstance(found["sum"].load().data, sparse.COO)
    np.testing.assert_array_equal(
        values(found["max"].isel(doc=[3, 3])), corpus.latents("max")[[3, 3]]
    )


def test_the_engine_leaves_variables_out(corpus):
    found = xr.open_dataset(
        corpus.path, engine=InterpEmbedBackend, drop_variables=["text", "activations", "nothing"]
    )
    assert not {"text", "activations"} & set(found.variables)
    found = xr.open_dataset(corpus.path, engine=InterpEmbedBackend, drop_variables="text")
    assert "activations" in found
    assert "text" not in found


def test_the_engine_makes_other_chunks_of_the_blocks(corpus):
    with pytest.warns(UserWarning, match="separate the stored chunks"):
        found = xr.open_dataset(corpus.path, engine=InterpEmbedBackend, chunks={"doc": 25})
    assert found["max"].chunks == ((25, 25, 10), (70,))
    np.testing.assert_array_equal(values(found["max"]), corpus.latents("max"))
    assert found["text"].values.tolist() == corpus.documents()


def test_the_engine_knows_a_store_when_it_sees_one(corpus, tmp_path):
    engine = InterpEmbedBackend()
    assert engine.guess_can_open(corpus.path)
    assert engine.guess_can_open(Path(corpus.path))
    assert not engine.guess_can_open(tmp_path)
    assert not engine.guess_can_open(tmp_path / "nothing")
    assert not engine.guess_can_open("https://example.org/a.nc")
    assert not engine.guess_can_open(b"bytes")
    for content in (b"", b"[]", b"{}", b'{"attributes": 3}'):
        (tmp_path / "plan.json").write_bytes(b"{}")
        (tmp_path / "zarr.json").write_bytes(content)
        assert not engine.guess_can_open(tmp_path)
    densify(corpus.to_xarray()[["max"]]).load().to_zarr(tmp_path / "z", consolidated=False)
    assert not engine.guess_can_open(tmp_path / "z")


SCRIPT = """
import sys
import xarray as xr
assert "interp_embed" not in sys.modules
found = xr.open_dataset(sys.argv[1], engine="interp_embed")
print(type(found["max"].data).__name__, found["max"].sizes["doc"])
print(found["max"].sum("doc", skipna=True).compute().data.todense().tolist())
assert xr.open_dataset(sys.argv[1]).attrs == found.attrs  # recognised without a name
assert not {"torch", "transformers", "sae_lens"} & set(sys.modules)
"""


def test_a_process_that_imports_only_xarray_opens_a_store(corpus, tmp_path):
    paths = [PYTHON_PATH]
    if not entry_points(group="xarray.backends", name="interp_embed"):
        # Run from a checkout that is not installed: what an installation would write.
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        lines = [f"{k} = {v}" for k, v in project["entry-points"]["xarray.backends"].items()]
        metadata = tmp_path / "interp_embed-0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: interp_embed\nVersion: 0\n"
        )
        (metadata / "entry_points.txt").write_text("\n".join(["[xarray.backends]", *lines]))
        paths.insert(0, str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, corpus.path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kind, sums = done.stdout.splitlines()
    assert kind == "Array 60"
    np.testing.assert_array_equal(
        np.array(eval(sums), np.float32), values(corpus.latents("max", lazy=True).sum("doc"))
    )


def test_the_entry_point_names_the_engine():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    target = project["entry-points"]["xarray.backends"]["interp_embed"]
    assert target == f"{InterpEmbedBackend.__module__}:{InterpEmbedBackend.__name__}"


def test_importing_the_package_imports_none_of_it():
    code = (
        "import sys, interp_embed; from interp_embed import Dataset; "
        "assert not {'xarray', 'dask', 'sparse', 'numba'} & set(sys.modules), sys.modules; "
        "assert 'densify' in dir(interp_embed)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_dask_set_to_expressions_is_refused(corpus, monkeypatch):
    monkeypatch.setattr(da, "Array", object)
    with pytest.raises(NotImplementedError, match="query-planning"):
        corpus.latents("max", lazy=True)
