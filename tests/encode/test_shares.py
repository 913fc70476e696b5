"""Which documents each worker takes: its share in order, then what others have left."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from interp_embed.encode.worker_shares import (
    Worker,
    chunk_ranges,
    gaps,
    missing_chunks,
    take_work,
)
from interp_embed.store import create_store
from interp_embed.store.storage import ObjectStorage
from tests.support.hypotheses import examples


class Committed:
    """A store that is no more than the names of its commits."""

    def __init__(self, n_documents, step):
        self.storage = ObjectStorage(MemoryStore(), "memory://shares")
        frame = pd.DataFrame({"text": ["a"] * n_documents})
        self.store = create_store(
            self.storage, frame, field="text", identifier="x", documents_per_chunk=step
        )

    def commit(self, start, stop, generation=0):
        self.storage.put(f"commits/{start:012d}-{stop:012d}-{generation:06d}.json", b"")


def all_of(committed, worker):
    """What a worker takes that commits each run before it asks for the next."""
    taken = []
    for start, stop in take_work(committed.store, worker):
        committed.commit(start, stop)
        taken.append((start, stop))
    return taken


@pytest.mark.parametrize("text", ["3/3", "0/0", "-1/3", "1", "a/b", "1/2/3", "1.0/2", ""])
def test_a_worker_is_a_number_below_a_count(text):
    with pytest.raises(ValueError, match="worker"):
        Worker.parse(text)


def test_a_worker_is_written_as_it_is_read():
    assert str(Worker.parse(" 3/8 ")) == "3/8"
    assert Worker(1, 2).part(3, 4) == Worker(7, 8)


@given(st.integers(0, 50), st.integers(1, 60))
def test_shares_are_disjoint_in_order_and_leave_nothing(n_chunks, count):
    shares = [Worker(i, count).share(n_chunks) for i in range(count)]
    assert [c for a, b in shares for c in range(a, b)] == list(range(n_chunks))
    sizes = [b - a for a, b in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_worker_goes_through_its_share_and_then_helps_where_most_is_missing():
    store = Committed(22, 2)  # eleven chunks, the last of two documents
    work = take_work(store.store, Worker(0, 3))
    assert [next(work) for _ in range(3)] == [(0, 2), (2, 4), (4, 6)]
    for start in (0, 2, 4):
        store.commit(start, start + 2)
    store.commit(6, 8)  # worker 1 has begun; of its share 4-6 are missing, and 7-10 of worker 2's
    assert next(work) in [(18, 20), (20, 22)]


def test_runs_are_cut_to_what_is_missing():
    store = Committed(20, 5)
    store.commit(1, 3)
    store.commit(2, 4)
    store.commit(8, 17)
    assert gaps(store.store) == [(0, 1), (4, 8), (17, 20)]
    assert gaps(store.store, 2, 6) == [(4, 6)]
    assert gaps(store.store, 9, 12) == []
    assert missing_chunks(store.store) == [0, 1, 3]
    assert all_of(store, Worker(0, 1)) == [(0, 1), (4, 5), (5, 8), (17, 20)]
    assert gaps(store.store) == missing_chunks(store.store) == []


def test_nobody_takes_what_was_committed_since_it_began():
    store = Committed(12, 2)
    work = take_work(store.store, Worker(1, 2))
    assert next(work) == (6, 8)
    for start in range(0, 12, 2):
        store.commit(start, start + 2)
    # Its own share is listed now and then, what others own before each take.
    assert len(list(work)) <= 2


def test_workers_that_are_left_of_many_seldom_want_the_same_chunk():
    store = Committed(60, 1)
    work = [take_work(store.store, Worker(i, 30)) for i in (25, 29)]
    rounds = 0
    while gaps(store.store):
        taken = [run for each in work for run in [next(each, None)] if run]  # both, and then commit
        for start, stop in taken:
            store.commit(start, stop)
        rounds += 1
    assert rounds <= 36  # 30 if they never did, 60 if they always did


@settings(max_examples=examples(60))
@given(
    st.integers(0, 30),
    st.integers(1, 6),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 29), st.integers(1, 9)), max_size=4),
    st.randoms(use_true_random=False),
)
def test_workers_that_take_turns_encode_every_missing_document_once(n, step, count, done, rng):
    store = Committed(n, step)
    held = np.zeros(n, int)
    for start, length in done:
        if start < n:
            store.commit(start, min(start + length, n), 1)
            held[start : start + length] = 1
    workers = [take_work(store.store, Worker(i, count)) for i in range(count)]
    taken = np.zeros(n, int)
    while workers:
        worker = rng.choice(workers)
        found = next(worker, None)
        if found is None:
            workers.remove(worker)
            continue
        start, stop = found
        assert start // step == (stop - 1) // step, "a run is part of one chunk"
        if not (taken[start:stop] + held[start:stop]).any():
            taken[start:stop] += 1
        store.commit(start, stop)
    assert ((taken + held) == 1).all()


def test_any_worker_alone_encodes_everything():
    for number in (0, 7, 99):
        store = Committed(9, 2)
        taken = sorted(all_of(store, Worker(number, 100)))
        assert [d for a, b in taken for d in range(a, b)] == list(range(9))


@given(st.sets(st.integers(0, 40)))
def test_numbers_are_written_as_ranges(numbers):
    text = chunk_ranges(sorted(numbers))
    read = [tuple(map(int, part.split("-"))) for part in text.split(", ") if part]
    assert [n for part in read for n in range(part[0], part[-1] + 1)] == sorted(numbers)
    assert all(b[0] > a[-1] + 1 for a, b in itertools.pairwise(read))
