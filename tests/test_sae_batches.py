"""Batches of a local SAE: what is in flight, what happens when memory runs out, and the SAE for tests."""

from __future__ import annotations

import numpy as np
import pytest
from sae_helpers import TEXTS, assert_close, dense, random_sae, tiny_model, tiny_tokenizer

from interp_embed import Dataset
from interp_embed.core.chunk import Chunk, TokenTable
from interp_embed.sae import LocalSAE
from interp_embed.sae.batch_budget import Budget, is_out_of_memory
from interp_embed.sae.model.encoding import ChunkEncoder
from interp_embed.sae.model.sparsify import SparseTokens
from interp_embed.sae.model.tokenizing import TokenizedDocument
from interp_embed.store.verify.verifier import verify
from interp_embed.testing import ReplaySAE, random_chunk

torch = pytest.importorskip("torch")


def document(length, first=1):
    ids = np.arange(first, first + length, dtype=np.uint32)
    zero = np.zeros(length, np.uint32)
    return TokenizedDocument(TokenTable(ids, zero, zero, np.zeros(length, bool)))


class Later:
    """Activations that are waited for: one a token, its id; notes when that was."""

    def __init__(self, log, ids):
        self.log, self.ids = log, ids
        self.error = None

    def result(self):
        self.log.append(("landed", len(self.ids)))
        if self.error is not None:
            raise self.error
        n = len(self.ids)
        return SparseTokens(
            np.ones(n, np.int64),
            np.zeros(n, np.int32),
            self.ids.astype(np.float32),
            np.ones(n, bool),
        )


class Device:
    """A model and an SAE in one: gives `Later` results, and has room for so many tokens."""

    d_sae = 4

    def __init__(self, room=10**9):
        self.room = room
        self.log = []
        self.sizes = []

    def run(self, documents):
        size = len(documents) * max(map(len, documents))
        self.sizes.append(size)
        if size > self.room:
            self.log.append(("full", size))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return np.concatenate(documents)

    def __call__(self, hidden, lengths):
        self.log.append(("launched", len(hidden)))
        return Later(self.log, hidden)

    def encoder(self, **settings):
        return ChunkEncoder(self.run, self, silent_token=None, on_cpu=False, **settings)


def check(chunk, documents):
    for number, wanted in enumerate(documents):
        np.testing.assert_array_equal(
            chunk.csr(number).toarray()[:, 0], wanted.tokens.id.astype(np.float32)
        )


def test_one_batch_is_in_flight_when_the_one_before_is_waited_for():
    device = Device()
    documents = [document(n, 1 + 10 * n) for n in (5, 4, 3, 2)]
    check(device.encoder(batch_tokens=5)(documents, {}), documents)
    assert device.log == [
        ("launched", 5), ("launched", 4), ("landed", 5), ("launched", 3), ("landed", 4),
        ("launched", 2), ("landed", 3), ("landed", 2),
    ]  # fmt: skip


def test_the_budget_halves_when_memory_runs_out_and_recovers_step_by_step():
    device = Device(room=100)
    encoder = device.encoder(batch_tokens=400)
    documents = [document(10, 1 + n) for n in range(200)]
    check(encoder(documents, {}), documents)
    assert device.sizes[:3] == [400, 200, 100]
    assert encoder.budget.most == 400
    assert sum(size > 100 for size in device.sizes) < 8, "the same mistake again and again"
    device.room = 10**9
    device.sizes.clear()
    for _ in range(12):
        encoder(documents, {})
    assert max(device.sizes) == 400
    steps = list(dict.fromkeys(s for s in device.sizes if s >= 100))
    assert len(steps) > 3, "it recovers step by step"


def test_a_document_too_large_for_the_device_fails_alone():
    device = Device(room=50)
    documents = [document(20), document(60), document(30)]
    chunk = device.encoder(batch_tokens=100)(documents, {})
    assert list(chunk.reasons) == [1]
    assert chunk.reasons[1].startswith("OutOfMemoryError: CUDA out of memory")
    assert np.diff(chunk.doc_ptr).tolist() == [20, 0, 30]


def test_a_lone_document_is_tried_again_when_nothing_else_is_in_flight():
    device = Device()
    seen = []

    def crowded(documents):
        seen.append(len(documents[0]))
        if seen == [60, 50]:  # the first one still has its memory
            raise RuntimeError("CUDA error: out of memory")
        return np.concatenate(documents)

    encoder = ChunkEncoder(crowded, device, silent_token=None, on_cpu=False, batch_tokens=60)
    documents = [document(50), document(60)]
    check(encoder(documents, {}), documents)
    assert seen == [60, 50, 50]


