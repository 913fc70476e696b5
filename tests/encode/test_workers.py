"""Many processes encode one store: killed at random and started again, they end with one right store."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from interp_embed import Dataset
from interp_embed.cli import run
from interp_embed.cli.commands.workers import _Screen, processes_for, visible_gpus
from interp_embed.encode import Worker, encode, finish_store
from interp_embed.encode.worker_shares import gaps
from interp_embed.errors import FingerprintMismatchError
from interp_embed.store import Store
from interp_embed.store.storage import open_storage
from interp_embed.store.verify.verifier import verify
from interp_embed.testing import assert_chunks_equal, read_everything
from tests.support.fake_sae import FAIL, LOG, SLOW, WordSAE
from tests.support.fork_server import alive
from tests.support.s3_server import s3_server
from tests.support.soak import seeds
from tests.support.waiting import PATIENCE, wait_until


def records(n):
    """Documents that begin with their own name; one fails and one has no words."""
    rng = np.random.default_rng(n)
    texts = [
        f"doc{i:04d} " + " ".join(f"w{j}" for j in rng.integers(0, 50, int(rng.integers(0, 9))))
        for i in range(n)
    ]
    texts[n // 3] += f" {FAIL}"
    texts[n // 2] = ""
    return [{"text": text, "number": i} for i, text in enumerate(texts)]


def source_of(found, folder):
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in found))
    return path


def plan(source, store, chunk_documents):
    arguments = ["plan", source, store, "--sae", "tests.support.fake_sae:WordSAE"]
    assert run([*map(str, arguments), "--chunk-documents", str(chunk_documents)]) == 0


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    while alive(pid):
        time.sleep(0.0005)
    return True


def said(log):
    """What the commands printed, and the exit codes of those that were not killed."""
    folder, name = log.parent, log.name
    codes = [int(path.read_text()) for path in folder.glob(f"{name}.code-*")]
    return codes, "".join(path.read_text() for path in folder.glob(f"{name}.out-*"))


def race(server, path, log, n_workers, kills, rng, **environment):
    """Run workers that are killed and started again until nothing is missing."""
    storage = open_storage(path)
    store = Store(storage)

    def start(number):
        arguments = ["encode", path, "--worker", f"{number}/{n_workers}", "--batch-size", "2"]
        return server.start_cli(arguments, log, **environment)

    running = {number: start(number) for number in range(n_workers)}
    held, killed = set(), 0
    while True:
        missing = {d for a, b in gaps(store) for d in range(a, b)}
        committed = set(range(store.n_documents)) - missing
        assert held <= committed, "a commit was lost"
        held = committed
        if not missing:
            break
        if killed < kills and len(held) < store.n_documents * killed / kills * 0.9:
            time.sleep(0.002)
        elif killed < kills:  # evenly over the work, and some right after one another
            time.sleep(rng.choice([0, 0.003, 0.01, 0.03]))
            number = rng.choice(list(running))
            killed += kill(running[number])
            running[number] = start(number)
        else:  # from here on whoever has ended may stay away
            assert any(map(alive, running.values())), said(log)
            time.sleep(0.02)
    wait_until(lambda: not any(map(alive, running.values())))


def finish_while_killed(server, path, log, kills, rng, longest, **environment):
    for _ in range(kills):
        pid = server.start_cli(["finish", path], log, **environment)
        moment = time.monotonic() + rng.uniform(0, longest)
        while time.monotonic() < moment and alive(pid):
            time.sleep(0.001)
        kill(pid)
    pid = server.start_cli(["finish", path], log, **environment)
    while alive(pid):
        time.sleep(0.005)


def assert_same(path, expected):
    """Each document once, with what a single run gives it, and nothing left over."""
    assert verify(path) == []
    found = Dataset.load_from_file(path)
    assert_chunks_equal(
        read_everything(found.selection.store), read_everything(expected.selection.store)
    )
    assert read_everything(found.selection.store).doc_id.tolist() == list(range(len(expected)))
    assert found.list() == expected.list()
    assert found.failures().equals(expected.failures())
    for method in ("max", "sum", "count"):
        np.testing.assert_array_equal(found.latents(method), expected.latents(method))
    names = {key.split("/", 1)[0] for key, _ in open_storage(path).list()}
    assert names <= {
        "binding.json",
        "chunks",
        "commits",
        "documents",
        "index",
        "labels",
        "manifest.json",
        "plan.json",
        "zarr.json",
    }


@pytest.mark.parametrize("seed", seeds(2, 200))
def test_eight_workers_killed_at_random_end_with_the_store_of_a_single_run(
    server, quick_path, seed
):
    rng = random.Random(seed)
    found = records(240)
    path, log = quick_path / "s.zarr", quick_path / "log"
    plan(source_of(found, quick_path), path, 4)
    race(server, path, log, 8, 24, rng, **{SLOW: "0.02"})
    codes, output = said(log)
    assert set(codes) == {0}, output
    assert len(Store(path).ledger.commits) > 60, "workers do not merge"
    finish_while_killed(server, path, log, 6, rng, 0.4)
    assert_same(path, Dataset(found, WordSAE()))
    assert Store(path).index() is not None


def test_workers_killed_at_random_on_an_object_store_end_with_the_store_of_a_single_run(
    server, quick_path, monkeypatch
):
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        path, log = "s3://bucket/some/where.zarr", quick_path / "log"
        if not open_storage(path).arbitrates():
            pytest.skip("this version of moto knows no conditional puts")
        rng, found = random.Random(7), records(64)
        plan(source_of(found, quick_path), path, 8)
        race(server, path, log, 4, 6, rng, **environment, **{SLOW: "0.02"})
        codes, output = said(log)
        assert set(codes) == {0}, output
        finish_while_killed(server, path, log, 3, rng, 1.5, **environment)
        assert_same(path, Dataset(found, WordSAE()))


# --- the commands --------------------------------------------------------------------------------


@pytest.fixture
def planned(tmp_path, capsys):
    """Fifty documents in ten chunks, and nothing encoded."""
    plan(source_of(records(50), tmp_path), tmp_path / "s.zarr", 5)
    capsys.readouterr()
    return tmp_path / "s.zarr"


@pytest.fixture
def cli(capsys):
    def call(*arguments):
        code = run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


def start(*arguments, **environment):
    """Start the command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "interp_embed.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def test_a_plan_has_the_documents_and_says_what_to_do_next(tmp_path, cli, monkeypatch):
    found = records(50)
    monkeypatch.chdir(tmp_path)
    source = source_of(found, tmp_path)
    before = WordSAE.loads
    given = (
        "plan",
        source.name,
        "my s.zarr",
        "--sae",
        "tests.support.fake_sae:WordSAE",
        "--chunk-documents",
        8,
    )
    code, out, err = cli(*given, "--dtype", "float16", "--description", "fifty")
    assert (code, err) == (0, "")
    assert "50 documents in 7 chunks of 8; 7 to encode" in out
    assert "interp-embed encode 'my s.zarr' --worker i/n\n" in out
    assert "interp-embed finish 'my s.zarr'" in out
    assert WordSAE.loads == before
    store = Store(tmp_path / "my s.zarr")
    assert store.frame().to_dict("records") == found
    assert (store.dtype, store.attributes["description"]) == (np.float16, "fifty")
    assert store.ledger.commits == []
    assert cli("encode", "my s.zarr", "--worker", "6/7")[0] == 0
    assert "all of them are encoded" in cli(*given, "--dtype", "float16")[1]
    code, _, err = cli(*given, "--dtype", "float32")
    assert code == 1
    assert "dtype" in err


