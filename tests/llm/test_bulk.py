"""`Dataset.label_features`: many features over real HTTP, within limits, and what becomes of each."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp_embed import Dataset
from interp_embed.cli import run
from interp_embed.cli.commands.label import read_features, read_prices
from interp_embed.errors import DiskFullError
from interp_embed.llm import (
    AnswersNotKeptError,
    LLMAuthenticationError,
    LLMConnectionError,
    LLMError,
    LLMStatusError,
    Prompts,
    Request,
)
from interp_embed.llm.ask.request import Message
from interp_embed.llm.ask.schemas import FeatureLabelResponse
from interp_embed.llm.asking import Asking
from interp_embed.llm.bulk import kept_reads as bulk_reads
from interp_embed.llm.bulk.budget import Budget, BudgetReachedError, Prices, dollars
from interp_embed.llm.bulk.kept_reads import KeptReads
from interp_embed.llm.bulk.plan import BulkAsking
from interp_embed.llm.samples.choice import Choice
from interp_embed.llm.samples.samples import SelectedSamples
from interp_embed.store.labels.collection import Answers
from interp_embed.store.storage.local import LocalStorage
from interp_embed.testing import LLMServer, Reply
from tests.support.numbered_sae import MODEL, NumberedSAE, judge, marked, numbered_documents
from tests.support.waiting import PATIENCE

KEY = "sk-or-v1-0123456789abcdef"
WIDTH = 64
USED = range(40)
"""The other features occur nowhere."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENROUTER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENROUTER_API_KEY", KEY)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("bulk") / "template.zarr"
    Dataset(numbered_documents(USED), NumberedSAE(WIDTH), save_path=path)
    return Dataset.load_from_file(path)


@pytest.fixture
def dataset(template, tmp_path):
    path = tmp_path / "store.zarr"
    template.save_to_file(path)
    return Dataset.load_from_file(path)


def label(dataset, server, features=None, **kwargs):
    return asyncio.run(
        dataset.label_features(features, MODEL, base_url=server.url, **{"k": 3, **kwargs})
    )


def contents(server):
    return Counter(json.dumps(request.body["messages"]) for request in server.requests)


# --- labels and what is kept of them ---------------------------------------------------------------


def test_all_features_that_occur_are_labelled_once(dataset):
    with LLMServer(judge) as server:
        found = label(dataset, server)
        again = label(dataset, server)
    assert found.table["feature"].tolist() == list(USED)
    assert found.table["label"].tolist() == [f"w{f}" for f in USED]
    assert (found.table["failed"] == "").all()
    assert found.stopped is None
    assert set(contents(server).values()) == {1}
    assert len(server.requests) == found.requests == len(USED) == found.table["requests"].sum()
    assert found.tokens == 110 * len(USED)
    assert np.isnan(found.cost)
    assert found.table["prompt_tokens"].tolist() == [100] * len(USED)
    assert len(again.table) == 0
    assert (again.requests, again.estimate.features) == (0, 0)
    fresh = Dataset.load_from_file(dataset.path)
    assert fresh.feature_labels() == {f: f"w{f}" for f in USED}
    records = fresh.label_records()
    assert {r.model for r in records} == {MODEL}
    assert {r.prompt_version for r in records} == {Prompts().version("label")}
    for record in records:
        assert record.examples[0].activation > 0
        for example in record.examples:
            words = fresh[example.document].document().split()[example.start : example.stop]
            assert (record.label in words) == (example.activation > 0)


def test_features_that_are_named_are_asked_for_again_but_answered_from_the_store(dataset):
    with LLMServer(judge) as server:
        first = label(dataset, server, [5, 3, 5])
        second = label(Dataset.load_from_file(dataset.path), server, np.array([3, 5]))
        other = label(dataset, server, [3], seed=1)
    assert first.table["feature"].tolist() == [3, 5]
    assert (second.requests, second.kept, second.estimate.kept) == (0, 2, 2)
    assert second.table["label"].tolist() == ["w3", "w5"]
    assert other.requests == 1
    assert len(server.requests) == 3
    assert len(dataset.label_records()) == 3


def test_scores_are_kept_with_their_labels_and_made_once(dataset):
    with LLMServer(judge) as server:
        found = label(dataset, server, range(6), score="detection", score_k=3)
        sent = len(server.requests)
        again = label(dataset, server, range(6), score="detection", score_k=3)
        assert len(server.requests) == sent == 12
    assert found.table["score"].tolist() == [1.0] * 6
    assert (found.table["low"] > 0.5).any()
    assert again.table["score"].tolist() == [1.0] * 6
    records = Dataset.load_from_file(dataset.path).label_records()
    assert [len(r.scores) for r in records] == [1] * 6
    assert {(s.method, s.model) for r in records for s in r.scores} == {("detection", MODEL)}


