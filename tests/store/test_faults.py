"""A fault at every single call of a small run to its storage: resuming always ends in the same store."""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd
import pytest

from interp_embed.encode import encode, finish_store
from interp_embed.errors import CorruptStoreError
from interp_embed.exchange import opening as saving
from interp_embed.store import Store
from interp_embed.store.format import document_blocks as blocks
from interp_embed.store.storage import LocalStorage
from interp_embed.store.verify.verifier import verify
from interp_embed.store.write import compaction
from interp_embed.testing import (
    FaultyStorage,
    InjectedError,
    TornStorage,
    assert_chunks_equal,
    read_everything,
)
from tests.support.fake_sae import FAIL, WideSAE

FRAME = pd.DataFrame(
    {
        "text": ["the cat sat", f"a {FAIL}", "the end"],
        "n": [1, 2, 3],
    }
)


class NoAnswer(FaultyStorage):
    """Does what one call asks for, and then fails: the answer got lost. Calls that change nothing pass."""

    def _change(self, name, *arguments):
        result = getattr(self.inner, name)(*arguments)
        FaultyStorage._call(self, name, str(arguments[0]))
        return result

    def _call(self, name, key):
        pass

    def put(self, key, data):
        self._change("put", key, data)

    def put_new(self, key, data):
        self._change("put_new", key, data)

    def put_if_absent(self, key, data):
        return self._change("put_if_absent", key, data)

    def delete(self, key):
        self._change("delete", key)

    def delete_folder(self, prefix):
        self._change("delete_folder", prefix)


@pytest.fixture(scope="module")
def processes():
    """Processes that try out faults beside each other; each undisturbed run is made in each."""
    count = min(8, os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, initializer=_small) as pool:
        yield pool, count


def _small():
    """Index every store, cut documents into blocks of two, and do not wait for the disk."""
    compaction._INDEXED_ENTRIES = 1
    blocks.BLOCK_DOCUMENTS = 2
    os.fsync = lambda descriptor: None


def plan(storage):
    saving.plan_store(FRAME, storage, WideSAE(), field="text", documents_per_chunk=2)


def plan_stream(storage):
    records = iter(FRAME.to_dict("records"))
    saving.plan_store(records, storage, WideSAE(), field="text", documents_per_chunk=2)


STEPS = {
    "plan": plan,
    "plan a stream": plan_stream,
    "encode": lambda storage: encode(storage, WideSAE(), worker="0/1"),
    "finish": lambda storage: finish_store(Store(storage)),
}


def before_and_after(step):
    """The steps that come before one, and itself and those that come after it, by name."""
    planning, others = list(STEPS)[:2], list(STEPS)[2:]
    names = [step if step in planning else "plan", *others]
    return names[: names.index(step)], names[names.index(step) :]


def state_of(storage):
    """What a store comes to, however it came about."""
    store = Store(storage)
    index = store.index()
    assert index is not None
    assert index.documents_covered == len(FRAME)
    return store, read_everything(store), [index.postings(f) for f in range(store.d_sae)]


@functools.cache
def undisturbed():
    """What a run without faults comes to."""
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(f"{folder}/s")
        for name in ("plan", "encode", "finish"):
            STEPS[name](storage)
        store, chunk, postings = state_of(storage)
        return store.frame(), chunk, postings


def assert_same(path):
    frame, whole, wanted = undisturbed()
    assert verify(path) == []
    store, chunk, postings = state_of(LocalStorage(path))
    assert_chunks_equal(chunk, whole)
    pd.testing.assert_frame_equal(store.frame(), frame)
    assert len(store.ledger.commits) == 1
    assert store.failures(np.arange(3)).keys() == {1}
    for a, b in zip(postings, wanted, strict=True):
        np.testing.assert_array_equal(a.document, b.document)
        for name in ("max", "count", "positive"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def faults(folder, step, kind, first, stride):
    """Have every ``stride``-th call fail, resume, and compare; return how many calls there were."""
    before, after = before_and_after(step)
    origin = folder / f"origin-{first}"
    for name in before:
        STEPS[name](LocalStorage(origin))
    for fail_at in range(first, 10_000, stride):
        path = folder / f"{fail_at}"
        inner = LocalStorage(path)
        if before:
            shutil.copytree(origin, path)
        storage, wanted = {
            "killed": lambda: (FaultyStorage(inner, fail_at), InjectedError),  # noqa: B023
            "failed": lambda: (FaultyStorage(inner, fail_at, dead=False), InjectedError),  # noqa: B023
            "no answer": lambda: (NoAnswer(inner, fail_at, dead=False), InjectedError),  # noqa: B023
            "torn": lambda: (TornStorage(inner, fail_at), CorruptStoreError),  # noqa: B023
        }[kind]()
        came = ""
        try:
            STEPS[step](storage)
        except wanted as error:
            came = str(error)
        calls = storage._written if kind == "torn" else len(storage.calls)
        if kind == "torn" and calls > fail_at:
            assert "reads back different" in came, "what is torn is noticed"
        for name in after:
            STEPS[name](inner)
        assert_same(path)
        shutil.rmtree(path)
        if calls <= fail_at:
            return calls
    raise AssertionError("it never ends")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["killed", "failed", "no answer", "torn"])
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.soak)])
def test_a_fault_at_any_call_changes_nothing_in_the_end(quick_path, processes, step, kind, every):
    """Every fourth call fails here, and every call in `make soak`."""
    pool, count = processes
    firsts = range(0, count * every, every)
    stride = count * every
    tasks = [pool.submit(faults, quick_path, step, kind, first, stride) for first in firsts]
    calls = min(task.result() for task in tasks)
    assert calls > {"plan": 5, "plan a stream": 8, "encode": 15, "finish": 15}[step]
