"""Encoding on a dask cluster of processes: the store of a single run, whoever dies on the way."""

from __future__ import annotations

import os
import signal
import threading
import time

import dask
import distributed
import numpy as np
import pytest

from interp_embed import Dataset
from interp_embed.encode import encode
from interp_embed.encode.cluster import _encode_run, _let_go, _tasks, _Where
from interp_embed.encode.worker_shares import gaps
from interp_embed.exchange import opening as saving
from interp_embed.store import Store
from interp_embed.store.verify.verifier import verify
from interp_embed.testing import assert_chunks_equal, read_everything
from tests.support.fake_sae import FAIL, LOG, SLOW, WordSAE


def records(n=120):
    rng = np.random.default_rng(n)
    texts = [
        f"doc{i:04d} " + " ".join(f"w{j}" for j in rng.integers(0, 50, int(rng.integers(0, 9))))
        for i in range(n)
    ]
    texts[n // 3] += f" {FAIL}"
    return [{"text": text, "number": i} for i, text in enumerate(texts)]


@pytest.fixture
def planned(tmp_path):
    path = tmp_path / "s.zarr"
    saving.plan_store(records(), path, WordSAE(), field="text", documents_per_chunk=4)
    return path


@pytest.fixture
def client(monkeypatch, tmp_path):
    """Two processes of two threads; what an SAE encodes there is logged, and slow."""
    monkeypatch.setenv(SLOW, "0.005")
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    settings = {"distributed.worker.daemon": False, "distributed.comm.timeouts.connect": "60s"}
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as found,
    ):
        found.wait_for_workers(2)
        monkeypatch.delenv(LOG)
        monkeypatch.delenv(SLOW)
        yield found


def assert_same(path, n=120):
    assert verify(path) == []
    found, expected = Dataset.load_from_file(path), Dataset(records(n), WordSAE())
    assert_chunks_equal(
        read_everything(found.selection.store), read_everything(expected.selection.store)
    )
    assert found.failures().equals(expected.failures())
    np.testing.assert_array_equal(found.latents("sum"), expected.latents("sum"))


def loads():
    import sys

    return sys.modules["tests.support.fake_sae"].WordSAE.loads


def test_workers_encode_everything_and_load_their_sae_once(planned, client, tmp_path):
    report = encode(planned, client=client)
    assert (report.encoded, report.failed) == (119, 1)
    assert sum(client.run(loads).values()) == 2, "one for each process"
    encoded = (tmp_path / "log").read_text().split()
    assert len(encoded) == len(set(encoded)) == 119
    assert_same(planned)
    assert Dataset.load_from_file(planned).feature_labels()[0] == "zeroth"
    again = encode(planned, client=client)
    assert (again.encoded, again.n_tokens) == (0, 0)
    assert sum(client.run(loads).values()) == 2


def test_killing_a_worker_in_the_middle_loses_nothing(planned, client):
    victim = next(iter(client.run(os.getpid).values()))
    killed_at = []

    def kill():
        while sum(b - a for a, b in gaps(Store(planned))) > 90:
            time.sleep(0.005)
        os.kill(victim, signal.SIGKILL)
        killed_at.append(sum(b - a for a, b in gaps(Store(planned))))

    thread = threading.Thread(target=kill)
    thread.start()
    encode(planned, client=client)
    thread.join()
    assert 0 < killed_at[0] <= 90, "killed before the work was done"
    assert_same(planned)


def test_what_a_worker_raises_is_raised(tmp_path, client):
    path = tmp_path / "t.zarr"
    saving.plan_store(records(9), path, Unknown(), field="text", documents_per_chunk=4)
    with pytest.raises(ValueError, match="cannot be rebuilt") as caught:
        encode(path, client=client)
    assert "everything committed is safe" in caught.value.__notes__[0]
    assert len(gaps(Store(path))) == 1


class Unknown(WordSAE):
    """One that workers cannot import under this name."""

    def metadata(self):
        return {**super().metadata(), "surprise": 1}


def test_workers_show_no_bars_of_their_own(planned, monkeypatch, capfd):
    monkeypatch.setattr("interp_embed.core.progress.show_progress", lambda: True)
    store = Store(planned)
    where = _Where(store.storage.url, str(store.attributes["id"]), store.n_documents)
    try:
        assert _encode_run(where, 0, 8, 8, "auto").encoded == 8
    finally:
        _let_go()
    assert capfd.readouterr().err == ""


def test_unfinished_on_demand(planned, client):
    encode(planned, client=client, finish=False)
    assert not (planned / "manifest.json").exists()
    assert Store(planned).is_complete


def test_tasks_are_runs_of_whole_chunks_and_small(planned):
    store = Store(planned)
    cut = list(_tasks(store, [(0, 50), (53, 120)], 1))
    assert [d for a, b in cut for d in range(a, b)] == [*range(50), *range(53, 120)]
    assert all(a % 4 == 0 or a == 53 for a, _ in cut)
    assert 14 <= len(cut) <= 18
    assert len(list(_tasks(store, [(0, 120)], 1000))) == 30
