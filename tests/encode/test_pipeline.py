"""Encoding: failures stay with their documents, interruptions lose little, and nobody is in the way."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from interp_embed import Dataset
from interp_embed.encode import encode, encode_store
from interp_embed.errors import FingerprintMismatchError
from interp_embed.store import Store
from interp_embed.store.storage import LocalStorage
from interp_embed.store.verify.verifier import verify
from interp_embed.testing import (
    FaultyStorage,
    InjectedError,
    assert_chunks_equal,
    read_everything,
)
from tests.support.fake_sae import FAIL, LOG, NAN, NONE, WideSAE, WordSAE, expected
from tests.support.fork_server import alive, documents, wait_for
from tests.support.waiting import PATIENCE, wait_until


def records(texts):
    return [{"text": t} for t in texts]


def assert_sound(path):
    assert verify(path) == []


# --- failures ------------------------------------------------------------------------------------


class PickySAE(WideSAE):
    """Its batches fail as a whole, and it notes their sizes."""

    def __init__(self, most=10**9, **kwargs):
        super().__init__(**kwargs)
        self.most = most
        self.batches = []

    def encode_chunk(self, texts):
        self.batches.append(len(texts))
        if len(texts) > self.most:
            raise MemoryError("too much at once")
        if any(FAIL in t for t in texts):
            raise RuntimeError("a bad text")
        return super().encode_chunk(texts)


def test_a_failing_batch_is_halved_until_the_document_to_blame_is_alone():
    texts = [f"doc{i}" for i in range(8)]
    texts[5] = f"d{FAIL}"
    sae = PickySAE()
    dataset = Dataset(records(texts), sae, batch_size=8)
    assert dataset.failures().to_dict("records") == [
        {"document": 5, "reason": "RuntimeError: a bad text"}
    ]
    assert sorted(sae.batches, reverse=True) == [8, 4, 4, 2, 2, 1, 1]
    for i in set(range(8)) - {5}:
        np.testing.assert_array_equal(dataset[i].latents("all"), expected(texts[i]))


def test_batches_too_large_for_memory_become_smaller_and_recover_step_by_step():
    texts = [f"doc{i}" for i in range(80)]
    sae = PickySAE(most=3)
    dataset = Dataset(records(texts), sae, batch_size=16)
    assert len(dataset.failures()) == 0
    assert sae.batches[:4] == [16, 8, 4, 2]
    assert sum(n > 3 for n in sae.batches) <= 8, "the same mistake again and again"


def test_batches_grow_again_once_there_is_memory():
    class Mending(PickySAE):
        def encode_chunk(self, texts):
            self.most = 3 if len(self.batches) < 4 else 10**9
            return super().encode_chunk(texts)

    mending = Mending()
    Dataset(records([f"doc{i}" for i in range(400)]), mending, batch_size=16, save_every_batch=40)
    assert mending.batches[:4] == [16, 8, 4, 2]
    steps = sorted(set(mending.batches[3:]))
    assert steps[-1] == 16
    assert all(b <= a + max(1, a // 4) for a, b in pairwise(steps)), "it does not grow step by step"


def test_every_document_may_fail():
    sae = PickySAE(most=0)
    dataset = Dataset(records(["a", "b", "c"]), sae, batch_size=2)
    assert dataset.failures()["reason"].tolist() == ["MemoryError: too much at once"] * 3


def test_batches_hold_neighbours_in_length_and_results_keep_the_order():
    class Noting(WordSAE):
        def encode(self, texts):
            lengths.append([len(t) for t in texts])
            return super().encode(texts)

    lengths = []
    rng = np.random.default_rng(0)
    texts = [" ".join(["word"] * int(n)) + f" {i}" for i, n in enumerate(rng.integers(1, 40, 20))]
    dataset = Dataset(records(texts), Noting(), batch_size=4, save_every_batch=10)
    assert lengths == [sorted(batch) for batch in lengths]
    assert [n for batch in lengths for n in batch] == sorted(map(len, texts))
    assert dataset.documents() == texts
    for row, text in zip(dataset, texts, strict=True):
        np.testing.assert_array_equal(row.latents("all"), expected(text))


def test_an_sae_that_returns_too_few_documents_is_not_believed():
    class Short(WordSAE):
        def encode_chunk(self, texts):
            return super().encode_chunk(texts[:-1] if len(texts) > 1 else texts)

    dataset = Dataset(records(["a", "b", "c"]), Short())
    assert len(dataset.failures()) == 0
    np.testing.assert_array_equal(dataset.latents()[2], expected("c")[0])


def test_failed_documents_with_a_text_are_tried_again_and_no_others(tmp_path):
    texts = ["fine", f"bad {FAIL}", None, f"worse {NONE}", 5, "good", "", f"last {FAIL}"]
    data = records(texts)
    first = Dataset(data, WordSAE(), save_path=tmp_path / "s", batch_size=2, save_every_batch=1)
    assert first.failures()["document"].tolist() == [1, 2, 3, 4, 7]
    still = WordSAE()
    again = Dataset(data, still, save_path=tmp_path / "s")
    assert still.seen == [f"worse {NONE}"]
    assert again.failures().equals(first.failures())
    mended = WordSAE()
    mended.mended = True
    done = Dataset(data, mended, save_path=tmp_path / "s")
    assert sorted(mended.seen) == sorted([texts[1], texts[3], texts[7]])
    assert done.failures()["document"].tolist() == [2, 4]
    for i in (0, 1, 3, 5, 7):
        np.testing.assert_array_equal(done[i].latents("all"), expected(texts[i]))
    assert_sound(tmp_path / "s")
    at_rest = WordSAE()
    Dataset(data, at_rest, save_path=tmp_path / "s")
    assert not at_rest.seen
    assert at_rest.loads == WordSAE.loads


def test_nothing_to_do_loads_no_model(tmp_path):
    data = records(["a", None])
    Dataset(data, WordSAE(), save_path=tmp_path / "s")

    class Never(WordSAE):
        def load_models(self):
            raise AssertionError("loaded for nothing")

    sae = WordSAE()
    sae.load_models = Never.load_models.__get__(sae)
    report = encode_store(Store(tmp_path / "s"), sae)
    assert (report.encoded, report.failed, report.n_tokens, report.nnz) == (0, 0, 0, 0)


def test_a_report_counts_what_was_done(tmp_path):
    texts = ["one two", None, f"x {FAIL}", "three"]
    dataset = Dataset(
        records(texts), WordSAE(), compute_activations=False, save_path=tmp_path / "s"
    )
    report = encode_store(Store(dataset.path), WordSAE(), batch_size=2)
    nnz = sum((expected(t) != 0).sum() for t in ("one two", "three"))
    assert (report.encoded, report.failed, report.n_tokens, report.nnz) == (2, 2, 3, nnz)


def test_another_sae_is_refused_before_it_is_loaded(tmp_path):
    dataset = Dataset(
        records(["a"]), WordSAE(), compute_activations=False, save_path=tmp_path / "s"
    )
    other = WordSAE(scale=3.0)
    with pytest.raises(FingerprintMismatchError, match="scale"):
        encode_store(dataset.selection.store, other)
    assert not other.is_loaded()


def test_another_width_than_the_store_s_is_refused(tmp_path):
    class Narrow(WordSAE):
        def encode(self, texts):
            return [m[:, :16] for m in super().encode(texts)]

        def fingerprint(self):
            return {}

    class Wide(WordSAE):
        def fingerprint(self):
            return {}

    data = records(["a", "b", "c", "d"])
    with pytest.raises(Interrupted):
        Dataset(
            data, stop_at(Wide, 3)(), save_path=tmp_path / "s", batch_size=1, save_every_batch=1
        )
    with pytest.raises(ValueError, match=r"the store.s 32 features, got 16"):
        Dataset(data, Narrow(), save_path=tmp_path / "s", batch_size=1, save_every_batch=1)


# --- interruptions -------------------------------------------------------------------------------


class Interrupted(KeyboardInterrupt):
    pass


def stop_at(base, document):
    class Stops(base):
        def _one(self, text):
            if len(self.seen) == document:
                raise Interrupted
            return super()._one(text)

        def fingerprint(self):
            return base(scale=self.scale).fingerprint()

    return Stops


@pytest.mark.parametrize("at", [0, 1, 5, 8])
def test_an_interrupted_run_says_how_to_go_on_and_goes_on(at, tmp_path):
    data = records([f"doc{i} word" for i in range(10)])
    sae = stop_at(WordSAE, at)()
    with pytest.raises(KeyboardInterrupt) as caught:
        Dataset(data, sae, save_path=tmp_path / "s", batch_size=2, save_every_batch=1)
    (note,) = caught.value.__notes__
    assert "Everything committed is safe" in note
    assert f"Dataset.load_from_file({str(tmp_path / 's')!r}, resume=True)" in note
    assert not sae.is_loaded()
    half = Store(tmp_path / "s")
    committed = [d for d in range(10) if half.locate(d) is not None]
    assert committed == list(range(at // 2 * 2)), "what was finished was committed on the way out"
    rest = WordSAE()
    done = Dataset(data, rest, save_path=tmp_path / "s")
    assert sorted(rest.seen) == sorted(r["text"] for r in data[len(committed) :])
    for row, record in zip(done, data, strict=True):
        np.testing.assert_array_equal(row.latents("all"), expected(record["text"]))
    assert_sound(tmp_path / "s")


SIGINT = """
import sys
from tests.support.fake_sae import WordSAE
from interp_embed import Dataset
Dataset({data!r}, WordSAE(slow=0.02), save_path={path!r}, batch_size=2, save_every_batch=1)
"""


def test_control_c_leaves_a_store_that_resumes(tmp_path):
    data = records([f"doc{i} word" for i in range(200)])
    log = tmp_path / "log"
    code = SIGINT.format(data=data, path=str(tmp_path / "s"))
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, LOG: str(log)},
    )
    wait_until(lambda: log.exists() and len(log.read_text().split()) >= 7, child)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=PATIENCE)
    assert child.returncode == -signal.SIGINT
    assert "resume=True" in stderr
    assert "Encoding" not in stderr, "no progress where nobody watches"
    store = Store(tmp_path / "s")
    committed = [d for d in range(200) if store.locate(d) is not None]
    encoded = len(log.read_text().split())
    assert 0 < encoded - 2 <= len(committed) <= encoded < 200
    done = Dataset.load_from_file(tmp_path / "s", resume=True, device="cpu")
    assert len(done.filter_na_rows()) == 200
    assert len(done.sae.seen) == 200 - len(committed)
    assert_sound(tmp_path / "s")


def test_a_disk_that_fails_stops_the_run_with_its_error(tmp_path):
    class Full(LocalStorage):
        def put_if_absent(self, key, data):
            if key.startswith("commits/") and "000000000004" in key:
                raise OSError(28, "No space left on device")
            return super().put_if_absent(key, data)

    data = records([f"doc{i}" for i in range(40)])
    sae = WordSAE()
    with pytest.raises(OSError, match="No space left") as caught:
        Dataset(data, sae, save_path=Full(tmp_path / "s"), batch_size=2, save_every_batch=1)
    assert "resume=True" in caught.value.__notes__[0]
    assert len(sae.seen) < 12, "encoding goes on long after writing failed"
    assert not sae.is_loaded()
    Dataset(data, WordSAE(), save_path=tmp_path / "s")
    assert_sound(tmp_path / "s")


def test_dying_at_any_call_to_the_disk_loses_nothing_that_was_committed(quick_path):
    texts = [f"doc{i} some words" for i in range(7)]
    texts[2], texts[5] = f"doc2 {FAIL}", ""
    data = records(texts)

    def run(save_path, sae=None):
        return Dataset(
            data, sae or WideSAE(), save_path=save_path, batch_size=1, save_every_batch=2
        )

    whole = FaultyStorage(LocalStorage(quick_path / "whole"))
    wanted = read_everything(run(whole).selection.store)
    calls = len(whole.calls)
    assert calls > 300
    died = 0
    for fail_at in range(3, calls, 17):
        path = quick_path / str(fail_at)
        try:
            run(FaultyStorage(LocalStorage(path), fail_at=fail_at))
        except InjectedError:
            died += 1
        committed = set()
        if (path / "plan.json").exists():
            store = Store(path)
            committed = {texts[d] for d in range(7) if store.locate(d) is not None}
        sae = WideSAE()
        resumed = run(path, sae)
        assert not committed & set(sae.seen), f"encoded twice after dying at call {fail_at}"
        assert_chunks_equal(read_everything(resumed.selection.store), wanted)
        assert_sound(path)
    assert died > 15


# --- company -------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0, 14, 24])
def test_several_processes_encoding_one_store_end_with_one_right_store(quick_path, late, server):
    path, log = quick_path / "s", quick_path / "log"
    first = [server.start(path, log) for _ in range(3)]
    # One more joins when nobody has begun, when the others are busy, and when they merge.
    while len(list((path / "commits").glob("*.json"))) < late and any(map(alive, first)):
        time.sleep(0.001)
    wait_for([*first, server.start(path, log)])
    errors = quick_path / "log.error"
    assert not errors.exists(), errors.read_text()
    alone = Dataset(documents(), WordSAE())
    together = Dataset(documents(), WordSAE(), save_path=path)
    assert_chunks_equal(
        read_everything(together.selection.store), read_everything(alone.selection.store)
    )
    np.testing.assert_array_equal(together.latents("sum"), alone.latents("sum"))
    assert [p for p in verify(path) if p.severity == "error"] == []


def test_what_another_process_is_writing_is_left_alone_and_what_was_abandoned_goes(tmp_path):
    chunks = tmp_path / "s" / "chunks"
    abandoned = chunks / "000000000000-000000000002-0123456789ab"
    in_progress = chunks / "000000000000-000000000004-ba9876543210"

    class Busy(WordSAE):
        def load_models(self):
            in_progress.mkdir(parents=True)
            (in_progress / "zarr.json").write_text("half of it")

        def fingerprint(self):
            return WordSAE().fingerprint()

    data = records(["a b", "c", "d", "e"])
    Dataset(data, WordSAE(), compute_activations=False, save_path=tmp_path / "s")
    abandoned.mkdir()
    (abandoned / "zarr.json").write_text("half of it")
    (tmp_path / "s" / "commits").mkdir()
    (tmp_path / "s" / "commits" / ".tmp-0123").write_text("half of it")
    Dataset(data, Busy(), save_path=tmp_path / "s", batch_size=2, save_every_batch=1)
    assert (in_progress / "zarr.json").exists()
    assert not abandoned.exists()
    assert not (tmp_path / "s" / "commits" / ".tmp-0123").exists()
    assert [p for p in verify(tmp_path / "s") if p.severity == "error"] == []


# --- progress and imports ------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_at_a_terminal_only(tmp_path, capfd, monkeypatch):
    Dataset(records(["a b", "c"]), WordSAE())
    out, err = capfd.readouterr()
    assert out == err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    Dataset(records(["a b", f"c {FAIL}"]), WordSAE())
    shown = terminal.getvalue()
    assert "Encoding: 100%" in shown
    assert "2/2" in shown
    assert "1 failed" in shown


HEAVY = ("torch", "transformers", "sae_lens", "transformer_lens", "openai", "distributed")


@pytest.mark.parametrize(
    "code",
    [
        "import interp_embed",
        "from interp_embed import Dataset, DatasetRow",
        "from interp_embed.sae import BaseSAE, LocalSAE; LocalSAE()",
        "from interp_embed import Dataset\n"
        "d = Dataset.load_from_file({path!r})\n"
        "d.latents('count', activated_threshold=1); d[0].token_activations(3); repr(d)\n"
        "d._repr_html_(); d.top_documents_for_feature(3)",
    ],
)
def test_reading_imports_nothing_that_runs_a_model(code, tmp_path):
    Dataset(records(["a b", "c"]), WordSAE(), save_path=tmp_path / "s")
    code = code.format(path=str(tmp_path / "s"))
    check = f"import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}\n{check}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_importing_the_package_imports_no_numbers_either():
    code = "import sys, interp_embed; print([m for m in ('numpy', 'zarr') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


class SwallowingSAE(WordSAE):
    """Drops an interrupt once, as a destructor or a callback does."""

    def encode(self, texts):
        if any("interrupt" in text for text in texts):
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return super().encode(texts)


def test_an_interrupt_that_something_swallowed_still_ends_the_run(tmp_path):
    texts = [{"text": t} for t in ["a", "interrupt b", "c", "d"]]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        Dataset(texts, SwallowingSAE(), save_path=tmp_path / "s", batch_size=1, save_every_batch=1)
    assert "To resume" in "".join(caught.value.__notes__)
    assert signal.getsignal(signal.SIGINT) is before
    assert [row is None for row in Dataset.load_from_file(tmp_path / "s")] == [False] * 2 + [
        True
    ] * 2


class BrokenSAE(WordSAE):
    def encode(self, texts):
        raise RuntimeError("the device is gone")


def test_a_back_end_that_fails_every_document_ends_the_run(tmp_path):
    texts = [{"text": f"word {i}"} for i in range(400)]
    with pytest.raises(
        RuntimeError, match=r"the last 100 documents all failed.*the device is gone"
    ):
        Dataset(texts, BrokenSAE(), save_path=tmp_path / "s")
    whole = Dataset(texts, WordSAE(), save_path=tmp_path / "t")
    assert len(whole.failures()) == 0


def test_many_documents_that_failed_before_may_fail_again(tmp_path):
    texts = records(f"doc{i} {NAN if i % 2 else 'good'}" for i in range(240))
    first = Dataset(texts, WordSAE(), save_path=tmp_path / "s")
    assert len(first.failures()) == 120
    again = Dataset(texts, WordSAE(), save_path=tmp_path / "s")
    assert again.failures().equals(first.failures())


def test_any_number_of_documents_in_a_row_may_be_too_long(tmp_path):
    class Short(WordSAE):
        def encode_chunk(self, texts):
            chunk = super().encode_chunk(texts)
            long = [i for i, text in enumerate(texts) if "long" in text]
            reason = "the document has 9 tokens, more than the 8 that the model and the SAE take"
            return chunk.with_failures(dict.fromkeys(long, reason))

    texts = records([*(f"long {i}" for i in range(150)), "short"])
    assert len(Dataset(texts, Short(), save_path=tmp_path / "s").failures()) == 150


@pytest.mark.parametrize("number", [0, -1, 2.5])
def test_numbers_that_make_no_sense_are_refused_before_work(number, tmp_path):
    path = tmp_path / "s"
    Dataset(records(["a"]), WordSAE(), compute_activations=False, save_path=path)
    with pytest.raises(ValueError, match=f"batch_size must be a positive integer, got {number}"):
        encode(path, WordSAE(), batch_size=number)
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        encode_store(Store(path), WordSAE(), batch_size=number)
    with pytest.raises(ValueError, match="documents_per_commit must be a positive integer"):
        encode_store(Store(path), WordSAE(), documents_per_commit=number)


def test_a_resumed_run_commits_as_often_as_it_was_asked_to(tmp_path):
    texts = [{"text": f"word {i}"} for i in range(12)]
    Dataset(texts, WordSAE(), save_path=tmp_path / "s", compute_activations=False)
    store = Store(tmp_path / "s")
    assert store.plan.documents_per_chunk == 40

    class Interrupted(WordSAE):
        def encode(self, batch):
            if "word 8" in batch:
                raise KeyboardInterrupt
            return super().encode(batch)

        def fingerprint(self):
            return WordSAE().fingerprint()

    with pytest.raises(KeyboardInterrupt):
        Dataset(texts, Interrupted(), save_path=tmp_path / "s", batch_size=2, save_every_batch=2)
    store.refresh()
    assert store.ledger.missing == ((8, 12),)


def test_settings_of_a_user_sae_need_not_be_json(tmp_path):
    class Odd(WordSAE):
        def __init__(self, size=5):
            super().__init__()
            self.size = size

        def metadata(self):
            return {"size": np.int64(self.size), "folder": Path("x")}

    texts = [{"text": "a word"}]
    Dataset(texts, Odd(), save_path=tmp_path / "s")
    with pytest.raises(FingerprintMismatchError, match="size: stored 5, given 6"):
        Dataset(texts, Odd(6), save_path=tmp_path / "s")
