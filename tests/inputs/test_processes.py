"""Writing documents is killed and goes on; its memory does not grow with their number."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest

from interp_embed import Dataset
from interp_embed.errors import FingerprintMismatchError, NotAStoreError, StoreExistsError
from interp_embed.exchange.opening import plan_store
from interp_embed.store import Store
from interp_embed.store.format import document_blocks as blocks
from interp_embed.store.storage import open_storage
from interp_embed.store.verify.verifier import verify
from interp_embed.store.write import creation
from interp_embed.testing import FaultyStorage, InjectedError, LostResponseStorage
from tests.support.fake_sae import WideSAE, WordSAE
from tests.support.waiting import PATIENCE, wait_until

BLOCK, N = 50, 400

PLANNING = """
    import itertools, os, sys, time
    from interp_embed.store.format import document_blocks as blocks
    from interp_embed.exchange.opening import plan_store
    from tests.support.fake_sae import WideSAE

    os.fsync = lambda descriptor: None
    blocks.BLOCK_DOCUMENTS = 50

    def documents():
        for i in range(400):
            time.sleep(0.001)
            yield {"text": f"word{i} and more", "n": i if i % 3 else None}

    print("ready", flush=True)
    sys.stdin.readline()
    plan_store(documents(), sys.argv[1], WideSAE(), field="text", documents_per_chunk=20)
