"""Writers, mergers and killed processes in any order; a plain model says what each document reads as.

Every attempt writes its own number into the activations of its documents, so that what is read says
which attempt it comes from.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from scipy.sparse import csr_matrix

from interp_embed.core.chunk import Chunk, TokenTable
from interp_embed.store import Store, StoreWriter, collect_garbage, compact, create_store, finish
from interp_embed.store.storage import LocalStorage
from interp_embed.store.verify.verifier import verify
from interp_embed.store.write.compaction import leftovers
from interp_embed.store.write.indexing import build_index
from interp_embed.testing import FaultyStorage, InjectedError, LostResponseStorage
from tests.support.hypotheses import examples

N = 10
D_SAE = 8
FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
happened = Counter()


def attempt_at(start, stop, number):
    """Documents of one token, on which one feature has the attempt's number; every third fails."""
    matrices, tables, ids, failed = [], [], [], []
    for document in range(start, stop):
        if (document + number) % 3 == 0:
            failed.append(document)
            continue
        ids.append(document)
        matrices.append(csr_matrix(([np.float32(number)], ([0], [document % D_SAE])), (1, D_SAE)))
        span = np.array([0], np.uint32), np.array([1], np.uint32)
        tables.append(TokenTable(np.array([7], np.uint32), *span, np.array([False])))
    without = Chunk.failed(D_SAE, failed, [f"attempt {number}"] * len(failed))
    if not ids:
        return without
    chunk = Chunk.from_documents(D_SAE, matrices, tables, doc_id=ids, vocabulary={})
    if not failed:
        return chunk
    return Chunk.concatenate([without, chunk]).take(np.argsort([*failed, *ids]))


def attempts_read(store):
    """Of each document, the number of the attempt that it is read from."""
    everything = store.chunk(np.arange(N))
    found = {}
    for position, document in enumerate(everything.doc_id.tolist()):
        if position in everything.reasons:
            found[document] = int(everything.reasons[position].removeprefix("attempt "))
        else:
            row = everything.csr(position)
            assert row.shape[0] == 1
            assert row.indices.tolist() == [document % D_SAE]
            found[document] = int(row.data[0])
    return found


class Model:
    """Commits by range and generation, each with the attempt that its documents came from."""

    def __init__(self):
        self.commits = {}  # (start, stop, generation): (name of the folder, attempts by document)

    def read(self):
        found = {}
        for document in range(N):
            holders = [
                (generation, start - stop, folder, held[document])
                for (start, stop, generation), (folder, held) in self.commits.items()
                if start <= document < stop
            ]
            if holders:
                found[document] = max(holders)[3]
        return found


