"""Servers that hang, stall or fail within an answer: how long is waited, what is said, what is asked again."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import socket
import threading
import time
from email.utils import formatdate

import pytest

from interp_embed import Dataset
from interp_embed.cli.logs import shown_log
from interp_embed.core.progress import log_as
from interp_embed.llm import (
    FeatureLabelResponse,
    LLMClient,
    LLMRateLimitError,
    LLMStatusError,
    LLMTimeoutError,
    Request,
)
from interp_embed.llm.ask import transport
from interp_embed.llm.ask.request import Message
from interp_embed.testing import LLMServer, Reply

MODEL = "some/model"
GOOD = {"label": "cats", "brief_description": "It is about cats.", "detailed_explanation": None}
SAID = json.dumps(GOOD)


@pytest.fixture(autouse=True)
def _shown():
    """Have what is logged on stderr, as those see it who run a command."""
    with shown_log():
        yield


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENROUTER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or-v1-0123456789abcdef")


def request(text="what is it?"):
    return Request(MODEL, (Message("user", text),), FeatureLabelResponse)


def ask(url, *texts, **kwargs):
    async def run():
        async with LLMClient(MODEL, url, **kwargs) as client:
            questions = [client.ask(request(text)) for text in texts or ["what is it?"]]
            return await asyncio.gather(*questions, return_exceptions=True), client.usage

    return asyncio.run(run())


def ask_one(url, **kwargs):
    [found], usage = ask(url, **kwargs)
    if isinstance(found, BaseException):
        raise found
    return found, usage


# --- how long is waited ----------------------------------------------------------------------------


def test_labels_scores_and_clients_wait_equally_long_by_default():
    for method in (
        Dataset.label_feature,
        Dataset.score_feature,
        Dataset.label_features,
        LLMClient.__init__,
    ):
        parameters = inspect.signature(method).parameters
        assert (parameters["timeout"].default, parameters["max_retries"].default) == (120.0, 4)


def test_an_attempt_ends_in_time_although_bytes_keep_coming():
    """Each byte comes in time, and all of them would take a minute."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connected = []

        def trickle():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                connected.append(connection)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                threading.Thread(target=drip, args=[connection], daemon=True).start()

        def drip(connection):
            try:
                for _ in range(1_000):
                    connection.sendall(b" ")
                    time.sleep(0.06)
            except OSError:
                return

        threading.Thread(target=trickle, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        begun = time.monotonic()
        with pytest.raises(LLMTimeoutError, match="did not answer in time in 2 attempts"):
            ask_one(url, timeout=0.4, max_retries=1)
        assert time.monotonic() - begun >= 0.8
        for connection in connected:
            connection.close()
    assert len(connected) == 2


def test_a_date_says_when_to_come_back_too():
    late = Reply("later", 429, {"Retry-After": formatdate(time.time() + 3600, usegmt=True)})
    soon = Reply("soon", 429, {"Retry-After": formatdate(time.time() + 2, usegmt=True)})
    past = Reply("now", 503, {"Retry-After": formatdate(0, usegmt=True)})
    with LLMServer(lambda body: late) as server:
        with pytest.raises(LLMRateLimitError) as caught:
            ask_one(server.url)
        assert len(server.requests) == 1
        assert 3500 < caught.value.retry_after <= 3600
    with LLMServer(lambda body: GOOD, [soon, past]) as server:
        assert ask_one(server.url)[0].label == "cats"
        assert len(server.requests) == 3


def test_a_pause_of_two_minutes_is_the_longest():
    for seconds, kind in ((121, LLMRateLimitError), (119, asyncio.TimeoutError)):
        with LLMServer(lambda body, s=seconds: Reply.rate_limited(s)) as server:

            async def run(url=server.url):
                async with LLMClient(MODEL, url) as client, asyncio.timeout(0.5):
                    await client.ask(request())

            with pytest.raises(kind):
                asyncio.run(run())
            assert len(server.requests) == 1


@pytest.mark.parametrize(("status", "word", "sent"), [(500, "false", 1), (404, "true", 3)])
def test_a_server_may_say_itself_whether_to_try_again(status, word, sent):
    reply = Reply("no", status, {"x-should-retry": word, "retry-after-ms": "1"})
    with LLMServer(lambda body: reply) as server, pytest.raises(LLMStatusError):
        ask_one(server.url, max_retries=2)
    assert len(server.requests) == sent


# --- failures within an answer ---------------------------------------------------------------------


def within(*, place="top", usage=None, **error):
    """Return an answer with status 200 that has an error in it, as OpenRouter has them."""
    error = {"message": "Provider returned error", **error}
    body = {"error": error}
    if place == "choice":
        message = {"role": "assistant", "content": "cats are"}
        body = {"choices": [{"finish_reason": "error", "message": message, "error": error}]}
    if usage:
        body["usage"] = usage
    return Reply(body=json.dumps(body).encode())


@pytest.mark.parametrize("place", ["top", "choice"])
@pytest.mark.parametrize(
    "error",
    [{"code": 502}, {"code": 503}, {"code": 429}, {"code": "502"}, {"status": 502}, {"code": 408}],
)
def test_a_failure_within_an_answer_is_tried_again_as_its_status_would_be(
    error, place, monkeypatch
):
    monkeypatch.setattr("interp_embed.llm.ask.transport._SPREAD", 0.0)
    monkeypatch.setattr("interp_embed.llm.ask.transport._FIRST_PAUSE", 0.01)
    failure = within(place=place, **error)
    with LLMServer(lambda body: GOOD, [failure, failure]) as server:
        found, usage = ask_one(server.url, max_retries=2)
    assert found.label == "cats"
    assert len(server.requests) == 3
    assert usage.requests == 1
    with LLMServer(lambda body: failure) as server:
        with pytest.raises(LLMStatusError, match=r"in 2 attempts: Provider returned error\. \w"):
            ask_one(server.url, max_retries=1)
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "error", [{"code": 400}, {"code": 401}, {"code": "bad"}, {"code": True}, {}]
)
def test_other_errors_within_an_answer_are_not(error):
    with LLMServer(lambda body: within(**error)) as server, pytest.raises(LLMStatusError):
        ask_one(server.url)
    assert len(server.requests) == 1


