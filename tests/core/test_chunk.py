"""Chunks in memory: slicing, joining, rounding and what they refuse."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from interp_embed.core.chunk import Chunk, DocumentStatus, TokenTable, feature_dtype, gather_ranges
from interp_embed.testing import assert_chunks_equal, chunks, dense, random_chunk
from tests.support.hypotheses import examples


def documents(chunk):
    return [np.empty((0, chunk.d_sae)) if m is None else m for m in dense(chunk)]


def table(n):
    u32 = np.arange(n, dtype=np.uint32)
    return TokenTable(u32, u32, u32 + np.uint32(1), np.zeros(n, np.bool_))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=8))
def test_gathered_ranges_are_the_ranges_joined(pairs):
    start = np.array([a for a, _ in pairs], np.int64)
    length = np.array([n for _, n in pairs], np.int64)
    expected = [i for a, n in pairs for i in range(a, a + n)]
    assert gather_ranges(start, start + length).tolist() == expected


@pytest.mark.parametrize(("d_sae", "expected"), [(1, "u2"), (2**16, "u2"), (2**16 + 1, "u4")])
def test_feature_ids_take_the_smallest_dtype(d_sae, expected):
    assert feature_dtype(d_sae) == np.dtype(expected)


@settings(max_examples=examples(60))
@given(chunks(), st.data())
def test_taking_documents_takes_what_they_have(chunk, data):
    wanted = data.draw(st.lists(st.integers(0, chunk.n_documents - 1), max_size=6))
    part = chunk.take(wanted)
    assert part.doc_id.tolist() == wanted
    assert part.status.tolist() == chunk.status[wanted].tolist()
    whole, taken = documents(chunk), documents(part)
    for position, original in enumerate(wanted):
        np.testing.assert_array_equal(taken[position], whole[original])
        np.testing.assert_array_equal(part.csr(position).toarray(), whole[original])
        assert part.reasons.get(position) == chunk.reasons.get(original)
        for name in TokenTable.__slots__:
            np.testing.assert_array_equal(
                getattr(part.tokens, name)[part.doc_ptr[position] : part.doc_ptr[position + 1]],
                getattr(chunk.tokens, name)[chunk.doc_ptr[original] : chunk.doc_ptr[original + 1]],
            )


@pytest.mark.parametrize(
    "wanted", [[3, 1, 1, 0], [2, 3, 4], [5], [], [0, 1, 2, 3, 4, 5], [4, 5, 0]]
)
def test_long_documents_are_taken_as_short_ones_are(wanted):
    chunk = random_chunk(5, 6, mean_tokens=90, active=9, failures=False)
    assert chunk.nnz > 3 * 128 * chunk.n_documents
    part = chunk.take(wanted)
    for position, original in enumerate(wanted):
        np.testing.assert_array_equal(part.csr(position).toarray(), chunk.csr(original).toarray())
    assert_chunks_equal(part, Chunk.concatenate([chunk.take([i]) for i in [*wanted, 0]]).take(
        range(len(wanted))
    ))  # fmt: skip


@settings(max_examples=examples(60))
@given(chunks(), st.data())
def test_joining_the_parts_of_a_chunk_gives_the_chunk(chunk, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, chunk.n_documents), max_size=3)))
    bounds = [0, *cuts, chunk.n_documents]
    parts = [chunk.take(np.arange(a, b)) for a, b in itertools.pairwise(bounds)]
    assert_chunks_equal(Chunk.concatenate(parts), chunk)


def test_joining_chunks_of_two_widths_is_refused():
    with pytest.raises(ValueError, match=r"must have the same d_sae, got \[4, 5\]"):
        Chunk.concatenate([random_chunk(0, 2, d_sae=4), random_chunk(0, 2, d_sae=5)])


def test_a_chunk_in_which_nothing_was_encoded_joins_one_of_any_width():
    joined = Chunk.concatenate([Chunk.failed(0, [0], ["?"]), random_chunk(0, 2, d_sae=70_000)])
    assert joined.d_sae == 70_000
    assert joined.feature.dtype == np.uint32
    assert joined.n_documents == 3


@settings(max_examples=examples(60))
@given(chunks(failures=False), st.data())
def test_failing_documents_lose_their_tokens_and_no_others(chunk, data):
    lost = data.draw(st.sets(st.integers(0, chunk.n_documents - 1)))
    failed = chunk.with_failures(dict.fromkeys(lost, "why"))
    assert failed.doc_id.tolist() == chunk.doc_id.tolist()
    assert dict(failed.reasons) == dict.fromkeys(lost, "why")
    assert set(np.flatnonzero(failed.status == DocumentStatus.FAILED)) == lost
    kept = [i for i in range(chunk.n_documents) if i not in lost]
    assert_chunks_equal(failed.take(kept), chunk.take(kept))
    assert failed.n_tokens == sum(len(documents(chunk)[i]) for i in kept)


@settings(max_examples=examples(60))
@given(chunks(dtype="float32"))
def test_rounding_drops_what_becomes_zero_and_names_what_overflows(chunk):
    half = np.dtype(np.float16)
    with np.errstate(over="ignore", under="ignore"):
        expected = [m.astype(np.float16).astype(np.float64) for m in documents(chunk)]
    rounded = chunk.as_dtype(half)
    assert rounded.activation.dtype == half
    assert rounded.activation.all()
    assert rounded.extent == replace(rounded).extent
    for found, right in zip(documents(rounded), expected, strict=True):
        np.testing.assert_array_equal(found, right)
    beyond = {i for i, m in enumerate(expected) if not np.isfinite(m).all()}
    assert chunk.beyond_range(half).keys() == beyond
    assert chunk.beyond_range(np.dtype(np.float32)) == {}


def test_what_is_beyond_range_is_named_with_its_value():
    matrix = csr_matrix(np.array([[0, 1e5, 0], [np.nan, 0, 0]], np.float32))
    chunk = Chunk.from_documents(3, [matrix[:1], matrix[1:]], [table(1), table(1)])
    assert chunk.beyond_range(np.dtype(np.float16)) == {
        0: "feature 1 has activation 100000, beyond the range of float16; store float32",
        1: "feature 0 has activation nan, which is not finite",
    }


def test_building_a_chunk_cleans_matrices_and_leaves_them_as_they_were():
    matrix = csr_matrix(
        (np.array([1, 2, 0, 4], np.float32), np.array([2, 0, 1, 2]), [0, 4]), shape=(1, 3)
    )
    before = matrix.copy()
    chunk = Chunk.from_documents(3, [matrix], [table(1)])
    assert chunk.feature.tolist() == [0, 2]
    assert chunk.activation.tolist() == [2, 5]
    np.testing.assert_array_equal(matrix.indices, before.indices)
    np.testing.assert_array_equal(matrix.data, before.data)


def test_matrices_that_do_not_fit_the_tokens_or_the_sae_are_refused():
    matrix = csr_matrix((2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="document 0 has 1 tokens but 2 rows"):
        Chunk.from_documents(3, [matrix], [table(1)])
    with pytest.raises(ValueError, match="got 3 columns for 4 features"):
        Chunk.from_documents(4, [matrix], [table(2)])


def test_a_chunk_of_no_documents_is_a_chunk():
    empty = Chunk.from_documents(3, [], [])
    assert (empty.n_documents, empty.n_tokens, empty.nnz) == (0, 0, 0)
    assert len(TokenTable.concatenate([])) == 0
    assert empty.take([]).n_documents == 0
    assert empty.with_failures({}) is empty
