"""Activations agree with SAELens's own run, token by token."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sae_lens")

from sae_helpers import (
    TEXTS,
    assert_close,
    dense,
    lens_model,
    random_sae,
    saelens_run,
    tiny_model,
    tiny_tokenizer,
)

from interp_embed.sae import LocalSAE
from interp_embed.sae.model.runner import LensRunner, ModelRunner

ARCHITECTURES = [
    "standard",
    "gated",
    "topk",
    "abstopk",
    "jumprelu",
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
    "temporal",
    "matching_pursuit",
]
HOOKS = [
    "blocks.0.hook_resid_pre",
    "blocks.2.hook_resid_pre",
    "blocks.1.hook_resid_mid",
    "blocks.1.hook_resid_post",
    "blocks.3.hook_resid_post",
    "blocks.2.hook_attn_out",
    "blocks.2.hook_mlp_out",
    "blocks.2.attn.hook_z",
]


def local(tmp_path, sae, model, **settings):
    sae.save_model(tmp_path)
    loaded = LocalSAE(release=tmp_path, model=model, tokenizer=tiny_tokenizer(), **settings)
    loaded.load()
    return loaded


def check(loaded, lens, sae, texts=TEXTS):
    expected = saelens_run(lens, sae, texts)
    together = loaded.encode(texts)
    alone = [loaded.encode([text])[0] for text in texts]
    for one, sixteenth, reference in zip(alone, together, expected, strict=True):
        assert_close(dense(one), reference)
        assert_close(dense(sixteenth), reference)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_architecture_agrees(tmp_path, family, architecture):
    model = tiny_model(family)
    sae = random_sae(architecture, "blocks.2.hook_resid_pre")
    check(local(tmp_path, sae, model), lens_model(model, family), sae)


@pytest.mark.parametrize("hook_name", HOOKS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "qwen3", "neox"])
def test_every_hook_of_every_family_agrees(tmp_path, family, hook_name):
    if family == "neox" and hook_name.endswith("resid_mid"):
        pytest.skip("a parallel block has no middle")
    model = tiny_model(family)
    sae = random_sae(
        "standard", hook_name, reshape_activations="hook_z" if "hook_z" in hook_name else "none"
    )
    loaded = local(tmp_path, sae, model)
    assert isinstance(loaded._hooked.runner, ModelRunner)
    check(loaded, lens_model(model, family), sae)


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_normalisation_agrees(tmp_path, normalize, apply_b_dec_to_input):
    model = tiny_model("gpt2")
    sae = random_sae(
        "topk",
        "blocks.2.hook_resid_post",
        normalize_activations=normalize,
        apply_b_dec_to_input=apply_b_dec_to_input,
        rescale_acts_by_decoder_norm=True,
    )
    check(local(tmp_path, sae, model), lens_model(model, "gpt2"), sae)


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_bos_is_there_exactly_if_the_sae_wants_it(tmp_path, prepend_bos):
    model = tiny_model("llama")
    sae = random_sae("standard", "blocks.2.hook_resid_post", metadata={"prepend_bos": prepend_bos})
    check(local(tmp_path, sae, model), lens_model(model, "llama"), sae)


@pytest.mark.parametrize(
    "hook_name",
    ["blocks.2.hook_resid_pre", "blocks.2.hook_attn_out", "blocks.2.hook_mlp_out"],
)
def test_centred_writing_weights_agree(tmp_path, hook_name):
    # The default release, gpt2-small-res-jb, was trained on such a model.
    model = tiny_model("gpt2")
    options = {"center_writing_weights": True}
    sae = random_sae("standard", hook_name, metadata={"model_from_pretrained_kwargs": options})
    loaded = local(tmp_path, sae, model)
    lens = lens_model(model, "gpt2", **options)
    check(loaded, lens, sae)
    uncentred = saelens_run(lens_model(model, "gpt2"), sae, TEXTS[:1])[0]
    assert np.abs(uncentred - dense(loaded.encode(TEXTS[:1])[0])).max() > 1e-2


def test_centring_leaves_a_model_without_layer_norm_alone(tmp_path):
    model = tiny_model("llama")
    options = {"center_writing_weights": True, "fold_ln": False}
    sae = random_sae(
        "standard", "blocks.2.hook_resid_pre", metadata={"model_from_pretrained_kwargs": options}
    )
    check(local(tmp_path, sae, model), lens_model(model, "llama"), sae)


@pytest.mark.parametrize("head", [0, 3])
def test_one_attention_head_agrees(tmp_path, head):
    model = tiny_model("llama")
    sae = random_sae("standard", "blocks.2.attn.hook_z", d_in=8, metadata={"hook_head_index": head})
    loaded = local(tmp_path, sae, model)
    lens = lens_model(model, "llama")
    import torch

    for text in TEXTS[:4]:
        with torch.no_grad():
            _, cache = lens.run_with_cache(lens.to_tokens(text, prepend_bos=True))
            expected = sae.encode(cache["blocks.2.attn.hook_z"][0, :, head]).numpy()
        assert_close(dense(loaded.encode([text])[0]), expected)


@pytest.mark.parametrize("hook_name", ["blocks.2.ln2.hook_normalized", "blocks.1.hook_resid_mid"])
def test_a_transformer_lens_model_is_run_as_it_is(tmp_path, hook_name):
    model = tiny_model("gpt2")
    sae = random_sae("standard", hook_name)
    loaded = local(tmp_path, sae, lens_model(model, "gpt2"))
    assert isinstance(loaded._hooked.runner, LensRunner)
    check(loaded, lens_model(model, "gpt2"), sae)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_hook_without_a_module_runs_on_transformer_lens(tmp_path, family):
    sae = random_sae("standard", "blocks.2.ln2.hook_normalized")
    loaded = local(tmp_path, sae, tiny_model(family))
    assert isinstance(loaded._hooked.runner, LensRunner)
    check(loaded, lens_model(tiny_model(family), family), sae)


def test_hf_hook_name_is_preferred_and_found_in_other_wrappings(tmp_path):
    model = tiny_model("llama")
    sae = random_sae(
        "standard",
        "blocks.2.hook_no_such_hook",
        metadata={"hf_hook_name": "model.language_model.layers.2.mlp.input"},
    )
    loaded = local(tmp_path, sae, model)
    assert loaded._hooked.runner.site.name == "model.layers.2.mlp"
    captured = []
    handle = model.model.layers[2].mlp.register_forward_pre_hook(
        lambda _, args: captured.append(args[0][0])
    )
    import torch

    with torch.no_grad():
        model(torch.tensor(loaded.tokenize(TEXTS[:1], as_tokens=False)["input_ids"]))
        handle.remove()
        expected = sae.encode(captured[0]).numpy()
    assert_close(dense(loaded.encode(TEXTS[:1])[0]), expected)


def test_gemma_2_norms_behind_the_sublayers_count(tmp_path):
    # TransformerLens's hook_attn_out and hook_mlp_out are what is added to the residual stream.
    import torch

    model = tiny_model("gemma2")
    layer = model.model.layers[2]
    seen = {}
    for name, module in (("attn", layer.post_attention_layernorm),
                         ("mlp", layer.post_feedforward_layernorm)):  # fmt: skip
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    for name, hook in (("attn", "blocks.2.hook_attn_out"), ("mlp", "blocks.2.hook_mlp_out")):
        sae = random_sae("standard", hook)
        loaded = local(tmp_path / name, sae, model)
        text = TEXTS[2]
        with torch.no_grad():
            model(torch.tensor(loaded.tokenize([text], as_tokens=False)["input_ids"]))
            expected = sae.encode(seen[name][0]).numpy()
        assert_close(dense(loaded.encode([text])[0]), expected)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_order_and_the_company_of_documents_change_nothing(tmp_path, family):
    sae = random_sae("standard", "blocks.2.hook_resid_post")
    loaded = local(tmp_path, sae, tiny_model(family), batch_tokens=40)
    forward = loaded.encode(TEXTS)
    backward = loaded.encode(TEXTS[::-1])[::-1]
    for a, b in zip(forward, backward, strict=True):
        assert_close(dense(a), dense(b))


def test_slices_of_the_dense_buffer_change_nothing(tmp_path):
    from interp_embed.sae.model.sparsify import SparseEncoder

    sae = random_sae("standard", "blocks.2.hook_resid_post")
    loaded = local(tmp_path, sae, tiny_model("gpt2"))
    whole = loaded.encode(TEXTS)
    loaded._encoder._sparse = SparseEncoder(loaded.sae, dense_bytes=4 * 64 * 3)
    for a, b in zip(whole, loaded.encode(TEXTS), strict=True):
        assert_close(dense(a), dense(b))


def test_an_sae_on_an_output_of_a_named_module_agrees(tmp_path):
    model = tiny_model("llama")
    plain = random_sae("topk", "blocks.1.hook_resid_post")
    named = random_sae(
        "topk", "model.layers.1", metadata={"model_class_name": "AutoModelForCausalLM"}
    )
    a = local(tmp_path / "a", plain, model).encode(TEXTS)
    b = local(tmp_path / "b", named, model).encode(TEXTS)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(dense(x), dense(y))
