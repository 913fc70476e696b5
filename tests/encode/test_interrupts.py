"""Signals during a run: whose handler is called, what ends the run, and what is left afterwards."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from interp_embed.encode.interrupts import TerminatedError, kept_interrupts

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)

PROGRAM = """
import json, os, signal, threading, traceback
from scipy.sparse import csr_matrix
from interp_embed import Dataset
from interp_embed.sae import BaseSAE

class OneTokenSAE(BaseSAE):
    '''Each document is one token; the tenth calls a function.'''
    at_ten = staticmethod(lambda: None)

    def metadata(self):
        return super().metadata()
    def load_models(self):
        pass
    def load_feature_labels(self):
        self._feature_labels = {}
    def destroy_models(self):
        pass
    def tokenize(self, documents, as_tokens=True, padding=False):
        return [[d] for d in documents] if as_tokens else {"input_ids": [[1] for _ in documents]}
    def encode(self, texts):
        if "10" in texts:
            OneTokenSAE.at_ten()
        return [csr_matrix([[1.0, 0.0]]) for _ in texts]

def encode(path):
    records = [{"text": str(i)} for i in range(20)]
    return Dataset(records, OneTokenSAE(), save_path=path, batch_size=1, save_every_batch=4)

def handlers():
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

def at_ten(function):
    OneTokenSAE.at_ten = staticmethod(function)

def send(number):
    at_ten(lambda: os.kill(os.getpid(), number))

def silent_handlers():
    heard = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    mine = handlers()
    for number in (signal.SIGINT, signal.SIGTERM):
        send(number)
        assert len(encode(f"silent{number}").filter_na_rows()) == 20
        assert handlers() == mine
    assert heard == [signal.SIGINT, signal.SIGTERM], heard

def raising_handler():
    class Enough(Exception):
        pass
    def handler(number, frame):
        raise Enough
    signal.signal(signal.SIGINT, handler)
    send(signal.SIGINT)
    try:
        encode("raising")
    except Enough as stop:
        assert "resume=True" in stop.__notes__[0]
    else:
        raise AssertionError("the run went on")
    assert handlers() == (handler, signal.SIG_DFL)

def interrupted():
    for number in (signal.SIGINT, signal.SIGTERM):
        send(number)
        try:
            encode(f"interrupted{number}")
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("the run went on")
        assert handlers() == DEFAULT
        at_ten(lambda: None)
        assert len(encode(f"interrupted{number}").filter_na_rows()) == 20
        assert handlers() == DEFAULT

def failed():
    def broken():
        assert handlers() != DEFAULT
        raise SystemExit("what no run can go on after")
    at_ten(broken)
    try:
        encode("failed")
    except SystemExit:
        pass
    else:
        raise AssertionError("the run went on")
    assert handlers() == DEFAULT

def threaded():
    def forbidden(*_):
        raise AssertionError("a thread touched signals")
    seen, done = [], []
    at_ten(lambda: seen.append(handlers()))
    real, signal.signal = signal.signal, forbidden
    try:
        thread = threading.Thread(target=lambda: done.append(encode("threaded")))
        thread.start()
        thread.join()
    finally:
        signal.signal = real
    assert len(done[0].filter_na_rows()) == 20
    assert seen == [DEFAULT]

DEFAULT = (signal.default_int_handler, signal.SIG_DFL)
for scene in (silent_handlers, raising_handler, interrupted, failed, threaded):
    signal.signal(signal.SIGINT, DEFAULT[0])
    signal.signal(signal.SIGTERM, DEFAULT[1])
    at_ten(lambda: None)
    try:
        scene()
    except BaseException:
        print(json.dumps([scene.__name__, traceback.format_exc()]), flush=True)
    else:
        print(json.dumps([scene.__name__, ""]), flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Run all scenes in one process, and send it SIGTERM at the end."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path_factory.mktemp("stores"),
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    """Make sure that a test leaves the handlers as it found them."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    after = [signal.getsignal(number) for number in SIGNALS]
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)
    assert after == before


@pytest.mark.parametrize(
    "scene",
    [
        pytest.param("silent_handlers", id="a handler that raises nothing lets the run go on"),
        pytest.param("raising_handler", id="what a handler raises ends the run"),
        pytest.param("interrupted", id="after an interrupt the handlers are those of before"),
        pytest.param("failed", id="after an error the handlers are those of before"),
        pytest.param("threaded", id="a run in another thread leaves signals alone"),
    ],
)
def test_during_a_run(scene: str, child: subprocess.CompletedProcess[str]) -> None:
    found = dict(json.loads(line) for line in child.stdout.splitlines())
    assert found.get(scene, child.stderr) == ""


def test_after_a_run_sigterm_ends_the_process_as_ever(
    child: subprocess.CompletedProcess[str],
) -> None:
    assert child.returncode == -signal.SIGTERM, child.stderr


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with kept_interrupts() as check:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            signal.raise_signal(signal.SIGTERM)
            check()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_swallowed_inside_is_raised_inside_and_outside(number: signal.Signals) -> None:
    with kept_interrupts() as outside:
        with kept_interrupts() as inside:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(number)
            with pytest.raises(KeyboardInterrupt):
                inside()
        with pytest.raises(KeyboardInterrupt):
            outside()
        with kept_interrupts() as later:
            later()  # nothing arrived since


def test_the_outer_handlers_stay_until_the_outer_end() -> None:
    with kept_interrupts():
        installed = [signal.getsignal(number) for number in SIGNALS]
        with contextlib.suppress(ZeroDivisionError), kept_interrupts():
            assert [signal.getsignal(number) for number in SIGNALS] == installed
            raise ZeroDivisionError
        assert [signal.getsignal(number) for number in SIGNALS] == installed
        with pytest.raises(TerminatedError):
            signal.raise_signal(signal.SIGTERM)


def test_a_handler_that_is_installed_meanwhile_is_not_replaced() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def theirs(number: int, frame: Any) -> None: ...

    with kept_interrupts():
        signal.signal(signal.SIGTERM, theirs)
    assert signal.getsignal(signal.SIGTERM) is theirs
    signal.signal(signal.SIGTERM, before)


def test_other_threads_get_a_check_that_never_raises() -> None:
    found = []

    def elsewhere() -> None:
        with kept_interrupts() as check:
            found.append([signal.getsignal(number) for number in SIGNALS])
            check()

    before = [signal.getsignal(number) for number in SIGNALS]
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [before]
