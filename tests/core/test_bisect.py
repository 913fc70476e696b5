"""Halving: how often work is done until the guilty item is alone, wherever that is needed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from interp_embed.core.bisect import Worklist, halves
from interp_embed.core.chunk import Chunk, DocumentStatus
from interp_embed.encode.isolate import encode_isolated, prepare_isolated
from interp_embed.sae import BaseSAE
from interp_embed.sae.batch_budget import Budget

TEXTS = [f"{i:03d}" for i in range(64)]
GUILTY = 37
CALLS = 1 + 2 * 6
"""The whole, and both halves of 64, 32, 16, 8, 4 and 2."""


@given(st.integers(1, 200), st.sets(st.integers(0, 199)), st.integers(1, 300))
def test_the_guilty_are_found_and_the_others_are_done_once_in_order(n, guilty, most):
    done, blamed, calls = [], [], 0
    todo = Worklist(range(n))
    while todo:
        batch = todo.take(most)
        calls += 1
        if not guilty.intersection(batch):
            done += batch
        elif not todo.split(batch):
            blamed += batch
    assert done == [i for i in range(n) if i not in guilty]
    assert blamed == sorted(i for i in guilty if i < n)
    assert calls <= math.ceil(n / most) + len(blamed) * 2 * math.ceil(math.log2(max(2, n)))


def test_what_is_put_back_comes_next_and_nothing_is_no_work():
    todo = Worklist([1, 2, 3, 4])
    batch = todo.take(3)
    todo.put_back(batch)
    assert [*todo.front] == [1, 2, 3]
    assert [*todo.take(2), *todo.take(2), *todo.take(2)] == [1, 2, 3, 4]
    assert not todo
    assert not Worklist([])
    assert halves([1, 2, 3]) == ([1], [2, 3])
    assert [*Worklist([5, 6]).take(0)] == [5]  # it always goes on


class Counting(BaseSAE):
    """An SAE of two methods that fails on one text."""

    def __init__(self):
        super().__init__()
        self.encoded, self.tokenized = [], []

    def load_models(self):
        return

    def destroy_models(self):
        return

    def _refuse(self, texts):
        if TEXTS[GUILTY] in texts:
            raise ValueError("not this one")

    def encode(self, texts):
        self.encoded.append(len(texts))
        self._refuse(texts)
        return [csr_matrix(np.ones((1, 2), np.float32)) for _ in texts]

    def tokenize(self, documents, as_tokens=True, padding=False):
        self.tokenized.append(len(documents))
        return [[text] for text in documents]

    def encode_chat(self, conversations):
        raise NotImplementedError


def assert_one_failed(chunk):
    assert np.flatnonzero(chunk.status == DocumentStatus.FAILED).tolist() == [GUILTY]
    assert chunk.reasons == {GUILTY: "ValueError: not this one"}


def test_an_sae_of_two_methods_is_called_as_often_as_halving_takes():
    sae = Counting()
    sae.load()
    assert_one_failed(sae.encode_chunk(TEXTS))
    assert len(sae.encoded) == CALLS
    assert sorted(sae.encoded, reverse=True)[:3] == [64, 32, 32]


def test_a_run_calls_as_often_as_halving_takes():
    calls = []

    class Refusing(Counting):
        def encode_chunk(self, texts):
            calls.append(len(texts))
            self._refuse(texts)
            return super().encode_chunk(texts)

    sae = Refusing()
    sae.load()
    encoded = encode_isolated(sae, prepare_isolated(sae, TEXTS), Budget(64))
    assert_one_failed(encoded.chunk(0, 2))
    assert len(calls) == CALLS


@pytest.mark.parametrize("sizes", [[64], [16] * 4])
def test_a_service_is_asked_as_often_as_halving_takes(sizes):
    from interp_embed.sae.remote.base import RemoteSAE
    from interp_embed.sae.remote.call import Call

    asked = []

    class Service(RemoteSAE):
        async def encode_batch(self, texts):
            asked.append(len(texts))
            if TEXTS[GUILTY] in texts:
                raise ValueError("not this one")
            whole = Counting()
            whole.load()
            return whole.encode_chunk(texts)

        def batches(self, texts):
            ends = np.cumsum(sizes)
            return [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]

    sae = Service(max_retries=0)
    sae.load()
    try:
        call = Call(sae, TEXTS)
        sae.wait_for(call.run())
        assert_one_failed(call.chunk())
    finally:
        sae.destroy()
    assert len(asked) == len(sizes) + 2 * int(math.log2(sizes[0]))


def test_the_model_is_run_as_often_as_halving_takes():
    pytest.importorskip("torch")
    from interp_embed.core.chunk import TokenTable
    from interp_embed.sae.model.encoding import ChunkEncoder
    from interp_embed.sae.model.sparsify import SparseTokens
    from interp_embed.sae.model.tokenizing import TokenizedDocument

    runs = []

    def run(documents):
        runs.append(len(documents))
        if any(int(ids[0]) == GUILTY for ids in documents):
            raise ValueError("not this one")
        return documents

    class Sparse:
        d_sae = 2

        def __call__(self, hidden, lengths):
            n = sum(lengths)
            found = SparseTokens(
                np.zeros(n, np.int64),
                np.empty(0, np.int32),
                np.empty(0, np.float32),
                np.ones(n, bool),
            )
            return type("Done", (), {"result": lambda self: found})()

    def document(number):
        at = np.zeros(1, np.uint32)
        ids = np.array([number], np.uint32)
        return TokenizedDocument(TokenTable(ids, at, at, np.zeros(1, bool)))

    encoder = ChunkEncoder(run, Sparse(), silent_token=None, on_cpu=True)
    chunk = encoder([document(i) for i in range(64)], {})
    assert isinstance(chunk, Chunk)
    assert_one_failed(chunk)
    assert len(runs) == CALLS
