"""A service that is gone, busy or silent: said in time, and no document is blamed for it."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from interp_embed import Dataset
from interp_embed.cli.logs import shown_log
from interp_embed.cli.run import run as run_cli
from interp_embed.core.progress import log_as
from interp_embed.errors import SAEUnavailableError
from interp_embed.net import waiting
from interp_embed.sae.api import ApiDocument, ApiSAE
from interp_embed.sae.http import HttpSAE
from interp_embed.sae.remote import base
from interp_embed.sae.remote.retries import retrying, trouble
from tests.support.fake_sae import WordSAE, expected, words
from tests.support.http_servers import (
    INFO,
    Said,
    Scripted,
    ServeProcess,
    protocol,
    refusing,
    when_encoding,
)
from tests.support.waiting import PATIENCE

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

FAST = {"max_retries": 1, "base_delay": 0.01}


@pytest.fixture(autouse=True)
def _shown():
    """Have what is logged on stderr, as those see it who run a command."""
    with shown_log():
        yield


@contextmanager
def loaded(sae):
    sae.load()
    try:
        yield sae
    finally:
        sae.destroy()


# What somebody who waits is told


def cut_off(times):
    """The protocol, with so many requests for documents cut in their middle."""
    left = [True] * times

    def script(method, path, body, headers):
        said = protocol(method, path, body, headers)
        if path == "/v1/encode":
            said.cut = bool(left) and left.pop()
            said.delay = 0.0 if said.cut else 0.3  # no answer overtakes one that is cut
        return said

    return script


def test_a_server_that_does_not_answer_is_said_once_and_so_is_its_return(capfd):
    with Scripted(cut_off(6)) as server:
        sae = HttpSAE(server.url, max_retries=8, base_delay=0.05, request_documents=1)
        with loaded(sae):
            texts = [f"document {i}" for i in range(8)]
            assert sae.encode_chunk(texts).status.tolist() == [0] * 8
    gone, back = capfd.readouterr().err.splitlines()
    assert gone.startswith(f"the SAE server at {server.url} does not answer (")
    # 0.05 s doubled seven times, and half of 0.05 s at each of the eight pauses.
    assert gone.endswith("trying again for about 13 s")
    assert back == f"the SAE server at {server.url} answers again"


def test_each_call_says_it_again(capfd):
    with Scripted(protocol) as server, loaded(HttpSAE(server.url, **FAST)) as sae:
        server.script = cut_off(100)
        for _ in range(2):
            with pytest.raises(SAEUnavailableError):
                sae.encode_chunk(["a"])
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(f"{server.url} does not answer" in line for line in lines)


def test_a_network_that_loses_connections_now_and_then_is_said_so_once(capfd):
    with Scripted(protocol) as server, loaded(HttpSAE(server.url, **FAST)) as sae:
        for _ in range(3):
            server.script = cut_off(1)
            assert sae.encode_chunk(["a"]).status.tolist() == [0]
    assert len(capfd.readouterr().err.splitlines()) == 2  # and that it answers again


def test_nothing_is_said_where_nothing_is_to_be_said(capfd):
    with Scripted(cut_off(2)) as server:
        sae = HttpSAE(server.url, max_retries=3, base_delay=0.01)
        with log_as("none"), loaded(sae):
            assert sae.encode_chunk(["a"]).status.tolist() == [0]
    assert capfd.readouterr().err == ""


def test_a_server_that_is_busy_for_long_is_said_to_be(capfd, monkeypatch):
    monkeypatch.setattr(waiting, "_BUSY_SECONDS", 0.5)
    refusals = [Said(429, {"error": "full"}, {"Retry-After": "1"})]
    busy = when_encoding(lambda texts: refusals.pop() if refusals else None)
    with Scripted(busy) as server, loaded(HttpSAE(server.url, **FAST)) as sae:
        assert sae.encode_chunk(["a"]).status.tolist() == [0]
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(
        f"the SAE server at {server.url} is busy or fails ({server.url}/v1/encode"
    )
    assert "429 Too Many Requests: full" in line
    assert "retrying a request in 1 s" in line


def test_a_short_pause_of_a_busy_server_is_nothing_to_speak_of(capfd):
    refusals = [Said(429, {"error": "full"})]
    busy = when_encoding(lambda texts: refusals.pop() if refusals else None)
    with Scripted(busy) as server, loaded(HttpSAE(server.url, **FAST)) as sae:
        assert sae.encode_chunk(["a"]).status.tolist() == [0]
    assert capfd.readouterr().err == ""


def test_a_server_that_is_silent_is_said_to_be(capfd, monkeypatch):
    monkeypatch.setattr(base, "_PATIENCE_SECONDS", 1.0)
    slow = when_encoding(lambda texts: Said(delay=3) if "slow" in texts else None)
    with Scripted(slow) as server, loaded(HttpSAE(server.url, timeout=1.8)) as sae:
        assert sae.encode_chunk(["slow"]).status.tolist() == [2]
    (line,) = capfd.readouterr().err.splitlines()
    assert line == (
        f"the SAE server at {server.url} has not answered for 1 s (1 request waits): it may be "
        "encoding; it times out if nothing comes for 2 s"
    )


def test_a_server_that_answers_others_meanwhile_is_not_silent(capfd, monkeypatch):
    monkeypatch.setattr(base, "_PATIENCE_SECONDS", 1.0)

    async def answer(text):
        await asyncio.sleep(1.6 if text == "slow" else 0.2)

    sae = ServiceSAE(answer, max_concurrency=2)
    with loaded(sae):
        assert sae.encode_chunk(["slow", *"abcdefg"]).status.tolist() == [0] * 8
    assert capfd.readouterr().err == ""


def test_pauses_are_announced_with_what_is_left_of_them():
    found = []

    async def fail():
        raise ConnectionError("gone")

    def tell(*pause):
        found.append(pause)

    with pytest.raises(ConnectionError):
        asyncio.run(retrying(fail, trouble, max_retries=3, base_delay=0.01, before_pause=tell))
    assert [str(error) for error, _, _ in found] == ["gone"] * 3
    for number, (_, seconds, left) in enumerate(found):
        assert 0.01 * 2**number <= seconds <= 0.01 * (2**number + 1)
        later = sum(0.01 * 2**n + 0.005 for n in range(number + 1, 3))
        assert left == pytest.approx(seconds + later)


# Before work starts


def test_a_server_that_hangs_is_told_within_seconds_when_loading(monkeypatch):
    monkeypatch.setattr("interp_embed.sae.http._INFO_SECONDS", 0.5)
    with Scripted(lambda *_: Said(delay=3)) as server:
        with pytest.raises(SAEUnavailableError, match=r"cannot be reached: ReadTimeout.*0\.5 s"):
            HttpSAE(server.url).load()
        assert server.paths() == ["/v1/info"]  # and not again and again


@pytest.mark.parametrize("many", [[], ["--processes", "2"]], ids=["one", "two"])
def test_a_wrong_url_leaves_no_store_and_starts_nothing(tmp_path, capfd, many):
    source, store = tmp_path / "texts.csv", tmp_path / "store.zarr"
    source.write_text("text\nthe cat\n")
    with refusing() as url:
        assert run_cli(["encode", str(source), str(store), "--sae", url, *many]) == 1
    line, *notes = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: the SAE server at {url} cannot be reached: ")
    assert not notes
    assert not store.exists()


def test_nothing_is_added_to_a_store_for_a_server_that_is_not_there(tmp_path, capfd):
    source, store = tmp_path / "texts.csv", tmp_path / "store.zarr"
    source.write_text("text\nthe cat\n")
    with Scripted(protocol) as server:
        Dataset([{"text": "a dog"}], HttpSAE(server.url), save_path=store)
        assert run_cli(["append", str(source), str(store)]) == 0
    assert run_cli(["append", str(source), str(store)]) == 1
    assert f"{server.url} cannot be reached" in capfd.readouterr().err
    assert len(Dataset.load_from_file(store)) == 2


def test_a_bar_shows_how_far_it_is(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")
    source = tmp_path / "texts.csv"
    source.write_text("text\n" + "".join(f"document number {i}\n" for i in range(40)))
    with Scripted(protocol) as server:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-m", "interp_embed.cli", "encode", str(source),
             str(tmp_path / "store.zarr"), "--sae", server.url],
            stderr=theirs, stdout=subprocess.DEVNULL, stdin=theirs,
        )  # fmt: skip
        os.close(theirs)
        shown = b""
        while part := read(ours):
            shown += part
        os.close(ours)
        assert process.wait(PATIENCE) == 0
    said = shown.decode()
    assert "Encoding:   0%" in said
    assert "Encoding: 100%" in said
    assert "40/40" in said


def read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # as Linux says that the other side is closed
        return b""


# Whose fault it is


TEXTS = [f"document number {i}" for i in range(12)]


class ServiceSAE(ApiSAE):
    """A service that is a function, and raises what it likes."""

    def __init__(self, answer=None, **kwargs):
        super().__init__(**{**FAST, **kwargs})
        self.answer = answer

    async def encode_document(self, text):
        found = self.answer(text)
        if (error := await found if asyncio.iscoroutine(found) else found) is not None:
            raise error
        return ApiDocument(csr_matrix(expected(text)), words(text))


class StatusError(Exception):
    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status_code = status


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_service_that_stays_busy_ends_the_run_and_no_document_is_blamed(tmp_path, status):
    """Though it has answered others of the same call."""
    store = tmp_path / "store.zarr"
    busy = threading.Event()
    busy.set()

    def answer(text):
        return StatusError(status) if busy.is_set() and text == TEXTS[7] else None

    sae = ServiceSAE(answer, max_concurrency=2)
    documents = [{"text": text} for text in TEXTS]
    with pytest.raises(
        SAEUnavailableError,
        match=f"(no longer answers|answers no request): StatusError: status {status}",
    ) as e:
        Dataset(documents, sae, save_path=store, batch_size=2, save_every_batch=2)
    assert isinstance(e.value, ConnectionError)
    assert any("resume=True" in note for note in e.value.__notes__)
    partly = Dataset.load_from_file(store)
    assert (partly.status() == "failed").sum() == 0
    assert 0 < (partly.status() == "ok").sum() < len(TEXTS)
    busy.clear()
    whole = Dataset(documents, sae, save_path=store, batch_size=2, save_every_batch=2)
    assert (whole.status() == "ok").all()
    for row, text in zip(whole.rows, TEXTS, strict=True):
        np.testing.assert_array_equal(row.activations.toarray(), expected(text))


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_that_stays_busy_and_says_it_is_well_ends_the_run(tmp_path, status):
    store = tmp_path / "store.zarr"
    busy = when_encoding(lambda texts: Said(status) if TEXTS[7] in texts else None)
    with Scripted(busy) as server:
        sae = HttpSAE(server.url, request_documents=1, **FAST)
        with pytest.raises(SAEUnavailableError, match=f"answered {status}"):
            Dataset([{"text": t} for t in TEXTS], sae, save_path=store, batch_size=4)
        assert "/health" in server.paths()
        server.script = protocol
        whole = Dataset.load_from_file(store, resume=True)
        assert (whole.status() == "ok").all()


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_is_the_failure_of_its_document(tmp_path, status):
    refuses = when_encoding(
        lambda texts: Said(status, {"error": "too much"}) if TEXTS[7] in texts else None
    )
    with Scripted(refuses) as server:
        sae = HttpSAE(server.url, **FAST)
        whole = Dataset([{"text": t} for t in TEXTS], sae, save_path=tmp_path / "store.zarr")
    failures = whole.failures()
    assert failures["document"].tolist() == [7]
    assert f"answered {status}" in failures["reason"].item()
    assert (np.delete(whole.status(), 7) == "ok").all()


def page(status):
    return Said(status, b"<html>nothing here</html>", {"Content-Type": "text/html"})


@pytest.mark.parametrize("healthy", [False, True], ids=["everywhere", "but at /health"])
@pytest.mark.parametrize(
    ("said", "message"),
    [
        (page(200), "text/html|not JSON"),
        (page(302), "302 Found"),
        (page(404), "404 Not Found"),
        (page(405), "405 Method Not Allowed"),
        (page(406), "406 Not Acceptable"),
        (page(410), "410 Gone"),
        (page(415), "415 Unsupported Media Type"),
        (Said(body=b""), "not JSON"),
        (Said(body=b"\xff\x00"), "not JSON"),
        (Said(body=b"[" * 100_000), "not JSON"),
        (Said(body=b"", headers={"X": "y"}), "content type is 'missing'|not JSON"),
    ],
)
def test_what_answers_in_place_of_a_server_ends_the_run(tmp_path, said, message, healthy):
    """A proxy whose server is gone, or the page of a network that wants a login."""
    store = tmp_path / "store.zarr"
    encoded = []

    def script(method, path, body, headers):
        encoded.extend([path] if path == "/v1/encode" else [])
        gone = len(encoded) > 2 and not (healthy and path == "/health")
        return said if gone else protocol(method, path, body, headers)

    documents = [{"text": text} for text in TEXTS]
    with Scripted(script) as server:
        sae = HttpSAE(server.url, **FAST)
        with pytest.raises(SAEUnavailableError, match=message) as e:
            Dataset(documents, sae, save_path=store, batch_size=2, save_every_batch=2)
        assert server.url in str(e.value)
        assert "\n" not in str(e.value)
        partly = Dataset.load_from_file(store)
        assert (partly.status() == "failed").sum() == 0
        assert 0 < (partly.status() == "ok").sum() < len(TEXTS)
        server.script = protocol
        whole = Dataset.load_from_file(store, resume=True)
        assert (whole.status() == "ok").all()


def without_health(script, **info):
    """A server that has no /health, and says something else of itself once it fails."""
    asked = []

    def answer(method, path, body, headers):
        if path == "/health":
            return page(404)
        said = script(method, path, body, headers)
        if path == "/v1/info":
            asked.append(path)
            return Said(body={**INFO, **info}) if len(asked) > 1 else said
        return said

    return answer


def test_a_server_may_leave_out_its_health(tmp_path):
    fails = when_encoding(lambda texts: Said(500) if TEXTS[7] in texts else None)
    with Scripted(without_health(fails)) as server:
        sae = HttpSAE(server.url, **FAST)
        whole = Dataset([{"text": t} for t in TEXTS], sae, save_path=tmp_path / "store.zarr")
    assert whole.failures()["document"].tolist() == [7]


def test_another_server_in_its_place_is_told_though_it_only_fails():
    fails = when_encoding(lambda texts: Said(500))
    with (
        Scripted(without_health(fails, sae="words-2")) as server,
        loaded(HttpSAE(server.url, **FAST)) as sae,
        pytest.raises(SAEUnavailableError, match="now has another SAE"),
    ):
        sae.encode_chunk(["a"])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (Said(500, {"error": "CUDA error"}), "answered 500 .*: CUDA error"),
        (Said(delay=8), "ReadTimeout: .* no answer within 1 s"),
    ],
    ids=["fails", "hangs"],
)
@pytest.mark.parametrize("many", [1, 4])
def test_a_server_that_encodes_nothing_and_says_it_is_well_ends_the_run(
    tmp_path, said, message, many
):
    store = tmp_path / "store.zarr"
    documents = [{"text": text} for text in TEXTS]
    broken = threading.Event()

    def change(texts):
        if TEXTS[6] in texts:
            broken.set()
        return said if broken.is_set() else None

    with Scripted(when_encoding(change)) as server:
        sae = HttpSAE(server.url, max_retries=1, base_delay=0.01, timeout=1)
        with pytest.raises(SAEUnavailableError, match=f"cannot encode even the text .*{message}"):
            Dataset(documents, sae, save_path=store, batch_size=many, save_every_batch=2)
        partly = Dataset.load_from_file(store)
        assert (partly.status() == "failed").sum() == 0
        server.script = protocol
        whole = Dataset.load_from_file(store, resume=True)
        assert (whole.status() == "ok").all()


@pytest.mark.parametrize("said", [Said(500), Said(delay=8)], ids=["fails", "hangs"])
def test_a_document_that_is_asked_for_alone_can_still_be_to_blame(tmp_path, said):
    """Otherwise a run would never come past it."""
    poison = when_encoding(lambda texts: said if TEXTS[7] in texts else None)
    with Scripted(poison) as server:
        sae = HttpSAE(server.url, max_retries=1, base_delay=0.01, timeout=2)
        store = tmp_path / "store.zarr"
        whole = Dataset(
            [{"text": t} for t in TEXTS], sae, save_path=store, batch_size=1, save_every_batch=1
        )
    assert whole.failures()["document"].tolist() == [7]


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError, TimeoutError])
def test_what_a_subclass_raises_of_a_document_is_recorded(error):
    with loaded(ServiceSAE(lambda t: error("not this one") if t == "bad" else None)) as sae:
        chunk = sae.encode_chunk(["good", "bad"])
    assert chunk.status.tolist() == [0, 2]
    assert chunk.reasons == {1: f"{error.__name__}: not this one"}


@pytest.mark.parametrize("error", [SAEUnavailableError, ConnectionError])
def test_what_a_subclass_raises_of_the_service_ends_the_run(error):
    """A connection is tried again first."""
    asked = []

    def answer(text):
        asked.append(text)
        return error("the quota is used up") if text == "bad" else None

    used_up = pytest.raises(SAEUnavailableError, match="the quota is used up")
    with loaded(ServiceSAE(answer, max_concurrency=1)) as sae, used_up:
        sae.encode_chunk(["good", "bad"])
    assert asked.count("bad") == (1 if error is SAEUnavailableError else 1 + FAST["max_retries"])


class ServedSAE(WordSAE):
    """Three methods, as the original library asked for, and a service behind one of them."""

    def encode(self, texts):
        if any("number 7" in text for text in texts):
            raise SAEUnavailableError("the service behind this is closed")
        return super().encode(texts)


def test_an_sae_of_three_methods_can_end_the_run_too(tmp_path):
    store = tmp_path / "store.zarr"
    with pytest.raises(SAEUnavailableError, match="is closed"):
        Dataset([{"text": t} for t in TEXTS], ServedSAE(), save_path=store, batch_size=1)
    partly = Dataset.load_from_file(store)
    assert (partly.status() == "failed").sum() == 0


def test_a_server_that_is_killed_says_so_while_it_is_waited_for(tmp_path):
    source = tmp_path / "texts.csv"
    source.write_text("text\n" + "".join(f"document number {i}\n" for i in range(60)))
    store = tmp_path / "store.zarr"
    with ServeProcess(WORD_SAE_SLOW="0.1") as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "interp_embed.cli", "encode", str(source), str(store),
             "--sae", server.url, "--batch-size", "2", "--save-every", "2"],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        while not list(store.glob("commits/*.json")):
            assert process.poll() is None
            time.sleep(0.01)
        server.process.kill()
        line = process.stderr.readline()
        port = server.port
    assert line.startswith(f"the SAE server at {server.url} does not answer")
    assert line.endswith("trying again for about 2 min\n")  # and not when these are over
    with ServeProcess(port=port):  # it is back, and the run goes on as if nothing had been
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert err.splitlines() == [f"the SAE server at {server.url} answers again"]
    assert (Dataset.load_from_file(store).status() == "ok").all()
