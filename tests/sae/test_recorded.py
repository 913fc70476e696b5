"""SAEs found again from what a store says of them, from another folder and in another process."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("sae_lens")

from interp_embed import Dataset
from interp_embed.cli.run import run as run_cli
from interp_embed.sae import GoodfireSAE, LocalSAE
from interp_embed.sae.loading import load_sae_from_metadata, sae_record
from tests.support.tiny_models import random_sae, tiny_model, tiny_tokenizer

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to be in, with an SAE, a model and a file of weights, and one beside it."""
    inside = tmp_path / "here"
    random_sae("topk", HOOK).save_model(inside / "saes" / "first")
    tiny_model("llama").save_pretrained(inside / "model")
    tiny_tokenizer().save_pretrained(inside / "model")
    (inside / "x.pth").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(inside)
    return inside


@pytest.mark.parametrize(
    ("release", "sae_id"), [("saes", "first"), ("saes/first", "x"), ("./saes/../saes", "first")]
)
def test_a_folder_given_from_here_is_found_from_elsewhere(here, monkeypatch, release, sae_id):
    sae = LocalSAE(sae_id, release, model="model", tokenizer="model")
    record = sae_record(sae)
    monkeypatch.chdir("../elsewhere")
    again = load_sae_from_metadata(record)
    assert again.fingerprint() == sae.fingerprint()
    again.load()
    assert again.encode(["the cat"])[0].shape[1] == 64
    assert record["model"] == record["tokenizer"] == str(here / "model")


def test_a_store_made_with_a_folder_given_from_here_goes_on_elsewhere(here, monkeypatch, tmp_path):
    texts = here / "texts.csv"
    texts.write_text("text\nthe cat\na dog\n")
    monkeypatch.setenv("PYTHONPATH", "")
    (here / "made.py").write_text(
        "from interp_embed.sae import LocalSAE\n"
        "def sae(): return LocalSAE('first', 'saes', model='model', tokenizer='model')\n"
    )
    store = tmp_path / "store.zarr"
    assert run_cli(["plan", str(texts), str(store), "--sae", "made:sae"]) == 0
    monkeypatch.chdir("../elsewhere")
    whole = Dataset.load_from_file(store, resume=True)
    assert (whole.status() == "ok").all()


def test_weights_given_from_here_are_recorded_with_their_whole_path(here):
    sae = GoodfireSAE("Tiny-Llama-SAE-l2", weights="x.pth", model="model")
    assert sae.metadata()["weights"] == str(here / "x.pth")
    assert sae.metadata()["model"] == str(here / "model")


def test_a_folder_below_ones_home_is_found(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    sae = LocalSAE("first", "~/saes", model="~/model")
    assert sae.metadata()["release"] == str(here / "saes")
    assert sae.metadata()["model"] == str(here / "model")


def test_names_of_the_hub_stay_names(here):
    (here / "gpt2-small-res-jb").mkdir()  # not an SAE
    sae = LocalSAE("blocks.8.hook_resid_pre", "gpt2-small-res-jb", model="someone/model")
    found = {name: sae.metadata()[name] for name in ("release", "sae_id", "model", "tokenizer")}
    assert found == {
        "release": "gpt2-small-res-jb",
        "sae_id": "blocks.8.hook_resid_pre",
        "model": "someone/model",
        "tokenizer": None,
    }


def test_a_record_from_before_opens_and_says_where_it_looked(here, tmp_path, monkeypatch):
    texts, store = [{"text": "the cat"}], tmp_path / "store.zarr"
    with monkeypatch.context() as patch:  # as they were recorded
        patch.setattr(
            LocalSAE, "metadata",
            lambda self, plain=LocalSAE.metadata: {**plain(self), "release": "saes"},
        )  # fmt: skip
        sae = LocalSAE("first", "saes", model="model", tokenizer="model")
        Dataset(texts, sae, save_path=store, compute_activations=False)
    monkeypatch.chdir("../elsewhere")
    opened = Dataset.load_from_file(store)
    assert len(opened) == 1
    with pytest.raises(ValueError, match="from the folder 'saes', which holds no SAE") as caught:
        Dataset.load_from_file(store, resume=True)
    assert f"seen from {tmp_path / 'elsewhere'}. Change to" in str(caught.value)
    monkeypatch.chdir(here)
    assert (Dataset.load_from_file(store, resume=True).status() == "ok").all()


SCRIPT = """
import sys
from interp_embed import Dataset
from tests.support.fake_sae import WordSAE

class MineSAE(WordSAE):
    pass

def factory():
    class InnerSAE(WordSAE):
        pass
    return InnerSAE()

sae = MineSAE() if sys.argv[2] == "main" else factory()
Dataset([{"text": "the cat"}], sae, save_path=sys.argv[1], compute_activations=False)
if sys.argv[2] == "main":  # here it is known
    assert (Dataset.load_from_file(sys.argv[1], resume=True).status() == "ok").all()
    Dataset([{"text": "a dog"}], sae, save_path=sys.argv[1] + "2", compute_activations=False)
"""


@pytest.mark.parametrize("kind", ["main", "inner"])
def test_a_class_of_a_script_says_that_it_belongs_into_a_module(tmp_path, capsys, kind):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = tmp_path / "store.zarr"
    subprocess.run(
        [sys.executable, str(script), str(path), kind],
        check=True,
    )
    if kind == "main":
        path = tmp_path / "store.zarr2"
        advice = (
            "class MineSAE was defined in a script or a notebook .*Define the class in a module"
        )
    else:
        advice = "InnerSAE of module __main__ was defined inside a function.*the top of a module"
    assert len(Dataset.load_from_file(path)) == 1  # it can be read all the same
    with pytest.raises(ValueError, match=advice):
        Dataset.load_from_file(path, resume=True)
    assert run_cli(["encode", str(path)]) == 1
    err = capsys.readouterr().err
    assert "module" in err
    assert "pass the SAE (on the command line with --sae)" in err