def test_workers_name_an_sae_that_the_store_cannot_name(tmp_path, cli, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from tests.support.fake_sae import WordSAE\n"
        "def make():\n"
        "    class Local(WordSAE):\n"
        "        pass\n"
        "    return Local()\n"
    )
    monkeypatch.chdir(tmp_path)
    source = source_of(records(9), tmp_path)
    _, out, _ = cli("plan", source.name, "s.zarr", "--sae", "mine:make")
    assert "interp-embed encode s.zarr --worker i/n --sae mine:make" in out
    code, _, err = cli("encode", "s.zarr", "--worker", "0/1")
    assert code == 1
    assert "cannot be rebuilt" in err
    assert "--sae" in err
    assert cli("encode", "s.zarr", "--worker", "0/1", "--sae", "mine:make")[0] == 0
    assert cli("finish", "s.zarr")[0] == 0


def test_finishing_lists_the_missing_chunks_and_does_nothing(planned, cli):
    store = Store(planned)
    encode(store, WordSAE(), worker=Worker(1, 2), batch_size=5)
    for commit in Store(planned).ledger.commits:
        if commit.start // 5 in (0, 3, 4, 5, 9):
            (planned / commit.key).unlink()
    before = sorted(p.name for p in (planned / "commits").iterdir())
    code, out, _ = cli("finish", planned)
    assert code == 1
    assert "5 of 10 chunks are missing" in out
    assert "missing: 0, 3-5, 9\n" in out
    assert sorted(p.name for p in (planned / "commits").iterdir()) == before
    with pytest.raises(RuntimeError, match=r"5 of its planned chunks are missing \(0, 3-5, 9\)"):
        finish_store(Store(planned))
    assert cli("encode", planned, "--worker", "0/1")[0] == 0
    code, out, _ = cli("finish", planned)
    assert code == 0
    assert "49 of 50 documents encoded" in out
    assert "for example document 16" in out
    assert verify(planned) == []
    assert cli("finish", planned)[0] == 0


