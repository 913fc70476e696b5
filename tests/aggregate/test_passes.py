"""What a pass over a store leaves behind, and what it may meet there."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_embed import Dataset
from interp_embed.aggregate import blocks
from interp_embed.store import Store, StoreWriter, create_store
from interp_embed.store import chunks as stored_chunks
from interp_embed.store.format.layout import chunk_arrays
from interp_embed.store.verify.verifier import verify
from interp_embed.store.write.compaction import finish
from interp_embed.testing import dense, oracle, random_chunk, store_from_chunk, texts_of
from tests.support.hypotheses import examples

D_SAE = 300


@pytest.fixture(scope="module")
def cut_small():
    """Many small blocks, as a corpus has that is larger than one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_LEAST", 1)
        patch.setattr(blocks, "_MOST", 400)
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("passes") / "a.zarr"
    store_from_chunk(path, random_chunk(1, 90, d_sae=D_SAE), documents_per_chunk=20, finished=False)
    return path


@pytest.mark.parametrize(
    ("method", "threshold"), [("max", 0), ("mean", 0), ("count", 0.5), ("var", 0)]
)
def test_a_pass_leaves_a_few_bytes_a_document_in_the_cache(path, cut_small, method, threshold):
    dataset = Dataset.load_from_file(path)
    passed = sum(1 for _ in dataset.iter_latents(method, activated_threshold=threshold))
    assert passed > 5
    dataset.feature_statistics(("document_frequency", "mean"), activated_threshold=threshold)
    # Their status, and where their tokens and their sums begin; nothing of what they hold.
    assert dataset.selection.store.cache.held <= 90 * (1 + 4 + 4) + 5 * (4 + 4)


def test_what_few_documents_need_is_cached(path):
    dataset = Dataset.load_from_file(path)
    dataset[3:5].latents("max")
    assert dataset.selection.store.cache.held > 0


def test_a_store_is_let_go_of_with_its_last_reference(path):
    gc.collect()
    gc.disable()
    try:
        store = Store(path)
        for chunk, _, _ in store.parts(np.arange(90)):
            chunk.read()
        cache = weakref.ref(store.cache)
        del store, chunk
        assert cache() is None
    finally:
        gc.enable()


@settings(max_examples=examples(60))
@given(
    documents=st.lists(st.integers(0, 89), min_size=1, unique=True).map(sorted),
    at_once=st.integers(1, 40),
    limit=st.integers(2, 3000),
    tokens=st.booleans(),
)
def test_cuts_do_not_depend_on_how_many_documents_are_looked_at(
    path, documents, at_once, limit, tokens
):
    store = Store(path)
    every = np.array(documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_LEAST", 1)
        patch.setattr(blocks, "_MOST", limit)
        whole = blocks.cut_documents(store, every, tokens=tokens)
        patch.setattr(blocks, "_CUT_AT_ONCE", at_once)
        parts = blocks.cut_documents(store, every, tokens=tokens)
    np.testing.assert_array_equal(np.concatenate([np.asarray(run) for run in parts]), every)
    assert [list(run) for run in parts] == [list(run) for run in whole]


@settings(max_examples=examples(60))
@given(st.lists(st.integers(0, 89), max_size=40))
def test_documents_are_found_in_their_chunks_in_any_order(path, documents):
    store = Store(path)
    for order in (documents, sorted(documents)):
        asked = np.array(order, np.int64)
        found = np.full(len(asked), -1)
        for chunk, positions, where in store.parts(asked):
            assert (np.diff(where) > 0).all()
            found[where] = chunk.commit.start + positions
        np.testing.assert_array_equal(found, asked)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_chunks_in_the_encodings_of_earlier_stores_are_read_and_merged(
    tmp_path, monkeypatch, dtype
):
    """Features and activations were zstd once; the commit says of each array what it is."""
    chunk = random_chunk(2, 40, d_sae=D_SAE).as_dtype(np.dtype(dtype))
    earlier = {"delta-lz4": "delta", "lz4": "zstd"}

    def as_before(*arguments):
        specs = chunk_arrays(*arguments)
        return {
            name: replace(spec, encoding=earlier.get(spec.encoding, spec.encoding))
            for name, spec in specs.items()
        }

    store = create_store(
        tmp_path / "a.zarr",
        pd.DataFrame({"text": texts_of(chunk)}),
        field="text",
        identifier="earlier",
        documents_per_chunk=10,
        dtype=np.dtype(dtype),
        d_sae=D_SAE,
    )
    with StoreWriter(store) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(stored_chunks, "chunk_arrays", as_before)
            writer.write(chunk.take(range(10)))
            writer.write(chunk.take(range(10, 20)))
        live = Store(tmp_path / "a.zarr").ledger.live
        assert {c.folder.arrays["feature"].encoding for c in live} == {"delta"}
        writer.write(chunk.take(range(20, 30)))
        writer.write(chunk.take(range(30, 40)))
        expected = oracle(dense(chunk), "max")
        before = Dataset.load_from_file(tmp_path / "a.zarr").latents("max")
        np.testing.assert_array_equal(before, expected)
        assert finish(writer)
    after = Dataset.load_from_file(tmp_path / "a.zarr")
    np.testing.assert_array_equal(after.latents("max"), expected)
    assert [p for p in verify(tmp_path / "a.zarr") if p.severity == "error"] == []
