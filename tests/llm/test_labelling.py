"""`Dataset.label_feature` and `Dataset.score_feature`, over real HTTP to a judge that can be wrong."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from math import comb

import numpy as np
import pytest

from interp_embed import Dataset
from interp_embed.analysis.diff import newcombe_interval
from interp_embed.llm import (
    FeatureLabelResponse,
    LLMAnswerError,
    LLMAuthenticationError,
    LLMClient,
    LLMError,
    LLMStatusError,
    LLMTimeoutError,
    Prompts,
    ScoredSample,
    SingleSampleScoringResponse,
)
from interp_embed.llm.asking import Asking
from interp_embed.llm.judging import balanced_accuracy
from interp_embed.llm.label import ask_label, label_task
from interp_embed.llm.label_records import label_record, score_record
from interp_embed.llm.samples.choice import Choice
from interp_embed.llm.samples.samples import SelectedSamples
from interp_embed.testing import LLMServer, Reply, samples_of
from tests.support.fake_sae import WordSAE, expected
from tests.support.waiting import PATIENCE

KEY = "sk-or-v1-0123456789abcdef"
FEATURE = int(expected("cat")[0].argmax())
OTHERS = ["dogs", "are", "pets", "mat", "language", "machine", "four", "five", "two", "end"]
GOOD = {"label": "cats", "brief_description": "About cats.", "detailed_explanation": "Cats."}


def samples(dataset):
    return SelectedSamples(dataset.selection, dataset.d_sae)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENROUTER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENROUTER_API_KEY", KEY)


@pytest.fixture(scope="module")
def dataset():
    """Fifty documents with one "cat" each, on which alone the feature is active, and fifty without."""
    rng = random.Random(0)
    assert all(expected(word)[0, FEATURE] <= 0 for word in OTHERS)
    found = []
    for number in range(100):
        tokens = rng.choices(OTHERS, k=rng.randint(8, 20))
        if number % 2:
            tokens.insert(rng.randint(0, len(tokens)), "cat")
        found.append({"text": " ".join(tokens)})
    return Dataset(found, WordSAE())


def kind(body):
    name = body["response_format"]["json_schema"]["name"]
    return {"FeatureLabelResponse": "label", "BatchResponse": "batch"}.get(name, "single")


def right(text, *, marked):
    """Whether a sample is of cats: at the marks where there are some to judge, else anywhere."""
    return "<< cat>>" in text or "<<cat>>" in text if marked else "cat" in text


def judge(body, wrong=()):
    """Answer as somebody would who knows what a cat is; wrongly where ``wrong`` is in the text."""
    if kind(body) == "label":
        return GOOD
    _, samples = samples_of(body)
    fuzzing = "marked at random" in body["messages"][0]["content"]
    verdicts = []
    for sample in samples:
        text = sample["text"]
        if kind(body) == "single":
            fits = right(text, marked=True) if "<<" in text else "cat" not in text
        else:
            fits = right(text, marked=fuzzing)
        if any(word in text for word in wrong):
            fits = not fits
        verdicts.append(fits)
    if kind(body) == "single":
        return {"explanation": "I know cats.", "score": int(verdicts[0])}
    return {
        "verdicts": [
            {"sample": s["sample"], "matches": v} for s, v in zip(samples, verdicts, strict=True)
        ]
    }


def label(dataset, server, feature=FEATURE, **kwargs):
    return asyncio.run(dataset.label_feature(feature, base_url=server.url, **kwargs))


def score(dataset, server, text="cats", **kwargs):
    return asyncio.run(dataset.score_feature(FEATURE, text, base_url=server.url, **kwargs))


# --- the reference -------------------------------------------------------------------------------

SIGNATURES = {
    "label_feature": [
        ("feature", inspect.Parameter.empty),
        ("model", "google/gemini-2.5-flash"),
        ("label_and_score", None),
        ("positive_dataset", None),
        ("negative_dataset", None),
        ("k", 20),
    ],
    "score_feature": [
        ("feature", inspect.Parameter.empty),
        ("label", inspect.Parameter.empty),
        ("model", "google/gemini-2.5-flash"),
        ("positive_dataset", None),
        ("negative_dataset", None),
        ("k", 10),
    ],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_parameters_have_the_names_order_and_defaults_of_the_reference(name):
    method = getattr(Dataset, name)
    assert inspect.iscoroutinefunction(method)
    parameters = [p for p in inspect.signature(method).parameters.values() if p.name != "self"]
    found = [(p.name, p.default) for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert found == SIGNATURES[name]
    assert all(p.default is not p.empty for p in parameters if p.kind is p.KEYWORD_ONLY)


def test_the_example_of_the_reference_runs(dataset, monkeypatch, capsys):
    with LLMServer(judge) as server:
        monkeypatch.setenv("OPENROUTER_BASE_URL", server.url)

        async def label_features():
            label = await dataset.label_feature(FEATURE, model="google/gemini-2.5-flash")
            print(f"Feature {FEATURE}: {label.label}")
            print(f"Description: {label.brief_description}")
            result = await dataset.score_feature(FEATURE, "References to cats or felines")
            print(f"Score: {result['score']:.2%}")

        asyncio.run(label_features())
    assert capsys.readouterr().out == (
        f"Feature {FEATURE}: cats\nDescription: About cats.\nScore: 100.00%\n"
    )
    assert {r.body["model"] for r in server.requests} == {"google/gemini-2.5-flash"}


# --- labels -------------------------------------------------------------------------------------


def test_a_label_comes_from_one_request_with_marked_and_unmarked_samples(dataset):
    with LLMServer(judge) as server:
        found = label(dataset, server, k=6)
    assert isinstance(found, FeatureLabelResponse)
    assert found.model_dump() == GOOD
    [request] = server.requests
    positive, negative = samples_of(request.body)
    assert len(positive) == len(negative) == 6
    assert all(right(sample["text"], marked=True) for sample in positive)
    assert all("cat" not in sample["text"] and "<<" not in sample["text"] for sample in negative)


@pytest.mark.parametrize(
    "previous",
    [
        {"label": "dogs", "score": 0.25},
        {
            "label": FeatureLabelResponse(label="dogs", brief_description="x"),
            "score": np.float64(0.25),
        },
    ],
)
def test_a_label_that_there_is_goes_along_to_be_made_better(dataset, previous):
    with LLMServer(judge) as server:
        label(dataset, server, label_and_score=previous)
        label(dataset, server)
    with_one, without = (samples_of(request.body) for request in server.requests)
    assert with_one[:2] == without
    [known] = with_one[2]
    assert (known["label"], known["score"]) == ("dogs", 0.25)


def test_what_score_feature_returned_can_be_given_back_with_the_label(dataset):
    with LLMServer(judge) as server:
        result = score(dataset, server, "dogs", k=3)
        label(dataset, server, label_and_score={"label": "dogs", **result})
    [known] = samples_of(server.requests[-1].body)[2]
    assert (known["label"], known["score"], known["method"]) == ("dogs", 1.0, "reference")


def test_the_seed_decides_what_is_asked(dataset):
    with LLMServer(judge) as server:
        for seed in (1, 1, 2):
            label(dataset, server, seed=seed, k=5)
    first, again, other = (r.body["messages"] for r in server.requests)
    assert first == again != other


def test_samples_come_from_the_data_sets_that_are_given(dataset):
    cats, none = dataset[1::2], Dataset([{"text": "nothing like it"}], WordSAE())
    with LLMServer(judge) as server:
        label(none, server, positive_dataset=cats, negative_dataset=none, k=4)
        positive, negative = samples_of(server.requests[0].body)
        assert len(positive) == 4
        assert [sample["text"] for sample in negative] == ["nothing like it"]
        with pytest.raises(TypeError, match="negative_dataset must be a Dataset, got list"):
            label(none, server, positive_dataset=cats, negative_dataset=["x"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"k": 0}, "k must be a positive integer"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"examples": "best"}, "examples must be one of top, quantile, random, got 'best'"),
        ({"negatives": "best"}, "negatives must be one of random, hard"),
        ({"window_tokens": 0}, "window_tokens must be"),
        ({"settings": {"stream": True}}, "settings must not have 'stream'"),
        ({"label_and_score": {"score": 1}}, "label_and_score must be a dictionary with a label"),
        ({"label_and_score": "cats"}, "label_and_score must be a dictionary"),
        ({"model": ""}, "model must be the name"),
    ],
)
def test_arguments_that_make_no_sense_fail_before_anything_is_sent(dataset, wrong, said):
    with LLMServer(judge) as server, pytest.raises(ValueError, match=said):
        label(dataset, server, **wrong)
    assert server.requests == []


def test_a_feature_that_is_none_or_nowhere_active_fails_before_anything_is_sent(dataset):
    with LLMServer(judge) as server:
        with pytest.raises(IndexError, match="feature 99"):
            label(dataset, server, feature=99)
        with pytest.raises(ValueError, match="feature 31 is not active"):
            label(dataset, server, feature=31)
        with pytest.raises(TypeError, match="integers"):
            label(dataset, server, feature="cats")
    assert server.requests == []


def test_without_the_extra_it_says_what_to_install(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(
        ImportError, match=r"needs the package openai: pip install 'interp_embed\[llm\]'"
    ):
        asyncio.run(dataset.label_feature(FEATURE))


def test_an_answer_that_cannot_be_read_is_an_error_with_the_answer(dataset):
    with (
        LLMServer(lambda body: Reply("It is about cats.")) as server,
        pytest.raises(LLMAnswerError) as caught,
    ):
        label(dataset, server)
    assert caught.value.raw == "It is about cats."


def test_a_folder_of_prompts_is_used_by_both(dataset, tmp_path):
    (tmp_path / "label_system.txt").write_text("NAME IT")
    (tmp_path / "score_system.txt").write_text("SCORE IT")
    with LLMServer(judge) as server:
        label(dataset, server, prompts=tmp_path)
        result = score(dataset, server, prompts=str(tmp_path), k=1)
    said = [r.messages[0]["content"] for r in server.requests]
    assert said == ["NAME IT", "SCORE IT", "SCORE IT"]
    assert result["prompt_version"] == Prompts(tmp_path).version("score")
    assert result["prompt_version"] != Prompts().version("score")


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["reference", "detection", "fuzzing"])
def test_a_judge_who_knows_gives_a_right_label_the_highest_score(dataset, method):
    with LLMServer(judge) as server:
        result = score(dataset, server, method=method)
    assert result["score"] == result["balanced_accuracy"] == 1
    assert (result["n_positive"], result["n_negative"], result["total_count"]) == (10, 10, 20)
    assert result["interval"][1] == 1
    assert 0.75 < result["interval"][0] < 0.9
    assert len(server.requests) == (20 if method == "reference" else 2)
    assert (result["method"], result["model"], result["seed"], result["failures"]) == (
        method,
        "google/gemini-2.5-flash",
        0,
        [],
    )
    for response in result["responses"]:
        assert isinstance(response, SingleSampleScoringResponse)
        assert isinstance(response, ScoredSample)
        text = dataset.documents()[response.document]
        assert response.text.replace("<<", "").replace(">>", "") == text
        if method != "fuzzing":
            assert response.expected == ("cat" in text)
        else:
            assert response.expected == right(response.text, marked=True)
            assert "cat" in text
    if method == "reference":
        assert {r.explanation for r in result["responses"]} == {"I know cats."}


@pytest.mark.parametrize("method", ["reference", "detection", "fuzzing"])
def test_the_score_is_the_share_of_right_answers(dataset, method):
    with LLMServer(lambda body: judge(body, wrong=["four", "language"])) as server:
        result = score(dataset, server, method=method, k=15, seed=2, examples="random")
    said = [(r.expected, r.judged) for r in result["responses"]]
    assert all(r.score == (r.expected == r.judged) for r in result["responses"])
    wrong = [any(w in r.text for w in ("four", "language")) for r in result["responses"]]
    assert [e != j for e, j in said] == wrong
    assert 0 < sum(wrong) < len(wrong)
    rates = [np.mean([e == j for e, j in said if e is side]) for side in (True, False)]
    assert result["balanced_accuracy"] == pytest.approx(np.mean(rates))
    agreed = np.mean([e == j for e, j in said])
    assert result["score"] == pytest.approx(agreed if method == "reference" else np.mean(rates))
    low, high = result["interval"]
    assert 0 <= low < result["balanced_accuracy"] < high <= 1


def test_a_judge_who_says_yes_to_everything_has_a_balanced_accuracy_of_one_half(dataset):
    def yes(body):
        return {"verdicts": [{"sample": s["sample"], "matches": True} for s in samples_of(body)[1]]}

    with LLMServer(yes) as server:
        result = score(dataset, server, method="detection")
    assert result["score"] == 0.5
    assert result["interval"][0] < 0.5 < result["interval"][1]


def test_detection_shuffles_and_shows_no_marks_and_fuzzing_marks_every_sample(dataset):
    with LLMServer(judge) as server:
        score(dataset, server, method="detection", k=15)
        detection = [samples_of(r.body) for r in server.requests]
        score(dataset, server, method="fuzzing", k=15)
        fuzzing = [samples_of(r.body) for r in server.requests[len(detection) :]]
    assert [len(samples) for _, samples in detection] == [10, 10, 10]
    assert all(description == [{"description": "cats"}] for description, _ in detection)
    texts = [s["text"] for _, samples in detection for s in samples]
    assert not any("<<" in text for text in texts)
    order = ["cat" in text for text in texts]
    assert sum(order) == 15
    assert order != sorted(order) != order[::-1]
    assert all("<<" in s["text"] for _, samples in fuzzing for s in samples)
    assert sum(right(s["text"], marked=True) for _, samples in fuzzing for s in samples) == 15


def verdicts(*given):
    """Return an answer with verdicts; a number alone says that it matches."""
    pairs = [each if isinstance(each, tuple) else (each, True) for each in given]
    return {"verdicts": [{"sample": n, "matches": m} for n, m in pairs]}


@pytest.mark.parametrize(
    ("first", "lacking"),
    [
        (verdicts(), "1, 2, 3, 4"),
        (verdicts(2), "1, 3, 4"),
        (verdicts(1, 2, 3, (2, False)), "2, 4"),
        (verdicts(0, 7, "x", None), "1, 2, 3, 4"),
        ({"verdicts": ["yes", None, {"sample": 1}, {"sample": 3, "matches": True}]}, "1, 2, 4"),
    ],
)
def test_only_the_verdicts_that_are_lacking_are_asked_for_again(dataset, first, lacking):
    def answer(body):
        right = judge({**body, "messages": body["messages"][:2]})["verdicts"]
        if len(body["messages"]) == 2:
            kept = [v for v in first["verdicts"] if isinstance(v, dict) and "matches" in v]
            # What is said at all is right, where it is said once.
            numbers = [v["sample"] for v in kept]
            said = [
                right[v["sample"] - 1]
                if numbers.count(v["sample"]) == 1 and v["sample"] in range(1, 5)
                else v
                for v in kept
            ]
            others = [v for v in first["verdicts"] if v not in kept]
            return {"verdicts": [*others, *said]}
        return {"verdicts": [v for v in right if str(v["sample"]) in lacking]}

    with LLMServer(answer) as server:
        result = score(dataset, server, method="detection", k=2)
    assert (result["score"], result["total_count"], result["failures"]) == (1, 4, [])
    assert len(server.requests) == 2
    assert f"for sample {lacking}" in server.requests[1].messages[-1]["content"]


@pytest.mark.parametrize("surplus", [(5, True), (0, False), (1, None)])
def test_a_verdict_too_many_takes_no_other_with_it(dataset, surplus):
    def answer(body):
        found = judge(body)["verdicts"]
        number, matches = surplus
        more = {"sample": number, "matches": found[0]["matches"] if matches is None else matches}
        return {"verdicts": [*found, more]}

    with LLMServer(answer) as server:
        result = score(dataset, server, method="detection", k=2)
    assert (result["score"], result["total_count"], result["failures"]) == (1, 4, [])
    assert len(server.requests) == 1


@pytest.mark.parametrize("second", ["nothing", "prose", "failure"])
def test_samples_without_a_verdict_in_two_rounds_are_left_out_and_said(dataset, second):
    def answer(body):
        if len(body["messages"]) > 2:
            return {
                "nothing": {"verdicts": []},
                "prose": Reply("I have said it all."),
                "failure": Reply("flagged", 451),
            }[second]
        return {"verdicts": judge(body)["verdicts"][:-1]}

    with LLMServer(answer) as server, pytest.warns(UserWarning, match="1 of 10 samples") as caught:
        result = score(dataset, server, method="detection", k=5)
    assert (result["score"], result["total_count"], len(result["responses"])) == (1, 9, 9)
    [failure] = result["failures"]
    [document] = failure["documents"]
    assert document not in [r.document for r in result["responses"]]
    assert len(caught) == 1
    assert len(server.requests) == 2


def test_methods_that_compare_need_something_to_compare_with(dataset):
    only = Dataset([{"text": "cat"}, {"text": "cat dogs"}], WordSAE())
    with LLMServer(judge) as server:
        for method in ("detection", "fuzzing"):
            data = only if method == "detection" else only[:1]
            with pytest.raises(ValueError, match=f"^{method} compares ") as caught:
                score(data, server, method=method)
            assert "negative_dataset" not in str(caught.value)
            assert ("marked elsewhere" in str(caught.value)) == (method == "fuzzing")
        assert server.requests == []
        result = score(only, server)
    assert (result["score"], result["n_positive"], result["n_negative"]) == (1, 2, 0)
    assert np.isnan([result["balanced_accuracy"], *result["interval"]]).all()


@pytest.mark.parametrize(
    ("text", "kwargs", "said"),
    [
        ("", {}, "label must be a text"),
        (None, {}, "label must be a text"),
        (FeatureLabelResponse(**GOOD), {}, "label must be a text"),
        ("cats", {"method": "guess"}, "method must be one of reference, detection, fuzzing"),
        ("cats", {"k": -1}, "k must be"),
    ],
)
def test_scores_of_what_makes_no_sense_fail_before_anything_is_sent(dataset, text, kwargs, said):
    with LLMServer(judge) as server, pytest.raises(ValueError, match=said):
        score(dataset, server, text, **kwargs)
    assert server.requests == []


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403])
def test_requests_that_fail_are_reported_and_the_others_count(dataset, status):
    def sometimes(body):
        if "four" in samples_of(body)[1][0]["text"]:
            return Reply(f"no opinion on four {KEY}", status)
        return judge(body)

    with LLMServer(sometimes) as server, pytest.warns(UserWarning, match="not judged") as caught:
        result = score(dataset, server)
    failed = [number for part in result["failures"] for number in part["documents"]]
    assert 0 < len(failed) < 20
    assert result["total_count"] == len(result["responses"]) == 20 - len(failed)
    assert all("four" in dataset.documents()[number] for number in failed)
    assert not any("four" in r.text for r in result["responses"])
    assert result["score"] == 1
    [warning] = caught
    assert "\n" not in str(warning.message)
    assert f"{len(failed)} of 20 samples" in str(warning.message)
    assert KEY not in repr(result) + str(warning.message)
    assert "[key]" in result["failures"][0]["reason"]


@pytest.mark.parametrize("status", [400, 403])
def test_where_every_request_fails_the_failure_is_raised(dataset, status):
    with (
        LLMServer(lambda body: Reply("no", status)) as server,
        pytest.raises(LLMError, match=f"{status}: no"),
    ):
        score(dataset, server)


def test_a_key_that_is_refused_ends_it_at_once(dataset):
    with (
        LLMServer(lambda body: Reply("bad key", 401)) as server,
        pytest.raises(LLMAuthenticationError, match="401: bad key"),
    ):
        score(dataset, server, k=30)
    assert len(server.requests) < 30


def test_what_was_answered_before_a_failure_is_not_asked_again(dataset):
    kept, broken = {}, [True]

    class Kept:
        get = staticmethod(kept.get)

        def put(self, digest, answer, usage):
            kept[digest] = answer

    def until(body):
        return Reply("out of credit", 402) if broken[0] and len(kept) >= 7 else judge(body)

    with LLMServer(until) as server:
        with pytest.raises(LLMStatusError, match="no credit left"):
            score(dataset, server, answers=Kept())
        before, answered = len(server.requests), len(kept)
        assert answered >= 7
        broken[0] = False
        result = score(dataset, server, answers=Kept())
        assert len(server.requests) - before == 20 - answered
    assert result["total_count"] == 20


SCORES = """
import asyncio, sys
from interp_embed import Dataset
from interp_embed.llm import LLMClient

