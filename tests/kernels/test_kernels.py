"""The kernels agree with dense float64 numpy on every input."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_embed.kernels import document_level as pooling
from interp_embed.kernels.document_level import has_own_sum, pool
from interp_embed.kernels.token_reductions import CountAbove, Variance
from interp_embed.testing import chunks, dense, oracle, random_chunk
from tests.support.hypotheses import examples


def arrays(chunk):
    return chunk.feature, chunk.activation, chunk.token_ptr, chunk.doc_ptr, chunk.d_sae


def reduce_tokens(reducer, chunk, threshold=0.0, dtype=np.float32):
    bounds = chunk.token_ptr[chunk.doc_ptr]
    n_tokens = np.diff(chunk.doc_ptr)
    lengths = np.zeros(chunk.n_documents, np.int64)
    columns, values = np.empty(chunk.nnz, chunk.feature.dtype), np.empty(chunk.nnz, np.float32)
    n = reducer(
        chunk.feature, chunk.activation.astype(dtype), bounds[:-1], bounds[1:], n_tokens, threshold,
        lengths, columns, values,
    )  # fmt: skip
    columns, values = columns[:n], values[:n]
    assert (values != 0).all()
    return to_dense(np.concatenate([[0], np.cumsum(lengths)]), columns, values, chunk.d_sae)


def to_dense(pointer, feature, values, d_sae):
    out = np.zeros((len(pointer) - 1, d_sae))
    for row in range(len(out)):
        where = slice(pointer[row], pointer[row + 1])
        assert (np.diff(feature[where].astype(np.int64)) > 0).all(), "features must ascend"
        out[row, feature[where]] = values[where]
    return out


def assert_pooled_right(chunk, executor=None):
    documents = [m if m is not None else np.zeros((0, chunk.d_sae)) for m in dense(chunk)]
    found = pool(*arrays(chunk), executor=executor)
    assert found.feature.dtype == chunk.feature.dtype

    def level(values):
        return to_dense(found.doc_ptr, found.feature, values, chunk.d_sae)

    np.testing.assert_array_equal(level(found.max), oracle(documents, "max"))
    np.testing.assert_array_equal(
        level(found.count), np.stack([(m != 0).sum(axis=0) for m in documents])
    )
    np.testing.assert_array_equal(level(found.positive), oracle(documents, "count"))
    size = oracle([np.abs(m) for m in documents], "sum")
    own = has_own_sum(found.count, found.max)
    np.testing.assert_array_equal(
        np.concatenate([[0], np.cumsum(own)])[found.doc_ptr], found.sum_ptr
    )
    total = found.max.copy()
    total[own] = found.sum
    error = np.abs(level(total) - oracle(documents, "sum"))
    half_a_place = 2.0**-24  # of float32; the sum itself is float64
    assert (error <= half_a_place * np.abs(oracle(documents, "sum")) + 1e-14 * size).all()


@given(chunks())
def test_pooling_equals_the_oracle(chunk):
    assert_pooled_right(chunk)


@settings(max_examples=examples(50))
@given(chunks(), st.sampled_from([0.0, 0.5, 1.0, 1.7, 1e9]))
def test_counting_above_a_threshold_equals_the_oracle(chunk, threshold):
    documents = [m if m is not None else np.zeros((0, chunk.d_sae)) for m in dense(chunk)]
    reducer = CountAbove(chunk.d_sae)
    for _ in range(2):  # what one call leaves behind must not show in the next
        level = reduce_tokens(reducer, chunk, threshold)
        np.testing.assert_array_equal(level, oracle(documents, "count", threshold))


@settings(max_examples=examples(50))
@given(chunks(), st.floats(0, 1e5) | st.sampled_from([0.5, 65504.0, 65519.0, 1e-8, 1 + 2**-12]))
def test_half_floats_are_counted_as_the_numbers_they_are(chunk, threshold):
    with np.errstate(over="ignore"):
        half = replace(chunk, activation=chunk.activation.astype(np.float16).astype(np.float32))
    documents = [m if m is not None else np.zeros((0, chunk.d_sae)) for m in dense(half)]
    level = reduce_tokens(CountAbove(chunk.d_sae), half, threshold, np.float16)
    np.testing.assert_array_equal(level, oracle(documents, "count", threshold))


@settings(max_examples=examples(50))
@given(chunks())
def test_the_variance_equals_the_oracle(chunk):
    reducer = Variance(chunk.d_sae)
    documents = [m if m is not None else np.zeros((0, chunk.d_sae)) for m in dense(chunk)]
    expected = oracle(documents, "var")
    square = oracle([m**2 for m in documents], "mean")
    room = expected < 1e38  # a square may be beyond float32: infinite, as in numpy
    for _ in range(2):
        level = reduce_tokens(reducer, chunk)
        error = np.abs(level - expected, where=room, out=np.zeros_like(expected))
        assert (error <= 2.0**-24 * expected + 1e-14 * square + 1e-45).all()
        assert (level[~room] > 9e37).all()


@pytest.mark.parametrize("block", [1, 7, 100])
def test_cutting_documents_into_blocks_changes_nothing(monkeypatch, block):
    monkeypatch.setattr(pooling, "_BLOCK_NNZ", block)
    chunk = random_chunk(0, 20, d_sae=300)
    assert_pooled_right(chunk)
    with ThreadPoolExecutor(3) as executor:
        assert_pooled_right(chunk, executor)


def test_a_chunk_without_documents_pools_to_nothing():
    chunk = random_chunk(0, 5).take([])
    found = pool(*arrays(chunk))
    assert found.doc_ptr.tolist() == [0]
    assert len(found.feature) == len(found.max) == 0
    assert reduce_tokens(CountAbove(chunk.d_sae), chunk).shape == (0, chunk.d_sae)