class Ledgers(RuleBasedStateMachine):
    """What may happen to a store, one thing after the other."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=FOLDER)) / "s"
        self.attempts = 0
        self.model = Model()

    @initialize()
    def create(self):
        create_store(
            self.folder,
            pd.DataFrame({"text": ["t"] * N}),
            field="text",
            identifier="machine",
            documents_per_chunk=3,
            d_sae=D_SAE,
        )
        self.reader = Store(self.folder)
        self.seen = {}

    def listed(self):
        """Return the commits that there are, and their folders, read without the library."""
        found = {}
        for path in (self.folder / "commits").glob("*.json"):
            commit = json.loads(path.read_text())
            key = (commit["start"], commit["stop"], commit["generation"])
            assert path.stem == "{:012d}-{:012d}-{:06d}".format(*key)
            found[key] = commit["folder"]["key"]
        return found

    @contextlib.contextmanager
    def storage(self, fail_at, dead=True):
        """Give a storage that fails at a call, and swallow the failure."""
        storage = FaultyStorage(LocalStorage(self.folder), dead=dead)
        try:
            store = Store(storage)
            storage.fail_at = None if fail_at is None else len(storage.calls) + fail_at
            yield store
        except InjectedError:
            happened["crash"] += 1

    # Writing

    def written(self, start, stop, generation, number):
        """Take into the model what an attempt should have come to."""
        key, listed = (start, stop, generation), self.listed()
        if key in self.model.commits:  # lost: another was first
            happened["lost race"] += 1
            assert listed[key] == self.model.commits[key][0]
        elif key in listed:
            self.model.commits[key] = (listed[key], dict.fromkeys(range(start, stop), number))
        assert set(listed) == set(self.model.commits)

    @rule(
        start=st.integers(0, N - 1),
        length=st.integers(1, 6),
        fail_at=st.none() | st.none() | st.integers(0, 70),
        dead=st.booleans(),
    )
    def write(self, start, length, fail_at, dead):
        """A first encoding, of documents that may be held already by now."""
        self.attempts += 1
        stop = min(start + length, N)
        with self.storage(fail_at, dead) as store, StoreWriter(store) as writer:
            commit = writer.write(attempt_at(start, stop, self.attempts))
            assert (commit is None) == ((start, stop, 0) in self.model.commits)
        self.written(start, stop, 0, self.attempts)

    @rule(start=st.integers(0, N - 1), length=st.integers(1, 3), lag=st.integers(0, 1))
    def retry(self, start, length, lag):
        """What replaces documents; its generation may be one that another process has used since."""
        self.attempts += 1
        stop = min(start + length, N)
        store = Store(self.folder)
        generation = max(1, store.ledger.next_generation - lag)
        with StoreWriter(store) as writer:
            writer.write(attempt_at(start, stop, self.attempts), generation=generation)
        self.written(start, stop, generation, self.attempts)
        happened["retry"] += 1

    @rule(
        start=st.integers(0, N - 1),
        length=st.integers(1, 6),
        answer=st.sampled_from(["raise", "false"]),
    )
    def lost_response(self, start, length, answer):
        self.attempts += 1
        stop = min(start + length, N)
        lossy = LostResponseStorage(LocalStorage(self.folder), "commits/", answer)
        with contextlib.suppress(InjectedError), StoreWriter(Store(lossy)) as writer:
            writer.write(attempt_at(start, stop, self.attempts))
        self.written(start, stop, 0, self.attempts)
        assert (start, stop, 0) in self.model.commits
        happened["lost response"] += 1

    # Merging and clearing up: no document reads as anything else afterwards

    @contextlib.contextmanager
    def changing_nothing(self):
        before = self.model.read()
        yield
        listed = self.listed()
        kept = {key: held for key, held in self.model.commits.items() if key in listed}
        for key in set(listed) - set(kept):
            kept[key] = (listed[key], {d: before[d] for d in range(key[0], key[1])})
            happened["merged"] += 1
        happened["deleted"] += len(set(self.model.commits) - set(kept))
        self.model.commits = kept
        assert self.model.read() == before

    @rule(size=st.integers(2, 30), fail_at=st.none() | st.integers(0, 120), dead=st.booleans())
    def merge(self, size, fail_at, dead):
        with (
            self.changing_nothing(),
            self.storage(fail_at, dead) as store,
            StoreWriter(store) as writer,
        ):
            compact(writer, target=size, limit=2 * size)

    @rule(fail_at=st.none() | st.integers(0, 30), careful=st.booleans())
    def delete_superseded(self, fail_at, careful):
        with self.changing_nothing(), self.storage(fail_at) as store:
            collect_garbage(store, leftovers(store) if careful else None)
            assert Store(self.folder).ledger.superseded == ()

    @rule(fail_at=st.none() | st.integers(0, 60))
    def index(self, fail_at):
        if self.model.read():
            with self.changing_nothing(), self.storage(fail_at) as store:
                build_index(store)
                happened["index"] += 1

    @rule(fail_at=st.none() | st.integers(0, 250), dead=st.booleans())
    def finish(self, fail_at, dead):
        with (
            self.changing_nothing(),
            self.storage(fail_at, dead) as store,
            StoreWriter(store) as writer,
        ):
            done = finish(writer)
            assert done == (len(self.model.read()) == N)
            if done:
                happened["finished"] += 1
                assert verify(self.folder) == []
                assert len(self.listed()) == 1

    @precondition(lambda self: len(self.model.read()) < N)
    @rule()
    def complete(self):
        """Encode what is missing, so that finishing has something to do."""
        store = Store(self.folder)
        with StoreWriter(store) as writer:
            for gap in store.ledger.missing:
                for start, stop in store.plan.pieces(*gap):
                    self.attempts += 1
                    writer.write(attempt_at(start, stop, self.attempts))
                    self.written(start, stop, 0, self.attempts)

    # Reading

    @rule()
    def look_again(self):
        self.reader.refresh()
        self.seen = self.model.read()

    @invariant()
    def who_opened_the_store_earlier_reads_what_counted_then_or_counts_now(self):
        if hasattr(self, "reader"):
            now = self.model.read()
            for document, found in attempts_read(self.reader).items():
                assert found in (self.seen.get(document), now[document])

    @invariant()
    def every_document_is_read_from_the_attempt_that_counts(self):
        if hasattr(self, "reader"):
            store, expected = Store(self.folder), self.model.read()
            assert attempts_read(store) == expected
            missing = [d for a, b in store.ledger.missing for d in range(a, b)]
            assert missing == [d for d in range(N) if d not in expected]

    def teardown(self):
        if hasattr(self, "reader"):
            assert [p for p in verify(self.folder) if p.severity == "error"] == []
            self.complete()
            self.finish(None, True)
            assert attempts_read(Store(self.folder)) == self.model.read()
        shutil.rmtree(self.folder.parent)


TestLedgers = Ledgers.TestCase
TestLedgers.settings = settings(
    max_examples=examples(40), stateful_step_count=20, suppress_health_check=list(HealthCheck)
)


def test_whatever_may_happen_happens():
    happened.clear()
    ledgers = Ledgers()
    ledgers.create()
    for step in (
        lambda: ledgers.write(0, 3, None, True),
        lambda: ledgers.write(0, 3, None, True),  # lost
        *(functools.partial(ledgers.write, 3, 3, at, at % 2 == 0) for at in range(0, 24, 4)),
        lambda: ledgers.lost_response(3, 3, "raise"),
        lambda: ledgers.lost_response(6, 2, "false"),
        lambda: ledgers.retry(1, 2, 0),
        lambda: ledgers.retry(1, 2, 1),  # of a generation that there is
        ledgers.look_again,
        *(functools.partial(ledgers.merge, 30, at, at % 2 == 0) for at in range(0, 24, 4)),
        lambda: ledgers.merge(30, None, True),
        lambda: ledgers.delete_superseded(2, True),
        lambda: ledgers.delete_superseded(None, False),
        lambda: ledgers.index(5),
        lambda: ledgers.index(None),
        ledgers.complete,
        lambda: ledgers.finish(40, True),
        lambda: ledgers.finish(None, True),
    ):
        step()
        ledgers.who_opened_the_store_earlier_reads_what_counted_then_or_counts_now()
        ledgers.every_document_is_read_from_the_attempt_that_counts()
    finished = happened["finished"]
    ledgers.teardown()
    wanted = {"lost race": 2, "retry": 2, "lost response": 2, "crash": 9, "merged": 1, "deleted": 3}
    assert {name: happened[name] >= least for name, least in wanted.items()} == dict.fromkeys(
        wanted, True
    ), happened
    assert finished >= 1
    assert happened["index"] >= 1
