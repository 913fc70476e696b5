"""Goodfire's SAEs: against plain transformers and a float64 matrix, and what their files may hold."""

from __future__ import annotations

import contextlib
import gzip
import json
import pickle
import random
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("sae_lens")

import boto3
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_embed import Dataset
from interp_embed.core.chunk import DocumentStatus
from interp_embed.core.spans import token_strings
from interp_embed.errors import FingerprintMismatchError, UnsafePickleError
from interp_embed.sae import GoodfireSAE
from interp_embed.sae.model.trunk import load_trunk
from interp_embed.sae.releases import neuronpedia
from interp_embed.sae.releases.goodfire_files import VARIANTS, find_variant, hub_file, read_weights
from tests.support.goodfire_release import (
    BOS,
    EOT,
    direct,
    goodfire_weights,
    llama_folder,
    llama_tokenizer,
    rendered,
)
from tests.support.http_servers import refusing
from tests.support.hypotheses import examples
from tests.support.s3_server import s3_server
from tests.support.tiny_models import TEXTS, assert_close, dense

EIGHT, SEVENTY = VARIANTS
LAYERS = {EIGHT: 19, SEVENTY: 50}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of four layers."""
    return llama_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return goodfire_weights(tmp_path_factory.mktemp("weights") / "tiny.pth")


@pytest.fixture
def tiny(folder, weights):
    """Return a loaded SAE on the output of layer 2, in float32."""

    def build(**settings):
        settings = {"weights": weights, "model": folder, "dtype": "float32"} | settings
        sae = GoodfireSAE("Tiny-Llama-SAE-l2", **settings)
        sae.load()
        return sae

    return build


@pytest.fixture(scope="module")
def loaded(folder, weights):
    sae = GoodfireSAE("Tiny-Llama-SAE-l2", weights=weights, model=folder, dtype="float32")
    sae.load()
    return sae


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of this library's, and no way to the network."""
    monkeypatch.setenv("INTERP_EMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def without_template(text, table):
    """Return the strings of a document's own tokens, joined."""
    return "".join(
        text[a:b] for a, b, s in zip(table.start, table.end, table.special, strict=True) if not s
    )


def check_against_direct(sae, folder, weights, layer, texts=TEXTS, role="assistant"):
    """Compare every token of every text with transformers and a matrix, template tokens included."""
    chunk = sae.encode_chunk(texts)
    assert not chunk.reasons
    for number, text in enumerate(texts):
        table = chunk.tokens.take(slice(chunk.doc_ptr[number], chunk.doc_ptr[number + 1]))
        if not text.strip():
            assert len(table) == 0
            continue
        ids, expected = direct(folder, weights, layer, rendered(text, role))
        assert table.id.tolist() == ids
        assert_close(dense(chunk.csr(number)), expected)
        assert without_template(text, table) == text
        shown = token_strings(text, table, chunk.vocabulary)
        template = "".join(s for s, extra in zip(shown, table.special, strict=True) if extra)
        assert template == rendered("", role)
    return chunk


def test_activations_are_those_of_transformers_and_a_matrix_token_by_token(loaded, folder, weights):
    check_against_direct(loaded, folder, weights, 2)


@settings(max_examples=examples(12))
@given(
    texts=st.lists(
        st.text(max_size=30) | st.sampled_from(["assistant", "system\n\n", EOT, BOS + "a", " x\n"]),
        min_size=1,
        max_size=4,
    )
)
def test_so_they_are_for_any_text(loaded, folder, weights, texts):
    check_against_direct(loaded, folder, weights, 2, texts)


@pytest.mark.parametrize("role", ["assistant", "user"])
def test_a_document_is_a_message_of_the_role(tiny, folder, weights, role):
    sae = tiny(use_assistant_role=role == "assistant")
    check_against_direct(sae, folder, weights, 2, TEXTS[:2], role)


@pytest.mark.parametrize("prepend_bos", [None, False])
def test_activations_on_bos_are_dropped_whoever_put_it_there(tiny, prepend_bos):
    """The template has BOS in it, so it is there without being asked for."""
    with_bos = tiny(prepend_bos=prepend_bos)
    without = tiny(prepend_bos=prepend_bos, bos_activations=False)
    for kept, dropped in zip(with_bos.encode(TEXTS[:2]), without.encode(TEXTS[:2]), strict=True):
        assert kept[0].nnz > 0
        assert dropped[0].nnz == 0
        assert_close(dense(dropped[1:]), dense(kept[1:]))
    assert with_bos.fingerprint()["bos_activations"] is True
    assert without.fingerprint()["bos_activations"] is False


def test_without_the_template_bos_stands_in_front_of_raw_text(tiny, folder, weights):
    sae = tiny(chat_template=False)
    for text, matrix in zip(TEXTS[:4], sae.encode(TEXTS[:4]), strict=True):
        ids, expected = direct(folder, weights, 2, BOS + text)
        assert sae.tokenize([text], as_tokens=False)["input_ids"] == [ids]
        assert_close(dense(matrix), expected)


def test_conversations_go_through_the_template(tiny, folder, weights):
    sae = tiny()
    (matrix,) = sae.encode_chat([[{"role": "assistant", "content": TEXTS[0]}]])
    assert_close(dense(matrix), direct(folder, weights, 2, rendered(TEXTS[0]))[1])


def test_long_documents_are_cut_or_run_in_windows(tiny):
    text = "The quick brown fox. " * 40
    cut = tiny().encode_chunk([text])
    assert cut.status.tolist() == [DocumentStatus.TRUNCATED]
    assert cut.doc_ptr[-1] == 256
    whole = tiny(overflow="window").encode_chunk([text])
    assert whole.status.tolist() == [DocumentStatus.OK]
    assert without_template(text, whole.tokens) == text


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_variants_read_the_layer_that_their_name_says(variant, tmp_path, cache, monkeypatch):
    """Files come from the hub's cache, through nothing but the names that the variant has."""
    layer = LAYERS[variant]
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    commit = "0" * 39 + "1"

    def published(repository, build):
        root = hub / f"models--{repository.replace('/', '--')}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(commit)
        return build(root / "snapshots" / commit)

    model = published(
        f"meta-llama/{variant.partition('-SAE-')[0]}", lambda at: llama_folder(at, layer + 2)
    )
    suffix = {EIGHT: ".pth", SEVENTY: ".pt"}[variant]
    file = published(
        f"Goodfire/{variant}", lambda at: goodfire_weights(at / f"{variant}{suffix}", d_sae=48)
    )
    sae = GoodfireSAE(variant, dtype="float32")
    with pytest.warns(UserWarning, match=r"feature labels of .* are not available"):
        sae.load()
    assert (sae.layer, sae.d_sae, len(sae.model.layers)) == (layer, 48, layer + 1)
    assert not hasattr(sae.model, "lm_head")
    check_against_direct(sae, model, file, layer, TEXTS[:2])
    found = sae.fingerprint()
    assert found["model_revision"] == commit
    assert "model_sha256" not in found, "a revision says which weights they are"
    assert found["hook_name"] == f"blocks.{layer}.hook_resid_post"


def test_it_agrees_with_what_saelens_knows_of_the_releases():
    from sae_lens.loading.pretrained_sae_loaders import get_goodfire_config_from_hf
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = {r.repo_id: r for r in get_pretrained_saes_directory().values()}
    for variant in VARIANTS.values():
        release = known[variant.repository]
        ((sae_id, file),) = release.saes_map.items()
        config = get_goodfire_config_from_hf(variant.repository, file, "cpu")
        assert file == variant.file
        assert release.model == config["model_name"] == variant.model
        assert config["hook_name"] == f"blocks.{variant.layer}.hook_resid_post"
        assert (config["architecture"], config["apply_b_dec_to_input"]) == ("standard", False)
        assert release.neuronpedia_id[sae_id] == variant.neuronpedia


class TestModel:
    def test_the_reader_is_in_bfloat16_unless_told_otherwise(self, folder, weights, tiny):
        sae = tiny(dtype="bfloat16")
        default = GoodfireSAE("Tiny-Llama-SAE-l2", weights=weights, model=folder)
        default.load()
        assert {p.dtype for p in default.model.parameters()} == {torch.bfloat16}
        assert sae.sae.W_enc.dtype == torch.float32
        for a, b in zip(sae.encode(TEXTS[:4]), default.encode(TEXTS[:4]), strict=True):
            assert (a != b).nnz == 0
        exact = direct(folder, weights, 2, rendered(TEXTS[0]))[1]
        found = dense(default.encode(TEXTS[:1])[0])
        assert_close(found, exact, 0.1)
        assert np.abs(found - exact).max() > 0

    def test_what_is_behind_the_layer_is_not_loaded(self, folder, capfd):
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        layers = {name.split(".")[2] for name in index if name.startswith("model.layers.")}
        assert layers == {"0", "1", "2", "3"}
        model = load_trunk(str(folder), 2, dtype=torch.float32, device="cpu")
        assert len(model.layers) == 2
        assert sum(name.startswith("layers.") for name in model.state_dict()) == 2 * 9
        assert "UNEXPECTED" not in "".join(capfd.readouterr())

    def test_a_model_with_too_few_layers_is_refused_before_it_is_loaded(
        self, folder, weights, monkeypatch
    ):
        from transformers import AutoModel

        monkeypatch.setattr(AutoModel, "from_pretrained", None)
        sae = GoodfireSAE("Tiny-Llama-SAE-l4", weights=weights, model=folder)
        with pytest.raises(ValueError, match=r"output of layer 4, but .* has 4 layers"):
            sae.load()

    def test_a_model_that_lacks_weights_is_refused(self, folder, tmp_path, weights):
        from safetensors.torch import load_file, save_file

        broken = tmp_path / "broken"
        shutil.copytree(folder, broken)
        index = json.loads((broken / "model.safetensors.index.json").read_text())
        lost = "model.layers.1.mlp.up_proj.weight"
        file = broken / index["weight_map"].pop(lost)
        save_file({k: v for k, v in load_file(file).items() if k != lost}, file, {"format": "pt"})
        (broken / "model.safetensors.index.json").write_text(json.dumps(index))
        sae = GoodfireSAE("Tiny-Llama-SAE-l2", weights=weights, model=broken)
        with pytest.raises(OSError, match=r"lacks 1 weights .*layers\.1\.mlp\.up_proj"):
            sae.load()

    def test_an_sae_of_another_width_is_refused(self, folder, tmp_path):
        narrow = goodfire_weights(tmp_path / "narrow.pth", d_in=16)
        sae = GoodfireSAE("Tiny-Llama-SAE-l2", weights=narrow, model=folder)
        with pytest.raises(ValueError, match=r"vectors of 16 numbers, but .* has 32"):
            sae.load()

    def test_a_model_may_be_spread_and_partly_on_the_disk(
        self, tiny, folder, weights, monkeypatch, capfd
    ):
        """``"auto"`` where memory is short: accelerate leaves most layers on the disk."""
        import transformers.integrations.accelerate as placement

        auto = {"model": "auto", "sae": "cpu"}
        plain = tiny(device=auto)
        check_against_direct(plain, folder, weights, 2, TEXTS[:4])
        monkeypatch.setattr(placement, "get_max_memory", lambda *_: {"cpu": 90_000})
        sae = tiny(device=auto)
        assert "disk" in sae.model.hf_device_map.values()
        assert any(p.is_meta for p in sae.model.parameters())
        check_against_direct(sae, folder, weights, 2, TEXTS[:4])
        assert sae.fingerprint() == plain.fingerprint(), "where a model lies changes nothing"

    @pytest.mark.parametrize("offloaded", [["layers.1", "layers.2"], [""]])
    def test_a_model_that_is_dispatched_already(
        self, tiny, folder, weights, tmp_path, offloaded, capfd
    ):
        from transformers import AutoModel, LlamaForCausalLM

        parts = ["embed_tokens", "norm", "rotary_emb", *(f"layers.{i}" for i in range(4))]
        places = dict.fromkeys(parts, "cpu") if offloaded != [""] else {}
        model = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            device_map=places | dict.fromkeys(offloaded, "disk"),
            offload_folder=tmp_path / "offload",
        )
        tokenizer = llama_tokenizer()
        sae = tiny(model=model, tokenizer=tokenizer)
        check_against_direct(sae, folder, weights, 2, TEXTS[:4])
        whole = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        other = tiny(model=whole.model, tokenizer=tokenizer)
        assert sae.fingerprint() == other.fingerprint()


