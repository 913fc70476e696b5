"""The pipeline's stages: how far they run ahead, how they end, and what an interrupt leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from interp_embed import Dataset
from interp_embed.core.progress import chosen_log, log_as
from interp_embed.encode import encode_store
from interp_embed.encode.interrupts import TerminatedError, kept_interrupts
from interp_embed.encode.pipeline_thread import Stage
from interp_embed.encode.portions import Piece, commit_size, cut
from interp_embed.sae import BaseSAE
from interp_embed.store import Store
from interp_embed.store.ledger import Plan
from interp_embed.store.storage import LocalStorage
from interp_embed.store.verify.verifier import verify
from interp_embed.store.write.writer import StoreWriter
from interp_embed.testing import assert_chunks_equal, read_everything
from tests.support.fake_sae import FAIL, LOG, WordSAE, expected
from tests.support.paths import PYTHON_PATH
from tests.support.waiting import PATIENCE, wait_until


def records(texts):
    return [{"text": t} for t in texts]


def planned(path, texts, sae=None, **settings):
    """A store with its documents, and nothing encoded."""
    data = Dataset(
        records(texts), sae or WordSAE(), compute_activations=False, save_path=path, **settings
    )
    return Store(data.selection.store.storage)


@pytest.fixture(autouse=True)
def _no_threads_are_left():
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + PATIENCE
    while left := [
        t
        for t in set(threading.enumerate()) - before
        if t.name.startswith(("interp-embed-read", "interp-embed-commit", "interp-embed-write"))
    ]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.01)


# --- pieces --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "batch", "size"),
    [
        (40, 8, 16),
        (8, 8, 8),
        (1, 8, 1),
        (16, 8, 8),
        (24, 8, 8),
        (1000, 8, 496),
        (5, 2, 2),
        (3, 1, 1),
    ],
)
def test_a_commit_is_half_of_what_may_be_lost_in_whole_batches(most, batch, size):
    assert commit_size(most, batch) == size


@pytest.mark.parametrize(
    ("runs", "most", "size"),
    [
        ([(0, 100)], 40, 16),
        ([(3, 4), (7, 61)], 10, 4),
        ([(5, 5 + 80)], 40, 40),
        ([(39, 41)], 40, 8),
    ],
)
def test_pieces_cover_the_runs_and_depend_on_document_numbers_only(runs, most, size):
    plan = Plan(1000, 40, [], [], {})
    pieces = list(cut(plan, runs, most, size))
    assert [d for p in pieces for d in range(p.start, p.stop)] == [
        d for a, b in runs for d in range(a, b)
    ]
    assert all(0 < len(p) <= size for p in pieces)
    edges = {e % most % size for p in pieces for e in (p.start, p.stop) if e % most}
    inner = {e % most % size for run in runs for e in run}
    assert edges <= {0} | inner


# --- how far stages run ahead ----------------------------------------------------------------------


class SteppedSAE(WordSAE):
    """Has a tokeniser of its own, and notes which documents are where."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.prepared, self.encoded = [], []
        self.ahead = 0
        self.threads = set()

    def prepare(self, texts):
        self.threads.add(("prepare", threading.current_thread().name))
        self.prepared += texts
        self.ahead = max(self.ahead, len(self.prepared) - len(self.encoded))
        return [("prepared", text) for text in texts]

    def encode_prepared(self, prepared):
        self.threads.add(("encode", threading.current_thread().name))
        assert all(kind == "prepared" for kind, _ in prepared)
        texts = [text for _, text in prepared]
        self.encoded += texts
        return super().encode_prepared(texts)

    def fingerprint(self):
        return WordSAE().fingerprint()


class CountingStorage(LocalStorage):
    """Says how many documents are committed, and may take its time for that."""

    def __init__(self, root, seconds=0.0):
        super().__init__(root)
        self.seconds = seconds
        self.committed = 0

    def put_if_absent(self, key, data):
        if not key.startswith("commits/"):
            return super().put_if_absent(key, data)
        time.sleep(self.seconds)
        done = super().put_if_absent(key, data)
        start, stop, _ = key.removeprefix("commits/").split("-")
        self.committed += int(stop) - int(start)
        return done


