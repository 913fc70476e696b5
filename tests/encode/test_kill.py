"""kill -9 at random moments: what was committed stays, and a resumed store equals an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time

import numpy as np
import pytest

from interp_embed import Dataset
from interp_embed.store import Store
from interp_embed.store.verify.verifier import verify
from interp_embed.testing import assert_chunks_equal, read_everything
from tests.support.fake_sae import WordSAE
from tests.support.fork_server import N_DOCUMENTS, alive, documents, encode, wait_for
from tests.support.soak import seeds

KILLS_A_RUN = 4
NAMES = [record["text"].split(" ")[0] for record in documents()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("undisturbed") / "s", 0.0)


def ranges(folder):
    """Documents that each commit, or each attempt, holds; without reading any."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        start, _, rest = path.name.partition("-")
        if start.isdigit():
            found.append((int(start), int(rest.partition("-")[0])))
    return found


def committed(path):
    return {d for start, stop in ranges(path / "commits") for d in range(start, stop)}


def merges(path):
    """How many attempts at a merged chunk there are, finished or not."""
    return sum(stop - start > 2 for start, stop in ranges(path / "chunks"))


def logged(log):
    return log.read_text().split() if log.exists() else []


def wait_to_kill(pid, path, rng, aim):
    """Return when the moment has come, or the process has ended."""
    if aim == "time":
        moment = time.monotonic() + rng.uniform(0, 0.4)
        while time.monotonic() < moment and alive(pid):
            time.sleep(0.001)
        return
    if aim == "commits":
        wanted = len(committed(path)) + rng.randint(0, 6)
        while len(committed(path)) < wanted and alive(pid) and not merges(path):
            time.sleep(0.001)
    else:
        wanted = merges(path) + rng.randint(1, 3)
        while merges(path) < wanted and alive(pid):
            time.sleep(0.0005)  # a merge takes milliseconds
    time.sleep(rng.choice([0, 0, 0.001, 0.003, 0.01, 0.02]))


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    while alive(pid):
        time.sleep(0.0005)
    return True


@pytest.mark.parametrize("seed", seeds(6, 1_000))
def test_killed_runs_resume_to_the_undisturbed_store(seed, server, undisturbed, quick_path):
    rng = random.Random(seed)
    kills = 0
    for number in range(10):
        kills += live_and_die(
            server, undisturbed, quick_path / f"s{number}", rng, KILLS_A_RUN - kills, seed % 2 == 1
        )
        if kills == KILLS_A_RUN:
            break


MERGED = "chunks/0{12}-(?!0{11}2)"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("key", "number"),
    [
        ("chunks/", 1),
        ("chunks/", 30),
        ("commits/", 1),
        ("commits/", 7),
        (MERGED, 1),
        (MERGED, 4),
        (MERGED.replace("chunks", "commits"), 1),
        ("manifest", 1),
    ],
)
def test_a_run_that_is_killed_at_a_write_resumes_to_the_undisturbed_store(
    server, undisturbed, quick_path, key, number, when
):
    path, log = quick_path / "s", quick_path / "log"
    wait_for([server.start(path, log, die=(key, number, when))])
    assert (quick_path / "log.died").exists()
    check_what_a_kill_left(path, undisturbed)
    resume(path, undisturbed)


def live_and_die(server, undisturbed, path, rng, most, late):
    """Start, kill and resume the encoding of one store until it is whole; return the kills."""
    log = path.with_suffix(".log")
    kills = 0
    while kills < most:
        before, already = committed(path), len(logged(log))
        aims = ["merges"] if late or len(before) == N_DOCUMENTS else ["time", "commits", "commits"]
        pid = server.start(path, log)
        wait_to_kill(pid, path, rng, rng.choice(aims))
        if not kill(pid):
            break
        kills += 1
        after = committed(path)
        encoded = logged(log)[already:]
        assert not {NAMES[d] for d in before} & set(encoded), "a committed document again"
        assert before <= after, "a commit was lost"
        assert len(set(encoded)) == len(encoded)
        lost = set(encoded) - {NAMES[d] for d in after}
        assert len(lost) <= 2, "more was lost than one chunk of finished work"
        check_what_a_kill_left(path, undisturbed)
    resume(path, undisturbed)
    return kills


def resume(path, undisturbed):
    """Encode what is missing, and nothing that is committed; the store is the undisturbed one then."""
    before = committed(path)
    sae = WordSAE()
    done = Dataset(documents(), sae, save_path=path, batch_size=2, save_every_batch=1)
    assert not {NAMES[d] for d in before} & {text.split(" ")[0] for text in sae.seen}
    assert_same(done, undisturbed)
    assert_same(Dataset.load_from_file(path), undisturbed)
    assert verify(path) == [], "something is left over"


def check_what_a_kill_left(path, undisturbed):
    """Whatever state a kill left, what is committed reads as it should."""
    if not (path / "plan.json").exists():
        return
    assert [p for p in verify(path) if p.severity == "error"] == []
    store = Store(path)
    here = np.array([d for d in range(N_DOCUMENTS) if store.locate(d) is not None], np.int64)
    if len(here):
        assert_chunks_equal(store.chunk(here), undisturbed.selection.store.chunk(here))


def assert_same(found, wanted):
    assert_chunks_equal(
        read_everything(found.selection.store), read_everything(wanted.selection.store)
    )
    assert found.list() == wanted.list()
    assert found.failures().equals(wanted.failures())
    assert found.failures()["document"].tolist() == [11]
    for method in ("max", "mean", "sum", "count", "binarize"):
        np.testing.assert_array_equal(found.latents(method), wanted.latents(method))
    np.testing.assert_array_equal(
        found.latents("count", activated_threshold=2.5),
        wanted.latents("count", activated_threshold=2.5),
    )