class TestQuantized:
    def test_eight_bits_are_close_and_are_another_sae(self, tiny, folder, weights, capfd):
        bitsandbytes = pytest.importorskip("bitsandbytes")

        sae = tiny(quantize=True, dtype="bfloat16")
        linear = [m for m in sae.model.modules() if isinstance(m, torch.nn.Linear)]
        assert linear
        assert all(isinstance(m, bitsandbytes.nn.Linear8bitLt) for m in linear)
        assert {m.weight.dtype for m in linear} == {torch.int8}
        assert len(sae.model.layers) == 3
        found = dense(sae.encode(TEXTS[:1])[0])
        exact = direct(folder, weights, 2, rendered(TEXTS[0]))[1]
        assert_close(found, exact, 0.25)
        assert "inputs will be cast" not in "".join(capfd.readouterr())
        plain = tiny(dtype="bfloat16")
        assert np.abs(found - dense(plain.encode(TEXTS[:1])[0])).max() > 0
        ours, theirs = sae.fingerprint(), plain.fingerprint()
        assert (ours["quantize"], theirs["quantize"]) == (True, False)
        assert repr(sae) == "GoodfireSAE('Tiny-Llama-SAE-l2', quantize=True, loaded)"

    def test_eight_bits_on_devices_that_accelerate_chooses(self, tiny, folder, weights, capfd):
        pytest.importorskip("bitsandbytes")
        sae = tiny(quantize=True, device={"model": "auto", "sae": "cpu"})
        exact = direct(folder, weights, 2, rendered(TEXTS[0]))[1]
        assert_close(dense(sae.encode(TEXTS[:1])[0]), exact, 0.25)

    def test_without_bitsandbytes_it_says_what_to_install(self, folder, monkeypatch):
        """And says it before any weights are read: there are none here."""
        found = __import__("importlib").util.find_spec
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda n: None if n == "bitsandbytes" else found(n)
        )
        sae = GoodfireSAE(
            "Tiny-Llama-SAE-l2", quantize=True, weights="nowhere.pth", model=str(folder)
        )
        with pytest.raises(ImportError, match=r"pip install 'interp_embed\[quantize\]'"):
            sae.load()

    def test_a_loaded_model_cannot_be_quantised(self, weights):
        with pytest.raises(ValueError, match="already loaded"):
            GoodfireSAE("A-SAE-l2", True, weights=weights, model=torch.nn.Linear(1, 1))


