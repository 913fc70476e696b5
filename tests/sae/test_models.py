"""How the language model is chosen: dtypes, names, releases, and who can run what."""

from __future__ import annotations

import pytest

pytest.importorskip("sae_lens")

import torch

from interp_embed.sae import LocalSAE
from interp_embed.sae.model import language_model as models
from interp_embed.sae.model.hooks import HookNotFoundError, find_hook
from interp_embed.sae.model.language_model import resolve_dtype
from tests.support.tiny_models import (
    TEXTS,
    assert_close,
    dense,
    random_sae,
    sae_lens,
    tiny_model,
    tiny_tokenizer,
)


@pytest.mark.parametrize(
    ("dtype", "device", "recorded", "bf16", "expected"),
    [
        ("auto", "cpu", None, True, torch.float32),
        ("auto", "cuda:0", None, True, torch.bfloat16),
        ("auto", "cuda:0", None, False, torch.float32),
        ("auto", "auto", None, True, torch.bfloat16),
        ("auto", "mps", None, True, torch.float32),
        ("auto", "cpu", "torch.bfloat16", True, torch.bfloat16),
        ("auto", "cpu", torch.float16, True, torch.float16),
        ("float32", "cuda:0", "bfloat16", True, torch.float32),
    ],
)
def test_dtypes(monkeypatch, dtype, device, recorded, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert resolve_dtype(dtype, device, recorded) is expected


@pytest.mark.parametrize("dtype", ["float33", "nn", "Tensor"])
def test_unknown_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="name of a torch dtype"):
        resolve_dtype(dtype, "cpu")


def test_a_release_of_saelens_is_loaded_by_name_with_the_model_it_names(monkeypatch):
    import transformers

    asked = {}
    sae = random_sae(
        "standard",
        "blocks.2.hook_resid_pre",
        metadata={
            "model_name": "gpt2-small",
            "model_from_pretrained_kwargs": {"center_writing_weights": True, "revision": "main"},
        },
    )

    def from_pretrained(release, sae_id, **settings):
        asked.update(release=release, sae_id=sae_id, **settings)
        return sae

    def model(name, **settings):
        asked.update(model=name, **settings)
        return tiny_model("gpt2")

    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", from_pretrained)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", model)
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda name, **_: (tiny_tokenizer(), name)[0]
    )
    loaded = LocalSAE()
    assert loaded.d_sae is None
    loaded.load()
    asked.pop("local_files_only", None)  # where there is no hub
    assert asked == {
        "release": "gpt2-small-res-jb",
        "sae_id": "blocks.8.hook_resid_pre",
        "device": "cpu",
        "dtype": torch.float32,
        "model": "gpt2",
        "device_map": None,
        "revision": "main",
    }
    assert loaded._hooked.runner.center
    assert loaded.fingerprint()["model"] == "gpt2"
    assert loaded.fingerprint()["release"] == "gpt2-small-res-jb"
    assert loaded.encode(["fox"])[0].shape[1] == 64


def test_options_that_only_transformer_lens_has_go_to_it(tmp_path, monkeypatch):
    from tests.support.tiny_models import lens_model

    asked = {}

    def load_model(kind, name, device, model_from_pretrained_kwargs):
        asked.update(kind=kind, name=name, **model_from_pretrained_kwargs)
        return lens_model(tiny_model("gpt2"), "gpt2")

    import sae_lens.load_model

    monkeypatch.setattr(sae_lens.load_model, "load_model", load_model)
    options = {"checkpoint_index": 3, "center_writing_weights": False}
    metadata = {"model_name": "pythia-70m", "model_from_pretrained_kwargs": options}
    random_sae("topk", "blocks.2.hook_resid_pre", metadata=metadata).save_model(tmp_path / "a")
    random_sae("topk", "blocks.2.hook_resid_pre").save_model(tmp_path / "b")
    lens = LocalSAE(release=tmp_path / "a")
    lens.load()
    assert asked == {
        "kind": "HookedTransformer", "name": "pythia-70m", "dtype": torch.float32, **options
    }  # fmt: skip
    plain = LocalSAE(release=tmp_path / "b", model=tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    plain.load()
    for a, b in zip(lens.encode(TEXTS), plain.encode(TEXTS), strict=True):
        assert_close(dense(a), dense(b))
    assert lens.fingerprint()["model_dtype"] == "float32"


def test_folded_values_are_left_to_transformer_lens(tmp_path, monkeypatch):
    # Folding value biases changes hook_z, which transformers cannot show.
    options = {"fold_value_biases": True}
    random_sae(
        "standard",
        "blocks.2.attn.hook_z",
        reshape_activations="hook_z",
        metadata={"model_from_pretrained_kwargs": options},
    ).save_model(tmp_path)
    asked = []

    def wrap(*arguments):
        asked.append(arguments)
        raise arguments[-1]

    monkeypatch.setattr(models, "_wrap_lens", wrap)
    sae = LocalSAE(release=tmp_path, model=tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    with pytest.raises(HookNotFoundError, match="folds weights"):
        sae.load()
    assert asked


def test_models_named_by_transformer_lens_alone_are_not_asked_of_transformers():
    can_load = models._transformers_can_load
    assert can_load("gpt2-small", "HookedTransformer", {"center_writing_weights": True})
    assert not can_load("gelu-1l", "HookedTransformer", {})
    assert not can_load("gpt2-small", "HookedMamba", {})
    assert not can_load("pythia-70m", "HookedTransformer", {"checkpoint_value": 1000})


@pytest.mark.parametrize("hook_name", ["blocks.1.hook_mlp_in", "blocks.1.attn.hook_q", "nonsense"])
def test_hooks_without_a_module_say_so(hook_name):
    with pytest.raises(HookNotFoundError):
        find_hook(tiny_model("gpt2"), hook_name)


def test_hooks_inside_a_family_that_is_not_known_are_not_guessed():
    model = tiny_model("llama")
    model.config.model_type = "something_new"
    assert find_hook(model, "blocks.1.hook_resid_post").layer == 1
    with pytest.raises(HookNotFoundError, match="not known"):
        find_hook(model, "blocks.1.hook_mlp_out")


def test_the_embedding_is_before_positions_are_added():
    assert find_hook(tiny_model("gpt2"), "hook_embed").layer is None
    assert find_hook(tiny_model("llama"), "hook_embed").incoming