@pytest.mark.parametrize(("batch", "most"), [(1, 1), (2, 2), (1, 4), (2, 8), (3, 8), (1, 7)])
def test_no_more_is_encoded_and_not_committed_than_a_crash_may_lose(batch, most, tmp_path):
    texts = [f"doc{i} word" for i in range(40)]
    storage = CountingStorage(tmp_path / "s", 0.01)
    store = planned(storage, texts)
    lost = []

    class Watched(SteppedSAE):
        def encode_prepared(self, prepared):
            found = super().encode_prepared(prepared)
            lost.append(len(self.encoded) - storage.committed)
            return found

    sae = Watched()
    encode_store(store, sae, batch_size=batch, documents_per_commit=most, finish=False)
    assert storage.committed == 40
    assert max(lost) <= most
    if most >= 2 * batch:
        assert max(lost) > commit_size(most, batch), "the device waited for every commit"


def test_texts_are_prepared_ahead_on_another_thread_and_not_far(tmp_path):
    texts = [f"doc{i} word" for i in range(60)]
    store = planned(tmp_path / "s", texts)
    sae = SteppedSAE()
    sae.slow = 0.002
    encode_store(store, sae, batch_size=2, documents_per_commit=8)
    assert sae.threads == {("prepare", "interp-embed-read"), ("encode", "MainThread")}
    assert 4 < sae.ahead <= 12, "at most the piece that is encoded, and two more"


def test_work_is_taken_one_run_at_a_time_and_shortly_before_its_turn(tmp_path):
    texts = [f"doc{i} word" for i in range(60)]
    store = planned(tmp_path / "s", texts)
    sae = SteppedSAE()
    early = []

    def work():
        for start in range(40, 0, -8):
            early.append(start)
            assert len(early) * 8 - len(sae.encoded) <= 24
            yield start, start + 8

    report = encode_store(
        store, sae, batch_size=4, documents_per_commit=8, work=work(), finish=False
    )
    assert report.encoded == 40
    assert early == [40, 32, 24, 16, 8]
    store.refresh()
    assert list(store.ledger.missing) == [(0, 8), (48, 60)]
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_no_work_loads_no_model(tmp_path):
    store = planned(tmp_path / "s", ["a", "b"])

    class Never(WordSAE):
        def load_models(self):
            raise AssertionError("loaded for nothing")

        def fingerprint(self):
            return WordSAE().fingerprint()

    assert encode_store(store, Never(), work=iter([]), finish=False).encoded == 0


@pytest.mark.parametrize("most", [1, 2, 3, 8, 100])
def test_order_and_content_are_those_of_documents_encoded_one_by_one(most, tmp_path):
    rng = np.random.default_rng(most)
    texts = [f"doc{i} " + "word " * int(n) for i, n in enumerate(rng.integers(0, 30, 50))]
    texts[7], texts[8], texts[30] = "", f"x {FAIL}", None
    alone = WordSAE()
    store = planned(tmp_path / "s", texts)
    report = encode_store(store, SteppedSAE(), batch_size=3, documents_per_commit=most)
    store.refresh()
    alone.load()
    for number, text in enumerate(texts):
        located = store.locate(number)
        if number in (8, 30):
            assert located[0].reason(located[1])
            continue
        np.testing.assert_array_equal(located[0].csr(located[1]).toarray(), expected(text))
    assert (report.encoded, report.failed) == (48, 2)
    assert 0 < report.device_seconds <= report.seconds
    assert verify(tmp_path / "s") == []


# --- what SAEs may override --------------------------------------------------------------------------


class OlderSAE(SteppedSAE):
    """Overrides `encode_chunk` of a class that prepares: what it overrides is what runs."""

    def encode_chunk(self, texts):
        assert all(isinstance(text, str) for text in texts)
        self.called = True
        return super().encode_chunk(texts)


def test_a_subclass_that_overrides_encode_chunk_is_given_texts(tmp_path):
    sae = OlderSAE()
    encode_store(planned(tmp_path / "s", ["a b", "c"]), sae)
    assert sae.called
    assert not sae.prepared


def test_a_tokeniser_that_fails_takes_its_document_only(tmp_path):
    class Picky(SteppedSAE):
        def prepare(self, texts):
            if any("bad" in text for text in texts):
                raise UnicodeError("no such character")
            return super().prepare(texts)

    texts = [f"doc{i}" for i in range(150)]
    texts[70] = "bad"
    store = planned(tmp_path / "s", texts, save_every_batch=20)
    report = encode_store(store, Picky())
    assert (report.encoded, report.failed) == (149, 1)
    data = Dataset.load_from_file(tmp_path / "s")
    assert data.failures().to_dict("records") == [
        {"document": 70, "reason": "UnicodeError: no such character"}
    ]