class TestWeights:
    def test_what_is_read_is_what_was_saved(self, weights):
        found = read_weights(weights)
        assert {k: tuple(v.shape) for k, v in found.items()} == {
            "encoder_linear.weight": (64, 32),
            "encoder_linear.bias": (64,),
            "decoder_linear.weight": (32, 64),
            "decoder_linear.bias": (32,),
        }
        for name, tensor in torch.load(weights, weights_only=True).items():
            assert torch.equal(found[name], tensor)

    def test_files_of_old_versions_of_torch_are_read(self, weights, tmp_path):
        state = torch.load(weights, weights_only=True)
        torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
        assert torch.equal(
            read_weights(tmp_path / "old.pt")["encoder_linear.bias"], state["encoder_linear.bias"]
        )

    def test_nothing_in_the_file_is_run(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return open, (str(tmp_path / "was_here"), "w")

        torch.save({"encoder_linear.weight": Evil()}, tmp_path / "new.pt")
        with (tmp_path / "plain.pt").open("wb") as file:
            pickle.dump(Evil(), file)
        with pytest.raises(UnsafePickleError, match=r"asks for .*open, expected only tensors"):
            read_weights(tmp_path / "new.pt")
        with pytest.raises(ValueError, match=r"plain\.pt"):
            read_weights(tmp_path / "plain.pt")
        assert not (tmp_path / "was_here").exists()

    @pytest.mark.parametrize("kept", [0, 10, 2_000, -100])
    def test_a_file_that_is_cut_off_says_so(self, weights, tmp_path, kept):
        (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:kept])
        with pytest.raises(ValueError, match=r"cut\.pth .*damaged"):
            read_weights(tmp_path / "cut.pth")

    def test_a_damaged_file_says_so_whatever_torch_makes_of_it(self, tmp_path):
        """Of versions before 1.6, whose pickles are read before they are checked."""
        state = torch.load(goodfire_weights(tmp_path / "w.pth", d_in=4, d_sae=8))
        old = tmp_path / "old.pth"
        torch.save(state, old, _use_new_zipfile_serialization=False)
        whole = old.read_bytes()
        chance = random.Random(0)
        for _ in range(300):
            damaged = bytearray(whole)
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
            old.write_bytes(damaged)
            with contextlib.suppress(ValueError):  # also UnsafePickleError; or it does no harm
                read_weights(old)

    def test_a_file_that_is_not_there(self, folder):
        sae = GoodfireSAE("A-SAE-l2", weights="nowhere/sae.pth", model=folder)
        with pytest.raises(FileNotFoundError, match=r"nowhere/sae\.pth"):
            sae.load()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda s: s.pop("encoder_linear.bias"),
                "not an SAE in Goodfire's format: expected enc",
            ),
            (lambda s: s.update(W_enc=torch.ones(2)), "found .*W_enc"),
            (
                lambda s: s.update({"encoder_linear.bias": torch.ones(63)}),
                r"bias has shape \(63,\), expected \(64,\)",
            ),
            (
                lambda s: s.update({"decoder_linear.weight": torch.ones(64, 32)}),
                r"decoder_linear.weight has shape \(64, 32\), expected \(32, 64\)",
            ),
            (
                lambda s: s.update({"encoder_linear.weight": torch.ones(2048)}),
                r"shape \(2048,\), expected d_sae x d_in",
            ),
            (
                lambda s: s.update({"encoder_linear.weight": torch.ones(64, 32).to(torch.int8)}),
                "not a tensor of floating-point numbers",
            ),
            (lambda s: s.update({"encoder_linear.weight": "x"}), "not a tensor of floating"),
        ],
    )
    def test_other_tensors_are_refused(self, weights, tmp_path, change, message):
        state = torch.load(weights, weights_only=True)
        change(state)
        torch.save(state, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=message) as error:
            read_weights(tmp_path / "other.pth")
        assert "other.pth" in str(error.value)

    def test_a_list_of_tensors_is_no_sae(self, tmp_path):
        torch.save([torch.ones(2)], tmp_path / "list.pth")
        with pytest.raises(ValueError, match="found list"):
            read_weights(tmp_path / "list.pth")