def test_a_label_that_only_lacks_a_score_is_scored_and_not_asked_for(dataset):
    with LLMServer(judge) as server:
        label(dataset, server, seed=3)
        sent = len(server.requests)
        found = label(dataset, server, score=["detection", "fuzzing"], score_k=2)
        kinds = Counter(
            r.body["response_format"]["json_schema"]["name"] for r in server.requests[sent:]
        )
        third = label(dataset, server, score=["detection", "fuzzing"], score_k=2)
    assert set(kinds) == {"BatchResponse"}
    assert {"score_detection", "score_fuzzing"} <= set(found.table.columns)
    assert found.table["score_detection"].tolist() == [1.0] * len(USED)
    assert len(dataset.label_records()) == len(USED)
    fuzzed = found.table["score_fuzzing"].notna()
    assert set(third.table["feature"]) == set(found.table["feature"][~fuzzed])


def test_scores_may_be_of_other_documents(dataset):
    half = len(dataset) // 2
    with LLMServer(judge) as server:
        found = label(dataset[:half], server, range(6), score="detection", scored_on=dataset[half:])
    labelled = [r for r in found.table.itertuples() if r.label]
    assert labelled
    for record in dataset.label_records():
        assert all(example.document < half for example in record.examples)


# --- failures --------------------------------------------------------------------------------------


def test_a_feature_that_fails_takes_no_other_with_it(dataset):
    broken = [True]

    def answer(body):
        feature = marked(body)
        if broken[0] and feature == 7:
            return Reply.failing(500, "out of order")
        if broken[0] and feature == 9:
            return Reply("flagged", 403)
        return "no idea" if feature == 11 else judge(body)

    with LLMServer(answer) as server:
        found = label(dataset, server, [*USED, 50], max_retries=1, max_concurrency=2)
        broken[0] = False
        sent = len(server.requests)
        again = label(dataset, server, max_retries=1)
    failed = dict(zip(found.failures["feature"], found.failures["failed"], strict=True))
    assert set(failed) == {7, 9, 11, 50}
    assert "out of order" in failed[7]
    assert "flagged" in failed[9]
    assert "no idea" in failed[11]
    assert "not active" in failed[50]
    assert all("\n" not in reason for reason in failed.values())
    assert (found.table["label"] != "").sum() == len(USED) - 3
    assert again.table["feature"].tolist() == [7, 9, 11]
    assert again.table["label"].tolist() == ["w7", "w9", ""]
    assert len(server.requests) - sent == 2  # what cannot be read was paid for, too
    assert "2 features labelled, 1 failed" in str(again)


def test_failures_that_pass_are_not_seen(dataset):
    script = [Reply.rate_limited(), Reply.failing(503), Reply.gone(), Reply.truncated("{}{}"), None]
    with LLMServer(judge, script) as server:
        found = label(dataset, server, range(10))
    assert found.table["label"].tolist() == [f"w{f}" for f in range(10)]
    assert found.failures.empty
    assert found.requests == 11  # one answer was repaired
    assert len(server.requests) == 14


def test_a_request_that_takes_too_long_is_a_line_in_the_table(dataset):
    def answer(body):
        return Reply(json.dumps(judge(body)), delay=6.0 if marked(body) == 2 else 0.0)

    with LLMServer(answer) as server:
        found = label(dataset, server, range(5), timeout=2.0, max_retries=0)
    assert found.failures["feature"].tolist() == [2]
    assert "did not answer in time" in found.failures["failed"].iloc[0]


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, LLMAuthenticationError, "OPENROUTER_API_KEY"),
        (403, LLMAuthenticationError, "OPENROUTER_API_KEY"),
        (402, LLMStatusError, "no credit left"),
        (404, LLMStatusError, "'local/model'"),
    ],
)
def test_a_server_that_refuses_everything_ends_it_at_once(dataset, status, kind, said):
    with (
        LLMServer(lambda body: Reply("no", status)) as server,
        pytest.raises(kind, match=said) as caught,
    ):
        label(dataset, server, max_concurrency=4)
    assert len(server.requests) <= 8
    assert "\n" not in str(caught.value)
    assert "0 of 40 features were labelled" in caught.value.__notes__[0]
    assert KEY not in repr(caught.value)