def test_long_texts_are_prepared_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("interp_embed.encode.isolate._CHARACTERS_AT_ONCE", 100)
    calls = []

    class Noting(SteppedSAE):
        def prepare(self, texts):
            calls.append([len(text) for text in texts])
            return super().prepare(texts)

    sizes = [40, 40, 40, 300, 10, 90, 1, 1, 1]
    store = planned(tmp_path / "s", ["x" * size for size in sizes])
    encode_store(store, Noting(), documents_per_commit=100)
    assert calls == [[40, 40], [40], [300], [10, 90], [1, 1, 1]]


def test_an_sae_that_makes_its_own_batches_is_given_whole_commits(tmp_path):
    class Whole(SteppedSAE):
        makes_batches = True
        sizes = ()

        def encode_prepared(self, prepared):
            self.sizes = (*self.sizes, len(prepared))
            return super().encode_prepared(prepared)

    sae = Whole()
    encode_store(
        planned(tmp_path / "s", [f"d{i}" for i in range(80)]), sae, documents_per_commit=40
    )
    assert sae.sizes == (16, 16, 8, 16, 16, 8)


# --- errors ------------------------------------------------------------------------------------------


class StageError(Exception):
    pass


@pytest.mark.parametrize("stage", ["read", "encode", "write", "work"])
def test_an_error_of_any_stage_ends_the_others_and_is_raised(stage, tmp_path, monkeypatch):
    texts = [f"doc{i} word" for i in range(40)]
    store = planned(tmp_path / "s", texts)
    sae = SteppedSAE()
    calls = []

    def failing(original, at):
        def call(*args, **kwargs):
            calls.append(args)
            if len(calls) == at:
                raise StageError(stage)
            return original(*args, **kwargs)

        return call

    def work():
        yield from [(0, 8), (8, 16)]
        raise StageError(stage)

    arguments = {}
    if stage == "read":
        monkeypatch.setattr(store, "frame", failing(store.frame, 3))
    elif stage == "write":
        monkeypatch.setattr(StoreWriter, "write", failing(StoreWriter.write, 3))
    elif stage == "work":
        arguments["work"] = work()
    else:  # what is no Exception is nobody's failure but the run's

        class Stop(BaseException):
            pass

        sae.encode_prepared = failing(sae.encode_prepared, 3)
        monkeypatch.setattr(sys.modules[__name__], "StageError", Stop)
    with pytest.raises(StageError, match=stage) as caught:
        encode_store(store, sae, batch_size=2, documents_per_commit=8, **arguments)
    assert "resume=True" in caught.value.__notes__[0]
    assert not sae.is_loaded()
    store.refresh()
    done = {d for d in range(40) if store.locate(d) is not None}
    assert done == set(range(len(done))), "commits are in order"
    assert len(done) < 40
    rest = WordSAE()
    encode_store(store, rest)
    assert len(rest.seen) == 40 - len(done)
    assert verify(tmp_path / "s") == []


def test_what_is_encoded_is_committed_when_a_later_stage_fails(tmp_path):
    class Breaks(SteppedSAE):
        def encode_prepared(self, prepared):
            if len(self.encoded) >= 20:
                raise KeyboardInterrupt
            return super().encode_prepared(prepared)

    storage = CountingStorage(tmp_path / "s", 0.2)
    sae = Breaks()
    with pytest.raises(KeyboardInterrupt):
        encode_store(
            planned(storage, [f"d{i}" for i in range(40)]),
            sae,
            batch_size=2,
            documents_per_commit=8,
        )
    assert storage.committed == 20 // 4 * 4


class Stuck(LocalStorage):
    """A disk that stops answering when the third commit is to be made."""

    reached, release = threading.Event(), threading.Event()

    def put_if_absent(self, key, data):
        if key.startswith("commits/") and len(list(self.list("commits"))) == 2:
            self.reached.set()
            self.release.wait(2 * PATIENCE)
        return super().put_if_absent(key, data)


def test_a_disk_that_does_not_answer_is_not_waited_for_after_an_interrupt(tmp_path, monkeypatch):
    monkeypatch.setattr("interp_embed.encode.pipeline._GRACE_SECONDS", 0.2)
    monkeypatch.setattr("interp_embed.encode.pipeline._PATIENCE_SECONDS", 0.2)
    storage = Stuck(tmp_path / "s")

    class Breaks(SteppedSAE):
        def encode_prepared(self, prepared):
            if len(self.encoded) >= 12:
                assert storage.reached.wait(PATIENCE)
                raise KeyboardInterrupt
            return super().encode_prepared(prepared)

    with pytest.raises(KeyboardInterrupt) as caught:
        encode_store(
            planned(storage, [f"d{i}" for i in range(40)]), Breaks(), batch_size=2,
            documents_per_commit=8,
        )  # fmt: skip
    assert any("abandoned" in note for note in caught.value.__notes__)
    Stuck.release.set()
    data = Dataset.load_from_file(tmp_path / "s", resume=True)
    assert len(data.filter_na_rows()) == 40


