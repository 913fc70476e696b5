"""Every aggregate of random ragged data, through a real store, against dense float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp_embed import Dataset
from interp_embed.selection.by_feature import feature_values
from interp_embed.testing import chunks, dense, oracle, random_chunk, store_from_chunk
from tests.support.hypotheses import examples

METHODS = ("max", "mean", "sum", "binarize", "count")
EXACT = ("max", "binarize", "count")
_numbers = iter(range(10**9))


def dataset_of(chunk, *, finished=True, dtype=None, per_chunk=2):
    url = f"memory://oracle/{next(_numbers)}"
    store_from_chunk(url, chunk, documents_per_chunk=per_chunk, finished=finished, dtype=dtype)
    return Dataset.load_from_file(url)


def selections(n):
    """Slices, masks, permutations and repeats of ``n`` documents."""
    return st.one_of(
        st.just(slice(None)),
        st.slices(n),
        st.lists(st.booleans(), min_size=n, max_size=n).map(np.array),
        st.permutations(range(n)).map(lambda v: np.array(v, np.int64)),
        st.lists(st.integers(-n, n - 1), max_size=8).map(lambda v: np.array(v, np.int64)),
    )


def assert_aggregate(found, documents, method, threshold, d_sae):
    want = oracle(documents, method, threshold, d_sae=d_sae)
    assert found.shape == want.shape
    if method in EXACT:
        np.testing.assert_array_equal(found, want)
        return
    # What cancels is uncertain by the rounding of its largest part.
    parts = [m if m is None else np.abs(m) for m in documents]
    magnitude = np.nan_to_num(oracle(parts, method, d_sae=d_sae))
    error = np.abs(found - want)
    assert (np.isnan(found) == np.isnan(want)).all()
    assert (np.nan_to_num(error) <= 1e-6 * np.abs(np.nan_to_num(want)) + 1e-13 * magnitude).all()


@settings(max_examples=examples(250), suppress_health_check=list(HealthCheck))
@given(data=st.data(), chunk=chunks(max_documents=7), finished=st.booleans())
def test_all_aggregates_of_random_documents_equal_the_oracle(data, chunk, finished):
    dataset = dataset_of(chunk, finished=finished)
    selection = data.draw(selections(chunk.n_documents), "selection")
    present = sorted({abs(float(v)) for v in chunk.activation})
    threshold = data.draw(
        st.just(0.0) | st.floats(0, 3) | (st.sampled_from(present) if present else st.just(1.0)),
        "threshold",
    )
    every = dense(chunk)
    documents = [every[i] for i in np.arange(chunk.n_documents)[selection]]
    view = dataset[selection]
    for method in METHODS:
        found = view.latents(method, activated_threshold=threshold)
        assert_aggregate(found, documents, method, threshold, chunk.d_sae)
        sparse = view.latents(method, compress=True, activated_threshold=threshold)
        np.testing.assert_array_equal(sparse.toarray(), found)
        assert (sparse.data != 0).all()
        if method in ("binarize", "count", "max"):
            for row, values in zip(view, found, strict=True):
                if row is not None:
                    by_row = row.latents(method, activated_threshold=threshold)[0]
                    np.testing.assert_array_equal(by_row, values)
    for matrix, want in zip(view.latents("all", compress=True), documents, strict=True):
        if want is None:
            assert np.isnan(matrix.toarray()).all()
        else:
            np.testing.assert_array_equal(matrix.toarray(), want)


@settings(max_examples=examples(40), suppress_health_check=list(HealthCheck))
@given(chunk=chunks(max_documents=5, dtype="float32"))
def test_float16_stores_equal_the_oracle_of_rounded_activations(chunk):
    half = np.dtype(np.float16)
    fits = chunk.with_failures(chunk.beyond_range(half))
    dataset = dataset_of(fits, dtype=half)
    rounded = fits.as_dtype(half)
    for method in METHODS:
        found = dataset.latents(method, activated_threshold=0.75)
        assert found.dtype == np.float32
        assert_aggregate(found, dense(rounded), method, 0.75, chunk.d_sae)


@settings(max_examples=examples(40), suppress_health_check=list(HealthCheck))
@given(data=st.data(), chunk=chunks(max_documents=6, d_sae=70))
def test_some_features_are_the_columns_of_all_of_them(data, chunk):
    dataset = dataset_of(chunk)
    features = data.draw(st.lists(st.integers(0, 69), min_size=1, max_size=5))
    for method in METHODS:
        found = feature_values(dataset.selection, features, method, 70)
        np.testing.assert_array_equal(found, dataset.latents(method)[:, features])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("d_sae", [1, 64, 65_536, 65_537, 100_000])
@pytest.mark.parametrize("finished", [True, False])
def test_larger_corpora_equal_the_oracle(d_sae, dtype, finished):
    chunk = random_chunk(d_sae, 40, d_sae=d_sae, mean_tokens=12, dtype=dtype)
    dataset = dataset_of(chunk, finished=finished, per_chunk=7)
    order = np.random.default_rng(5).integers(-40, 40, 30)
    every = dense(chunk)
    documents = [every[i] for i in order]
    for method in METHODS:
        for threshold in (0.0, 0.7) if method in ("binarize", "count") else (0.0,):
            found = dataset[order].latents(method, activated_threshold=threshold)
            assert_aggregate(found, documents, method, threshold, d_sae)
            sparse = dataset[order].latents(method, True, threshold)
            np.testing.assert_array_equal(sparse.toarray(), found)


def test_sums_of_rows_agree_with_sums_of_the_store():
    chunk = random_chunk(3, 60, d_sae=200)
    dataset = dataset_of(chunk)
    for method in ("sum", "mean"):
        found = dataset.latents(method)
        for row, values in zip(dataset, found, strict=True):
            if row is not None:
                np.testing.assert_allclose(row.latents(method)[0], values, rtol=1e-6, atol=1e-12)


def test_the_oracle_itself_is_right_on_a_document_done_by_hand():
    matrix = np.array([[1.0, -2.0, 0.0], [0.5, -1.0, 0.0]])
    documents = [matrix, None, np.zeros((0, 3))]
    for method, row in [
        ("max", [1, -1, 0]),
        ("mean", [0.75, -1.5, 0]),
        ("sum", [1.5, -3, 0]),
        ("binarize", [1, 0, 0]),
        ("count", [1, 0, 0]),
    ]:
        found = oracle(documents, method, 0.5)
        assert found[0].tolist() == row
        assert np.isnan(found[1]).all()
        assert found[2].tolist() == [0, 0, 0]