@pytest.mark.parametrize("kwargs", [{}, {"max_tokens": 100_000}, {"max_concurrency": 1}])
def test_prompts_that_are_moderated_first_are_rows_and_so_is_one_that_is_left(dataset, kwargs):
    """A refusal comes at once, before anything is answered."""

    def answer(body):
        if marked(body) in (0, 3):
            return Reply("flagged", 403)
        return Reply(json.dumps(judge(body)), delay=0.05)

    with LLMServer(answer) as server:
        found = label(dataset, server, **kwargs)
        assert found.failures["feature"].tolist() == [0, 3]
        assert found.failures["failed"].str.contains("flagged").all()
        assert (found.table["label"] != "").sum() == len(USED) - 2
        assert len(server.requests) == len(USED)
        left = label(dataset, server, **kwargs)
        named = label(dataset, server, [3], **kwargs)
    assert left.failures["feature"].tolist() == [0, 3]
    assert named.failures["feature"].tolist() == [3]


def test_an_answer_that_cannot_be_read_shows_that_the_key_is_good(dataset):
    def answer(body):
        return Reply("flagged", 403) if marked(body) == 0 else Reply("no idea", delay=0.1)

    with LLMServer(answer) as server:
        found = label(dataset, server, [0, 1], max_retries=0)
    assert found.failures["feature"].tolist() == [0, 1]
    assert "no idea" in found.failures["failed"].iloc[1]


def test_where_all_others_fail_too_a_refusal_is_the_keys(dataset):
    def answer(body):
        return Reply("out of order", 500, delay=0.1) if marked(body) == 1 else Reply("no", 403)

    with (
        LLMServer(answer) as server,
        pytest.raises(LLMAuthenticationError, match="OPENROUTER_API_KEY"),
    ):
        label(dataset, server, range(4), max_retries=0)
    assert len(server.requests) == 4


def test_credit_that_runs_out_leaves_what_was_paid_for(dataset):
    credit = [12]
    bills = count(1)

    def answer(body):
        return judge(body) if next(bills) <= credit[0] else Reply("insufficient credits", 402)

    with LLMServer(answer) as server:
        with pytest.raises(LLMStatusError, match="no credit left"):
            label(dataset, server)
        assert len(dataset.answers) == 12
        refused = len(server.requests) - 12
        assert 0 < refused <= 16
        credit[0] = 1000
        label(dataset, server)
    assert len(server.requests) == len(USED) + refused
    assert len(Dataset.load_from_file(dataset.path).feature_labels()) == len(USED)


def test_a_server_that_is_gone_ends_it_after_some_features(dataset):
    with LLMServer(judge) as server:
        url = server.url
    with pytest.raises(LLMConnectionError, match="features in a row failed; the last: ") as caught:
        asyncio.run(
            dataset.label_features(None, MODEL, base_url=url, k=3, max_retries=0, max_concurrency=2)
        )
    assert "cannot be reached" in str(caught.value)


def test_answers_that_nobody_can_read_end_it_before_all_is_spent(dataset):
    with (
        LLMServer(lambda body: "I would rather not say.") as server,
        pytest.raises(LLMError, match="features in a row failed"),
    ):
        label(dataset, server, max_concurrency=1)
    assert len(server.requests) <= 2 * (10 + 2)


def test_answers_that_cannot_be_kept_end_it(dataset, monkeypatch):
    put = Answers.put
    room = [5]

    def full(self, digest, answer, usage=None):
        room[0] -= 1
        if room[0] < 0:
            raise DiskFullError("no room for answers.")
        put(self, digest, answer, usage)

    monkeypatch.setattr(Answers, "put", full)
    with (
        LLMServer(judge) as server,
        pytest.raises(
            AnswersNotKeptError, match=r"no room for answers\. No more requests"
        ) as caught,
    ):
        label(dataset, server, max_concurrency=2)
    assert len(server.requests) <= 5 + 2 * 2
    assert isinstance(caught.value.__cause__, DiskFullError)
    # All that was paid for is in the store or in the error.
    lost = caught.value.answers
    assert 0 < len(lost) == len(server.requests) - 5
    monkeypatch.undo()
    monkeypatch.setenv("OPENROUTER_API_KEY", KEY)
    for digest, text in lost.items():
        dataset.answers.put(digest, text)
    with LLMServer(judge) as again:
        label(dataset, again)
    assert len(again.requests) == len(USED) - len(server.requests)
    assert not contents(again).keys() & contents(server).keys()


# --- limits ----------------------------------------------------------------------------------------