def test_a_store_alone_is_encoded_and_finished(planned, cli):
    code, out, _ = cli("encode", planned)
    assert code == 0
    assert "49 documents encoded" in out
    assert verify(planned) == []
    assert (planned / "manifest.json").exists()
    assert "0 documents encoded" in cli("encode", planned)[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--worker", "2/2"], 2, "worker must be from 0/2 to 1/2, got 2/2"),
        (["--worker", "one"], 2, "must have the form i/n"),
        (["--dtype", "float16"], 2, "--dtype is for a new store"),
        (["--save-every", "3"], 2, "--save-every is for a new store"),
        (["--gpus", "all", "--processes", "2"], 2, "cannot be combined"),
        (["--gpus", "all"], 1, "this process sees 0 GPUs. To run processes on the CPU"),
        (["--gpus", "1"], 1, "this process sees 0 GPUs"),
        (["--gpus", "some"], 1, "'all', a number of GPUs, or a list"),
        (["--device", "cuda:0"], 1, "--device cuda:0"),
        (["--sae", "tests.support.fake_sae:WideSAE"], 1, "was made with other documents"),
    ],
)
def test_what_cannot_be_meant_is_refused(planned, cli, monkeypatch, arguments, code, message):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found, out, err = cli("encode", planned, *arguments)
    assert (found, out) == (code, "")
    assert message in " ".join(err.split())


def test_no_store_and_a_worker_without_a_plan_are_refused(tmp_path, cli):
    source = source_of(records(3), tmp_path)
    assert "there is no store" in cli("finish", tmp_path / "nowhere")[2]
    code, _, err = cli("encode", source)
    assert code == 1
    assert "is a file, but a store is a folder" in err
    code, _, err = cli("encode", source, tmp_path / "s", "--worker", "0/2")
    assert code == 2
    assert "interp-embed plan" in " ".join(err.split())
    assert not (tmp_path / "s").exists()