def test_what_a_failure_is_charged_for_is_counted(monkeypatch):
    monkeypatch.setattr("interp_embed.llm.ask.transport._FIRST_PAUSE", 0.01)
    charged = within(code=502, usage={"prompt_tokens": 70, "completion_tokens": 3, "cost": 0.5})
    with LLMServer(lambda body: GOOD, [charged]) as server:
        _, usage = ask_one(server.url)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cost) == (170, 13, 0.5)


def test_what_a_failure_is_charged_for_is_counted_although_a_parameter_is_refused_next(monkeypatch):
    monkeypatch.setattr("interp_embed.llm.ask.transport._FIRST_PAUSE", 0.01)
    charged = within(code=502, usage={"prompt_tokens": 70, "completion_tokens": 3, "cost": 0.5})
    refused = Reply("response_format is not supported", 400)
    with LLMServer(lambda body: GOOD, [charged, refused]) as server:
        _, usage = ask_one(server.url)
    assert "response_format" not in server.requests[-1].body
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cost) == (170, 13, 0.5)


def test_an_empty_list_of_choices_is_called_so():
    reply = Reply(body=b'{"choices": [], "model": "m"}')
    with (
        LLMServer(lambda body: reply) as server,
        pytest.raises(
            LLMStatusError, match=r"completion: its list of choices is empty\. Check its URL"
        ),
    ):
        ask_one(server.url)


@pytest.mark.parametrize(
    ("status", "said"), [(400, "no."), (401, "no!"), (429, "no"), (500, "no. ")]
)
def test_what_a_server_says_ends_with_one_full_stop(status, said):
    for reply in (Reply.failing(status, said), within(code=status, message=said)):
        with LLMServer(lambda body, r=reply: r) as server, pytest.raises(LLMStatusError) as caught:
            ask_one(server.url, max_retries=0)
        mark = "!" if "!" in said else "."
        assert re.search(rf": no\{mark} [A-Z]", str(caught.value))


# --- what is said meanwhile ------------------------------------------------------------------------


def lines(capsys, server):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(server.url)]


@pytest.mark.parametrize(
    ("retries", "coming"),
    [(1, r"it is asked again in \d s \(attempt 2 of 2\)"), (0, r"the request is given up in \d s")],
)
def test_a_server_that_hangs_is_spoken_of_with_how_long_and_what_comes(
    capsys, monkeypatch, retries, coming
):
    monkeypatch.setattr(transport, "_PATIENCE_SECONDS", 0.2)
    with LLMServer(lambda body: Reply(SAID, delay=9)) as server:
        found, _ = ask(server.url, "a", "b", timeout=1.5, max_retries=retries)
        assert [type(f) for f in found] == [LLMTimeoutError] * 2
        said = lines(capsys, server)
    assert re.fullmatch(
        rf"{server.url} has not answered for \d s \(2 requests wait\): {coming}",
        said[0],
    )
    assert 1 < len(said) <= 5  # after 0.2, 0.4, 0.8, ... seconds


def test_a_pause_that_a_server_asks_for_is_spoken_of(capsys, monkeypatch):
    monkeypatch.setattr(transport, "_PATIENCE_SECONDS", 0.3)
    with LLMServer(lambda body: GOOD, [Reply.rate_limited(0.8)]) as server:
        ask_one(server.url)
        said = lines(capsys, server)
    assert said
    assert "(1 request waits): it said 429; attempt 2 of 5 follows in" in said[0]


def test_nothing_is_said_where_others_are_answered_or_nobody_wants_to_know(capsys, monkeypatch):
    monkeypatch.setattr(transport, "_PATIENCE_SECONDS", 1.0)
    with LLMServer(lambda body: Reply(SAID, delay=0.25)) as server:
        ask(server.url, *"abcdef", concurrency=1)  # the last one comes after 1.5 s
        with log_as("none"):
            server.answer = lambda body: Reply(SAID, delay=1.5)
            ask_one(server.url)
        assert lines(capsys, server) == []


def test_no_timer_is_left_and_a_client_that_is_opened_again_speaks_again(capsys, monkeypatch):
    monkeypatch.setattr(transport, "_PATIENCE_SECONDS", 0.1)
    with LLMServer(lambda body: Reply(SAID, delay=0.25)) as server:
        client = LLMClient(MODEL, server.url)

        async def run():
            async with client:
                await client.ask(request())
                said = lines(capsys, server)
                await asyncio.sleep(0.3)
                return said, lines(capsys, server)

        for _ in range(2):
            said, after = asyncio.run(run())
            assert said
            assert after == []
