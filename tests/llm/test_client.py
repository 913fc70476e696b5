"""Questions over real HTTP, to a server that answers, refuses, breaks off and talks nonsense."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import subprocess
import sys
import threading
import time
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from interp_embed.llm import (
    AnswersNotKeptError,
    FeatureLabelResponse,
    LLMAnswerError,
    LLMAuthenticationError,
    LLMClient,
    LLMConnectionError,
    LLMError,
    LLMRateLimitError,
    LLMStatusError,
    LLMTimeoutError,
    Request,
)
from interp_embed.llm.ask import errors
from interp_embed.llm.ask.answers import UnreadableAnswerError, read_answer
from interp_embed.llm.ask.endpoint import resolve_endpoint
from interp_embed.llm.ask.request import Message, check_settings
from interp_embed.testing import LLMServer, Reply
from tests.support.hypotheses import examples
from tests.support.waiting import PATIENCE

KEY = "sk-or-v1-0123456789abcdef"
MODEL = "some/model"
GOOD = {"label": "cats", "brief_description": "It is about cats.", "detailed_explanation": None}
SAID = json.dumps(GOOD)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENROUTER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENROUTER_API_KEY", KEY)


def request(text="what is it?", model=MODEL, **settings):
    return Request(
        model,
        (Message("system", "name it"), Message("user", text)),
        FeatureLabelResponse,
        check_settings(settings),
    )


def ask(server, *requests, model=MODEL, **kwargs):
    """Ask all at once; return the answers, or the errors in their place."""
    kwargs = {"max_retries": 1, **kwargs}

    async def run():
        async with LLMClient(model, server.url, **kwargs) as client:
            found = await asyncio.gather(*map(client.ask, requests), return_exceptions=True)
            return found, client

    return asyncio.run(run())


def ask_one(server, model=MODEL, **kwargs):
    [found], client = ask(server, request(model=model), model=model, **kwargs)
    if isinstance(found, BaseException):
        raise found
    return found, client


class Kept(dict):
    """Answers in memory."""

    usage = None

    def put(self, digest, answer, usage):
        self.usage = {**(self.usage or {}), digest: dict(usage)}
        self[digest] = answer


# --- where --------------------------------------------------------------------------------------


def test_a_model_is_at_openrouter_unless_its_name_says_openai(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    found = resolve_endpoint("google/gemini-2.5-flash")
    assert (found.base_url, found.model) == (
        "https://openrouter.ai/api/v1",
        "google/gemini-2.5-flash",
    )
    assert found.read_key() == KEY
    found = resolve_endpoint("openai/gpt-4o")
    assert (found.base_url, found.model) == ("https://api.openai.com/v1", "gpt-4o")
    assert found.read_key() == "sk-openai"


@pytest.mark.parametrize(("model", "provider"), [("a/b", "OPENROUTER"), ("openai/b", "OPENAI")])
def test_the_variables_name_another_server_and_the_argument_comes_before_them(
    monkeypatch, model, provider
):
    monkeypatch.setenv(f"{provider}_BASE_URL", "http://elsewhere:1/v1")
    assert resolve_endpoint(model).base_url == "http://elsewhere:1/v1"
    assert resolve_endpoint(model, "http://here:2/v1").base_url == "http://here:2/v1"
    monkeypatch.setenv(f"{provider}_BASE_URL", "")
    assert resolve_endpoint(model).base_url.startswith("https://")


def test_a_server_of_ones_own_needs_no_key_and_gets_one_that_is_set(monkeypatch):
    with LLMServer(lambda body: GOOD) as server:
        ask_one(server)
        monkeypatch.delenv("OPENROUTER_API_KEY")
        ask_one(server)
    with_key, without = (r.headers["authorization"] for r in server.requests)
    assert with_key == f"Bearer {KEY}"
    assert KEY not in without


@pytest.mark.parametrize("model", ["google/gemini-2.5-flash", "openai/gpt-4o"])
def test_without_a_key_it_fails_before_anything_is_sent(monkeypatch, model):
    monkeypatch.delenv("OPENROUTER_API_KEY")
    with pytest.raises(PermissionError, match=r"set the environment variable OPEN\w+_API_KEY"):
        LLMClient(model)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "http://x:port/v1", ""])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="base_url must be a URL"):
        resolve_endpoint(MODEL, url)


@pytest.mark.parametrize("model", ["", "  ", "openai/", None, 3])
def test_a_model_that_is_none_is_refused(model):
    with pytest.raises(ValueError, match="model must be the name"):
        resolve_endpoint(model)


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"timeout": 0},
        {"timeout": -1.0},
        {"timeout": float("inf")},
        {"timeout": "5"},
        {"max_retries": -1},
        {"max_retries": 1.5},
    ],
)
def test_a_client_refuses_arguments_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LLMClient(MODEL, "http://localhost:1/v1", **wrong)


# --- what is sent -------------------------------------------------------------------------------


def test_a_request_has_the_messages_the_settings_and_a_strict_schema():
    with LLMServer(lambda body: GOOD) as server:
        [found], _ = ask(server, request(max_tokens=50, top_k=3), model=MODEL)
    assert found == FeatureLabelResponse(**GOOD)
    body = server.requests[0].body
    assert server.requests[0].path == "/v1/chat/completions"
    assert body["model"] == MODEL
    assert body["messages"] == [
        {"role": "system", "content": "name it"},
        {"role": "user", "content": "what is it?"},
    ]
    assert (body["temperature"], body["max_tokens"], body["top_k"]) == (0, 50, 3)
    asked = body["response_format"]["json_schema"]
    assert asked["strict"] is True
    assert asked["schema"]["additionalProperties"] is False
    assert asked["schema"]["required"] == list(GOOD)


def test_the_prefix_of_openai_is_not_part_of_the_name_that_is_sent():
    with LLMServer(lambda body: GOOD) as server:
        ask_one(server, model="openai/gpt-4o")
    assert server.requests[0].body["model"] == "gpt-4o"


def test_the_digest_depends_on_everything_that_is_asked_and_stays_the_same():
    class Other(BaseModel):
        label: str

    base = request()
    others = [
        request("something else"),
        request(model="another/model"),
        request(temperature=1),
        Request(base.model, base.messages, Other, base.settings),
        Request(base.model, base.messages[::-1], base.schema, base.settings),
        base.followed_by(Message("user", "again")),
    ]
    assert len({r.digest for r in [base, *others]}) == len(others) + 1
    assert request().digest == base.digest
    shuffled = Request(base.model, base.messages, base.schema, {"b": 1, "a": 2})
    assert (
        shuffled.digest == Request(base.model, base.messages, base.schema, {"a": 2, "b": 1}).digest
    )
    # Answers that were paid for are kept under it, so it must not change.
    assert base.digest == "d3224d00a7ab213fc404d07262f480ab45156b1306ec4be14dbbcac5cc02a209"


@pytest.mark.parametrize(
    "wrong", [{"model": "x"}, {"stream": True}, {"n": 2}, {"temperature": float("nan")}, {"x": {1}}]
)
def test_settings_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="settings"):
        check_settings(wrong)


@pytest.mark.parametrize("wrong", [["a"], "temperature", 3])
def test_settings_are_a_dictionary(wrong):
    with pytest.raises(TypeError, match="settings must be a dictionary such as"):
        check_settings(wrong)


# --- servers with less ---------------------------------------------------------------------------


def test_a_server_without_structured_output_is_asked_without_it_from_then_on():
    with LLMServer(lambda body: Reply.in_prose(SAID), structured_output=False) as server:

        async def run():
            async with LLMClient(MODEL, server.url, max_retries=0) as client:
                return [await client.ask(request(str(n))) for n in range(3)], client.usage

        found, usage = asyncio.run(run())
    assert found == [FeatureLabelResponse(**GOOD)] * 3
    assert ["response_format" in r.body for r in server.requests] == [True, False, False, False]
    assert usage.requests == 3
    assert usage.repairs == 0


def test_a_parameter_that_nobody_asked_for_is_left_out_and_an_old_name_is_replaced():
    with LLMServer(lambda body: GOOD, unknown=["temperature", "max_tokens"]) as server:
        [found], _ = ask(server, request(max_tokens=70))
    assert found.label == "cats"
    last = server.requests[-1].body
    assert "temperature" not in last
    assert "max_tokens" not in last
    assert last["max_completion_tokens"] == 70
    assert "response_format" in last
    assert len(server.requests) == 3


def test_a_setting_that_was_asked_for_is_not_left_out_silently():
    with LLMServer(lambda body: GOOD, unknown=["temperature"]) as server:
        [found], _ = ask(server, request(temperature=0.7))
    assert isinstance(found, LLMStatusError)
    assert "temperature" in str(found)
    assert all("temperature" in r.body for r in server.requests)


def test_a_request_that_is_too_long_does_not_count_against_structured_output():
    def answer(body):
        if len(body["messages"][1]["content"]) > 100:
            return Reply("maximum context length is 100", 400)
        return GOOD

    with LLMServer(answer) as server:

        async def run():
            async with LLMClient(MODEL, server.url, max_retries=0) as client:
                with pytest.raises(LLMStatusError, match="fewer samples"):
                    await client.ask(request("x" * 200))
                await client.ask(request())

        asyncio.run(run())
    assert "response_format" in server.requests[-1].body


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        SAID,
        f"```json\n{SAID}\n```",
        f"```\n{SAID}```",
        f"Here {{you}} are: {SAID} I hope {{it}} helps.",
        f'<think>maybe {{"label": 1}}? or {SAID.replace("cats", "dogs")}</think>\n{SAID}',
        SAID[:-1] + ', "further": {"a": [1, 2]}}',
        SAID.replace("It is", "It\nis"),
        json.dumps({**GOOD, "label": "  cats  "}),
        f"\ufeff {SAID}",
    ],
)
def test_the_object_is_found_whatever_stands_around_it(text):
    assert read_answer(text, FeatureLabelResponse).label == "cats"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("I cannot do that.", "no complete JSON"),
        (SAID[:40], "no complete JSON"),
        ('{"label": "cats"}', "brief_description: Field required"),
        ('{"label": "", "brief_description": "x"}', "label"),
        ('{"label": ["cats"], "brief_description": "x"}', "label: Input should be a valid string"),
        ("[1, 2]", "no complete JSON"),
        ("{" * 5_000, "no complete JSON"),
        ('{"a":' * 5_000, "no complete JSON"),
    ],
)
def test_what_cannot_be_read_says_what_is_wrong(text, problem):
    with pytest.raises(UnreadableAnswerError, match=problem):
        read_answer(text, FeatureLabelResponse)


@settings(max_examples=examples(200))
@given(st.text(), st.text(), st.text(min_size=1).filter(str.strip))
def test_any_object_is_read_back_within_any_prose_without_braces(before, after, label):
    before, after = (t.replace("{", "(").replace("`", "'") for t in (before, after))
    text = before + json.dumps({**GOOD, "label": label}) + after
    if after.count("}") or "```" in label:
        return
    assert read_answer(text, FeatureLabelResponse).label.strip() == label.strip()


@pytest.mark.parametrize(
    "first",
    [
        Reply.truncated(SAID),
        Reply('{"name": "cats"}'),
        Reply("I would rather not."),
    ],
)
def test_an_answer_that_cannot_be_read_goes_back_once_with_what_is_wrong(first):
    with LLMServer(lambda body: GOOD, [first]) as server:
        found, client = ask_one(server)
    assert found.label == "cats"
    assert (client.usage.requests, client.usage.repairs) == (2, 1)
    again = server.requests[1].messages
    assert again[:2] == server.requests[0].messages
    assert again[2] == {"role": "assistant", "content": first.text}
    assert again[3]["role"] == "user"
    assert "JSON" in again[3]["content"]


def test_after_two_answers_that_cannot_be_read_the_error_has_both():
    with (
        LLMServer(lambda body: Reply("second\nanswer"), [Reply("first answer")]) as server,
        pytest.raises(LLMAnswerError, match="not in the requested form") as caught,
    ):
        ask_one(server)
    assert (caught.value.first, caught.value.raw) == ("first answer", "second\nanswer")
    assert isinstance(caught.value, ValueError)
    assert "second answer" in str(caught.value)
    assert len(server.requests) == 2


def test_an_answer_that_is_right_in_form_can_be_found_wrong():
    with LLMServer(lambda body: GOOD, [Reply(SAID.replace("cats", "dogs"))]) as server:

        async def run():
            async with LLMClient(MODEL, server.url) as client:
                check = lambda found: "no dogs, please" if found.label == "dogs" else None  # noqa: E731
                return await client.ask(request(), check)

        assert asyncio.run(run()).label == "cats"
    assert "no dogs, please" in server.requests[1].messages[3]["content"]


@pytest.mark.parametrize("reply", [Reply(None), Reply("  "), Reply(None, finish_reason="length")])
def test_no_answer_at_all_is_an_error_and_is_not_kept(reply):
    kept = Kept()
    with (
        LLMServer(lambda body: reply) as server,
        pytest.raises(LLMAnswerError, match="gave no answer"),
    ):
        ask_one(server, answers=kept)
    assert kept == {}


# --- answers that are kept -----------------------------------------------------------------------


def test_a_question_is_not_sent_where_its_answer_is_kept():
    kept = Kept()
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "cost": 0.25}
    with LLMServer(lambda body: Reply(SAID, usage=usage)) as server:
        first, one = ask_one(server, answers=kept)
        second, two = ask_one(server, answers=kept)
    assert first == second
    assert len(server.requests) == 1
    assert (one.usage.requests, one.usage.kept, one.usage.cost) == (1, 0, 0.25)
    assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (7, 3)
    assert (two.usage.requests, two.usage.kept, two.usage.cost) == (0, 1, 0)
    assert kept == {request().digest: SAID}
    assert kept.usage == {
        request().digest: {"prompt_tokens": 7, "completion_tokens": 3, "cost": 0.25}
    }


def test_both_rounds_of_a_repair_are_kept():
    kept = Kept()
    with LLMServer(lambda body: GOOD, [Reply("no")]) as server:
        ask_one(server, answers=kept)
        found, client = ask_one(server, answers=kept)
    assert found.label == "cats"
    assert len(server.requests) == 2
    assert client.usage.kept == 2


def test_an_answer_is_kept_although_the_question_is_given_up_meanwhile():
    kept, asked, go_on = Kept(), threading.Event(), threading.Event()

    class Slow(Kept):
        def put(self, digest, answer, usage):
            asked.set()
            go_on.wait(PATIENCE)
            kept.put(digest, answer, usage)

    with LLMServer(lambda body: GOOD) as server:

        async def run():
            async with LLMClient(MODEL, server.url, answers=Slow()) as client:
                task = asyncio.create_task(client.ask(request()))
                await asyncio.to_thread(asked.wait, 10)
                task.cancel()
                await asyncio.sleep(0)
                go_on.set()
                with pytest.raises(asyncio.CancelledError):
                    await task

        asyncio.run(run())
    assert kept == {request().digest: SAID}


def test_an_answer_that_cannot_be_kept_is_used_and_that_is_said_once():
    class Full(Kept):
        def put(self, digest, answer, usage):
            raise OSError("no room.")

    with LLMServer(lambda body: GOOD) as server:
        with pytest.warns(
            UserWarning, match=r"could not be kept: no room\. It is still used"
        ) as caught:
            found, client = ask(server, request("a"), request("b"), answers=Full())
        assert [f.label for f in found] == ["cats", "cats"]
        assert len(caught) == 1

        async def again():
            async with client:
                return await client.ask(request("a"))

        assert asyncio.run(again()).label == "cats"
    assert len(server.requests) == 2


def test_that_answers_cannot_be_kept_is_noticed_before_any_is_paid_for(tmp_path):
    class ReadOnly(Kept):
        asked = 0

        def check_writable(self):
            self.asked += 1
            raise PermissionError("the disk is read-only")

    answers = ReadOnly()
    with LLMServer(lambda body: GOOD) as server:
        found, _ = ask(server, request("a"), request("b"), answers=answers)
        assert [type(f) for f in found] == [AnswersNotKeptError] * 2
        assert "no request was sent: the disk is read-only" in str(found[0])
        answers[request("a").digest] = SAID  # what is there needs no writing
        [found], _ = ask(server, request("a"), answers=answers)
    assert found.label == "cats"
    assert answers.asked == 1
    assert server.requests == []


def test_that_answers_cannot_be_kept_may_pass():
    class Flaky(Kept):
        asked = 0

        def check_writable(self):
            self.asked += 1
            if self.asked == 1:
                raise OSError("slow down")

    async def run():
        async with LLMClient(MODEL, server.url, answers=answers) as client:
            with pytest.raises(AnswersNotKeptError, match="slow down"):
                await client.ask(request("a"))
            return [(await client.ask(request(text))).label for text in "abc"]

    answers = Flaky()
    with LLMServer(lambda body: GOOD) as server:
        assert asyncio.run(run()) == ["cats"] * 3
    assert answers.asked == 2  # and not once more after that
    assert len(answers) == len(server.requests) == 3


def test_the_same_question_at_the_same_time_is_sent_once():
    with LLMServer(lambda body: Reply(SAID, delay=0.1)) as server:
        found, client = ask(server, *[request()] * 5, request("another"))
    assert [f.label for f in found] == ["cats"] * 6
    assert len(server.requests) == 2
    assert client.usage.requests == 2


def test_who_waits_for_a_question_that_is_given_up_sends_it_again():
    with LLMServer(lambda body: Reply(SAID, delay=0.2)) as server:

        async def run():
            async with LLMClient(MODEL, server.url) as client:
                first = asyncio.create_task(client.ask(request()))
                await asyncio.sleep(0.05)
                second = asyncio.create_task(client.ask(request()))
                await asyncio.sleep(0.01)
                first.cancel()
                return (await second).label

        assert asyncio.run(run()) == "cats"
    assert len(server.requests) == 2


def test_a_failure_is_every_askers_and_leaves_nothing_behind():
    with LLMServer(lambda body: Reply.failing(400, "no")) as server:
        found, _ = ask(server, *[request()] * 3, max_retries=0)
    assert [type(f) for f in found] == [LLMStatusError] * 3


def test_no_more_requests_are_in_flight_than_were_allowed():
    with LLMServer(lambda body: Reply(SAID, delay=0.05)) as server:
        ask(server, *[request(str(n)) for n in range(8)], concurrency=3)
        assert len(server.requests) == 8
        assert 2 <= server.most_at_once <= 3


def locals_of(error):
    """The error as a debugger shows it, with what it came from and the variables of every frame.

    Those of this file have the key on purpose.
    """
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert shown.__cause__ is shown.__context__ is None
    frames = [frame for frame in shown.stack if frame.filename != __file__]
    return [f"{frame.filename} {frame.locals}" for frame in frames]


# --- servers that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        Reply.rate_limited(),
        Reply.failing(500),
        Reply.failing(503),
        Reply.failing(529),
        Reply.gone(),
    ],
)
def test_failures_that_pass_are_tried_again_and_lose_nothing(failure):
    with LLMServer(lambda body: GOOD, [failure, failure]) as server:
        found, client = ask_one(server, max_retries=2)
    assert found.label == "cats"
    assert len(server.requests) == 3
    assert client.usage.requests == 1


def test_the_server_says_how_long_to_wait():
    with LLMServer(lambda body: GOOD, [Reply.rate_limited(0.4)]) as server:
        begun = time.monotonic()
        ask_one(server)
    assert time.monotonic() - begun >= 0.4


def test_a_pause_that_is_too_long_is_for_the_caller_to_decide():
    with (
        LLMServer(lambda body: Reply.rate_limited(3600)) as server,
        pytest.raises(
            LLMRateLimitError, match=r"answered 429: .*Wait 3600 s, as it asks"
        ) as caught,
    ):
        ask_one(server)
    assert caught.value.retry_after == 3600
    assert len(server.requests) == 1


def nonsense(body, content_type="application/json"):
    return Reply(body=body, content_type=content_type)


FAILURES = {
    "rate limit": (Reply.rate_limited(), LLMRateLimitError, "answered 429 in 2 attempts: too many"),
    "server error": (Reply.failing(500), LLMStatusError, "answered 500 in 2 attempts.*try again"),
    "key refused": (
        Reply.failing(401, f"Incorrect API key provided: {KEY}."),
        LLMAuthenticationError,
        r"answered 401: .*\[key\].*OPENROUTER_API_KEY",
    ),
    "no credit": (Reply.failing(402, "Insufficient credits"), LLMStatusError, "no credit left"),
    "no model": (Reply.failing(404, "no such model"), LLMStatusError, "the model's name 'some/model'"),
    "bad request": (Reply.failing(400, f"too long {KEY}"), LLMStatusError, "answered 400: too long"),
    "broken off": (Reply.gone(), LLMConnectionError, "cannot be reached, or broke the connection in 2 attempts"),
    "slow": (Reply(SAID, delay=5), LLMTimeoutError, "did not answer in time in 2 attempts"),
    "a web page": (
        nonsense(b"<html>Welcome to nginx</html>", "text/html"),
        LLMStatusError,
        "without a completion: <html>Welcome.*ends in /v1",
    ),
    "broken JSON": (nonsense(b'{"choices": ['), LLMStatusError, "did not answer with a chat|without a"),
    "another object": (nonsense(b'{"hello": 1}'), LLMStatusError, "without a completion"),
    "no choices": (nonsense(b'{"choices": []}'), LLMStatusError, "without a completion"),
    "a list": (nonsense(b"[1]"), LLMStatusError, "without a completion"),
    "nothing": (nonsense(b""), LLMStatusError, "did not answer with a chat|without a"),
    "an error with status 200": (
        nonsense(json.dumps({"error": {"message": f"slow down {KEY}", "code": 429}}).encode()),
        LLMRateLimitError,
        "answered 429 in 2 attempts: slow down",
    ),
    "a page as a failure": (
        Reply(status=502, body=b"<html>\nBad gateway</html>", content_type="text/html",
              headers={"retry-after-ms": "1"}),
        LLMStatusError,
        "answered 502 in 2 attempts",
    ),
    "prose": (Reply(f"no JSON today {KEY}"), LLMAnswerError, r"no JSON today \[key\]"),
    "refusal": (Reply(None), LLMAnswerError, "gave no answer"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_is_one_clear_line_without_the_key(name, caplog, capsys):
    reply, kind, line = FAILURES[name]
    caplog.set_level(logging.DEBUG)
    with LLMServer(lambda body: reply) as server, pytest.raises(kind, match=line) as caught:
        ask_one(server, timeout=0.3 if name == "slow" else 5)
    error = caught.value
    assert isinstance(error, LLMError)
    assert "\n" not in str(error)
    assert len(str(error)) < 800
    assert server.url in str(error)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"  # it was there to leak

    written = capsys.readouterr()
    everything = [
        str(error), repr(error), repr(vars(error)), *locals_of(error), caplog.text,
        repr([vars(record) for record in caplog.records]), written.out, written.err,
        repr(pickle.dumps(error)),
    ]  # fmt: skip
    assert not [text for text in everything if KEY in text]
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_can_be_made_as_picklers_make_it(name):
    kind = getattr(errors, name)
    made = kind.__new__(kind, "what it says")
    assert (type(made), str(made)) == (kind, "what it says")
    assert str(kind("what it says")) == "what it says"


@pytest.mark.parametrize("before", [276, 285, 292, 299])
@pytest.mark.parametrize("where", ["401", "400 in a body", "refusal", "text"])
def test_a_message_is_not_cut_within_the_key(before, where):
    said = "x" * (before - 1) + " " + KEY
    completion = {"id": "1", "object": "chat.completion", "created": 1, "model": MODEL}
    message = {"role": "assistant", "content": None, "refusal": said}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    reply = {
        "401": Reply(said, 401),
        "400 in a body": Reply(body=json.dumps({"error": {"message": said, "code": 400}}).encode()),
        "refusal": Reply(body=json.dumps({**completion, "choices": [choice]}).encode()),
        "text": Reply(body=json.dumps(said).encode()),
    }[where]
    with LLMServer(lambda body: reply) as server, pytest.raises(LLMError) as caught:
        ask_one(server)
    assert "x" * 200 in str(caught.value), "it is what the server said"
    assert KEY[:6] not in str(caught.value)


def test_the_organisation_at_openai_is_told_to_nobody_else(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-mine")
    with LLMServer(lambda body: GOOD) as server:
        ask_one(server)
        ask_one(server, model="openai/gpt-4o")
    others, openais = (r.headers for r in server.requests)
    assert not {name for name in others if name.startswith("openai-")}
    assert (openais["openai-organization"], openais["openai-project"]) == ("org-mine", "proj-mine")


def test_a_label_that_is_too_long_to_keep_goes_back_to_the_model():
    answers = iter([{**GOOD, "label": "cats " * 20_000}, GOOD])
    with LLMServer(lambda body: next(answers)) as server:
        found, client = ask_one(server)
    assert (found.label, client.usage.repairs) == ("cats", 1)


def test_a_server_that_is_not_there_is_one_clear_line():
    with LLMServer(lambda body: GOOD) as server:
        pass
    with pytest.raises(
        ConnectionError, match=r"cannot be reached.*that its URL is right"
    ) as caught:
        ask_one(server, max_retries=0)
    assert server.url in str(caught.value)


def test_no_representation_shows_the_key():
    async def run():
        client = LLMClient(MODEL, "http://localhost:1/v1/")
        async with client:
            return [repr(client), repr(client.endpoint), repr(vars(client)), str(client.endpoint)]

    found = asyncio.run(run())
    assert not [text for text in found if KEY in text]
    assert found[0] == "LLMClient('some/model', 'http://localhost:1/v1')"
    assert (
        found[1] == "Endpoint('http://localhost:1/v1', 'some/model', key from OPENROUTER_API_KEY)"
    )


@pytest.mark.parametrize(
    "url",
    ["http://me:hunter2@localhost:1/v1", "http://localhost/v1?key=hunter2", "http://x/#hunter2"],
)
def test_a_url_with_a_secret_in_it_is_refused_without_showing_it(url):
    with pytest.raises(ValueError, match="OPENROUTER_API_KEY") as caught:
        LLMClient(MODEL, url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-a b", "sk-a\nb", "schl\u00fcssel"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(monkeypatch, key):
    monkeypatch.setenv("OPENROUTER_API_KEY", key)
    with pytest.raises(LLMAuthenticationError, match="OPENROUTER_API_KEY") as caught:
        LLMClient(MODEL)
    assert locals_of(caught.value)
    assert not [text for text in locals_of(caught.value) if repr(key)[1:-1] in text]


def test_a_word_in_place_of_a_key_may_occur_in_an_answer(monkeypatch):
    monkeypatch.setenv("OPENROUTER_API_KEY", "cats")
    with LLMServer(lambda body: GOOD) as server:
        assert ask_one(server)[0].label == "cats"


def test_space_around_a_key_is_no_part_of_it(monkeypatch):
    monkeypatch.setenv("OPENROUTER_API_KEY", f" {KEY}\n")
    with LLMServer(lambda body: GOOD) as server:
        ask_one(server)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


# --- a client's life -----------------------------------------------------------------------------


def test_a_client_asks_only_while_it_is_open_and_can_be_opened_again():
    with LLMServer(lambda body: GOOD) as server:
        client = LLMClient(MODEL, server.url)

        async def run():
            async with client:
                await client.ask(request())
                with pytest.raises(RuntimeError, match="already open"):
                    await client.__aenter__()
            with pytest.raises(RuntimeError, match="async with"):
                await client.ask(request("more"))

        asyncio.run(run())
        asyncio.run(run())
    assert client.usage.requests == 2


def test_a_request_for_another_model_is_refused():
    with LLMServer(lambda body: GOOD) as server:
        [found], _ = ask(server, request(model="another/model"))
    assert isinstance(found, ValueError)
    assert "another/model" in str(found)


def test_importing_the_package_imports_neither_openai_nor_pydantic():
    code = (
        "import sys, interp_embed, interp_embed.llm, interp_embed.testing; from interp_embed import Dataset; "
        "assert not {'openai', 'pydantic', 'httpx', 'httpx2', 'http.server'} & set(sys.modules), 'imported'; "
        "assert set(interp_embed.llm.__all__) <= set(dir(interp_embed.llm)); "
        "[getattr(interp_embed.llm, name) for name in interp_embed.llm.__all__]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