async def run(path, url, feature):
    dataset = Dataset.load_from_file(path)
    async with LLMClient("local/model", url, concurrency=2, answers=dataset.answers) as client:
        result = await dataset.score_feature(feature, "cats", client=client)
    print(result["score"], result["total_count"], client.usage.kept)

asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def test_after_a_kill_only_what_was_under_way_is_asked_again(dataset, tmp_path):
    path = tmp_path / "store.zarr"
    dataset.save_to_file(path)
    reached = threading.Event()

    def slowly(body):
        if len(server.requests) >= 9:
            reached.set()
        return Reply(json.dumps(judge(body)), delay=0.05)

    with LLMServer(slowly) as server:
        command = [sys.executable, "-c", SCORES, str(path), server.url, str(FEATURE)]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        assert reached.wait(PATIENCE)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        before = len(server.requests)
        assert before < 20
        again = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=PATIENCE
        )
    asked = [json.dumps(r.body["messages"]) for r in server.requests]
    assert len(set(asked)) == 20
    assert len(asked) <= 20 + 2
    assert again.stdout.split()[:2] == ["1.0", "20"]
    assert int(again.stdout.split()[2]) >= before - 2
    assert not [p for p in path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


def test_a_client_is_shared_by_many_calls(dataset):
    with LLMServer(judge) as server:

        async def run():
            async with LLMClient("local/model", server.url, concurrency=4) as client:
                labels = await asyncio.gather(
                    *(dataset.label_feature(FEATURE, seed=s, client=client) for s in range(5))
                )
                result = await dataset.score_feature(FEATURE, labels[0].label, client=client)
                with pytest.raises(
                    ValueError, match="base_url and answers must be given to the client"
                ):
                    await dataset.label_feature(FEATURE, base_url="http://x", client=client)
                with pytest.raises(ValueError, match="got one for 'local/model'"):
                    await dataset.label_feature(FEATURE, "other/model", client=client)
                return result, client.usage

        result, usage = asyncio.run(run())
    assert result["model"] == "local/model"
    assert (usage.requests, usage.prompt_tokens) == (25, 2500)
    assert server.most_at_once <= 4
    assert {r.body["model"] for r in server.requests} == {"local/model"}


def test_a_client_that_is_shared_repairs_with_the_prompts_of_the_call(dataset, tmp_path):
    (tmp_path / "repair.txt").write_text("OF THE CALL: $problem")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "repair.txt").write_text("OF THE CLIENT: $problem")

    def answer(body):
        return judge(body) if len(body["messages"]) > 2 else Reply("no")

    with LLMServer(answer) as server:

        async def run():
            own = Prompts(tmp_path / "own")
            async with LLMClient("local/model", server.url, prompts=own) as client:
                await dataset.label_feature(FEATURE, k=3, client=client, prompts=tmp_path)
                await dataset.score_feature(
                    FEATURE, "cats", k=1, method="detection", client=client, prompts=tmp_path
                )
                bare = label_task(
                    samples(dataset), samples(dataset), FEATURE, Asking("local/model"), k=3
                ).request
                await client.ask(replace(bare, repair=None))

        asyncio.run(run())
    repairs = [r.messages[-1]["content"] for r in server.requests if len(r.messages) > 2]
    assert [text.partition(":")[0] for text in repairs] == [
        "OF THE CALL",
        "OF THE CALL",
        "OF THE CLIENT",
    ]