def test_storage_that_answers_nothing_is_not_asked_after_an_interrupt(tmp_path, monkeypatch):
    monkeypatch.setattr("interp_embed.encode.pipeline._GRACE_SECONDS", 0.2)
    monkeypatch.setattr("interp_embed.encode.pipeline._PATIENCE_SECONDS", 0.2)
    down, release = threading.Event(), threading.Event()

    class Down(LocalStorage):
        def _wait(self):
            if down.is_set():
                release.wait(PATIENCE)

        def put_if_absent(self, key, data):
            if key.startswith("commits/") and len(list(super().list("commits"))) == 2:
                down.set()
            self._wait()
            return super().put_if_absent(key, data)

        def get(self, key):
            self._wait()
            return super().get(key)

        def list(self, prefix=""):
            self._wait()
            return super().list(prefix)

    class Breaks(SteppedSAE):
        def encode_prepared(self, prepared):
            if len(self.encoded) >= 12:
                assert down.wait(PATIENCE)
                raise KeyboardInterrupt
            return super().encode_prepared(prepared)

    store = planned(Down(tmp_path / "s"), [f"d{i}" for i in range(40)])
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        encode_store(store, Breaks(), batch_size=2, documents_per_commit=8)
    took = time.monotonic() - begun
    release.set()
    assert took < PATIENCE / 2


def test_a_write_that_is_given_up_commits_nothing(tmp_path):
    sae = WordSAE()
    sae.load()
    chunk = sae.encode_chunk(["a b", "c"])
    store = planned(tmp_path / "s", ["a b", "c"])
    with StoreWriter(store, sae.fingerprint(), 32) as writer:
        writer.give_up()
        with pytest.raises(InterruptedError, match="given up"):
            writer.write(chunk)
    assert not [p for p in (tmp_path / "s" / "chunks").iterdir() if p.is_dir()]
    assert not list((tmp_path / "s").glob("commits/*.json"))


def test_a_stage_runs_in_order_and_nothing_after_an_error():
    stage, ran = Stage("test-stage"), []
    first = stage.submit(ran.append, 1)
    bad = stage.submit(int, "x")
    after = stage.submit(ran.append, 2)
    assert first.result() is None
    with pytest.raises(ValueError, match="invalid literal"):
        bad.result()
    assert stage.close(5)
    assert after.cancelled()
    assert ran == [1]
    assert stage.stopped


def test_a_stage_that_is_busy_says_so():
    stage, go_on = Stage("test-stage"), threading.Event()
    stage.submit(go_on.wait)
    assert not stage.close(0.01)
    go_on.set()
    assert stage.close(5)


# --- signals -----------------------------------------------------------------------------------------

CHILD = """
import sys
import tests.encode.test_stages as t
from tests.support.fake_sae import WordSAE
from interp_embed import Dataset
t.{scene}({path!r})
"""


def slow_encoding(path):
    Dataset(
        records([f"doc{i} word" for i in range(500)]), WordSAE(slow=0.02), save_path=path,
        batch_size=2, save_every_batch=4,
    )  # fmt: skip


def stuck_disk(path):
    Dataset(
        records([f"doc{i} word" for i in range(500)]), WordSAE(slow=0.02), save_path=Stuck(path),
        batch_size=2, save_every_batch=4,
    )  # fmt: skip