def test_a_budget_of_tokens_ends_it_with_everything_kept(dataset):
    with LLMServer(judge) as server:
        found = label(dataset, server, max_tokens=2_000, max_concurrency=4)
        assert found.tokens <= 2_000
        assert 0 < len(found.table) < len(USED)
        assert found.tokens > 1_000
        assert "the limit of 2,000 tokens is reached" in found.stopped
        assert f"{len(found.table)} of 40 features are labelled" in found.stopped
        assert len(dataset.label_records()) == len(found.table) == len(server.requests)
        rest = label(dataset, server)
    assert rest.stopped is None
    assert set(contents(server).values()) == {1}
    assert len(server.requests) == len(USED)


def test_a_budget_of_dollars_counts_by_prices_or_by_what_the_server_says(dataset):
    said = {"prompt_tokens": 100, "completion_tokens": 10, "cost": 0.01}
    with LLMServer(judge) as server:
        priced = label(dataset, server, max_cost=0.007, prices=(1.0, 10.0), max_concurrency=2)
    assert priced.stopped is not None
    assert priced.cost == pytest.approx(len(priced.table) * 0.0002)
    assert 0.004 < priced.cost <= 0.007
    with LLMServer(lambda body: Reply(json.dumps(judge(body)), usage=said)) as server:
        found = label(
            dataset, server, USED, max_cost=0.1, prices=(15.0, 350.0), max_concurrency=1, seed=5,
            settings={"max_tokens": 15},
        )  # fmt: skip
    assert found.cost == pytest.approx(0.01 * len(found.table))
    assert 0.08 <= found.cost <= 0.1
    assert "the limit of $0.10 is reached: $0." in found.stopped