def test_how_long_to_wait_is_said_to_the_client_or_to_the_call(dataset):
    with LLMServer(lambda body: Reply("{}", delay=5)) as server:
        for call in (label, score):
            with pytest.raises(LLMTimeoutError, match="did not answer in time in 2 attempts"):
                call(dataset, server, k=1, timeout=0.2, max_retries=1)
            with pytest.raises(ValueError, match="timeout must be"):
                call(dataset, server, timeout=-1)

        async def run():
            async with LLMClient("local/model", server.url) as client:
                await dataset.label_feature(FEATURE, client=client, timeout=3)

        with pytest.raises(ValueError, match="timeout and max_retries must be given to the client"):
            asyncio.run(run())


def test_fuzzing_has_as_many_samples_of_either_kind():
    """Of 14 documents 9 are nothing but the word, and have no room for other marks."""
    texts = ["cat " * n for n in range(1, 10)] + [f"{word} cat" for word in OTHERS[:5]]
    data = Dataset([{"text": text.strip()} for text in texts], WordSAE())
    with LLMServer(judge) as server:
        result = score(data, server, method="fuzzing", k=7)
        assert result["n_positive"] == result["n_negative"] == 5
        only = Dataset([{"text": "cat"}, {"text": "cat cat"}], WordSAE())
        with pytest.raises(
            ValueError, match="one of them with tokens on which it is not"
        ) as caught:
            score(only, server, method="fuzzing")
    assert "negative" not in str(caught.value)