def test_activations_of_a_silent_bos_need_not_be_finite():
    class Overflowing(Device):
        def __call__(self, hidden, lengths):
            later = super().__call__(hidden, lengths)
            result = later.result()
            result.finite[hidden == 7] = False
            later.result = lambda: result
            return later

    device = Overflowing()
    documents = [document(3, first=7), document(3, first=5)]
    for d in documents:
        d.tokens.special[0] = True
    encoder = ChunkEncoder(device.run, device, silent_token=7, on_cpu=False)
    chunk = encoder(documents, {})
    assert list(chunk.reasons) == [1], "there it is an ordinary token"
    assert chunk.csr(0).toarray()[:, 0].tolist() == [0, 8, 9]


def test_an_error_that_comes_late_is_that_of_its_batch():
    device = Device()
    results = []

    def sparse(hidden, lengths):
        later = Later(device.log, hidden)
        if 7 in hidden:
            later.error = RuntimeError("device-side assert")
        results.append(len(hidden))
        return later

    sparse.d_sae = 4
    encoder = ChunkEncoder(device.run, sparse, silent_token=None, on_cpu=False, batch_tokens=9)
    documents = [document(3, 1), document(3, 20), document(3, 6), document(3, 30)]
    chunk = encoder(documents, {})
    assert chunk.reasons == {2: "RuntimeError: device-side assert"}
    check(chunk.take([0, 1, 3]), [documents[i] for i in (0, 1, 3)])


def test_any_error_of_the_model_is_isolated_without_running_all_again(tmp_path):
    random_sae("topk", "blocks.2.hook_resid_post").save_model(tmp_path)
    sae = LocalSAE(
        release=tmp_path, model=tiny_model("llama"), tokenizer=tiny_tokenizer(), batch_tokens=40
    )
    sae.load()
    whole = sae.encode(TEXTS)
    run, calls = sae._encoder._runner, []
    bad = sae.prepare(TEXTS[4:5])[0].tokens.id.tolist()

    def breaks(documents):
        calls.append(len(documents))
        if any(d.tolist() == bad for d in documents):
            raise RuntimeError("this one")
        return run(documents)

    sae._encoder._runner = breaks
    chunk = sae.encode_chunk(TEXTS)
    assert chunk.reasons == {4: "RuntimeError: this one"}
    for number, matrix in enumerate(whole):
        if number != 4:
            assert_close(dense(chunk.csr(number)), dense(matrix))
    assert sum(calls) < 2 * len(TEXTS)


# --- the budget ----------------------------------------------------------------------------------


def test_a_budget_waits_longer_each_time_it_was_too_optimistic():
    budget, room = Budget(64), 20
    waits, since = [], 0
    for _ in range(3000):
        if budget.now > room:
            budget.fell_short(budget.now)
            waits.append(since)
            since = 0
        else:
            budget.sufficed(budget.now)
            since += 1
    late = waits[3:]
    assert late[-1] > 8 * late[0]
    assert len(waits) < 20


def test_a_budget_learns_nothing_from_small_batches_and_never_grows_beyond_its_most():
    budget = Budget(8)
    budget.fell_short(8)
    assert budget.now == 4
    for _ in range(100):
        budget.sufficed(2)
    assert budget.now == 4
    for _ in range(100):
        budget.sufficed(budget.now)
    assert budget.now == 8
    for _ in range(10):
        budget.fell_short(budget.now)
    assert budget.now == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("out of luck"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_say_that_memory_ran_out(error, expected):
    assert is_out_of_memory(error) is expected


# --- replayed activations --------------------------------------------------------------------------


def test_replayed_activations_are_those_of_the_chunk_whatever_the_texts(tmp_path):
    base = random_chunk(np.random.default_rng(0), n_documents=6, d_sae=50)
    base = base.take([i for i in range(6) if _has_text(base, i)])
    n = base.n_documents
    texts = [f"{i} and so on" if i % 3 else str(i) for i in range(4 * n)]
    dataset = Dataset(
        [{"text": t} for t in texts], ReplaySAE(base), save_path=tmp_path / "s", batch_size=2
    )
    for number, row in enumerate(dataset):
        wanted = base.csr(number % n).toarray()
        np.testing.assert_array_equal(row.latents("all"), wanted)
    assert verify(tmp_path / "s") == []
    sae = ReplaySAE(base)
    sae.load()
    assert ["".join(row) for row in sae.tokenize(texts)] == texts
    assert [m.nnz for m in sae.encode(texts[:n])] == np.diff(base.token_ptr[base.doc_ptr]).tolist()


def _has_text(chunk, position):
    return not chunk.tokens.special[chunk.doc_ptr[position] : chunk.doc_ptr[position + 1]].all()


def test_there_must_be_something_to_replay():
    with pytest.raises(ValueError, match="pass chunk="):
        ReplaySAE().load()
    with pytest.raises(ValueError, match="needs a token"):
        ReplaySAE(Chunk.failed(4, [0], ["no"])).load()