"""


def documents(n=N):
    return [{"text": f"word{i} and more", "n": i if i % 3 else None} for i in range(n)]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", BLOCK)


@pytest.fixture
def written(monkeypatch):
    """The blocks that are written, by their first document."""
    found = []
    write = creation._write_block

    def noted(storage, key, block, executor):
        found.append(int(key.split("/")[1].split("-")[0]))
        return write(storage, key, block, executor)

    monkeypatch.setattr(creation, "_write_block", noted)
    return found


def planned(data, where):
    return plan_store(data, where, WideSAE(), field="text", documents_per_chunk=20)


def start(path):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PLANNING), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("killed_after", [0, 1, 4])
def test_planning_that_was_killed_goes_on_where_it_was(
    quick_path, small_blocks, written, killed_after
):
    path = quick_path / "s"
    process = start(path)
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    records = path / "planning"
    wait_until(lambda: len(list(records.glob("0*.json"))) >= killed_after, process, pause=0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait(PATIENCE) == -signal.SIGKILL
    process.stdin.close()
    process.stdout.close()
    kept = len(list(records.glob("0*.json")) if records.exists() else [])
    assert kept < N // BLOCK
    if killed_after:
        with pytest.raises(
            NotAStoreError, match=rf"interrupted: {kept * BLOCK} documents are in it.*Pass"
        ):
            Dataset.load_from_file(path, resume=True)
    dataset = Dataset(iter(documents()), WideSAE(), save_path=path, batch_size=20)
    assert written == list(range(kept * BLOCK, N, BLOCK))
    assert dataset.status().tolist() == ["ok"] * N
    assert [r["text"] for r in dataset.list()] == [r["text"] for r in documents()]
    assert verify(path) == []
    assert Store(path).plan.hashes == planned(documents(), quick_path / "t").plan.hashes


def cut_off(path, count, data):
    """Plan until so many blocks are written."""

    def some():
        for number, record in enumerate(data):
            if number > count * BLOCK + 1:
                raise KeyboardInterrupt
            yield record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp_embed.inputs.readers._PIECE_RECORDS", BLOCK)
        with pytest.raises(KeyboardInterrupt):
            planned(some(), path)


def test_blocks_of_other_documents_are_not_taken_over(tmp_path, small_blocks, written):
    cut_off(tmp_path / "s", 3, documents())
    assert written == [0, 50, 100]
    changed = documents()
    changed[60]["text"] = "another"
    store = planned(iter(changed), tmp_path / "s")
    assert written[3:] == [50, 150, 200, 250, 300, 350]
    assert store.frame()["text"].tolist() == [r["text"] for r in changed]
    what = [(p.severity, p.key.split("/")[0]) for p in verify(tmp_path / "s")]
    assert sorted(what) == [("note", "commits"), ("note", "documents")]
    done = Dataset.load_from_file(tmp_path / "s", resume=True)
    assert done.status().tolist() == ["ok"] * N
    assert verify(tmp_path / "s") == []


def test_going_on_with_another_sae_or_field_is_refused(tmp_path, small_blocks):
    cut_off(tmp_path / "s", 2, documents())
    with pytest.raises(StoreExistsError, match=r"another run began a store .* it differs in scale"):
        Dataset(documents(), WideSAE(scale=2.0), save_path=tmp_path / "s")


def test_two_processes_that_plan_at_once_share_what_each_has_written(
    tmp_path, small_blocks, written, monkeypatch
):
    monkeypatch.setattr("interp_embed.inputs.readers._PIECE_RECORDS", BLOCK)
    cut_off(tmp_path / "s", 2, documents())

    def slowly():
        """While this one reads, another one plans and is done."""
        for number, record in enumerate(documents()):
            if number == 3 * BLOCK:
                planned(iter(documents()), tmp_path / "s")
            yield record

    store = planned(slowly(), tmp_path / "s")
    assert verify(tmp_path / "s")[0].what.startswith("400 of 400 documents are not encoded")
    assert len(verify(tmp_path / "s")) == 1
    assert len(open_storage(tmp_path / "s").folders("documents")) == N // BLOCK
    assert store.frame()["text"].tolist() == [r["text"] for r in documents()]


def test_planning_survives_a_fault_at_every_call(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 3)
    expected = planned(iter(documents(8)), tmp_path / "expected")
    fail_at = 0
    while True:
        where = tmp_path / f"{fail_at}"
        storage = FaultyStorage(open_storage(where), fail_at)
        try:
            planned(iter(documents(8)), storage)
        except InjectedError:
            again = planned(iter(documents(8)), where)
            assert again.plan.hashes == expected.plan.hashes
            assert again.frame().equals(expected.frame())
            assert [p for p in verify(where) if p.severity == "error"] == []
            fail_at += 1
        else:
            break
    assert fail_at > 30


@pytest.mark.parametrize("prefix", ["planning/", "plan.json", "zarr.json"])
@pytest.mark.parametrize("answer", ["raise", "false"])
def test_planning_survives_lost_responses(tmp_path, monkeypatch, prefix, answer):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 3)
    storage = LostResponseStorage(open_storage(tmp_path / "s"), prefix, answer)
    with contextlib.suppress(InjectedError):
        planned(iter(documents(8)), storage)
    store = planned(iter(documents(8)), tmp_path / "s")
    assert store.frame()["text"].tolist() == [r["text"] for r in documents(8)]
    assert {p.severity for p in verify(tmp_path / "s")} == {"note"}
    Dataset.load_from_file(tmp_path / "s", resume=True)
    assert verify(tmp_path / "s") == []


def test_an_encoding_that_was_killed_goes_on_without_the_stream(quick_path, server, small_blocks):
    path, log = quick_path / "s", quick_path / "log"
    Dataset(iter(documents()), WordSAE(), save_path=path, compute_activations=False)
    code = (
        "import sys, os\n"
        "os.fsync = lambda descriptor: None\n"
        "from interp_embed import Dataset\n"
        "dataset = Dataset.load_from_file(sys.argv[1])\n"
        "dataset.sae.slow = 0.005\n"
        "dataset._compute(2, 4)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", "import tests.support.fake_sae\n" + code, str(path)],
    )
    wait_until(lambda: list((path / "commits").glob("0*.json")), process)
    process.kill()
    process.wait(PATIENCE)
    before = len(Store(path).status(np.arange(N))[Store(path).status(np.arange(N)) == 0])
    assert 0 < before < N
    done = Dataset.load_from_file(path, resume=True)
    assert done.status().tolist() == ["ok"] * N
    with pytest.raises(FingerprintMismatchError, match="documents 350 to 399"):
        Dataset(iter([*documents()[:-1], {"text": "x"}]), WordSAE(), save_path=path)
    assert not log.exists()


MEMORY = """
    import json, os, sys
    from pathlib import Path
    import interp_embed.inputs.sources, pyarrow.parquet, pyarrow.dataset, fsspec
    from interp_embed.exchange.opening import plan_store
    from tests.support.fake_sae import WideSAE

    os.fsync = lambda descriptor: None
    def peak():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    plan_store(sys.argv[1], sys.argv[3], WideSAE(), field="text", documents_per_chunk=100)
    first = peak()
    store = plan_store(sys.argv[2], sys.argv[4], WideSAE(), field="text", documents_per_chunk=100)
    plan_store(sys.argv[2], sys.argv[4], WideSAE(), field="text", documents_per_chunk=100)
    print(json.dumps([first, peak(), store.n_documents]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory was held at most")
@pytest.mark.parametrize(
    ("kind", "documents", "characters"),
    [("parquet", 200_000, 1_000), ("jsonl", 60_000, 3_000), ("csv", 60_000, 3_000)],
)
def test_ten_times_the_documents_need_no_more_memory(quick_path, kind, documents, characters):
    small, large = (quick_path / f"{n}.{kind}" for n in (documents // 10, documents))
    rng = np.random.default_rng(0)
    texts = ["".join(row) for row in rng.choice(list("abcdefgh "), (100, characters))]
    for path, n in ((small, documents // 10), (large, documents)):
        frame = pd.DataFrame({"text": [f"{i} {texts[i % 100]}" for i in range(n)], "n": range(n)})
        if kind == "parquet":
            frame.to_parquet(path)
        elif kind == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_json(path, orient="records", lines=True)
        del frame
    code = "from interp_embed.store.format import document_blocks as blocks\nblocks.BLOCK_DOCUMENTS = 5_000\n"
    child = subprocess.run(
        [
            sys.executable, "-c", code + textwrap.dedent(MEMORY), str(small), str(large),
            str(quick_path / "a"), str(quick_path / "b"),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    first, second, n = json.loads(child.stdout)
    assert n == documents
    assert second - first < documents * characters / 2