class TestHub:
    def test_without_the_hub_the_error_says_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(OSError, match="pass its path as weights=") as error:
            GoodfireSAE().load()
        assert f"{EIGHT}.pth of Goodfire/{EIGHT}" in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.fixture
    def hub(self, tmp_path, monkeypatch):
        """A hub on the loopback: answers of (status, content) by path, 404 for others."""
        answers, asked = {}, []

        class Hub(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append((self.command, self.path))
                status, content = answers.get(self.path, (404, b""))
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("X-Repo-Commit", "a" * 40)
                self.send_header("ETag", '"' + "b" * 64 + '"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}"
            constants = "huggingface_hub.constants"
            monkeypatch.setattr(f"{constants}.ENDPOINT", address)
            monkeypatch.setattr(
                f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE",
                address + "/{repo_id}/resolve/{revision}/{filename}",
            )
            monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "hub"))
            monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
            yield SimpleNamespace(answers=answers, asked=asked)
            server.shutdown()

    def test_weights_are_downloaded_once(self, hub, weights):
        file = f"/Goodfire/{EIGHT}/resolve/main/{EIGHT}.pth"
        hub.answers[file] = 200, weights.read_bytes()
        for _ in range(2):
            path = hub_file(f"Goodfire/{EIGHT}", f"{EIGHT}.pth")
            assert path.read_bytes() == weights.read_bytes()
        assert hub.asked.count(("GET", file)) == 1

    @pytest.mark.parametrize("status", [401, 403, 404])
    def test_what_the_hub_refuses_is_one_line(self, hub, status):
        hub.answers["/Goodfire/x/resolve/main/x.pt"] = status, b""
        with pytest.raises(OSError, match=r"x\.pt of Goodfire/x could not be fetched") as error:
            hub_file("Goodfire/x", "x.pt")
        assert "\n" not in str(error.value)


