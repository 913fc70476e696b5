"""What `interp-embed info` says of an SAE behind a server."""

from __future__ import annotations

import json

import pytest

from interp_embed import Dataset
from interp_embed.cli.commands.info import _without_secrets
from interp_embed.cli.run import run as run_cli
from interp_embed.sae.http import HttpSAE
from tests.support.fake_sae import D_SAE, WordSAE
from tests.support.http_servers import INFO, Said, Scripted, ServeThread, protocol

pytest.importorskip("httpx")
pytest.importorskip("starlette")

SERVED = {
    "class": "interp_embed.sae.local:LocalSAE",
    "release": "gpt2-small-res-jb",
    "sae_id": "blocks.8.hook_resid_pre",
    "model": "gpt2",
    "hook_name": "blocks.8.hook_resid_pre",
    "d_sae": D_SAE,
}


def saying(fingerprint):
    """A server that says this of its SAE."""

    def script(method, path, body, headers):
        if path == "/v1/info":
            return Said(body={**INFO, "fingerprint": fingerprint})
        return protocol(method, path, body, headers)

    return script


def shown(store, capsys):
    """The line of the SAE, and the JSON."""
    assert run_cli(["info", str(store)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert run_cli(["info", str(store), "--json"]) == 0
    (line,) = (x for x in lines if x.startswith("  SAE "))
    return line.removeprefix("  SAE ").strip(), json.loads(capsys.readouterr().out)


def test_the_sae_behind_a_server_is_named_with_its_model_hook_and_width(tmp_path, capsys):
    store = tmp_path / "store.zarr"
    with Scripted(saying(SERVED)) as server:
        Dataset([{"text": "the cat"}], HttpSAE(server.url), save_path=store)
    line, facts = shown(store, capsys)
    assert line == (
        f"gpt2-small-res-jb blocks.8.hook_resid_pre, on gpt2, at blocks.8.hook_resid_pre, {D_SAE} "
        f"features, behind HttpSAE at {server.url}"
    )
    assert facts["served"] == SERVED
    assert facts["model"] == "gpt2"


def test_an_sae_from_a_folder_is_named_by_its_class_and_hook(tmp_path, capsys):
    store = tmp_path / "store.zarr"
    with Scripted(saying({**SERVED, "release": "folder", "sae_id": "folder"})) as server:
        Dataset([{"text": "the cat"}], HttpSAE(server.url), save_path=store)
    line, _ = shown(store, capsys)
    assert line.startswith("LocalSAE, on gpt2, at blocks.8.hook_resid_pre, ")


def test_behind_two_servers_it_is_the_sae_that_is_named(tmp_path, capsys):
    store = tmp_path / "store.zarr"
    with ServeThread(WordSAE()) as first, ServeThread(between := HttpSAE(first.url)) as second:
        Dataset([{"text": "the cat"}], HttpSAE(second.url), save_path=store)
        between.destroy()
    line, _ = shown(store, capsys)
    assert (
        line == f"tests.support.fake_sae:WordSAE, {D_SAE} features, behind HttpSAE at {second.url}"
    )


def test_before_the_server_was_asked_its_url_is_what_is_known(tmp_path, capsys):
    source, store = tmp_path / "texts.csv", tmp_path / "store.zarr"
    source.write_text("text\nthe cat\n")
    assert run_cli(["plan", str(source), str(store), "--sae", "http://127.0.0.1:9"]) == 0
    capsys.readouterr()
    line, facts = shown(store, capsys)
    assert line == "HttpSAE at http://127.0.0.1:9"
    assert facts["served"] == {}


def test_what_a_server_says_is_shown_in_one_line(tmp_path, capsys):
    store = tmp_path / "store.zarr"
    with Scripted(saying({**SERVED, "model": "a\x1b[31m\nb" + "c" * 300})) as server:
        Dataset([{"text": "the cat"}], HttpSAE(server.url), save_path=store)
    line, _ = shown(store, capsys)
    assert ", on a [31m b" + "c" * 192 + "…, at blocks" in line


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://gpu:8765", "http://gpu:8765"),
        ("https://user:secret@gpu/path?key=secret#secret", "https://gpu/path"),
        ("http://[secret", "a URL that cannot be read"),
    ],
)
def test_a_record_with_a_key_in_its_url_does_not_show_it(url, expected):
    assert _without_secrets(url) == expected
