"""From what was recorded of an SAE to the SAE: every class of the library, and what cannot be built."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import interp_embed.sae
from interp_embed import Dataset
from interp_embed.exchange.opening import DEFAULT_DEVICE, choose_device
from interp_embed.interop.pickle import LegacyDataset, write_pickle
from interp_embed.sae import BaseSAE, GoodfireSAE, LocalSAE, SAEType
from interp_embed.sae.loading import load_sae_from_metadata, sae_record

EIGHT = "Llama-3.1-8B-Instruct-SAE-l19"
# What the original library recorded of each kind, as far as both have the arguments.
ORIGINALS = {
    "local": {"sae_id": "blocks.8.hook_resid_pre", "release": "gpt2-small-res-jb"},
    "goodfire": {"variant_name": EIGHT, "quantize": True},
    "goodfire_api": {"variant_name": "meta-llama/Llama-3.3-70B-Instruct"},
}
NAMES = {"local": "LocalSAE", "goodfire": "GoodfireSAE", "goodfire_api": "GoodfireApiSAE"}


def test_every_class_can_be_had_by_name():
    for name in interp_embed.sae.__all__:
        found = getattr(interp_embed.sae, name)
        assert found.__name__ == name
        assert issubclass(found, BaseSAE) or name in (
            "ApiDocument",
            "Chunk",
            "SAEType",
            "TokenTable",
        )
    assert set(interp_embed.sae.__all__) <= set(dir(interp_embed.sae))
    with pytest.raises(AttributeError, match="attribute NoSuchSAE"):
        _ = interp_embed.sae.NoSuchSAE
    with pytest.raises(ImportError):
        from interp_embed.sae import NoSuchSAE  # noqa: F401


def test_only_the_class_that_is_recorded_is_imported():
    code = (
        "import sys\n"
        "from interp_embed.sae.loading import load_sae_from_metadata as load\n"
        f"sae = load({{'sae_type': 'goodfire', 'variant_name': {EIGHT!r}}})\n"
        "unasked = {'interp_embed.sae.api', 'interp_embed.sae.http', 'torch', 'sae_lens', 'httpx',\n"
        "           'transformers', 'huggingface_hub', 'bitsandbytes', 'obstore'} & set(sys.modules)\n"
        "sys.exit(str(unasked) if unasked else type(sae).__name__ != 'GoodfireSAE')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", SAEType)
def test_each_kind_of_the_original_is_built_again(kind):
    settings = {"truncate": False, "use_assistant_role": False}
    sae = load_sae_from_metadata({**ORIGINALS[kind], **settings, "sae_type": kind.value})
    assert type(sae).__name__ == NAMES[kind]
    assert not sae.is_loaded()
    assert sae.metadata().items() >= {**ORIGINALS[kind], **settings, "sae_type": kind}.items()


@pytest.mark.parametrize("kind", SAEType)
def test_a_record_builds_an_equal_sae(kind):
    sae = load_sae_from_metadata({**ORIGINALS[kind], "sae_type": kind.value})
    record = json.loads(json.dumps(sae_record(sae)))
    again = load_sae_from_metadata(record)
    assert type(again) is type(sae)
    assert again.metadata() == sae.metadata()
    assert again.fingerprint() == sae.fingerprint()
    del record["sae_class"]
    assert type(load_sae_from_metadata(record)) is type(sae)


def test_an_original_pickle_opens_with_its_sae_and_without_loading_it(tmp_path):
    for kind, settings in ORIGINALS.items():
        metadata = {**settings, "sae_type": kind, "device": {"model": "cpu", "sae": "cpu"}}
        dataset = Dataset.load_from_file(_original(tmp_path / f"{kind}.pkl", metadata))
        assert type(dataset.sae).__name__ == NAMES[kind]
        assert not dataset.sae.is_loaded()
        assert dataset.latents("max").tolist() == [[0, 2]]


def test_looking_for_an_sae_says_nothing_of_kernels():
    """SAELens imports bitsandbytes where it is installed, which speaks of kernels for 4 bits."""
    code = (
        "from interp_embed.sae import LocalSAE; print(LocalSAE('x', 'gpt2-small-res-jb').problem())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "is not found in release gpt2-small-res-jb" in ran.stdout
    assert ran.stderr == ""


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"sae_type": "somebody_elses"}, "'local', 'goodfire', 'goodfire_api'"),
        ({"sae_type": "goodfire", "variant_name": "Llama-9"}, "must be one of"),
        ({"sae_type": "goodfire", "colour": "red"}, "does not take .*colour"),
        ({"sae_class": "interp_embed.sae.goodfire:NoSuchSAE"}, "cannot be imported"),
        ({"sae_type": ["local"]}, "cannot be rebuilt by this version"),
        ({}, "neither 'sae_type' nor 'sae_class'"),
    ],
)
def test_what_cannot_be_built_is_opened_to_read(metadata, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        load_sae_from_metadata(metadata)
    dataset = Dataset.load_from_file(_original(tmp_path / "d.pkl", metadata))
    assert dataset.sae is None
    assert dataset.latents("max").tolist() == [[0, 2]]
    with pytest.raises(ValueError, match=reason):
        dataset.append([{"text": "more"}])


def test_a_class_whose_extra_is_missing_is_opened_to_read(tmp_path, monkeypatch):
    monkeypatch.delattr(interp_embed.sae, "GoodfireApiSAE", raising=False)
    monkeypatch.setitem(sys.modules, "interp_embed.sae.goodfire_api", None)
    metadata = {**ORIGINALS["goodfire_api"], "sae_type": "goodfire_api"}
    with pytest.raises(ValueError, match="'goodfire_api' need something that is not installed"):
        load_sae_from_metadata(metadata)
    dataset = Dataset.load_from_file(_original(tmp_path / "d.pkl", metadata))
    assert dataset.sae is None
    assert len(dataset) == 1


def _original(path, metadata):
    """Write one document as the original library did."""
    matrix = csr_matrix(np.array([[0.0, 1.0], [0.0, 2.0]], np.float32))
    write_pickle(
        path,
        LegacyDataset(
            dataset=pd.DataFrame({"text": ["a b"]}),
            rows=[matrix],
            aggregate_activations=[{}],
            tokenized_documents=[["a", " b"]],
            field="text",
            id="abc123",
            sae_metadata=metadata,
        ),
    )
    return path


class TestStores:
    """Stores made by an SAE that runs a model, opened again and gone on with."""

    @pytest.fixture
    def local(self, tmp_path):
        pytest.importorskip("sae_lens")
        from tests.support.tiny_models import random_sae, tiny_model, tiny_tokenizer

        random_sae("topk", "blocks.2.hook_resid_post").save_model(tmp_path / "sae")
        tiny_model("llama").save_pretrained(tmp_path / "llama")
        tiny_tokenizer().save_pretrained(tmp_path / "llama")
        return lambda cls=LocalSAE: cls(release=tmp_path / "sae", model=tmp_path / "llama")

    @pytest.fixture
    def goodfire(self, tmp_path):
        pytest.importorskip("sae_lens")
        from tests.support.goodfire_release import goodfire_weights, llama_folder

        weights = goodfire_weights(tmp_path / "tiny.pth")
        model = llama_folder(tmp_path / "goodfire")
        return lambda cls=GoodfireSAE: cls("Tiny-SAE-l2", weights=weights, model=model)

    @pytest.mark.parametrize("kind", ["local", "goodfire"])
    def test_a_store_goes_on_with_the_sae_that_made_it(self, kind, request, tmp_path):
        sae = request.getfixturevalue(kind)()
        path = tmp_path / "store.zarr"
        texts = [{"text": t} for t in ("The fox jumps.", "lazy dog", "a word of a text")]
        Dataset(texts[:1], sae, save_path=path).append(texts[1:], compute_activations=False)
        opened = Dataset.load_from_file(path)
        assert opened.status().tolist() == ["ok", "missing", "missing"]
        assert type(opened.sae) is type(sae)
        assert opened.sae.metadata().keys() == sae.metadata().keys()
        assert not opened.sae.is_loaded()
        resumed = Dataset.load_from_file(path, resume=True)
        assert resumed.status().tolist() == ["ok"] * 3
        whole = Dataset(texts, request.getfixturevalue(kind)())
        np.testing.assert_allclose(resumed.latents("max"), whole.latents("max"), rtol=1e-3)

    @pytest.mark.parametrize("kind", ["local", "goodfire"])
    def test_a_users_subclass_comes_back_as_itself(self, kind, request, tmp_path, monkeypatch):
        base = {"local": "LocalSAE", "goodfire": "GoodfireSAE"}[kind]
        name = f"mine_{kind}"
        (tmp_path / f"{name}.py").write_text(
            f"from interp_embed.sae import {base}\nclass MySAE({base}):\n    pass\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        mine = importlib.import_module(name).MySAE
        path = tmp_path / "store.zarr"
        sae = request.getfixturevalue(kind)(mine)
        Dataset([{"text": "a fox"}], sae, save_path=path, compute_activations=False)
        assert type(Dataset.load_from_file(path).sae) is mine
        monkeypatch.delitem(sys.modules, name)
        assert Dataset.load_from_file(path).sae is None, "reading imports nothing"
        resumed = Dataset.load_from_file(path, resume=True)
        assert type(resumed.sae).__module__ == name
        assert resumed.status().tolist() == ["ok"]

    @pytest.mark.parametrize(
        ("gpu", "asked", "found"),
        [
            (True, DEFAULT_DEVICE, ("auto", "cuda:0")),  # nobody asked for it all on one GPU
            (True, "cuda:1", ("cuda:1", "cuda:1")),
            (True, {"model": "auto", "sae": "cuda:2"}, ("auto", "cuda:2")),
            (True, "cpu", ("cpu", "cpu")),
            (False, DEFAULT_DEVICE, ("cpu", "cpu")),
        ],
    )
    def test_a_model_that_was_spread_stays_spread(self, gpu, asked, found, monkeypatch):
        monkeypatch.setattr("interp_embed.exchange.opening.sees_gpu", lambda: gpu)
        sae = GoodfireSAE(device={"model": "auto", "sae": "cuda:1"})
        again = load_sae_from_metadata(sae_record(sae))
        assert (again.model_device, again.sae_device) == ("auto", "cuda:1")
        choose_device(again, asked)
        assert (again.model_device, again.sae_device) == found

    @pytest.mark.parametrize(
        ("gpu", "made_on", "asked", "found"),
        [
            (True, {"model": "auto", "sae": "cuda:1"}, "auto", ("auto", "cuda:0")),
            (True, "cpu", "auto", ("cuda:0", "cuda:0")),
            (False, {"model": "auto", "sae": "cuda:1"}, "auto", ("cpu", "cpu")),
            (True, {"model": "auto", "sae": "cuda:1"}, "cuda:1", ("cuda:1", "cuda:1")),
        ],
    )
    def test_workers_put_it_where_it_fits(self, gpu, made_on, asked, found, tmp_path, monkeypatch):
        from interp_embed.encode.recorded_sae import recorded_sae
        from interp_embed.store import Store

        problem = None if gpu else "torch sees no GPU here"
        monkeypatch.setattr("interp_embed.encode.recorded_sae.device_problem", lambda _: problem)
        path = tmp_path / "store.zarr"
        Dataset(
            [{"text": "a"}], GoodfireSAE(device=made_on), save_path=path, compute_activations=False
        )
        sae = recorded_sae(Store(path), asked)
        assert isinstance(sae, GoodfireSAE)
        assert (sae.model_device, sae.sae_device) == found


class TestCommandLine:
    def test_goodfires_are_named_with_their_variant(self):
        from interp_embed.cli.saes import build_sae

        sae = build_sae("goodfire:Llama-3.3-70B-Instruct-SAE-l50", "cpu")
        assert isinstance(sae, GoodfireSAE)
        assert (sae.layer, sae.model_device) == (50, "cpu")

    @pytest.mark.parametrize(
        ("gpu", "device", "found"),
        [
            (True, "auto", ("auto", "cuda:0")),
            (True, "cuda:0", ("cuda:0", "cuda:0")),
            (False, "auto", ("cpu", "cpu")),
        ],
    )
    def test_goodfires_are_spread_over_the_gpus_there_are(self, gpu, device, found, monkeypatch):
        torch = pytest.importorskip("torch")
        from interp_embed.cli.saes import build_sae

        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(gpu))
        sae = build_sae(f"goodfire:{EIGHT}", device)
        assert (sae.model_device, sae.sae_device) == found

    def test_the_folder_of_a_user_that_there_is_not_is_a_bad_parameter(self):
        import typer

        from interp_embed.cli.saes import build_sae

        with pytest.raises(
            typer.BadParameter, match="~nobody-here/sae is not a folder with an SAE"
        ):
            build_sae("~nobody-here/sae", "cpu")

    def test_an_unknown_variant_is_a_bad_parameter(self):
        import typer

        from interp_embed.cli.saes import build_sae

        with pytest.raises(typer.BadParameter, match="--sae goodfire:Llama-9: variant_name"):
            build_sae("goodfire:Llama-9", "cpu")
        with pytest.raises(ValueError, match="--device tpu"):
            build_sae(f"goodfire:{EIGHT}", "tpu")