@pytest.mark.parametrize(
    ("said", "concurrency"), [((60, 40), 4), ((700, 40), 1), ((2_500, 900), 4)]
)
def test_no_budget_is_passed_where_answers_are_alike(template, tmp_path, said, concurrency):
    """Whatever is left when the limit comes near: so many requests of so many tokens, and not one more."""
    prompt, answer = said
    usage = {"prompt_tokens": prompt, "completion_tokens": answer}
    ends = []
    with LLMServer(lambda body: Reply(json.dumps(judge(body)), usage=usage)) as server:
        for number, most in enumerate(range(3_600, 3_600 + sum(said), 1 + sum(said) // 3)):
            path = tmp_path / f"{number}.zarr"
            template.save_to_file(path)
            found = label(
                Dataset.load_from_file(path), server, max_tokens=most, max_concurrency=concurrency
            )
            assert found.tokens <= most
            assert found.tokens == found.requests * sum(said)
            ends.append(found.requests)
    assert all(ends)


@given(
    st.lists(st.tuples(st.integers(30, 6_000), st.floats(0.95, 1.05)), min_size=1, max_size=40),
    st.floats(0.05, 0.32),
    st.integers(1, 180),
    st.integers(800, 20_000),
    st.integers(1, 6),
)
def test_no_budget_is_passed_by_prompts_of_all_lengths(prompts, density, answer, most, at_once):
    """Tokens a byte differ by a twentieth; several requests are in flight at any time."""

    async def spend():
        budget, flying = Budget(max_tokens=most), []

        def land():
            reserved, took = flying.pop(0)
            budget.settle(reserved, [took])

        for size, spread in prompts:
            asked = Request(MODEL, (Message("user", "x" * size),), FeatureLabelResponse, {})
            sent = asyncio.ensure_future(budget.reserve(asked))
            while not sent.done():
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                if not sent.done():
                    land()
            if sent.exception() is not None:
                break
            tokens = {
                "prompt_tokens": int(sent.result().size * density * spread),
                "completion_tokens": answer,
            }
            flying.append((sent.result(), tokens))
            if len(flying) > at_once:
                land()
        while flying:
            land()
        return budget.tokens

    assert asyncio.run(spend()) <= most


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_budget_ends_with_whole_features_and_not_with_labels_alone(dataset, concurrency):
    """Of 12 features' worth nearly all are labelled and scored; none was begun and not scored."""
    each = 110 * 3  # a label, and a request each for two methods
    with LLMServer(judge) as server:
        found = label(
            dataset, server, score=["detection", "fuzzing"], score_k=2, max_tokens=12 * each,
            max_concurrency=concurrency, settings={"max_tokens": 10},
        )  # fmt: skip
        assert found.stopped is not None
        assert found.failures.empty
        assert found.unscored.empty
        assert 6 <= len(found.table) <= 12
        assert found.table[["score_detection"]].notna().all(axis=None)
        assert "features are labelled and in the store" in found.stopped
        rest = label(
            dataset, server, score=["detection", "fuzzing"], score_k=2, settings={"max_tokens": 10}
        )
    assert rest.stopped is None
    assert set(contents(server).values()) == {1}


def test_what_the_budget_left_unscored_is_no_failure(dataset, capsys):
    """Scores that take far more than was to be expected: the budget is spent before all are made."""

    def answer(body):
        batch = body["response_format"]["json_schema"]["name"] == "BatchResponse"
        usage = {"prompt_tokens": 100, "completion_tokens": 2_500 if batch else 10}
        return Reply(json.dumps(judge(body)), usage=usage)

    with LLMServer(answer) as server:
        found = label(
            dataset, server, [5], score=["detection", "fuzzing"], score_k=8, max_tokens=6_000,
            max_concurrency=1,
        )  # fmt: skip
        assert found.stopped is not None
        assert found.failures.empty
        [row] = found.unscored.itertuples()
        assert row.label == f"w{row.feature}"
        assert row.failed == ""
        assert "the limit of 6,000 tokens is reached" in row.not_scored
        assert "1 of them without a requested score" in found.stopped
        assert "1 not scored, 0 failed" in str(found)
        arguments = ["label", dataset.path, "--model", MODEL, "-k", "8", "--base-url", server.url]
        capsys.readouterr()
        command = [*arguments, "--max-tokens", "6200", "--concurrency", "1", "--features", "20"]
        assert run([*command, "--score", "detection", "--score", "fuzzing"]) == 1
    printed = capsys.readouterr()
    assert "1 not scored: the budget is spent" in printed.out
    assert "failed" not in printed.out
    assert "the limit of 6,200 tokens is reached" in printed.err


def test_answers_that_are_kept_need_no_budget(dataset):
    scores = {"score": "detection", "score_k": 2}
    with LLMServer(judge) as server:
        label(dataset, server, range(10), **scores)
        sent = len(server.requests)
        found = label(dataset, server, range(12), max_tokens=1, **scores)
        assert len(server.requests) == sent
    assert found.table["feature"].tolist() == list(range(10))
    assert found.table["score"].tolist() == [1.0] * 10
    assert "10 of 12 features are labelled and" in found.stopped


def test_a_budget_smaller_than_one_feature_asks_for_nothing(dataset):
    with LLMServer(judge) as server:
        found = label(dataset, server, max_tokens=200)
        assert server.requests == []
    assert (len(found.table), found.tokens) == (0, 0)
    assert "the next step may use" in found.stopped


def test_requests_that_wait_for_each_other_end_with_the_budget():
    """Two features have begun, and neither has room for what it did not expect."""

    async def spend():
        budget = Budget(max_tokens=3_000)
        asked = Request(MODEL, (Message("user", "x" * 1_000),), FeatureLabelResponse, {})
        budget.settle(
            await budget.reserve(asked), [{"prompt_tokens": 400, "completion_tokens": 400}]
        )

        async def feature():
            with budget.holding() as held:
                await budget.hold(held, [asked])
                await asyncio.sleep(0)
                await budget.reserve(asked, held)
                with pytest.raises(BudgetReachedError):
                    await budget.reserve(asked, held)
                return True

        both = asyncio.gather(feature(), feature())
        await asyncio.sleep(0.01)
        assert not both.done()  # what is in flight may take less than it might
        for reserved in list(budget._open.values()):
            budget.settle(reserved, [{"prompt_tokens": 700, "completion_tokens": 400}])
        async with asyncio.timeout(PATIENCE):
            return await both

    assert asyncio.run(spend()) == [True, True]


def test_a_read_only_store_is_noticed_before_anything_is_paid_for(dataset, monkeypatch):
    def refuse(self, key, data):
        raise PermissionError(f"{key} cannot be written")

    monkeypatch.setattr(LocalStorage, "put_if_absent", refuse)
    with LLMServer(judge) as server:
        with pytest.raises(AnswersNotKeptError, match="no request was sent: labels/"):
            label(dataset, server)
        with pytest.raises(AnswersNotKeptError):
            asyncio.run(dataset.label_feature(3, base_url=server.url, k=3, answers=dataset.answers))
        assert server.requests == []
    monkeypatch.undo()
    assert not [p for p in Path(dataset.path).rglob("*") if "probe" in p.name]


@pytest.mark.parametrize("names", [["delete_several"], ["delete", "delete_several"]])
def test_where_nothing_may_be_deleted_labels_are_made_all_the_same(dataset, monkeypatch, names):
    def refuse(self, *keys):
        raise PermissionError("nothing may be deleted")

    for name in names:
        monkeypatch.setattr(LocalStorage, name, refuse)
    with LLMServer(judge) as server:
        found = label(dataset, server, range(4))
    assert found.table["label"].tolist() == ["w0", "w1", "w2", "w3"]
    assert len(server.requests) == found.requests == 4
    fresh = Dataset.load_from_file(dataset.path)
    assert len(fresh.label_records()) == len(fresh.answers) == 4


def test_what_keeps_a_key_from_being_written_is_said_and_not_what_follows(tmp_path, monkeypatch):
    def refuse(self, key, *data):
        raise PermissionError("no writing" if data else "no deleting")

    storage = LocalStorage(tmp_path)
    monkeypatch.setattr(LocalStorage, "delete", refuse)
    storage.try_writing("labels")
    monkeypatch.setattr(LocalStorage, "put_if_absent", refuse)
    with pytest.raises(PermissionError, match="no writing"):
        storage.try_writing("labels")


def test_a_server_that_counts_nothing_is_counted_by_characters(dataset):
    with LLMServer(lambda body: Reply(json.dumps(judge(body)), usage=None)) as server:
        found = label(dataset, server, range(4), prices=(1.0, 2.0))
    expected = [
        sum(len(m["content"]) for m in r.messages)
        + len(json.dumps(r.body["response_format"]["json_schema"]["schema"]))
        for r in server.requests
    ]
    assert found.table["prompt_tokens"].sum() == sum(-(-n // 4) for n in expected)
    assert (found.table["completion_tokens"] > 5).all()
    assert found.cost > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_cost": 1.0}, "needs the model's prices"),
        ({"max_cost": 0, "prices": (1, 1)}, "max_cost must be a number above 0"),
        ({"max_cost": 1.0, "prices": (0, 0)}, "must not both be 0"),
        ({"prices": (1.0,)}, "prices must be two numbers"),
        ({"prices": (1.0, -2)}, "prices must be two numbers"),
        ({"max_tokens": -5}, "max_tokens must be a number above 0"),
        ({"requests_per_minute": float("nan")}, "requests_per_minute must be"),
        ({"tokens_per_minute": True}, "tokens_per_minute must be"),
        ({"max_concurrency": 0}, "max_concurrency must be a positive integer"),
        ({"score": "vibes"}, "score must be one or several of reference, detection, fuzzing"),
        ({"score": ["detection", 3]}, "score must be one or several of"),
        ({"k": 0}, "k must be a positive integer"),
        ({"examples": "best"}, "examples must be one of"),
        ({"settings": {"model": "x"}}, "settings must not have 'model'"),
        ({"features": [64]}, "feature 64 is not among the 64"),
        ({"features": [-1]}, "feature -1 is not among the 64"),
        ({"features": [0.5]}, "features must be integers"),
        ({"features": [True]}, "features must be integers"),
        ({"base_url": "nowhere"}, "base_url must be a URL"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_sent(template, wrong, said):
    with LLMServer(judge) as server:
        arguments = {"model": MODEL, "base_url": server.url, **wrong}
        with pytest.raises((ValueError, IndexError, TypeError), match=said):
            asyncio.run(template.label_features(**arguments))
        assert not server.requests


def test_requests_are_spread_as_the_server_allows(dataset):
    times = []

    def answer(body):
        times.append(time.monotonic())
        return judge(body)

    with LLMServer(answer) as server:
        begun = time.monotonic()
        found = label(dataset, server, range(8), requests_per_minute=1200)
    assert len(found.table) == 8
    assert max(times) - begun >= 7 * 0.05


def test_tokens_are_spread_as_the_server_allows(dataset):
    # 10,000 a second, and 100,000 at once. The first request is expected to take little.
    usage = {"prompt_tokens": 16_000, "completion_tokens": 0}
    with LLMServer(lambda body: Reply(json.dumps(judge(body)), usage=usage)) as server:
        begun = time.monotonic()
        found = label(dataset, server, range(8), tokens_per_minute=600_000, max_concurrency=1)
        took = time.monotonic() - begun
    assert found.tokens == 8 * 16_000
    assert took >= (7 * 16_000 - 100_000) / 10_000 * 0.8


def test_no_more_requests_are_in_flight_than_allowed(dataset):
    with LLMServer(lambda body: Reply(json.dumps(judge(body)), delay=0.02)) as server:
        label(dataset, server, max_concurrency=3)
    assert 1 < server.most_at_once <= 3


@given(
    st.lists(st.tuples(st.integers(1, 5_000), st.integers(0, 300)), max_size=30),
    st.integers(1, 5_000),
)
def test_a_budget_is_not_exceeded_where_estimates_hold(requests, most):
    async def spend():
        budget, refused = Budget(max_tokens=most), False
        for characters, answer in requests:
            asked = Request(
                MODEL, (Message("user", "x" * characters),), FeatureLabelResponse,
                {"max_tokens": answer} if answer else {},
            )  # fmt: skip
            try:
                reserved = await budget.reserve(asked)
            except BudgetReachedError:
                refused = True
                continue
            took = {
                "prompt_tokens": reserved.prompt_tokens,
                "completion_tokens": reserved.completion_tokens,
            }
            budget.settle(reserved, [took])
        return budget, refused

    budget, refused = asyncio.run(spend())
    assert budget.tokens <= most + 1e-6
    assert refused or budget.tokens > 0 or not requests


def test_a_request_that_may_not_fit_waits_for_those_in_flight():
    async def spend():
        budget = Budget(max_tokens=2_000, prices=Prices(1, 1))
        asked = Request(MODEL, (Message("user", "x" * 3_000),), FeatureLabelResponse, {})
        first = await budget.reserve(asked)
        second = asyncio.ensure_future(budget.reserve(asked))
        await asyncio.sleep(0.01)
        waited = not second.done()
        budget.settle(first, [{"prompt_tokens": 300, "completion_tokens": 5}])
        await second
        return waited

    assert asyncio.run(spend())


# --- the estimate ----------------------------------------------------------------------------------


def test_an_estimate_is_what_is_sent_then(dataset, monkeypatch):
    monkeypatch.delenv("OPENROUTER_API_KEY")
    expected = dataset.estimate_labels(
        range(20), MODEL, score="detection", k=3, score_k=3, prices=(2.0, 10.0)
    )
    with LLMServer(judge) as server:
        label(dataset, server, range(20), score="detection", score_k=3)
    characters = sum(
        sum(len(m["content"]) for m in r.messages)
        + len(json.dumps(r.body["response_format"]["json_schema"]["schema"]))
        for r in server.requests
    )
    assert expected.features == 20
    assert expected.requests == len(server.requests) == 40
    assert expected.prompt_tokens == pytest.approx(characters / 4, rel=0.02)
    assert expected.cost == pytest.approx(
        (2 * expected.prompt_tokens + 10 * expected.completion_tokens) / 1e6
    )
    assert "20 features: about 40 requests" in str(expected)
    answered = dataset.estimate_labels(range(20), MODEL, k=3)
    assert (answered.requests, answered.kept, answered.cost) == (0, 20, None)
    every = dataset.estimate_labels(model=MODEL, k=3)
    assert every.features == len(USED) - 20


# --- choosing samples ------------------------------------------------------------------------------


def chosen(asking, samples, feature):
    """Return which request is made for a feature, and of what; or why there is none."""
    try:
        task = asking.label_task(samples, feature)
    except ValueError as error:
        return str(error)
    return task.request.digest, task.chosen


@pytest.mark.parametrize("negatives", ["random", "hard"])
@pytest.mark.parametrize("examples", ["top", "quantile", "random"])
def test_shared_reads_choose_what_single_ones_do(template, monkeypatch, examples, negatives):
    monkeypatch.setattr(bulk_reads, "_BLOCK_FEATURES", 7)
    for rows, columns in ((2**28, 2**27), (2_000, 100)):
        monkeypatch.setattr(bulk_reads, "_ROW_BYTES", rows)
        monkeypatch.setattr(bulk_reads, "_COLUMN_BYTES", columns)
        for view in (template, template[::-1], template[5:8]):
            asking = BulkAsking(Asking(MODEL, Choice(examples, negatives)), k=3)
            own = SelectedSamples(view.selection, WIDTH)
            features = [30, 2, 17, 4, 9, 11, 25, 3, 2, 30]
            shared = KeptReads(own, features)
            found = [chosen(asking, shared, feature) for feature in features]
            assert found == [chosen(asking, own, feature) for feature in features]
            assert any(isinstance(part, str) for part in found) == (len(view) == 3)
            assert shared._rows.currsize <= rows


def test_a_document_that_was_not_encoded_is_passed_over(tmp_path):
    documents = numbered_documents(USED)
    documents.insert(3, {"text": None})
    whole = Dataset(documents, NumberedSAE(WIDTH), save_path=tmp_path / "s.zarr")
    with LLMServer(judge) as server:
        found = label(whole, server)
    assert found.table["label"].tolist() == [f"w{f}" for f in USED]


# --- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--max-cost", "5"], "--max-cost=5 needs the model's prices"),
        (["--max-cost", "-1", "--prices", "1,1"], "--max-cost must be a number above 0"),
        (
            ["--max-cost", "1", "--prices", "0,0"],
            "--prices must not both be 0 if there is a limit on cost, got (0, 0)",
        ),
        (["--requests-per-minute", "0"], "--requests-per-minute must be"),
        (["--timeout", "0"], "--timeout must be a number of seconds"),
        (["--base-url", "nowhere"], "--base-url must be a URL"),
        (["--model", " "], "--model must be the name of a model"),
    ],
)
def test_the_command_speaks_of_its_options(dataset, capsys, wrong, said):
    assert run(["label", dataset.path, "--base-url", "http://127.0.0.1:9/v1", *wrong]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {said}")
    assert "max_cost" not in printed


def test_the_command_has_its_own_patience(dataset, capsys):
    with LLMServer(lambda body: Reply("{}", delay=5)) as server:
        command = ["label", dataset.path, "--model", MODEL, "--base-url", server.url, "-k", "3"]
        assert run([*command, "--features", "1", "--timeout", "0.3", "--retries", "1"]) == 1
        assert len(server.requests) == 2
    out = capsys.readouterr().out
    assert "1 failed:" in out
    assert "did not answer in time in 2 attempts" in out
    assert "=" not in out.partition("failed:")[2]


def test_an_answer_that_is_lost_is_printed_by_the_command(dataset, monkeypatch, capsys):
    def full(self, digest, answer, usage=None):
        raise DiskFullError("no room for answers")

    monkeypatch.setattr(Answers, "put", full)
    with LLMServer(judge) as server:
        command = ["label", dataset.path, "--model", MODEL, "--base-url", server.url, "-k", "3"]
        assert run([*command, "--features", "7"]) == 1
    error, note, *_ = capsys.readouterr().err.splitlines()
    assert "could not be kept: no room for answers." in error
    assert re.match('note: the answer to request [0-9a-f]{64}: {"label": "w7"', note)


def test_dollars_are_as_exact_as_they_are_small():
    shown = [dollars(n) for n in (0, 1234.5, 1, 0.5, 0.123456, 0.0061, 0.00025, 0.00001)]
    assert shown == [
        "$0.00", "$1,234.50", "$1.00", "$0.50", "$0.12", "$0.0061", "$0.00025",
        "less than $0.0001",
    ]  # fmt: skip


def test_the_command_estimates_labels_and_stops_at_a_budget(dataset, capsys):
    with LLMServer(judge) as server:
        common = ["label", dataset.path, "--model", MODEL, "-k", "3"]
        assert run([*common, "--estimate", "--features", "1,5-9"]) == 0
        assert capsys.readouterr().out.startswith("6 features: about 6 requests")
        assert not server.requests
        common += ["--base-url", server.url]
        assert run([*common, "--features", "1,5-9", "--score", "detection"]) == 0
        out = capsys.readouterr().out
        assert "6 features labelled, " in out
        assert run([*common, "--max-cost", "0.0061", "--prices", "1,10", "--concurrency", "2"]) == 1
        printed = capsys.readouterr()
        assert "stopped: the limit of $0.0061 is reached" in printed.err
        assert run([*common, "--features", "1-x"]) == 2
        assert "features must be numbers and ranges" in capsys.readouterr().err
        assert run([*common, "--prices", "1"]) == 2
        capsys.readouterr()
        assert run([*common, "--features", "99"]) == 1
        assert "feature 99 is not among" in capsys.readouterr().err
        assert run(common) == 0
    assert len(Dataset.load_from_file(dataset.path).feature_labels()) == len(USED)
    assert set(contents(server).values()) == {1}


def test_lists_of_features_and_prices_are_read():
    assert read_features("1,5-7, 6 ,2 - 3") == [1, 5, 6, 7, 2, 3]
    assert read_prices("0.30, 2.5") == (0.3, 2.5)
    for wrong in ("", "a", "3-1", "-4", "1,,2"):
        with pytest.raises(ValueError, match="features"):
            read_features(wrong)
    for wrong in ("", "1", "1,2,3", "a,b"):
        with pytest.raises(ValueError, match="two numbers"):
            read_prices(wrong)


def test_a_table_of_nothing_has_the_same_types(dataset):
    with LLMServer(judge) as server:
        found = label(dataset, server, [])
        full = label(dataset, server, [1])
    pd.testing.assert_series_equal(found.table.dtypes, full.table.dtypes)
