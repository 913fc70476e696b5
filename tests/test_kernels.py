"""The kernels agree with dense float64 numpy on every input."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_embed.kernels import pooling
from interp_embed.kernels.pooling import count_above, has_own_sum, pool
from interp_embed.testing import chunks, dense, oracle, random_chunk


def arrays(chunk):
    return chunk.feature, chunk.activation, chunk.token_ptr, chunk.doc_ptr, chunk.d_sae


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


@settings(deadline=None)
@given(chunks())
def test_pooling_equals_the_oracle(chunk):
    assert_pooled_right(chunk)


@settings(deadline=None, max_examples=50)
@given(chunks(), st.sampled_from([0.0, 0.5, 1.0, 1.7, 1e9]))
def test_counting_above_a_threshold_equals_the_oracle(chunk, threshold):
    documents = [m if m is not None else np.zeros((0, chunk.d_sae)) for m in dense(chunk)]
    found = count_above(*arrays(chunk), threshold)
    assert (found.data > 0).all()
    assert found.data.dtype == np.float32
    level = to_dense(found.indptr, found.indices, found.data, chunk.d_sae)
    np.testing.assert_array_equal(level, oracle(documents, "count", threshold))


@pytest.mark.parametrize("block", [1, 7, 100])
def test_cutting_documents_into_blocks_changes_nothing(monkeypatch, block):
    monkeypatch.setattr(pooling, "_BLOCK_NNZ", block)
    chunk = random_chunk(0, 20, d_sae=300)
    assert_pooled_right(chunk)
    with ThreadPoolExecutor(3) as executor:
        assert_pooled_right(chunk, executor)
    documents = [m if m is not None else np.zeros((0, 300)) for m in dense(chunk)]
    found = count_above(*arrays(chunk), 1.0)
    level = to_dense(found.indptr, found.indices, found.data, 300)
    np.testing.assert_array_equal(level, oracle(documents, "count", 1.0))


def test_a_chunk_without_documents_pools_to_nothing():
    chunk = random_chunk(0, 5).take([])
    found = pool(*arrays(chunk))
    assert found.doc_ptr.tolist() == [0]
    assert len(found.feature) == len(found.max) == 0
    assert count_above(*arrays(chunk), 0.0).indptr.tolist() == [0]
