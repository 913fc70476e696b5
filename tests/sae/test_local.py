"""LocalSAE on small random models: tokens beside activations, limits, failures, fingerprints."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("sae_lens")

from interp_embed import Dataset
from interp_embed.core.chunk import Chunk, DocumentStatus
from interp_embed.errors import SAENotLoadedError
from interp_embed.sae import LocalSAE
from interp_embed.sae.base import BaseSAE
from interp_embed.store.fingerprint import fingerprint_differences
from tests.support.tiny_models import (
    BOS,
    CHAT_TEMPLATE,
    TEXTS,
    assert_close,
    dense,
    hidden_states,
    random_sae,
    tiny_model,
    tiny_tokenizer,
)

HOOK = "blocks.2.hook_resid_post"
OK, TRUNCATED, FAILED = DocumentStatus.OK, DocumentStatus.TRUNCATED, DocumentStatus.FAILED


@pytest.fixture
def folder(tmp_path):
    random_sae("topk", HOOK).save_model(tmp_path / "sae")
    return tmp_path / "sae"


def local(folder, *, family="llama", tokenizer=None, seed=0, **settings):
    sae = LocalSAE(
        release=folder,
        model=tiny_model(family, seed),
        tokenizer=tokenizer or tiny_tokenizer(chat_template=CHAT_TEMPLATE),
        **settings,
    )
    sae.load()
    return sae


def test_a_chunk_holds_tokens_and_activations_of_every_document_in_order(folder):
    sae = local(folder)
    chunk = sae.encode_chunk(TEXTS)
    assert isinstance(chunk, Chunk)
    assert chunk.d_sae == sae.d_sae == 64
    assert chunk.doc_id.tolist() == list(range(len(TEXTS)))
    assert chunk.status.tolist() == [OK] * len(TEXTS)
    assert chunk.vocabulary == {0: BOS}
    assert chunk.feature.dtype == np.uint16
    assert chunk.activation.dtype == np.float32
    assert np.isfinite(chunk.activation).all()
    assert (chunk.activation != 0).all()
    strings = sae.tokenize(TEXTS)
    ids = sae.tokenize(TEXTS, as_tokens=False)["input_ids"]
    for number, (text, matrix) in enumerate(zip(TEXTS, sae.encode(TEXTS), strict=True)):
        tokens = chunk.tokens.take(slice(chunk.doc_ptr[number], chunk.doc_ptr[number + 1]))
        assert len(tokens) == len(strings[number]) == len(ids[number]) == matrix.shape[0]
        assert tokens.id.tolist() == ids[number]
        assert strings[number][0] == BOS
        assert "".join(strings[number][1:]) == text
        assert (chunk.csr(number) != matrix).nnz == 0


def test_features_ascend_within_a_token(folder):
    chunk = local(folder).encode_chunk(TEXTS)
    for a, b in zip(chunk.token_ptr, chunk.token_ptr[1:], strict=False):
        assert (np.diff(chunk.feature[a:b].astype(int)) > 0).all()


def test_the_generic_chunk_of_the_base_class_is_the_same(folder):
    sae = local(folder)
    fast, generic = sae.encode_chunk(TEXTS), BaseSAE.encode_chunk(sae, TEXTS)
    for name in ("doc_ptr", "token_ptr", "feature"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(generic, name))
    np.testing.assert_allclose(fast.activation, generic.activation, rtol=1e-4)
    for name in ("id", "start", "end", "special"):
        np.testing.assert_array_equal(getattr(fast.tokens, name), getattr(generic.tokens, name))


def test_padding_is_on_the_right_and_marked(folder):
    batch = local(folder).tokenize(TEXTS[:3], as_tokens=False, padding=True)
    lengths = [sum(row) for row in batch["attention_mask"]]
    assert len({len(row) for row in batch["input_ids"]}) == 1
    for row, mask, length in zip(batch["input_ids"], batch["attention_mask"], lengths, strict=True):
        assert mask == [1] * length + [0] * (len(row) - length)
        assert set(row[length:]) <= {0}
    strings = local(folder).tokenize(TEXTS[:3], padding=True)
    assert [len(row) for row in strings] == [len(row) for row in batch["input_ids"]]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_documents_longer_than_the_context_are_cut_and_recorded(folder, family):
    sae = local(folder, family=family, context_size=9)
    chunk = sae.encode_chunk(["fox", TEXTS[5]])
    assert chunk.status.tolist() == [OK, TRUNCATED]
    assert np.diff(chunk.doc_ptr)[1] == 9
    longer = local(folder, family=family, context_size=20).encode(TEXTS[5:6])[0]
    assert_close(dense(chunk.csr(1)), dense(longer)[:9])


def test_the_models_limit_holds_whatever_the_sae_says(tmp_path):
    random_sae("topk", HOOK, metadata={"context_size": 1000}).save_model(tmp_path)
    chunk = local(tmp_path, family="gpt2").encode_chunk(["fox " * 300])
    assert np.diff(chunk.doc_ptr).tolist() == [64]
    assert chunk.status.tolist() == [TRUNCATED]


def test_without_truncation_only_the_long_document_fails(folder):
    sae = local(folder, context_size=9, truncate=False)
    chunk = sae.encode_chunk(["fox", TEXTS[5], "dog"])
    assert chunk.status.tolist() == [OK, FAILED, OK]
    assert "more than the 9" in chunk.reasons[1]
    assert [m is None for m in sae.encode(["fox", TEXTS[5]])] == [False, True]


def test_empty_texts_have_no_rows(folder):
    sae = local(folder)
    chunk = sae.encode_chunk(["", "fox", ""])
    assert chunk.status.tolist() == [OK] * 3
    assert np.diff(chunk.doc_ptr)[[0, 2]].tolist() == [0, 0]
    assert sae.encode([""])[0].shape == (0, 64)
    assert sae.encode([]) == []
    assert sae.encode_chunk([]).n_documents == 0


def test_a_document_that_breaks_the_model_fails_alone(folder):
    sae = local(folder)
    import torch

    broken = sae.tokenizer("!", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        sae.model.model.embed_tokens.weight[broken] = float("nan")
    chunk = sae.encode_chunk(["fox", "dog!", None, "cat"])
    assert chunk.status.tolist() == [OK, FAILED, FAILED, OK]
    assert "not finite" in chunk.reasons[1]
    assert chunk.reasons[2] == "the text is missing"
    assert np.diff(chunk.doc_ptr)[1:3].tolist() == [0, 0]


def test_infinite_inputs_do_not_pass_as_silence(folder):
    # An infinite residual can come out of a ReLU as nothing but zeros.
    sae = local(folder)
    import torch

    sae._hooked.runner.__class__ = type("Infinite", (), {})
    runner = lambda docs: torch.full((sum(map(len, docs)), 32), float("-inf"))  # noqa: E731
    sae._encoder._runner = runner
    assert sae.encode_chunk(["fox"]).status.tolist() == [FAILED]


def test_an_id_that_the_model_does_not_have_fails_that_document_alone(folder):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    chunk = local(folder, tokenizer=tokenizer).encode_chunk(["fox", "a <extra> b", "dog"])
    assert chunk.status.tolist() == [OK, FAILED, OK]
    assert chunk.reasons[1].startswith("IndexError")


def test_running_out_of_memory_splits_the_batch(folder):
    import torch

    sae = local(folder)
    whole = sae.encode(TEXTS)
    run, sizes = sae._encoder._runner, []

    def small(documents):
        sizes.append(len(documents))
        if len(documents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(documents)

    sae._encoder._runner = small
    for a, b in zip(whole, sae.encode(TEXTS), strict=True):
        assert_close(dense(a), dense(b))
    assert max(sizes) > 2

    def never(documents):
        raise torch.OutOfMemoryError("CUDA out of memory")

    sae._encoder._runner = never
    chunk = sae.encode_chunk(["a", "b"])
    assert chunk.status.tolist() == [FAILED, FAILED]
    assert "CUDA out of memory" in chunk.reasons[0]


def test_bos_rows_can_be_left_empty(tmp_path):
    metadata = {"exclude_bos_activation": True}
    random_sae("topk", HOOK, metadata=metadata).save_model(tmp_path)
    without, kept = local(tmp_path), local(tmp_path, bos_activations=True)
    for a, b in zip(without.encode(TEXTS), kept.encode(TEXTS), strict=True):
        assert a.shape == b.shape
        assert dense(a)[0].sum() == 0
        assert dense(b)[0].sum() > 0
        assert_close(dense(a)[1:], dense(b)[1:])
    assert without.fingerprint() != kept.fingerprint()


def test_only_the_hooked_layers_are_run(folder):
    sae = local(folder)
    ran = []
    for number, layer in enumerate(sae.model.model.layers):
        layer.register_forward_hook(lambda *_, n=number: ran.append(n))
    sae.encode(["fox"])
    assert ran == [0, 1, 2]


def test_a_loaded_model_keeps_its_layers_and_a_folder_gives_them_up(folder, tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    given = local(folder)
    assert len(given.model.model.layers) == 4
    path = LocalSAE(release=folder, model=tmp_path / "model")
    path.load()
    assert len(path.model.model.layers) == 3
    for a, b in zip(given.encode(TEXTS), path.encode(TEXTS), strict=True):
        assert_close(dense(a), dense(b))
    assert path.fingerprint()["model_sha256"] == given.fingerprint()["model_sha256"]
    assert str(tmp_path) not in json.dumps(path.fingerprint())


def test_dtype_is_that_of_the_language_model(folder, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    fine, coarse = (
        LocalSAE(release=folder, model=tmp_path / "model", dtype=dtype)
        for dtype in ("auto", "bfloat16")
    )
    fine.load()
    coarse.load()
    assert fine.fingerprint()["model_dtype"] == "float32"
    assert coarse.fingerprint()["model_dtype"] == "bfloat16"
    assert str(coarse.sae.dtype) == "torch.float32"
    a, b = dense(fine.encode(TEXTS[:1])[0]), dense(coarse.encode(TEXTS[:1])[0])
    assert 0 < np.abs(a - b).max() < 0.2 * np.abs(a).max()
    with pytest.raises(ValueError, match="dtype"):
        LocalSAE(release=folder, model=tmp_path / "model", dtype="float33").load()


def test_a_chat_template_is_applied_to_what_is_tokenised_and_encoded_alike(folder):
    sae = local(folder, chat_template=True)
    texts = ["  The fox 👋🏽 ", "assistant"]
    chunk = sae.encode_chunk(texts)
    assert chunk.status.tolist() == [OK, OK]
    for number, (text, strings) in enumerate(zip(texts, sae.tokenize(texts), strict=True)):
        tokens = chunk.tokens.take(slice(chunk.doc_ptr[number], chunk.doc_ptr[number + 1]))
        inside = [s for s, special in zip(strings, tokens.special, strict=True) if not special]
        assert "".join(inside) == text
        assert "<|im_start|>" in strings
    rendered = sae.tokenizer.apply_chat_template(
        [{"role": "assistant", "content": texts[0]}], tokenize=False
    )
    ids = [0, *sae.tokenizer(rendered, add_special_tokens=False)["input_ids"]]
    expected = sae.encode_chat([[{"role": "assistant", "content": texts[0]}]])[0]
    assert chunk.tokens.id[: chunk.doc_ptr[1]].tolist() == ids
    assert_close(dense(chunk.csr(0)), dense(expected))
    user = local(folder, chat_template=True, use_assistant_role=False)
    assert "user" in "".join(user.tokenize(["fox"])[0])


def test_plain_documents_are_encoded_without_the_template(folder):
    sae = local(folder)
    assert sae.chat_template_exists()
    hidden = hidden_states(sae.model, [0, *sae.tokenizer("The fox")["input_ids"]], 3)
    from tests.support.tiny_models import sae_lens

    reference = sae_lens.SAE.load_from_disk(folder)
    assert_close(dense(sae.encode(["The fox"])[0]), reference.encode(hidden).detach().numpy())


def test_conversations_need_a_template(folder):
    sae = local(folder, tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="no chat template"):
        sae.encode_chat([[{"role": "user", "content": "x"}]])
    with pytest.raises(ValueError, match="no chat template"):
        local(folder, tokenizer=tiny_tokenizer(), chat_template=True)


def test_before_loading_nothing_can_be_encoded(folder):
    sae = LocalSAE(release=folder)
    assert sae.d_sae == 64
    for call in (sae.encode, sae.encode_chunk, sae.tokenize, sae.encode_chat):
        with pytest.raises(SAENotLoadedError, match="LocalSAE is not loaded"):
            call(["x"])


def test_destroying_lets_go_of_the_models(folder):
    sae = local(folder)
    before = sae.fingerprint()
    sae.destroy()
    assert sae.model is None
    assert sae.sae is None
    assert not sae.is_loaded()
    assert sae.fingerprint().items() <= before.items()
    sae.load()
    assert sae.fingerprint() == before


def test_a_release_may_be_the_parent_of_the_saes_folder(folder):
    sae = LocalSAE(sae_id="sae", release=folder.parent)
    assert sae._folder == folder
    with pytest.raises(FileNotFoundError, match=r"neither it nor .* has a cfg\.json"):
        LocalSAE(sae_id="other", release=folder.parent)


def test_bad_arguments_are_refused_at_once():
    with pytest.raises(ValueError, match="context_size"):
        LocalSAE(context_size=0)
    with pytest.raises(ValueError, match="batch_tokens"):
        LocalSAE(batch_tokens=-1)
    with pytest.raises(ValueError, match=r"sae_id must be .* for release"):
        LocalSAE(release="interp-embed-smollm2-135m")


@pytest.mark.parametrize("device", ["cuda:0", "gpu", {"model": "auto", "sae": "cuda:0"}])
def test_a_device_that_is_not_there_is_refused_before_anything_loads(device, folder, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(LocalSAE, "_load_sae", lambda self: pytest.fail("loads the SAE"))
    sae = LocalSAE(release=folder, device=device)  # it can be named, so that stores are read
    with pytest.raises(ValueError, match=r"device '(cuda:0|gpu)': torch .*\. Use device='cpu'"):
        sae.load()
    with pytest.raises(ValueError, match="Use device='cpu'"):
        Dataset([{"text": "a"}], sae, save_path=folder / "s")
    assert not (folder / "s").exists()


def test_a_release_that_is_not_there_names_the_argument(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="release='gpt-two' is not a release that SAELens knows"):
        LocalSAE(release="gpt-two", sae_id="x").load()
    for release, sae_id in [
        ("blocks.8.hook_resid_pre", "gpt2-small-res-jb"),
        ("x", "sae"),  # the folder
    ]:
        with pytest.raises(ValueError, match=f"but sae_id='{sae_id}' is one: swap the two"):
            LocalSAE(release=release, sae_id=sae_id).load()
    with pytest.raises(ValueError, match="not found in release gpt2-small-res-jb"):
        LocalSAE(release="gpt2-small-res-jb", sae_id="sae").load()
    for release in ("blocks.9.hook_resid_post", "gpt2-small-res-jb"):
        with pytest.raises(ValueError, match=r"is the name of a release\. .*LocalSAE\.embedded"):
            LocalSAE(sae_id="interp-embed-smollm2-135m", release=release)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize(("shown", "hub"), [(True, True), (True, False), (False, False)])
def test_bars_of_the_loading_are_hidden_where_nobody_watches(
    watched, shown, hub, folder, monkeypatch
):
    from huggingface_hub import utils
    from transformers.utils import logging

    seen = []
    monkeypatch.setattr("interp_embed.core.progress.show_progress", lambda: watched)
    monkeypatch.setattr(LocalSAE, "_load_models", lambda self: seen.append(bars()))

    def bars():
        return logging.is_progress_bar_enabled(), not utils.are_progress_bars_disabled()

    before = bars()
    try:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        (utils.enable_progress_bars if hub else utils.disable_progress_bars)()
        LocalSAE(release=folder).load()
        assert seen == [(shown and watched, hub and watched)]
        assert bars() == (shown, hub)
    finally:
        (logging.enable_progress_bar if before[0] else logging.disable_progress_bar)()
        (utils.enable_progress_bars if before[1] else utils.disable_progress_bars)()


def test_an_sae_without_a_hook_or_a_model_without_it_says_so(tmp_path):
    random_sae("topk", "").save_model(tmp_path / "none")
    with pytest.raises(ValueError, match="name no hook"):
        local(tmp_path / "none")
    random_sae("topk", "blocks.9.hook_resid_post").save_model(tmp_path / "deep")
    with pytest.raises(ValueError, match="has 4 layers"):
        local(tmp_path / "deep")
    with pytest.raises(ValueError, match="pass its tokenizer="):
        LocalSAE(release=tmp_path / "deep", model=tiny_model("gpt2")).load()


class TestFingerprint:
    def test_is_stable_and_json(self, folder):
        a, b = local(folder).fingerprint(), local(folder, batch_tokens=50).fingerprint()
        assert a == b
        assert json.loads(json.dumps(a)) == a

    def test_what_is_known_before_loading_does_not_change(self, folder):
        sae = LocalSAE(release=folder, model=tiny_model("llama"), tokenizer=tiny_tokenizer())
        before = sae.fingerprint()
        assert before["d_sae"] == 64
        sae.load()
        assert before.items() < sae.fingerprint().items()

    def test_does_not_depend_on_where_the_folder_is(self, folder, tmp_path):
        random_sae("topk", HOOK).save_model(tmp_path / "elsewhere")
        assert local(folder).fingerprint() == local(tmp_path / "elsewhere").fingerprint()

    @pytest.mark.parametrize(
        ("settings", "key"),
        [
            ({"seed": 1}, "model_sha256"),
            ({"family": "mistral"}, "model_config"),
            ({"context_size": 10}, "max_tokens"),
            ({"prepend_bos": False}, "bos_token_id"),
            ({"truncate": False}, "truncate"),
            ({"use_assistant_role": False}, "use_assistant_role"),
            ({"chat_template": True}, "template_sha256"),
            ({"bos_activations": False}, "bos_activations"),
        ],
    )
    def test_changes_with_a_setting(self, folder, settings, key):
        before, after = local(folder).fingerprint(), local(folder, **settings).fingerprint()
        assert before[key] != after[key]

    def test_changes_with_one_weight_of_the_model(self, folder):
        import torch

        before = local(folder).fingerprint()
        model = tiny_model("llama")
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
        sae = LocalSAE(release=folder, model=model, tokenizer=tiny_tokenizer())
        sae.load()
        assert sae.fingerprint()["model_sha256"] != before["model_sha256"]

    def test_does_not_change_with_a_weight_behind_the_hook(self, folder):
        import torch

        before = local(folder).fingerprint()
        model = tiny_model("llama")
        with torch.no_grad():
            model.model.layers[3].mlp.up_proj.weight[3, 4] += 1e-3
        sae = LocalSAE(release=folder, model=model, tokenizer=tiny_tokenizer())
        sae.load()
        assert sae.fingerprint()["model_sha256"] == before["model_sha256"]

    def test_changes_with_one_weight_of_the_sae(self, folder, tmp_path):
        import torch

        sae = random_sae("topk", HOOK)
        with torch.no_grad():
            sae.b_enc[5] += 1e-4
        sae.save_model(tmp_path / "other")
        assert (
            local(folder).fingerprint()["sae_sha256"]
            != (local(tmp_path / "other").fingerprint()["sae_sha256"])
        )

    def test_changes_with_the_configuration_of_the_sae(self, folder, tmp_path):
        random_sae("topk", HOOK, k=8).save_model(tmp_path / "other")
        before, after = local(folder).fingerprint(), local(tmp_path / "other").fingerprint()
        assert before["sae_config"] != after["sae_config"]
        assert before["sae_sha256"] == after["sae_sha256"]

    def test_changes_with_the_tokenizer(self, folder):
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["foxes"])
        before, after = local(folder), local(folder, tokenizer=tokenizer)
        key = "tokenizer_sha256"
        assert before.fingerprint()[key] != after.fingerprint()[key]
        before.tokenizer(["a", "b b"], padding=True, truncation=True, max_length=3)
        before._hashes = None
        assert before.fingerprint() == local(folder).fingerprint()

    @pytest.mark.parametrize(
        "settings",
        [
            {"model": "gpt2"},
            {"tokenizer": "gpt2"},
            {"dtype": "bfloat16"},
            {"prepend_bos": False},
            {"context_size": 10},
            {"bos_activations": False},
            {"chat_template": True},
            {"truncate": False},
            {"use_assistant_role": False},
        ],
    )
    def test_an_unloaded_one_changes_with_a_setting(self, folder, settings):
        before = LocalSAE(release=folder).fingerprint()
        after = LocalSAE(release=folder, **settings).fingerprint()
        assert json.loads(json.dumps(after)) == after
        assert len(fingerprint_differences(before, after)) == 1
        hub = LocalSAE(sae_id="x", release="y").fingerprint()
        other = LocalSAE(sae_id="x", release="y", **settings).fingerprint()
        assert len(fingerprint_differences(hub, other)) == 1

    def test_an_unloaded_one_is_that_of_its_folder(self, folder, tmp_path):
        random_sae("topk", HOOK).save_model(tmp_path / "same")
        random_sae("topk", HOOK, k=8).save_model(tmp_path / "config")
        random_sae("topk", HOOK, seed=1).save_model(tmp_path / "weights")
        before = LocalSAE(release=folder).fingerprint()
        assert before == LocalSAE(release=tmp_path / "same").fingerprint()
        assert before == LocalSAE("same", tmp_path).fingerprint()
        for other in ("config", "weights"):
            after = LocalSAE(release=tmp_path / other).fingerprint()
            assert [d[0] for d in fingerprint_differences(before, after)] == ["asked.sae"]

    def test_an_unloaded_one_is_that_of_its_models_folder(self, folder, tmp_path):
        prints = []
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            tiny_model("llama", seed).save_pretrained(tmp_path / name)
            tiny_tokenizer().save_pretrained(tmp_path / name)
            sae = LocalSAE(release=folder, model=tmp_path / name, tokenizer=tmp_path / name)
            prints.append(sae.fingerprint())
        assert prints[0] == prints[1]
        assert [d[0] for d in fingerprint_differences(prints[0], prints[2])] == ["asked.model"]
        assert str(tmp_path) not in json.dumps(prints)
        sae.load()
        assert sae.fingerprint()["asked"] == prints[2]["asked"]