@pytest.mark.parametrize("scene", ["slow_encoding", "stuck_disk"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_within_seconds_and_it_can_be_resumed(number, scene, tmp_path):
    path, log = tmp_path / "s", tmp_path / "log"
    code = CHILD.format(scene=scene, path=str(path))
    child = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True,
        env={**os.environ, LOG: str(log)},
    )  # fmt: skip
    wait_until(lambda: log.exists() and len(log.read_text().split()) >= 15, child)
    child.send_signal(number)
    _, stderr = child.communicate(timeout=PATIENCE)
    assert child.returncode != 0
    assert "resume=True" in stderr
    assert ("TerminatedError" in stderr) == (number == signal.SIGTERM)
    store = Store(path)
    committed = [d for d in range(500) if store.locate(d) is not None]
    encoded = len(log.read_text().split())
    assert 0 < encoded - 8 <= len(committed) <= encoded < 500
    resumed = WordSAE()
    done = Dataset(records([f"doc{i} word" for i in range(500)]), resumed, save_path=path)
    assert len(resumed.seen) == 500 - len(committed)
    assert len(done.filter_na_rows()) == 500
    assert verify(path) == []


def test_the_command_line_logs_json_and_leaves_with_143_after_sigterm(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"doc{i} word"}) + "\n" for i in range(500))
    )
    (tmp_path / "slow.py").write_text(
        "from tests.support.fake_sae import WordSAE\n"
        "class Slow(WordSAE):\n"
        "    def encode(self, texts):\n"
        "        import time; time.sleep(0.05)\n"
        "        return super().encode(texts)\n"
    )
    main = "from interp_embed.cli import main; main()"
    command = [sys.executable, "-c", main, "encode", "a.jsonl", "s.zarr", "--sae"]
    command += ["slow:Slow", "--batch-size", "2", "--save-every", "2", "--log", "json"]
    paths = [str(tmp_path), PYTHON_PATH]
    child = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    lines = [child.stderr.readline(), child.stderr.readline()]
    assert all(json.loads(line)["total"] == 500 for line in lines)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 143, err
    assert "terminated\n" in err
    assert "Run the same command again to resume" in err
    assert "Traceback" not in err


def test_sigterm_raises_only_where_nobody_else_handles_it():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminatedError), kept_interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with kept_interrupts() as check:
            signal.raise_signal(signal.SIGTERM)
            check()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [1]


def test_a_swallowed_sigterm_is_raised_by_the_check():
    with kept_interrupts() as check:
        check()
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(TerminatedError):
            check()


# --- progress ----------------------------------------------------------------------------------------


def test_the_json_log_has_lines_of_numbers(tmp_path, capfd):
    texts = ["one two", None, f"x {FAIL}", "three", "four five six"]
    store = planned(tmp_path / "s", texts)
    report = encode_store(store, WordSAE(), batch_size=1, documents_per_commit=1, log="json")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert len(lines) >= 2
    first, last = lines[0], lines[-1]
    assert set(first) == {
        "documents", "total", "failed", "tokens", "tokens_per_s", "nnz_per_token", "device_share",
        "elapsed_s", "eta_s",
    }  # fmt: skip
    assert first["documents"] == 1
    assert (last["documents"], last["total"], last["failed"]) == (5, 5, 2)
    assert last["tokens"] == report.n_tokens == 6
    assert last["nnz_per_token"] == pytest.approx(report.nnz / 6, abs=0.01)
    assert 0 < last["device_share"] <= 1
    assert last["eta_s"] == 0
    assert last["tokens_per_s"] > 0


def test_a_log_may_be_chosen_around_what_encodes(capfd):
    with log_as("json"):
        Dataset(records(["a"]), WordSAE())
        assert chosen_log() == "json"
        assert chosen_log("none") == "none"
    assert json.loads(capfd.readouterr().err.splitlines()[-1])["documents"] == 1
    with log_as("none"):
        Dataset(records(["a"]), WordSAE())
    assert capfd.readouterr().err == ""
    with pytest.raises(ValueError, match="one of bar, json, none, got 'xml'"):
        chosen_log("xml")


def test_where_work_is_given_nobody_knows_the_total(tmp_path, capfd):
    store = planned(tmp_path / "s", ["a", "b"])
    encode_store(store, WordSAE(), work=iter([(0, 1)]), log="json", finish=False)
    last = json.loads(capfd.readouterr().err.splitlines()[-1])
    assert (last["documents"], last["total"], last["eta_s"]) == (1, None, None)


def test_the_chunks_of_a_pipeline_read_as_those_of_memory(tmp_path):
    texts = [f"doc{i} some words" for i in range(30)]
    here = Dataset(records(texts), SteppedSAE(), save_path=tmp_path / "s", batch_size=2)
    memory = Dataset(records(texts), WordSAE())
    assert_chunks_equal(
        read_everything(here.selection.store), read_everything(memory.selection.store)
    )


def test_the_base_class_prepares_nothing():
    assert BaseSAE.prepare(WordSAE(), ["a", "b"]) == ["a", "b"]
    assert Piece(3, 7).again is False
