"""Per-feature statistics of any documents equal dense float64 numpy."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_embed import Dataset
from interp_embed.aggregate import blocks, stream
from interp_embed.aggregate.summary import feature_statistics
from interp_embed.errors import ResultTooLargeError
from interp_embed.kernels.statistics import bin_edges, count_bins, quantiles
from interp_embed.store.storage import open_storage
from interp_embed.testing import chunks, dense, oracle, random_chunk, store_from_chunk
from tests.support.hypotheses import examples

NAMES = ("document_frequency", "token_frequency", "mean", "max", "histogram")


def expected_statistics(documents, d_sae, threshold):
    present = [m for m in documents if m is not None]
    tokens = np.concatenate([np.zeros((0, d_sae)), *present])
    highest = [m.max(axis=0) if len(m) else np.zeros(d_sae) for m in present]
    edges = np.concatenate([[0], bin_edges()[1:-1], [np.inf]])
    histogram = np.stack([np.histogram(t[t > 0], edges)[0] for t in tokens.T])
    return {
        "document_frequency": sum(((m > threshold).any(axis=0) for m in present), np.zeros(d_sae)),
        "token_frequency": (tokens > threshold).sum(axis=0),
        "mean": tokens.mean(axis=0) if len(tokens) else np.full(d_sae, np.nan),
        "max": np.max(highest, axis=0) if highest else np.full(d_sae, np.nan),
        "histogram": histogram,
        "n_documents": len(present),
        "n_tokens": len(tokens),
    }


def assert_statistics(found, documents, d_sae, threshold):
    expected = expected_statistics(documents, d_sae, threshold)
    for name in ("document_frequency", "token_frequency", "max", "histogram"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    size = np.abs(np.concatenate([np.zeros((1, d_sae)), *(m for m in documents if m is not None)]))
    error = np.abs(found["mean"] - expected["mean"]) * max(1, expected["n_tokens"])
    # Sums of documents are stored as float32.
    assert (error[~np.isnan(expected["mean"])] <= 2.0**-23 * size.sum(axis=0).max() + 1e-30).all()
    assert np.isnan(found["mean"]).all() == np.isnan(expected["mean"]).all()
    assert found.attrs == {k: expected[k] for k in ("n_documents", "n_tokens")}


def statistics_of(store, selection, threshold=0.0, names=NAMES, quantiles=()):
    return feature_statistics(
        store, np.asarray(selection, np.int64), names, quantiles, threshold, {}
    )


@settings(max_examples=examples(80))
@given(
    st.sampled_from([1, 2, 65, 300]).flatmap(lambda d: chunks(d_sae=d)),
    st.sampled_from([0.0, 0.5, 1.0, 1e9]),
    st.data(),
)
def test_statistics_of_any_documents_equal_the_oracle(chunk, threshold, data):
    store = store_from_chunk(open_storage(f"memory://{uuid.uuid4().hex}"), chunk)
    n = chunk.n_documents
    some = st.lists(st.integers(0, n - 1), max_size=12) if n else st.just([])
    selection = data.draw(st.just(list(range(n))) | some)
    every = dense(chunk)
    found = statistics_of(store, selection, threshold)
    assert_statistics(found, [every[i] for i in selection], chunk.d_sae, threshold)


def test_statistics_do_not_depend_on_how_documents_are_cut(tmp_path, monkeypatch):
    chunk = random_chunk(3, 60, d_sae=200)
    store = store_from_chunk(tmp_path / "a.zarr", chunk)
    every = np.arange(60)
    whole = statistics_of(store, every, quantiles=(0.1, 0.5))
    monkeypatch.setattr(blocks, "_LEAST", 1)
    monkeypatch.setattr(blocks, "_MOST", 50)
    monkeypatch.setattr(stream, "_PIECE_NNZ", 7)
    cut = statistics_of(store, every, quantiles=(0.1, 0.5))
    assert len(blocks.cut_documents(store, every, tokens=True)) > 10
    xr.testing.assert_allclose(cut, whole, rtol=1e-12)
    assert_statistics(cut, dense(chunk), 200, 0.0)


def test_quantiles_are_within_a_sixteenth_of_the_true_ones():
    chunk = random_chunk(5, 200, d_sae=20)
    store = store_from_chunk(open_storage(f"memory://{uuid.uuid4().hex}"), chunk)
    q = (0.0, 0.25, 0.5, 0.9, 1.0)
    found = statistics_of(store, np.arange(200), names=("max",), quantiles=q)
    tokens = np.concatenate([m for m in dense(chunk) if m is not None])
    for feature in range(20):
        values = tokens[:, feature]
        values = values[values > 0]
        true = np.quantile(values, q, method="inverted_cdf")
        assert (np.abs(found["quantiles"][:, feature] - true) <= true / 16).all()
        assert (found["quantiles"][:, feature] <= found["max"][feature]).all()
    assert "histogram" not in found


def test_what_a_histogram_cannot_place_is_in_its_outer_bins():
    edges = bin_edges()
    assert (edges[0], edges[-1], len(edges)) == (2.0**-16, 2.0**16, 257)
    counted = np.zeros((1, 256), np.int64)
    values = np.array([1e-30, 2.0**-16, 1.0, 2.0**16, 1e30], np.float32)
    pieces = np.zeros(5, np.uint16), values.view(np.int32), np.array([0]), np.array([5])
    count_bins(*pieces, counted)
    assert counted[0, [0, 128, 255]].tolist() == [2, 1, 2]
    assert np.isnan(quantiles(np.zeros((2, 256), np.int64), np.array([0.5]))).all()


def test_a_dataset_gives_statistics_of_its_documents(tmp_path):
    chunk = random_chunk(1, 30, d_sae=50)
    store_from_chunk(tmp_path / "a.zarr", chunk)
    dataset = Dataset.load_from_file(tmp_path / "a.zarr")
    found = dataset[3:20].feature_statistics()
    assert set(found) == {"document_frequency", "token_frequency", "mean", "max"}
    expected = np.nanmax(oracle(dense(chunk)[3:20], "max"), axis=0)
    np.testing.assert_array_equal(found["max"], expected)
    only = dataset.feature_statistics("document_frequency", activated_threshold=1.0)
    assert list(only) == ["document_frequency"]
    for wrong in ({"statistics": "median"}, {"quantiles": [2]}, {"activated_threshold": -1}):
        with pytest.raises(ValueError, match=r"median|2\.0|-1"):
            dataset.feature_statistics(**wrong)
    for wrong in (
        *({"quantiles": 0.5}, {"quantiles": "0.5"}, {"statistics": None}),
        *({"activated_threshold": "3"}, {"activated_threshold": True}),
    ):
        (name,) = wrong
        with pytest.raises(TypeError, match=name):
            dataset.feature_statistics(**wrong)
    with pytest.raises(ResultTooLargeError, match="histogram"):
        dataset.feature_statistics("histogram", memory="10K")


def test_what_iterating_gives_can_be_changed(tmp_path):
    chunk = random_chunk(2, 40, d_sae=30, negative=False, failures=False)
    store_from_chunk(tmp_path / "a.zarr", chunk)
    dataset = Dataset.load_from_file(tmp_path / "a.zarr")
    before = dataset.latents("max")
    for method in ("max", "mean", "count"):
        for _, matrix in dataset.iter_latents(method):
            matrix.data[:] = -1
            matrix.indices[:] = 0
    np.testing.assert_array_equal(dataset.latents("max"), before)


def test_iterating_gives_every_document_once_with_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "_LEAST", 1)
    monkeypatch.setattr(blocks, "_MOST", 50)
    chunk = random_chunk(2, 40, d_sae=30)
    store_from_chunk(tmp_path / "a.zarr", chunk)
    dataset = Dataset.load_from_file(tmp_path / "a.zarr")
    for selection in (slice(None), slice(None, None, -1), [3, 3, 39, 0, 3], []):
        view = dataset[selection]
        for method, threshold in (("max", 0), ("count", 0.5), ("var", 0), ("nnz", 0)):
            expected = oracle(
                [dense(chunk)[i] for i in np.arange(40)[selection]], method, threshold, d_sae=30
            )
            out = np.full(expected.shape, -1.0)
            pieces = list(view.iter_latents(method, threshold))
            for positions, matrix in pieces:
                out[positions] = matrix.toarray()
            np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-12)
            assert sum(len(p) for p, _ in pieces) == len(view)
            eager = view.latents(method, compress=True, activated_threshold=threshold).toarray()
            np.testing.assert_array_equal(out, eager)
    assert len(list(dataset.iter_latents("count", 0.5))) > 10
    with pytest.raises(ValueError, match="all"):
        dataset.iter_latents("all")