def test_an_sae_that_is_not_there_is_refused_before_documents_are_written(tmp_path, cli):
    pytest.importorskip("sae_lens")
    source = source_of(records(3), tmp_path)
    for sae, message in [
        ("no-such/thing", "release='no-such' is not a release that SAELens knows"),
        ("gpt2-small-res-jb/blocks.8.hook_resid", "which has blocks.8.hook_resid_pre"),
    ]:
        code, _, err = cli("plan", source, tmp_path / "s", "--sae", sae)
        assert code == 1
        assert message in err
        assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["plan", "finish"])
def test_an_interrupted_command_says_how_to_go_on(planned, tmp_path, cli, monkeypatch, command,
                                                  number, code):  # fmt: skip
    def interrupted(*_, **__):
        signal.raise_signal(number)

    source = source_of(records(50), tmp_path)
    arguments = [
        "plan",
        source,
        planned,
        "--sae",
        "tests.support.fake_sae:WordSAE",
        "--chunk-documents",
        5,
    ]
    if command == "finish":
        assert cli("encode", planned, "--worker", "0/1")[0] == 0
        arguments = ["finish", planned]
    with monkeypatch.context() as patch:
        patch.setattr("interp_embed.cli.commands.plan.plan_store", interrupted)
        patch.setattr("interp_embed.encode.planned.finish_chunks", interrupted)
        found, _, err = cli(*arguments)
    assert found == code
    assert "everything written is safe. Run the same command again to resume" in err
    assert cli(*arguments)[0] == 0


def test_processes_are_on_the_cpu_and_gpus_need_no_device(planned, cli):
    found = processes_for(None, gpus=None, processes=2, device="auto")
    assert [each.device for each in found] == ["cpu", "cpu"]
    found = processes_for(None, gpus=None, processes=1, device="cuda:1")
    assert [each.device for each in found] == ["cuda:1"]
    code, _, err = cli("encode", planned, "--gpus", "all", "--device", "cpu")
    assert code == 2
    assert "--gpus already chooses the devices" in " ".join(err.split())


def test_lines_of_json_that_a_worker_s_sae_prints_are_messages(capsys):
    worker = Worker(0, 1)
    _Screen([worker], "none").show(worker, '{"documents": 3}')
    _Screen([worker], "json").show(worker, '{"documents": 3}')
    plain, wrapped = capsys.readouterr().err.splitlines()
    assert plain == '[0/1] {"documents": 3}'
    assert json.loads(wrapped) == {"worker": "0/1", "message": '{"documents": 3}'}


def test_gpus_that_are_not_there_are_refused_before_documents_are_written(
    tmp_path, cli, monkeypatch
):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    source = source_of(records(3), tmp_path)
    code, _, err = cli(
        "encode", source, tmp_path / "s", "--sae", "tests.support.fake_sae:WordSAE", "--gpus", "2"
    )
    assert code == 1
    assert "sees 0 GPUs" in err
    assert not (tmp_path / "s").exists()


def test_a_worker_that_leaves_chunks_missing_says_so_with_its_exit_code(planned, cli, monkeypatch):
    monkeypatch.setattr("interp_embed.cli.commands.workers.missing_chunks", lambda store: [3, 4])
    code, out, _ = cli("encode", planned, "--worker", "0/2")
    assert code == 1
    assert "2 chunks are still missing" in out


