"""SAEs behind an API: side by side, with repetitions, and one document's failure its own."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from interp_embed import Dataset
from interp_embed.core.chunk import DocumentStatus, TokenTable
from interp_embed.errors import SAENotLoadedError, SAEUnavailableError
from interp_embed.net.keys import read_key
from interp_embed.net.retries import asked_pause
from interp_embed.net.urls import checked_url
from interp_embed.sae import BaseSAE
from interp_embed.sae.api import ApiDocument, ApiSAE
from interp_embed.sae.goodfire_api import GoodfireApiSAE
from interp_embed.sae.loading import load_sae_from_metadata, sae_record
from interp_embed.sae.remote.retries import (
    Trouble,
    seconds_to_wait,
    trouble,
)
from tests.support.fake_sae import D_SAE, expected, words
from tests.support.http_servers import TOKEN, Said, Scripted, one_document, refusing
from tests.support.waiting import PATIENCE

httpx = pytest.importorskip("httpx")
pytest.importorskip("tenacity")

FAST = {"max_retries": 2, "base_delay": 0.01}
MODEL = "meta-llama/Llama-3.3-70B-Instruct"


class ServiceSAE(ApiSAE):
    """As somebody would write one: a client of httpx, one request a document."""

    def __init__(self, url, **kwargs):
        super().__init__(**kwargs)
        self.url = url

    def metadata(self):
        return {**super().metadata(), "url": self.url}

    async def open(self):
        self.client = httpx.AsyncClient(trust_env=False, timeout=2.0)

    async def close(self):
        await self.client.aclose()

    async def encode_document(self, text):
        response = await self.client.post(f"{self.url}/words", json={"texts": [text]})
        response.raise_for_status()
        said = response.json()
        rows = np.repeat(np.arange(len(said["feature"])), [len(f) for f in said["feature"]])
        columns = [f for row in said["feature"] for f in row]
        values = [v for row in said["activation"] for v in row]
        shape = len(said["feature"]), D_SAE
        return ApiDocument(csr_matrix((values, (rows, columns)), shape=shape), words(text))


class LocalApiSAE(ApiSAE):
    """Needs no server: what it does is a function."""

    def __init__(self, answer=None, **kwargs):
        super().__init__(**{**FAST, **kwargs})
        self.answer = answer

    async def encode_document(self, text):
        found = self.answer(text)
        return await found if asyncio.iscoroutine(found) else found


def simple(text):
    return ApiDocument(csr_matrix(expected(text)), words(text))


def answering(change=lambda text: None):
    """A service of words; ``change(text)`` may answer otherwise."""
    return lambda method, path, body, headers: (
        change(body["texts"][0]) or Said(body=one_document(body["texts"][0]))
    )


@pytest.fixture
def opened():
    """Load SAEs, and destroy them at the end."""
    made = []

    def load(sae):
        made.append(sae)
        sae.load()
        return sae

    yield load
    for sae in made:
        sae.destroy()


TEXTS = ["the cat sat", "", "a \N{GRINNING FACE} smile", "one", "  two  spaces  "]


def assert_right(sae, texts=TEXTS):
    chunk = sae.encode_chunk(texts)
    assert chunk.status.tolist() == [0] * len(texts)
    assert chunk.doc_id.tolist() == list(range(len(texts)))
    for position, text in enumerate(texts):
        found = chunk.csr(position).toarray()
        np.testing.assert_array_equal(found, expected(text).reshape(found.shape))
    assert sae.tokenize(texts) == [words(t) for t in texts]


def test_documents_come_back_in_order_whatever_order_they_were_answered_in(opened):
    order = iter([0.2, 0.1, 0.0, 0.15])
    with Scripted(answering(lambda text: Said(body=one_document(text), delay=next(order, 0)))) as s:
        assert_right(opened(ServiceSAE(s.url, **FAST)))


def test_no_more_requests_than_allowed_are_under_way_at_once(opened):
    three = threading.Barrier(3)  # which is passed by so many at once only

    def change(text):
        three.wait(PATIENCE)
        return Said(body=one_document(text), delay=0.01)

    with Scripted(answering(change)) as server:
        sae = opened(ServiceSAE(server.url, max_concurrency=3, **FAST))
        sae.encode([f"text {i}" for i in range(12)])
        assert server.most == 3


def test_it_works_where_an_event_loop_runs_already(opened):
    with Scripted(answering()) as server:
        sae = opened(ServiceSAE(server.url, **FAST))

        async def cell():
            assert_right(sae)  # as in a notebook: blocking, inside a running loop
            blocked, awaited = sae.encode(["the cat"]), await sae.encode_async(["the cat"])
            return blocked[0].toarray(), awaited[0].toarray()

        blocked, awaited = asyncio.run(cell())
        np.testing.assert_array_equal(blocked, awaited)
        np.testing.assert_array_equal(blocked, expected("the cat"))


def test_a_coroutine_of_the_sae_that_waits_for_the_sae_is_told_so(opened):
    sae = opened(LocalApiSAE(lambda text: sae.encode(["other"])))
    assert "cannot call the blocking methods of the same SAE" in sae.encode_chunk(["x"]).reasons[0]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_request_is_repeated_until_it_is_answered(opened, status):
    failures = {"bad": 2}

    def change(text):
        if failures.get(text, 0):
            failures[text] -= 1
            return Said(status)
        return None

    with Scripted(answering(change)) as server:
        assert_right(opened(ServiceSAE(server.url, **FAST)), ["good", "bad"])
        assert failures == {"bad": 0}
        assert len(server.asked) == 2 + 2 + 2  # the second time for tokenize()


def test_the_service_says_how_long_to_wait(opened):
    answers = [Said(429, headers={"Retry-After": "1"})]
    with Scripted(answering(lambda text: answers.pop() if answers else None)) as server:
        sae = opened(ServiceSAE(server.url, **FAST))
        sae.encode(["one"])
        first, second = server.moments
        assert second - first >= 1


def test_one_document_that_fails_takes_no_other_with_it(opened):
    def change(text):
        if text == "bad":
            return Said(500, {"error": "no"})
        return Said(422) if text == "worse" else None

    with Scripted(answering(change)) as server:
        sae = opened(ServiceSAE(server.url, **FAST))
        chunk = sae.encode_chunk(["good", "bad", None, "worse", "fine"])
        assert chunk.status.tolist() == [0, 2, 2, 2, 0]
        assert chunk.reasons[1].startswith("HTTPStatusError: Server error '500")
        assert chunk.reasons[2] == "the text is missing"
        assert "422" in chunk.reasons[3]
        asked = [body["texts"][0] for _, _, body in server.asked]
        assert {text: asked.count(text) for text in set(asked)} == {
            "good": 1, "bad": 3, "worse": 1, "fine": 1,
        }  # fmt: skip
        found = sae.encode(["good", "bad"])
        assert found[1] is None
        np.testing.assert_array_equal(found[0].toarray(), expected("good"))


def test_a_document_that_takes_too_long_fails_alone(opened):
    slow = answering(lambda text: Said(body=one_document(text), delay=6) if text == "s" else None)
    with Scripted(slow) as server:
        sae = opened(ServiceSAE(server.url, max_retries=0))
        chunk = sae.encode_chunk(["good", "s"])
        assert chunk.status.tolist() == [0, 2]
        assert chunk.reasons == {1: "ReadTimeout"}


def spans(start, end):
    ids, special = np.zeros(len(end), np.uint32), np.zeros(len(end), np.bool_)
    return TokenTable(ids, np.array(start, np.uint32), np.array(end, np.uint32), special)


def below_zero():
    matrix = csr_matrix([[1.0, 2.0]])
    matrix.indices = np.array([-1, 1], np.int32)
    return matrix


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda t: ApiDocument(csr_matrix((1, 4)), ["a", "b"]), "1 rows of activations for 2"),
        (lambda t: ApiDocument(csr_matrix([[np.nan, 1]]), ["a"]), "not finite"),
        (lambda t: None, "must return an ApiDocument, got NoneType"),
        (lambda t: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda t: ApiDocument(np.array([[1e300, 1]]), ["a"]), "not finite"),
        (lambda t: ApiDocument(below_zero(), ["a"]), "indices must be >= 0"),
        (
            lambda t: ApiDocument(csr_matrix([[1.0]]), spans([0], [99])),
            "beyond the end of its text",
        ),
        (lambda t: ApiDocument(csr_matrix([[1.0]]), spans([2], [3])), "do not partition its text"),
        (lambda t: ApiDocument(csr_matrix([[1.0]]), spans([0, 1], [1])), "got lengths [1, 2]"),
    ],
)
def test_what_does_not_fit_together_fails_the_document(opened, answer, reason):
    sae = opened(LocalApiSAE(lambda text: simple(text) if text == "good" else answer(text)))
    chunk = sae.encode_chunk(["good", "other"])
    assert chunk.status.tolist() == [0, 2]
    assert reason in chunk.reasons[1]


def test_another_number_of_features_fails_the_document(opened):
    sae = opened(LocalApiSAE(lambda t: ApiDocument(csr_matrix((1, 4 + len(t))), ["a"])))
    assert sae.encode_chunk(["x"]).d_sae == sae.d_sae == 5
    assert "returned 6 features, but 5 before" in sae.encode_chunk(["yy"]).reasons[0]


def test_tokens_may_come_as_ids_and_spans(opened):
    table = TokenTable(
        np.array([7, 9], np.uint32), np.array([0, 0], np.uint32), np.array([0, 3], np.uint32),
        np.array([True, False]),
    )  # fmt: skip
    document = ApiDocument(csr_matrix([[0, 1.0], [2, 0]]), table, True, {7: "<s>"})
    sae = opened(LocalApiSAE(lambda text: document))
    chunk = sae.encode_chunk(["abcdef"])
    assert chunk.status.tolist() == [DocumentStatus.TRUNCATED]
    assert sae.tokenize(["abcdef"]) == [["<s>", "abc"]]
    assert sae.tokenize(["abcdef"], as_tokens=False)["input_ids"] == [[7, 9]]


def test_strings_that_end_before_the_text_does_say_that_it_was_cut(opened):
    sae = opened(LocalApiSAE(lambda t: ApiDocument(csr_matrix((2, 3)), ["<s>", "the"])))
    chunk = sae.encode_chunk(["the cat"])
    assert chunk.status.tolist() == [DocumentStatus.TRUNCATED]
    assert chunk.tokens.special.tolist() == [True, False]
    assert chunk.vocabulary[int(chunk.tokens.id[0])] == "<s>"


def test_a_service_that_is_down_ends_the_run_and_the_store_goes_on(tmp_path):
    broken = threading.Event()
    texts = [{"text": f"text number {i}"} for i in range(24)]

    def change(text):
        if text == "text number 12":
            broken.set()
        return Said(503, b"maintenance") if broken.is_set() else None

    path = tmp_path / "store.zarr"
    with Scripted(answering(change)) as server:
        sae = ServiceSAE(server.url, max_concurrency=1, **FAST)
        with pytest.raises(SAEUnavailableError, match="answers no request: HTTPStatusError") as e:
            Dataset(texts, sae, save_path=path, batch_size=2, save_every_batch=2)
        assert "\n" not in str(e.value)
        assert isinstance(e.value, ConnectionError)
        assert any("resume=True" in note for note in e.value.__notes__)
        partly = Dataset.load_from_file(path)
        kept = (partly.status() == "ok").sum()
        assert 8 <= kept < 24
        before = len(server.asked)
        broken.clear()
        server.script = answering()
        whole = Dataset.load_from_file(path, resume=True)
        assert len(server.asked) - before == 24 - kept  # nothing is asked for twice
        assert (whole.status() == "ok").all()
        for row, text in zip(whole.rows, texts, strict=True):
            np.testing.assert_array_equal(row.activations.toarray(), expected(text["text"]))


def test_nobody_there_ends_the_run(opened):
    with refusing() as url:
        sae = opened(ServiceSAE(url, **FAST))
        match = "the service of ServiceSAE answers no request"
        with pytest.raises(SAEUnavailableError, match=match):
            sae.encode_chunk(["a", "b"])


def test_a_service_that_refuses_the_key_ends_the_run_at_once(opened):
    with Scripted(lambda *_: Said(401, {"error": "bad key"})) as server:
        sae = opened(ServiceSAE(server.url, max_concurrency=1, **FAST))
        with pytest.raises(SAEUnavailableError, match=r"refuses requests: .*401"):
            sae.encode_chunk(["a", "b", "c", "d"])
        assert len(server.asked) == 1


def test_an_interrupt_ends_the_wait():
    started, cancelled = threading.Event(), threading.Event()

    async def forever():
        started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    sae = LocalApiSAE(lambda text: forever())
    sae.load()
    main = threading.main_thread().ident

    def interrupt():
        import signal

        started.wait()
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        sae.encode_chunk(["a"])
    thread.join()
    assert cancelled.wait(PATIENCE)
    sae.destroy()
    assert not any(t.name.endswith("LocalApiSAE") for t in threading.enumerate())


def test_it_is_loaded_and_destroyed_as_often_as_one_likes():
    sae = LocalApiSAE(simple)
    with pytest.raises(SAENotLoadedError):
        sae.encode_chunk(["a"])
    for _ in range(3):
        sae.load()
        assert_right(sae)
        sae.destroy()
        sae.destroy()
    with pytest.raises(SAENotLoadedError):
        sae.encode(["a"])
    assert not any(t.name.endswith("LocalApiSAE") for t in threading.enumerate())


def test_an_sae_whose_client_cannot_be_made_leaves_no_thread():
    class Broken(LocalApiSAE):
        async def open(self):
            raise ValueError("no client")

        async def close(self):
            await self.client.aclose()

    sae = Broken(simple)
    with pytest.raises(ValueError, match="no client"):  # not that there is none to close
        sae.load()
    assert not sae.is_loaded()
    assert not any("Broken" in t.name for t in threading.enumerate())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_is_told_to_load_it_again(opened):
    sae = opened(LocalApiSAE(simple))
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # in place of a wait for a thread that is not there
        try:
            with pytest.raises(RuntimeError, match="which was forked after the SAE was loaded"):
                sae.encode(["a"])
            sae.destroy()
            sae.load()
            assert_right(sae)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert_right(sae)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_concurrency": 0}, ValueError, "max_concurrency must be at least 1, got 0"),
        ({"max_retries": -1}, ValueError, "max_retries must be at least 0, got -1"),
        ({"base_delay": float("inf")}, ValueError, "base_delay must be at least 0, got inf"),
        ({"max_concurrency": 2.5}, TypeError, "max_concurrency must be an integer, got float: 2.5"),
        ({"base_delay": "1"}, TypeError, "base_delay must be a number, got str: '1'"),
    ],
)
def test_bad_arguments_are_said_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        LocalApiSAE(simple, **arguments)


def test_defaults_and_what_must_be_implemented():
    with pytest.raises(TypeError, match="abstract"):
        ApiSAE()
    sae = ServiceSAE("http://x")
    assert isinstance(sae, BaseSAE)
    assert (sae.max_concurrency, sae.max_retries, sae.base_delay) == (8, 3, 2.0)
    with pytest.raises(ValueError, match="cannot encode conversations"):
        sae.encode_chat([])


def test_how_requests_are_made_is_recorded_but_no_part_of_the_fingerprint():
    one, other = ServiceSAE("http://x", max_retries=1), ServiceSAE("http://x", max_concurrency=2)
    assert one.fingerprint() == other.fingerprint()
    assert one.metadata() != other.metadata()
    again = load_sae_from_metadata(sae_record(one))
    assert again.metadata() == one.metadata()
    assert pickle.loads(pickle.dumps(one)).metadata() == one.metadata()


class FailureError(Exception):
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class ConnectionTimeoutError(TimeoutError):
    """As aiohttp names one."""


class ClientPayloadError(Exception):
    """As aiohttp names an answer that is cut off."""


RequestsConnectionError = type("ConnectionError", (OSError,), {"__doc__": "As requests has it."})
RequestsReadTimeout = type("ReadTimeout", (type("Timeout", (OSError,), {}),), {})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RequestsConnectionError(), Trouble.UNREACHABLE),
        (RequestsReadTimeout(), Trouble.BROKEN),
        (ConnectionRefusedError(), Trouble.UNREACHABLE),
        (TimeoutError(), Trouble.BROKEN),
        (httpx.ConnectTimeout(""), Trouble.UNREACHABLE),
        (ConnectionTimeoutError(), Trouble.UNREACHABLE),
        (ClientPayloadError(), Trouble.UNREACHABLE),
        (httpx.ReadTimeout(""), Trouble.BROKEN),
        (httpx.RemoteProtocolError(""), Trouble.UNREACHABLE),
        (FailureError(status_code=429), Trouble.UNREACHABLE),
        (FailureError(status=500), Trouble.BROKEN),
        (FailureError(response=FailureError(status_code=403)), Trouble.REFUSED),
        (FailureError(status_code=404), Trouble.DOCUMENT),
        (ValueError(), Trouble.DOCUMENT),
        (SAEUnavailableError(), Trouble.REFUSED),
    ],
)
def test_what_to_make_of_an_error(error, kind):
    assert trouble(error) is kind


def test_retry_after_is_seconds_or_a_date():
    from email.utils import formatdate

    def asked(value):
        return asked_pause({"Retry-After": value})

    assert asked("17") == 17
    assert asked("1.5") == 1.5
    assert 50 < asked(formatdate(time.time() + 60, usegmt=True)) <= 61
    assert asked("Thu, 01 Jan 1970 00:00:00 GMT") == 0
    assert asked_pause({}) is None
    for other in (
        "", "soon", "-1", "²", "inf", "nan",
        f"Mon, 01 Jan {'9' * 30} 00:00:00 GMT", f"Mon, 01 Jan 2035 00:00:00 +{'9' * 30}",
    ):  # fmt: skip
        assert asked(other) is None
    assert asked_pause({"retry-after-ms": "250", "Retry-After": "1"}) == 0.25


def test_the_pause_that_is_asked_for_is_found_on_the_answer_and_on_the_error():
    headers = {"Retry-After": "7"}
    assert seconds_to_wait(FailureError(response=FailureError(headers=headers))) == 7  # httpx
    assert seconds_to_wait(FailureError(status=429, headers=headers)) == 7  # aiohttp
    assert seconds_to_wait(FailureError(retry_after=float("nan"))) == 0
    assert seconds_to_wait(FailureError(retry_after=1e9)) == 300


@pytest.mark.parametrize(
    "url",
    ["", "ftp://host", "host:80", "http://", "http://u:secret@host", "http://host?key=secret",
     "http://host#secret", " http://host", "http://host:port", "http://[::1"],
)  # fmt: skip
def test_a_url_that_may_hold_a_key_is_refused_without_repeating_it(url):
    with pytest.raises(ValueError, match="url") as e:
        checked_url(url)
    assert "secret" not in "".join(traceback.format_exception(e.value)).partition("ValueError")[2]


def test_a_key_that_cannot_be_sent_is_refused_without_repeating_it(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret\nkey")
    with pytest.raises(ValueError, match="SOME_KEY") as e:
        read_key("SOME_KEY")
    assert "secret" not in str(e.value)
    monkeypatch.setenv("SOME_KEY", "  ")
    assert read_key("SOME_KEY") is None


def test_importing_and_making_one_imports_no_http_client():
    code = (
        "import sys; from interp_embed.sae import ApiSAE, GoodfireApiSAE, HttpSAE; "
        "HttpSAE('http://127.0.0.1:1'); "
        f"GoodfireApiSAE({MODEL!r}); "
        "print([m for m in ('httpx','tenacity','pyarrow','starlette','torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Goodfire


def goodfire(text, template=True):
    """What the service answered: tokens as strings, with the chat template, and their features."""
    tokens = [{"token": word, "attributions": []} for word in words(text)]
    for row, token in enumerate(tokens):
        dense = expected(text)[row]
        token["attributions"] = [
            {"id": f"uuid-{f}", "index_in_sae": int(f), "activation_strength": float(dense[f])}
            for f in np.flatnonzero(dense)[::-1]
        ]
    around = [{"token": "<|start|>", "attributions": []}, {"token": "user", "attributions": []}]
    return {"tokens": [*around, *tokens] if template else tokens}


class Goodfire(Scripted):
    """The paths of the service; ``change(text)`` may answer otherwise."""

    def __init__(self, change=lambda text: None):
        super().__init__(self.answer)
        self.change = change

    def answer(self, method, path, body, headers):
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return Said(401, {"detail": f"{headers.get('Authorization')} is not a key"})
        if path == "/api/inference/v1/features/lookup":
            rows = [{"uuid": "u", "label": f"no. {i}", "index_in_sae": i} for i in body["indices"]]
            return Said(body={"features": rows})
        assert path == "/api/inference/v1/chat-attribution/compute-features"
        assert body["model"] == MODEL
        text = body["messages"][0]["content"]
        return self.change(text) or Said(body=goodfire(text))


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("GOODFIRE_API_KEY", TOKEN)


def test_goodfire_documents_have_tokens_with_the_template_marked(opened, key):
    with Goodfire() as server:
        sae = opened(GoodfireApiSAE(MODEL, base_url=server.url, use_assistant_role=False, **FAST))
        assert sae.d_sae == 131_072
        chunk = sae.encode_chunk(["the cat", ""])
        assert chunk.status.tolist() == [0, 0]
        assert chunk.tokens.special.tolist() == [True, True, False, False]
        assert sae.tokenize(["the cat"]) == [["<|start|>", "user", "the", " cat"]]
        found = chunk.csr(0)[2:, :D_SAE].toarray()
        np.testing.assert_array_equal(found, expected("the cat"))
        assert chunk.csr(0).shape == (4, 131_072)
        roles = {body["messages"][0]["role"] for _, _, body in server.asked}
        assert roles == {"user"}
        assert sae.fetch_feature_labels(range(60)) == {i: f"no. {i}" for i in range(60)}
        assert sae.feature_labels()[59] == "no. 59"


def test_goodfire_needs_a_key_and_a_known_variant(monkeypatch):
    monkeypatch.delenv("GOODFIRE_API_KEY", raising=False)
    sae = GoodfireApiSAE(MODEL)
    with pytest.raises(ValueError, match="environment variable GOODFIRE_API_KEY, which is not set"):
        sae.load()
    assert not sae.is_loaded()
    with pytest.raises(ValueError, match="pass d_sae="):
        GoodfireApiSAE("other")
    assert GoodfireApiSAE("other", d_sae=5).d_sae == 5


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda d: d.pop("tokens"), "'tokens' is not a list"),
        (lambda d: d["tokens"].append(3), "token 4 has no string 'token'"),
        (
            lambda d: d["tokens"][2]["attributions"][0].update(index_in_sae=131_072),
            "expected one from 0 to 131071",
        ),
        (lambda d: d["tokens"][2]["attributions"][0].update(index_in_sae=True), "feature True"),
        (
            lambda d: d["tokens"][2]["attributions"].append(d["tokens"][2]["attributions"][0]),
            "twice",
        ),
        (lambda d: d["tokens"][2]["attributions"][0].update(activation_strength="x"), "'x'"),
        (lambda d: d["tokens"][2]["attributions"][0].update(activation_strength=1e300), "finite"),
    ],
)
def test_goodfire_answers_are_checked(opened, key, spoil, reason):
    def change(text):
        if text != "bad text":
            return None
        said = goodfire(text)
        spoil(said)
        return Said(body=said)

    with Goodfire(change) as server:
        sae = opened(GoodfireApiSAE(MODEL, base_url=server.url, **FAST))
        chunk = sae.encode_chunk(["good", "bad text"])
        assert chunk.status.tolist() == [0, 2]
        assert reason in chunk.reasons[1]


def test_the_key_is_nowhere_but_in_the_request(tmp_path, key, caplog, monkeypatch, capfd):
    """Not in the store, the log, a repr or an exception, though the server repeats it."""
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "store.zarr"

    def change(text):
        if text == "echo":
            return Said(422, {"detail": f"key {TOKEN} may not"})
        return Said(body={"tokens": [], "debug": TOKEN}) if text == "echo in ok" else None

    with Goodfire(change) as server:
        sae = GoodfireApiSAE(MODEL, base_url=server.url, **FAST)
        texts = [{"text": t} for t in ("the cat", "echo", "echo in ok")]
        dataset = Dataset(texts, sae, save_path=path)
        assert dataset.status().tolist() == ["ok", "failed", "failed"]
        reasons = dataset.failures()["reason"].tolist()
        assert "422" in reasons[0]
        assert "key [key] may not" in reasons[0]
        assert "repeats the key" in reasons[1]
        sae.load()
        shown = [repr(sae), str(vars(sae)), repr(dataset), str(sae.metadata()), *reasons]
        assert any(h.get("Authorization") == f"Bearer {TOKEN}" for h in server.headers)
        sae._http._key = "wrong"  # what the server now refuses, repeating it
        sae._http._client.headers["Authorization"] = "Bearer wrong"
        with pytest.raises(SAEUnavailableError, match=r"refuses requests: .*401") as e:
            sae.encode_chunk(["a"])
        shown += traceback.format_exception(e.value)
        assert "Bearer [key] is not a key" in str(e.value)
        sae.destroy()
    out, err = capfd.readouterr()
    files = [p.read_bytes() for p in path.rglob("*") if p.is_file()]
    assert len(files) > 5
    assert not any(TOKEN.encode() in f for f in files)
    assert not any(TOKEN in text for text in [*shown, caplog.text, out, err])


def test_goodfire_stores_go_on_with_the_same_variant(tmp_path, key):
    texts = [{"text": t} for t in ("the cat", "a dog")]
    path = tmp_path / "store.zarr"
    with Goodfire(lambda text: Said(422) if text == "a dog" else None) as server:
        Dataset(texts, GoodfireApiSAE(MODEL, base_url=server.url, **FAST), save_path=path)
    with Goodfire() as server:  # elsewhere
        sae = GoodfireApiSAE(MODEL, base_url=server.url, **FAST)
        dataset = Dataset(texts, sae, save_path=path)
        assert dataset.status().tolist() == ["ok", "ok"]
        assert len(server.asked) == 1
    assert load_sae_from_metadata(sae_record(sae)).metadata() == sae.metadata()
    assert os.environ["GOODFIRE_API_KEY"] not in str(sae_record(sae))
    original = {"sae_type": "goodfire_api", "variant": MODEL, "use_assistant_role": False}
    again = load_sae_from_metadata(original)
    assert (again.variant_name, again.use_assistant_role) == (MODEL, False)