def test_answers_become_records_that_a_store_keeps(dataset, tmp_path):
    path = tmp_path / "store.zarr"
    dataset.save_to_file(path)
    stored = Dataset.load_from_file(path)
    with LLMServer(judge) as server:

        async def run():
            async with LLMClient("local/model", server.url) as client:
                task = label_task(
                    samples(stored), samples(stored), FEATURE,
                    Asking("local/model", Choice(seed=3)), k=4,
                )  # fmt: skip
                response = await ask_label(client, task)
                result = await stored.score_feature(
                    FEATURE, response.label, method="detection", client=client
                )
                return task, response, result

        task, response, result = asyncio.run(run())
    record = label_record(task, response, scores=[score_record(result)])
    stored.add_labels([record])
    again = Dataset.load_from_file(path)
    assert again.feature_labels()[FEATURE] == "cats"
    [found] = [r for r in again.label_records() if r.source == "llm"]
    assert found == record
    assert (found.model, found.prompt_version, found.seed) == (
        "local/model",
        Prompts().version("label"),
        3,
    )
    [kept] = found.scores
    assert (kept.method, kept.value, kept.n) == ("detection", result["score"], 20)
    assert (kept.low, kept.high) == result["interval"]
    assert [e.activation > 0 for e in found.examples] == [True] * 4 + [False] * 4
    for example, shown in zip(found.examples, task.chosen.positive, strict=False):
        row = again[example.document]
        assert tuple(row.tokenized_document[example.start : example.stop]) == shown.tokens
    assert label_record(task, response, with_examples=False).examples == ()