def test_gpus_are_those_that_the_process_sees(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus("all") == ["0", "1", "2"]
    assert visible_gpus("2") == ["0", "1"]
    assert visible_gpus("2,") == ["2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-1f, 7")
    assert visible_gpus("all") == ["4", "GPU-1f", "7"]
    assert visible_gpus("0,2") == ["4", "7"]
    for wanted in ("4", "0", "3,", "1,1", "", ",", "-1", "0-2"):
        with pytest.raises(ValueError, match="--gpus"):
            visible_gpus(wanted)
    found = processes_for(Worker(1, 2), gpus="0,2", processes=None, device="auto")
    assert [(str(p.worker), p.environment, p.device) for p in found] == [
        ("2/4", {"CUDA_VISIBLE_DEVICES": "4"}, "cuda:0"),
        ("3/4", {"CUDA_VISIBLE_DEVICES": "7"}, "cuda:0"),
    ]


@pytest.mark.parametrize("log", ["json", "none"])
def test_processes_of_one_machine_encode_and_finish(tmp_path, log):
    found = records(40)
    given = [
        "--sae",
        "tests.support.fake_sae:WordSAE",
        "--processes",
        "2",
        "--batch-size",
        "2",
        "--log",
        log,
    ]
    child = start("encode", source_of(found, tmp_path), tmp_path / "s", *given)
    out, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, err
    assert "complete, 39 of 40 documents encoded" in out
    lines = err.splitlines()
    if log == "json":
        records_ = [json.loads(line) for line in lines]
        assert {r["worker"] for r in records_} == {"0/2", "1/2"}
        assert {r["worker"] for r in records_ if "tokens_per_s" in r} == {"0/2", "1/2"}
    else:
        assert len(lines) == 2, err
        assert {line[:5] for line in lines} == {"[0/2]", "[1/2]"}
    assert_same(tmp_path / "s", Dataset(found, WordSAE()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_processes_and_they_can_be_started_again(planned, tmp_path, number):
    log = tmp_path / "log"
    given = ["encode", planned, "--processes", "2", "--batch-size", "1"]
    child = start(*given, **{SLOW: "0.2", LOG: str(log)})
    wait_until(lambda: log.exists() and len(log.read_text().split()) >= 6)
    child.send_signal(number)
    _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 128 + number, err
    assert err.count("everything committed is safe. Run the same command again") == 2
    held = Store(planned).ledger.n_held
    assert 0 < held < 50
    assert not (planned / "manifest.json").exists()
    again = start(*given)
    _, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, err
    assert_same(planned, Dataset(records(50), WordSAE()))


def test_a_process_that_dies_is_made_good_by_the_others_and_still_counts(planned):
    child = start("encode", planned, "--processes", "2", "--log", "json", **{SLOW: "0.05"})
    wait_until(lambda: children_of(child.pid))
    found = children_of(child.pid)
    os.kill(found[0], signal.SIGKILL)
    out, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 128 + signal.SIGKILL, err
    assert "complete, 49 of 50" in out
    assert_same(planned, Dataset(records(50), WordSAE()))


def children_of(pid):
    return [p.pid for p in psutil.Process(pid).children()]


def test_encoding_by_call_is_like_the_command(planned):
    report = encode(planned, worker="1/2", device="cpu")
    assert (report.encoded, report.failed) == (49, 1)
    assert not (planned / "manifest.json").exists()
    again = encode(planned, WordSAE())
    assert (again.encoded, again.failed) == (0, 1), "what failed is tried again"
    assert verify(planned) == []
    assert Dataset.load_from_file(planned).feature_labels()[0] == "zeroth"
    with pytest.raises(FingerprintMismatchError):
        encode(planned, WordSAE(scale=2.0), worker="0/1")
    with pytest.raises(ValueError, match="client cannot be combined with sae or worker"):
        encode(planned, WordSAE(), client=object())


@pytest.mark.model
def test_the_sae_of_this_library_is_found_by_the_workers(tmp_path, cli):
    source = source_of([{"text": "a cat sat on the mat"}, {"text": "the end"}], tmp_path)
    code, out, err = cli("plan", source, tmp_path / "s", "--chunk-documents", 1)
    assert code == 0, err
    assert f"encode {tmp_path / 's'} --worker i/n\n" in out, "no --sae is needed"
    code, out, err = cli("encode", tmp_path / "s", "--worker", "1/2", "--device", "cpu")
    assert code == 0, err
    assert "2 documents encoded" in out
    assert cli("finish", tmp_path / "s")[0] == 0
    found = Dataset.load_from_file(tmp_path / "s")
    assert found.sae is not None
    assert found.latents().shape == (2, 4096)
    assert verify(tmp_path / "s") == []
