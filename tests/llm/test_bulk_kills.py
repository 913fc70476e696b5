"""`Dataset.label_features` in processes that are killed and interrupted: nothing is paid for twice."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from interp_embed import Dataset
from interp_embed.cli import run
from interp_embed.llm.ask.request import DEFAULT_SETTINGS, Message, canonical_digest
from interp_embed.testing import LLMServer, Reply
from tests.support.numbered_sae import MODEL, NumberedSAE, judge, numbered_documents
from tests.support.waiting import PATIENCE

KEY = "sk-or-v1-fedcba9876543210"
MANY = 2000
KILLED_AFTER = (1, 400, 900)
IN_FLIGHT = 4

LABEL_ALL = """
import asyncio, sys
from interp_embed import Dataset
from interp_embed.store.labels import journal as labels_journal

labels_journal._PACK_AFTER = 128  # so that kills meet packing, too

async def label_all(path, url):
    found = await Dataset.load_from_file(path).label_features(
        None, "local/model", base_url=url, k=3, max_concurrency=4, progress=False
    )
    print(found.requests, found.kept, (found.table["label"] != "").sum())

asyncio.run(label_all(*sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENROUTER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENROUTER_API_KEY", KEY)


def digest(body):
    """Return the digest of a request, from what came over the wire."""
    messages = tuple(Message(m["role"], m["content"]) for m in body["messages"])
    schema = body["response_format"]["json_schema"]["schema"]
    return canonical_digest(body["model"], messages, schema, DEFAULT_SETTINGS)


def asked(server):
    return Counter(digest(request.body) for request in list(server.requests))


def recorded(path, digests):
    answers = Dataset.load_from_file(path).answers
    return {name for name in digests if name in answers}


class Counting(LLMServer):
    """One that says when so many requests came."""

    def __init__(self, delay=0.0):
        super().__init__(self._judge)
        self.delay = delay
        self.most = 10**9
        self.reached = threading.Event()

    def _judge(self, body):
        if len(self.requests) >= self.most:
            self.reached.set()
        return Reply(json.dumps(judge(body)), delay=self.delay)

    def expect(self, more):
        self.most = len(self.requests) + more
        self.reached.clear()


def test_two_thousand_features_are_paid_for_once_whenever_the_process_is_killed(tmp_path):
    path = tmp_path / "store.zarr"
    Dataset(numbered_documents(range(MANY), times=3), NumberedSAE(MANY + 48), save_path=path)
    kept_at_a_kill = []
    with Counting() as server:
        command = [sys.executable, "-c", LABEL_ALL, str(path), server.url]
        for more in KILLED_AFTER:
            server.expect(more)
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            assert server.reached.wait(PATIENCE)
            child.kill()
            assert child.wait() == -signal.SIGKILL
            before = asked(server)
            kept_at_a_kill.append((recorded(path, before), before))
        last = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
    final = asked(server)
    assert len(final) == MANY
    # What was recorded when a process was killed was never asked for again.
    for kept, before in kept_at_a_kill:
        assert all(final[name] == before[name] for name in kept)
    assert len(kept_at_a_kill[-1][0]) > sum(KILLED_AFTER) - 3 * IN_FLIGHT
    # What was not recorded was in flight.
    assert sum(final.values()) <= MANY + IN_FLIGHT * len(kept_at_a_kill)
    requests, answered, labelled = map(int, last.stdout.split())
    assert requests == MANY - len(kept_at_a_kill[-1][0])
    assert answered <= 4 * IN_FLIGHT
    assert labelled == requests + answered
    dataset = Dataset.load_from_file(path)
    assert dataset.feature_labels() == {feature: f"w{feature}" for feature in range(MANY)}
    assert len(dataset.label_records()) == MANY
    assert dataset.answers.usage().totals["prompt_tokens"] == 100 * MANY
    assert run(["verify", str(path)]) == 0
    files = [p for p in path.rglob("*") if p.is_file()]
    assert not [p for p in files if KEY.encode() in p.read_bytes()]
    assert len(list((path / "labels").rglob("*.json"))) < 40  # packed


def test_an_interrupt_waits_for_what_is_under_way(tmp_path):
    path = tmp_path / "store.zarr"
    Dataset(numbered_documents(range(24)), NumberedSAE(64), save_path=path)
    with Counting(delay=0.15) as server:
        command = [
            sys.executable, "-m", "interp_embed.cli", "label", str(path), "--model", MODEL,
            "--base-url", server.url, "-k", "3", "--concurrency", "4",
        ]  # fmt: skip
        server.expect(8)
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert server.reached.wait(PATIENCE)
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=PATIENCE)[1]
        assert child.returncode == 130
        before = asked(server)
        assert len(before) < 24
        assert recorded(path, before) == set(before)
        assert len(Dataset.load_from_file(path).answers) == len(before)
        again = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=PATIENCE
        )
    waits, first, *_ = said.splitlines()
    assert re.fullmatch(
        r"waiting at most 20 s for [1-4] paid requests?; Ctrl-C again to abandon them",
        waits,
    )
    assert first == "interrupted"
    assert "Run the same command again to resume" in said
    assert "Traceback" not in said
    assert " more requests were already answered" in again.stdout
    assert set(asked(server).values()) == {1}
    assert len(Dataset.load_from_file(path).feature_labels()) == 24


def test_a_second_interrupt_leaves_at_once(tmp_path):
    path = tmp_path / "store.zarr"
    Dataset(numbered_documents(range(20)), NumberedSAE(64), save_path=path)
    with Counting(delay=30.0) as server:
        command = [
            sys.executable, "-m", "interp_embed.cli", "label", str(path), "--model", MODEL,
            "--base-url", server.url, "-k", "3", "--concurrency", "3",
        ]  # fmt: skip
        server.expect(3)
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert server.reached.wait(PATIENCE)
        child.send_signal(signal.SIGINT)
        assert child.stderr.readline().startswith("waiting at most 20 s for 3 paid requests")
        assert child.poll() is None
        begun = time.monotonic()
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=PATIENCE)[1]
        assert time.monotonic() - begun < 15  # and not the twenty seconds that it would wait
        assert child.returncode == 130
    assert said.splitlines()[0] == "interrupted"
    assert "Run the same command again to resume" in said
    assert "Traceback" not in said
    assert run(["verify", str(path)]) == 0