def test_a_score_without_negative_samples_is_a_record_without_an_interval():
    only = Dataset([{"text": "cat"}, {"text": "cat dogs"}], WordSAE())
    with LLMServer(judge) as server:
        record = score_record(score(only, server))
    assert (record.value, record.low, record.high, record.n) == (1, None, None, 2)


# --- the interval -------------------------------------------------------------------------------


def binomial(n, p):
    x = np.arange(n + 1)
    return np.array([comb(n, k) for k in x], float) * p**x * (1 - p) ** (n - x)


@pytest.mark.parametrize(("n_positive", "n_negative"), [(10, 10), (20, 15)])
def test_the_interval_holds_what_it_promises(n_positive, n_negative):
    """Its exact coverage, over all outcomes, for rates of all kinds."""
    hits, alarms = np.meshgrid(np.arange(n_positive + 1), np.arange(n_negative + 1), indexing="ij")
    low, high = (
        (1 + bound) / 2 for bound in newcombe_interval(hits, n_positive, alarms, n_negative)
    )
    for i, j in ((0, 0), (n_positive, 0), (7, 3)):
        expected = [True] * n_positive + [False] * n_negative
        judged = [n < i for n in range(n_positive)] + [n < j for n in range(n_negative)]
        found = balanced_accuracy(expected, judged)
        assert found == pytest.approx(
            ((i / n_positive + 1 - j / n_negative) / 2, low[i, j], high[i, j])
        )
    coverage = []
    for sensitivity in np.linspace(0.02, 0.98, 13):
        for specificity in np.linspace(0.02, 0.98, 13):
            truth = (sensitivity + specificity) / 2
            weight = np.outer(
                binomial(n_positive, sensitivity), binomial(n_negative, 1 - specificity)
            )
            coverage.append(weight[(low <= truth) & (truth <= high)].sum())
    assert 0.94 < np.mean(coverage) < 0.97
    assert min(coverage) > 0.88


@pytest.mark.parametrize("seed", [0, 1])
def test_there_is_no_score_where_all_samples_of_one_kind_failed(seed):
    """One document with "cat", so that of the two requests one has all that is positive."""
    texts = ["dogs are cat pets", *(f"dogs are {a} {b}" for a in OTHERS for b in OTHERS[:3])]
    rare = Dataset([{"text": text} for text in texts], WordSAE())

    def fail_with_cats(body):
        if "cat" in " ".join(sample["text"] for sample in samples_of(body)[1]):
            return Reply("no", 400)
        return judge(body)

    with LLMServer(fail_with_cats) as server, pytest.raises(LLMStatusError, match="answered 400"):
        score(rare, server, method="detection", seed=seed)


def test_a_seed_is_one_that_a_record_can_keep(dataset):
    with (
        LLMServer(judge) as server,
        pytest.raises(ValueError, match=r"seed must be an integer from 0 to 2\*\*63 - 1"),
    ):
        label(dataset, server, seed=2**63)
    assert server.requests == []