SOURCE = VARIANTS[EIGHT].neuronpedia


def export(labels, **more):
    """Return labels as a file of Neuronpedia's exports."""
    lines = [
        json.dumps(
            {
                "modelId": "llama3.1-8b-it",
                "layer": "19-resid-post-gf",
                "index": str(feature),
                "description": label,
                "typeName": "oai_token-act-pair",
                "explanationModelName": "some-model",
                **more,
            }
        )
        for feature, label in labels
    ]
    return gzip.compress("\n".join(lines).encode())


@pytest.fixture(scope="module")
def bucket():
    """The bucket of the exports, as far as it is needed, on the loopback."""
    with s3_server() as environment:
        client = boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        client.create_bucket(Bucket=neuronpedia.BUCKET)
        yield SimpleNamespace(
            url=environment["AWS_ENDPOINT_URL"],
            put=lambda key, body: client.put_object(
                Bucket=neuronpedia.BUCKET, Key=f"v1/{key}", Body=body, ACL="public-read"
            ),
        )
        client.close()


@pytest.fixture
def exports(bucket, cache, monkeypatch):
    """The exports, reachable, and nothing of them in the cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(neuronpedia, "ENDPOINT", bucket.url)
    # Somebody else's stores.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    return bucket


class TestLabels:
    def test_labels_come_from_all_files_and_are_kept(self, exports, monkeypatch):
        root = f"{SOURCE}/explanations"
        for number in range(11):  # the tenth comes after the second
            exports.put(
                f"{root}/batch-{number}.jsonl.gz",
                export(
                    [(number, f"label {number}"), (100, f"from {number}"), (200 + number, "  ")]
                ),
            )
        exports.put(f"{root}/read-me.txt", b"not an export")
        expected = {**{n: f"label {n}" for n in range(11)}, 100: "from 0"}
        assert neuronpedia.published_labels(SOURCE) == expected
        assert neuronpedia.published_labels(SOURCE, 5) == {n: f"label {n}" for n in range(5)}
        monkeypatch.setattr(neuronpedia, "ENDPOINT", "http://127.0.0.1:1")
        assert neuronpedia.published_labels(SOURCE) == expected

    def test_an_sae_has_them(self, exports, folder, weights, monkeypatch):
        exports.put("llama3.3-70b-it/50-resid-post-gf/explanations/batch-0.jsonl.gz",
                    export([(3, "cats"), (64, "beyond")]))  # fmt: skip
        sae = GoodfireSAE(SEVENTY, weights=weights, model=folder)
        sae._d_sae = 64
        sae.load_feature_labels()
        assert sae.feature_labels() == {3: "cats"}

    def test_a_cache_that_is_broken_or_cannot_be_written_does_not_matter(self, exports, cache):
        exports.put("a/b/explanations/batch-0.jsonl.gz", export([(1, "one")]))
        cache.mkdir()
        (cache / "labels").write_text("a file where a folder should be")
        assert neuronpedia.published_labels("a/b") == {1: "one"}
        (cache / "labels").unlink()
        (cache / "labels").mkdir()
        (cache / "labels" / "a_b-v1.json").write_text('{"1": "o')
        assert neuronpedia.published_labels("a/b") == {1: "one"}
        assert neuronpedia.published_labels("a/b") == {1: "one"}

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"no gzip", "not an export"),
            (gzip.compress(b"{}"), "KeyError"),
            (gzip.compress(b"[1]"), "TypeError"),
            (gzip.compress(b'{"index": "x"}'), "ValueError"),
            (gzip.compress(b"{"), "JSONDecodeError"),
            (export([(1, "one")])[:-9], "EOFError"),
            (gzip.compress(b"\xff"), "UnicodeDecodeError"),
            (gzip.compress(b"x")[:10] + b"\xff" * 20, "error: Error -3 while decompressing"),
            (gzip.compress(b'{"index": 1e999}'), "OverflowError"),
            (gzip.compress(b"[" * 100_000), "RecursionError"),
            (export([(1, None)]), "has no labels"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_no_export_says_so_and_is_not_kept(self, exports, cache, content, reason):
        exports.put("c/d/explanations/batch-0.jsonl.gz", content)
        with pytest.raises(OSError, match=reason):
            neuronpedia.published_labels("c/d")
        assert not list(cache.rglob("*.json"))

    def test_labels_may_hold_any_character(self, exports):
        odd = {1: "a\u2028b\x85c", 2: "half \ud800 of a pair"}
        lines = "\n".join(
            json.dumps({"index": str(i), "description": d}, ensure_ascii=i == 2)
            for i, d in odd.items()
        )
        exports.put("e/f/explanations/batch-0.jsonl.gz", gzip.compress(lines.encode()))
        assert neuronpedia.published_labels("e/f") == odd
        assert neuronpedia.published_labels("e/f") == odd  # from the cache

    def test_none_published_and_nobody_there(self, exports, monkeypatch):
        with pytest.raises(OSError, match="Neuronpedia has no labels for 'no/such'"):
            neuronpedia.published_labels("no/such")
        with refusing() as url:
            monkeypatch.setattr(neuronpedia, "ENDPOINT", url)
            with pytest.raises(OSError, match="could not be read"):
                neuronpedia.published_labels(SOURCE)

    def test_without_them_there_is_one_warning_and_everything_else_works(
        self, cache, folder, weights, tmp_path
    ):
        deep = llama_folder(tmp_path / "deep", 20)
        sae = GoodfireSAE(EIGHT, weights=weights, model=deep, dtype="float32")
        with pytest.warns(UserWarning, match="are not available: HF_HUB_OFFLINE") as said:
            sae.load()
        assert len(said) == 1
        assert sae.feature_labels() == {}
        assert sae.encode(TEXTS[:1])[0].nnz > 0


class TestSettings:
    def test_making_one_loads_nothing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        sae = GoodfireSAE(SEVENTY, device={"model": "auto", "sae": "cuda:0"})
        assert (sae.model_device, sae.sae_device) == ("auto", "cuda:0")
        assert repr(sae) == f"GoodfireSAE('{SEVENTY}', not loaded)"
        assert repr(GoodfireSAE()) == f"GoodfireSAE('{EIGHT}', not loaded)"

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"variant_name": "Llama-4"}, ValueError, "must be one of 'Llama-3.1-8B-Instruct-SAE"),
            ({"variant_name": "A-SAE-l3"}, ValueError, "also pass weights= and model="),
            ({"variant_name": "A-SAE-l3", "weights": "x"}, ValueError, "pass weights= and model="),
            ({"variant_name": "A", "weights": "x", "model": "y"}, ValueError, "and the layer"),
            ({"variant_name": 8}, TypeError, "variant_name must be a string"),
            ({"context_size": 0}, ValueError, "context_size must be at least 1"),
            ({"batch_tokens": 1.5}, TypeError, "batch_tokens must be an integer"),
            ({"overflow": "wrap"}, ValueError, "overflow must be one of"),
            ({"device": "auto"}, ValueError, "without a device"),
        ],
    )
    def test_bad_arguments_are_refused_at_once(self, settings, error, message):
        with pytest.raises(error, match=message):
            GoodfireSAE(**settings)

    def test_names_say_the_model_and_the_layer(self):
        found = find_variant("My.Llama-2_b-SAE-l7", published=False)
        assert (found.model, found.layer, found.file) == ("meta-llama/My.Llama-2_b", 7, None)

    def test_a_tokenizer_without_a_template_is_refused(self, tiny):
        with pytest.raises(ValueError, match="no chat template"):
            tiny(tokenizer=_plain_tokenizer())

    def test_metadata_build_it_again(self, tiny):
        sae = tiny(context_size=32, overflow="window", window_overlap=4, use_assistant_role=False)
        again = GoodfireSAE.from_metadata(json.loads(json.dumps(sae.metadata())))
        assert again.metadata() == sae.metadata()
        known, loaded = again.fingerprint(), sae.fingerprint()
        assert {k: loaded[k] for k in known} == known
        again.load()
        assert again.fingerprint() == loaded

    def test_weights_are_known_by_what_is_in_them(self, tiny, folder, weights, tmp_path):
        copied = tmp_path / "copy.pth"
        shutil.copy(weights, copied)
        other = goodfire_weights(tmp_path / "other.pth", seed=1)
        sae = tiny()
        assert tiny(weights=copied).fingerprint() == sae.fingerprint()
        assert tiny(weights=other).fingerprint() != sae.fingerprint()


def _plain_tokenizer():
    tokenizer = llama_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


def test_a_store_is_made_and_gone_on_with(tiny, folder, weights, tmp_path):
    texts = [t for t in TEXTS if t.strip()]
    path = tmp_path / "corpus.zarr"
    dataset = Dataset([{"text": t} for t in texts], tiny(), save_path=path)
    for number, text in enumerate(texts):
        expected = direct(folder, weights, 2, rendered(text))[1]
        assert_close(dense(dataset[number].activations), expected)
    row = dataset[0]
    shown = [t for t, s in zip(row.tokenized_document, row.special_tokens, strict=True) if not s]
    assert "".join(shown) == texts[0]
    assert "".join(row.tokenized_document) == rendered(texts[0])
    again = Dataset.load_from_file(path, resume=True, device="cpu")
    assert isinstance(again.sae, GoodfireSAE)
    again.append([{"text": "one more fox"}])
    expected = direct(folder, weights, 2, rendered("one more fox"))[1]
    assert_close(dense(again[len(texts)].activations), expected)
    other = tiny(weights=goodfire_weights(tmp_path / "other.pth", seed=5))
    with pytest.raises(FingerprintMismatchError, match="sae_sha256"):
        Dataset([{"text": t} for t in [*texts, "more"]], other, save_path=tmp_path / "corpus.zarr")
