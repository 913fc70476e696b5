"""Far away, few requests are made, and made together: how many is part of what is promised."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter

import numpy as np
import pytest

from interp_embed import Dataset
from interp_embed.aggregate.matrices import aggregate_sparse
from interp_embed.aggregate.reductions import REDUCTIONS
from interp_embed.aggregate.statistics import count_features
from interp_embed.core.threads import Flights
from interp_embed.errors import CorruptStoreError
from interp_embed.selection.selection import Selection
from interp_embed.store import Store, StoreWriter
from interp_embed.store.arrays.readahead import NEAR, ReadAhead, joined
from interp_embed.store.storage import LocalStorage, open_storage
from interp_embed.store.verify.verifier import verify
from interp_embed.store.write.indexing import build_index
from interp_embed.testing import (
    CountingStorage,
    SlowStorage,
    TornStorage,
    assert_chunks_equal,
    dense,
    oracle,
    random_chunk,
    read_everything,
    store_from_chunk,
)
from tests.support.waiting import PATIENCE

D_SAE = 300
COLUMNS = 1


@pytest.fixture(scope="module")
def chunk():
    return random_chunk(0, 1200, d_sae=D_SAE, mean_tokens=30, active=6, failures=False)


@pytest.fixture(scope="module")
def path(chunk, tmp_path_factory):
    """Three chunks, as a store of three large ones is, and an index."""
    found = tmp_path_factory.mktemp("latency") / "s"
    store = store_from_chunk(found, chunk, documents_per_chunk=400, finished=False)
    from interp_embed.store.write.compaction import publish_manifest

    with StoreWriter(store):
        build_index(store)
    publish_manifest(store)
    assert len(Store(found).ledger.live) == 3
    return found


def far(path):
    """Open the store far away; requests are counted from here on."""
    storage = CountingStorage(LocalStorage(path), remote=True)
    dataset = Dataset.from_selection(Selection.whole(Store(storage)))
    storage.reset()
    return dataset, storage


class Together(CountingStorage):
    """Lets requests end once so many of them are under way."""

    def __init__(self, inner, number):
        super().__init__(inner, remote=True)
        self.barrier = threading.Barrier(number, timeout=PATIENCE)

    def _wait(self):
        self.barrier.wait()


def test_opening_is_five_requests_made_together(path):
    storage = Together(LocalStorage(path), 5)
    Store(storage)
    assert storage.requests_by_kind == {"get": 5}


def test_a_document_is_nine_requests_its_columns_and_two_indexes_at_most(path):
    dataset, storage = far(path)
    row = dataset[7]
    assert row is not None
    assert storage.n_requests <= 9 + COLUMNS + 2
    near = Dataset.load_from_file(path)[7]
    assert (row.activations != near.activations).nnz == 0
    assert row.tokenized_document == near.tokenized_document
    storage.reset()
    dataset[9]  # of the same chunk: pointers are known
    assert storage.n_requests <= 7 + COLUMNS


def test_the_top_documents_are_a_bounded_number_of_requests(path):
    dataset, storage = far(path)
    near = Dataset.load_from_file(path)
    feature = 5
    found = dataset.top_documents_for_feature(feature, k=10)
    assert found == near.top_documents_for_feature(feature, k=10)
    chunks = 3
    assert storage.n_requests <= 5 + 10 * (7 + COLUMNS) + chunks * 3 + 1
    assert any("index/" in key for _, key in storage.keys)


@pytest.mark.parametrize(
    ("method", "threshold", "arrays", "pointers"),
    [("max", 0.0, 2, 1), ("sum", 0.0, 4, 2), ("count", 0.5, 2, 3), ("mean", 0.0, 4, 3)],
)
def test_a_pass_is_a_few_requests_a_chunk(path, chunk, method, threshold, arrays, pointers):
    dataset, storage = far(path)
    found = dataset.latents(method, activated_threshold=threshold, compress=True)
    expected = oracle(dense(chunk), method, threshold, d_sae=D_SAE)
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-5, atol=1e-5)
    # For each chunk what says where things are, the pointers, and each array once.
    status = 1 if any(c.n_truncated for c in dataset.selection.store.ledger.live) else 0
    assert storage.n_requests <= 3 * (1 + pointers + arrays + status)


def test_statistics_are_a_few_requests_a_chunk(path, chunk):
    dataset, storage = far(path)
    found = count_features(
        dataset.selection.store, np.arange(1200), ["document_frequency", "histogram"]
    )
    near = count_features(Store(path), np.arange(1200), ["document_frequency", "histogram"])
    for name, values in near.items():
        np.testing.assert_array_equal(found[name], values)
    assert storage.n_requests <= 3 * (1 + 3 + 2 + 2)


def test_lazy_arrays_read_ahead(path, chunk):
    dataset, storage = far(path)
    array = dataset.to_xarray()["activations"]
    storage.reset()
    found = float(array.sum(skipna=True).compute(scheduler="synchronous").data)
    np.testing.assert_allclose(found, chunk.activation.astype(np.float64).sum(), rtol=1e-4)
    assert storage.n_requests <= 3 * (1 + 2 + 1 + 2 + 1)


def test_whole_chunks_and_selections_are_read_in_few_requests(path, chunk):
    dataset, storage = far(path)
    assert_chunks_equal(read_everything(dataset.selection.store), chunk)
    assert storage.n_requests <= 3 * (1 + 12)
    dataset, storage = far(path)
    some = np.arange(0, 1200, 7)
    assert_chunks_equal(dataset.selection.store.chunk(some), chunk.take(some))
    assert storage.n_requests <= 3 * (1 + 12)  # ranges near each other are one


def test_bytes_that_are_near_each_other_are_one_request():
    assert joined([(0, 5), (7, 9), (9 + NEAR, 20 + NEAR)]) == [(0, 20 + NEAR)]
    assert joined([(50 + NEAR, 60 + NEAR), (0, 9)]) == [(0, 9), (50 + NEAR, 60 + NEAR)]
    assert joined([(0, 10), (2, 5)]) == [(0, 10)]
    assert joined([]) == []


def test_what_was_read_ahead_is_let_go_of(path):
    dataset, _ = far(path)
    dataset.latents("count", activated_threshold=0.1, compress=True)
    for blocks in dataset.iter_latents("max"):  # left in the middle
        assert blocks is not None
        break
    del blocks
    dataset[3]
    chunks = dataset.selection.store._snapshot.chunks.values()
    for array in (array for c in chunks for array in c._arrays._opened.values()):
        assert array._held == ()
        assert array._pinned == ()


def test_near_by_nothing_is_read_ahead(path):
    storage = CountingStorage(LocalStorage(path))
    assert storage.requests() is None
    store = Store(storage)
    with ReadAhead(storage) as ahead:
        ahead.follow([store.ledger.live and iter([[(None, 0, 1)]])])
        assert ahead._held == []
    aggregate_sparse(store, np.arange(1200), REDUCTIONS["max"], 0.0)
    assert storage.most_in_flight <= (os.cpu_count() or 1) + 1


def test_chunks_that_were_merged_meanwhile_are_found_far_away(path, chunk, tmp_path):
    store_from_chunk(tmp_path / "s", chunk, documents_per_chunk=300, finished=False)
    dataset, _ = far(tmp_path / "s")
    from interp_embed.store import finish

    with StoreWriter(Store(tmp_path / "s")) as writer:
        finish(writer)
    found = dataset.latents("max", compress=True).toarray()
    np.testing.assert_allclose(found, oracle(dense(chunk), "max", d_sae=D_SAE), rtol=1e-6)


def test_damage_is_noticed_far_away(path, chunk, tmp_path):
    store_from_chunk(tmp_path / "s", chunk)
    dataset, _ = far(tmp_path / "s")
    shard = tmp_path / "s" / dataset.selection.store.ledger.live[0].folder.key / "feature/c/0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptStoreError, match="is damaged: inner chunk"):
        dataset.latents("count", activated_threshold=0.5)
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptStoreError, match="are missing"):
        far(tmp_path / "s")[0].latents("count", activated_threshold=0.5)
    shard.unlink()
    with pytest.raises(CorruptStoreError, match="is missing"):
        far(tmp_path / "s")[0].latents("count", activated_threshold=0.5)


def test_an_error_that_nobody_can_mend_is_raised_at_once(path):
    class Broken(CountingStorage):
        broken = False

        def get_range(self, key, start, length):
            if self.broken:
                self._call("get_range", key)
                raise PermissionError(f"no permission for {key}")
            return super().get_range(key, start, length)

    storage = Broken(LocalStorage(path), remote=True)
    store = Store(storage)
    storage.broken = True
    storage.reset()
    with pytest.raises(PermissionError, match="no permission for chunks/"):
        store.document(3)
    assert max(Counter(storage.keys).values()) == 1  # nothing is asked for again


def test_after_an_error_nothing_more_is_asked_for(path):
    class Failing(CountingStorage):
        failing = False

        def _wait(self):
            time.sleep(0.01)
            if self.failing:
                raise TimeoutError("no answer")

    storage = Failing(LocalStorage(path), remote=True)
    store = Store(storage)
    storage.failing = True
    storage.reset()
    arrays = [
        store.ledger.live[0].folder.open(storage, name) for name in ("doc_ptr", "status") * 100
    ]
    with ReadAhead(storage) as ahead, pytest.raises(TimeoutError):
        ahead.load((array, 0, 3) for array in arrays)
    assert storage.in_flight == 0
    assert storage.n_requests < len(arrays) // 2


def test_indexes_of_shards_stand_in_their_group_too(tmp_path, chunk):
    import json

    store = store_from_chunk(tmp_path / "s", chunk)
    assert verify(tmp_path / "s") == []
    folder = store.ledger.live[0].folder
    large = {name for name, entry in folder.arrays.items() if entry.length > entry.inner}
    assert {"feature", "activation"} <= large
    group = tmp_path / "s" / folder.key / "zarr.json"
    document = json.loads(group.read_bytes())
    assert set(document["attributes"]["shard_indexes"]) == large
    # Without them, or with wrong ones, the shards' own are read.
    indexes = document["attributes"]["shard_indexes"]
    for wrong in (
        {},
        dict.fromkeys(indexes, "AAAA"),
        {n: v[:-6] + "AAAAA=" for n, v in indexes.items()},
    ):
        document["attributes"]["shard_indexes"] = wrong
        group.write_text(json.dumps(document, indent=1))
        assert_chunks_equal(read_everything(far(tmp_path / "s")[0].selection.store), chunk)
        assert any("zarr.json" in problem.key for problem in verify(tmp_path / "s"))


def test_a_store_is_written_far_away_in_few_rounds(tmp_path, chunk):
    storage = SlowStorage(LocalStorage(tmp_path / "s"), 0.005)
    store = store_from_chunk(storage, chunk, documents_per_chunk=1200)
    assert storage.most_in_flight > 1
    objects = sum(1 for _ in LocalStorage(tmp_path / "s").list())
    written = sum(storage.requests_by_kind[name] for name in ("put", "put_new", "put_if_absent"))
    assert written <= objects + 6  # each once; probes and records of planning go again
    assert_chunks_equal(read_everything(Store(store.storage)), chunk)
    assert verify(tmp_path / "s") == []


def test_a_write_that_the_storage_lost_is_noticed(tmp_path, chunk):
    counted = CountingStorage(LocalStorage(tmp_path / "count"))
    store_from_chunk(counted, chunk, documents_per_chunk=1200, finished=False)
    for number in range(0, counted.requests_by_kind["put_new"], 5):
        storage = TornStorage(LocalStorage(tmp_path / str(number)), number)
        with pytest.raises(CorruptStoreError, match="reads back different"):
            store_from_chunk(storage, chunk, documents_per_chunk=1200, finished=False)


def test_one_of_many_threads_reads():
    flights, calls, barrier = Flights(), [], threading.Barrier(4)
    go = threading.Event()

    def slow():
        calls.append(1)
        go.wait(5)
        return 7

    found = []

    def run():
        barrier.wait()
        found.append(flights.do("key", slow))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    barrier.wait()
    while not calls:
        pass
    go.set()
    for thread in threads:
        thread.join()
    assert found == [7, 7, 7]
    assert 1 <= len(calls) <= 3
    with pytest.raises(ZeroDivisionError):
        flights.do("key", lambda: 1 // 0)
    assert flights.do("key", lambda: 8) == 8


def test_an_interrupt_is_for_the_thread_that_it_came_to():
    flights, waiting = Flights(), threading.Event()
    found = []

    def interrupted():
        waiting.set()
        while not thread.is_alive():
            pass
        time.sleep(0.05)  # the other one waits by now
        raise KeyboardInterrupt

    def second():
        waiting.wait()
        found.append(flights.do("key", lambda: 3))

    thread = threading.Thread(target=second)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        flights.do("key", interrupted)
    thread.join()
    assert found == [3]


def test_storages_count_and_tell_kinds(tmp_path):
    storage = CountingStorage(open_storage(tmp_path / "s"))
    storage.put("a", b"123")
    assert storage.get("a") == b"123"
    assert storage.get_range("a", 1, 1) == b"2"
    assert not storage.put_if_absent("a", b"")
    assert [key for key, _ in storage.list()] == ["a"]
    storage.sync(["a"])
    storage.delete_several(["a", "b"])
    kinds = {"put": 1, "get": 1, "get_range": 1, "put_if_absent": 1, "list": 1, "delete": 2}
    assert storage.requests_by_kind == kinds
    assert storage.n_requests == 7
    assert storage.bytes_read == 4
    assert not storage.remote
    assert SlowStorage(open_storage(tmp_path), 0).remote
