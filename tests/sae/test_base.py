"""The contract: devices, loading, and subclasses that know nothing but tokenize and encode."""

from __future__ import annotations

import json
import subprocess
import sys
from enum import Enum
from pathlib import PurePosixPath

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from interp_embed.core.chunk import DocumentStatus
from interp_embed.core.spans import token_strings
from interp_embed.errors import SAENotLoadedError
from interp_embed.sae import BaseSAE, LocalSAE, SAEType
from interp_embed.sae.device import device_problem, parse_device
from interp_embed.sae.loading import load_sae_from_metadata, sae_record
from interp_embed.sae.sae_types import plain_json

OK, TRUNCATED, FAILED = DocumentStatus.OK, DocumentStatus.TRUNCATED, DocumentStatus.FAILED


class LetterSAE(BaseSAE):
    """A subclass as users wrote them: words are tokens, letters are features."""

    def __init__(self, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def metadata(self):
        return {**super().metadata(), "scale": self.scale}

    def load_models(self):
        self.tokenizer = object()

    def load_feature_labels(self):
        self._feature_labels = {0: "the letter a"}

    def destroy_models(self):
        self.tokenizer = None

    def tokenize(self, documents, as_tokens=True, padding=False):
        words = [["<s>", *d.split(" ")] for d in documents]
        if not as_tokens:
            raise NotImplementedError
        return words

    def encode(self, texts):
        return [self._one(text) for text in texts]

    def _one(self, text):
        rows = np.zeros((len(self.tokenize([text])[0]), 26))
        for row, word in enumerate(self.tokenize([text])[0][1:], 1):
            for letter in word:
                if letter.isascii() and letter.islower():
                    rows[row, ord(letter) - ord("a")] += self.scale
        return csr_matrix(rows)


def loaded(cls=LetterSAE, **settings):
    sae = cls(**settings)
    sae.load()
    return sae


def strings(chunk, texts, number):
    first, last = chunk.doc_ptr[number], chunk.doc_ptr[number + 1]
    return token_strings(texts[number], chunk.tokens.take(slice(first, last)), chunk.vocabulary)


def test_importing_the_package_imports_no_model_library():
    code = (
        "import sys, interp_embed.sae, interp_embed.sae.loading\n"
        "heavy = {'torch', 'transformers', 'sae_lens', 'transformer_lens', 'tokenizers'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", ("cpu", "cpu")),
        ("cuda:1", ("cuda:1", "cuda:1")),
        ({"model": "auto", "sae": "cuda:0"}, ("auto", "cuda:0")),
        ({"model": "cpu", "sae": "mps"}, ("cpu", "mps")),
    ],
)
def test_devices(device, expected):
    assert parse_device(device) == expected
    sae = LetterSAE(device=device)
    assert (sae.model_device, sae.sae_device) == expected


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("auto", ValueError, "without a device"),
        ("", ValueError, "must look like"),
        ("gpu 0", ValueError, "must look like"),
        ({"model": "cpu"}, ValueError, "keys 'model' and 'sae'"),
        ({"model": "cpu", "sae": "auto"}, ValueError, "must be one device, .*got 'auto'"),
        ({"model": 0, "sae": "cpu"}, TypeError, "must be a string"),
        (0, TypeError, "must be a string or"),
        (["cpu", "cpu"], TypeError, "must be a string or"),
        (None, TypeError, "must be a string or"),
    ],
)
def test_bad_devices_are_refused_at_once(device, error, message):
    with pytest.raises(error, match=message):
        LetterSAE(device=device)
    with pytest.raises(error, match=message):
        LetterSAE().set_device(device)


def test_life_of_an_sae():
    sae = LetterSAE(truncate=False, use_assistant_role=False)
    assert (sae.loaded, sae.truncate, sae.use_assistant_role) == (False, False, False)
    assert not sae.is_loaded()
    with pytest.raises(SAENotLoadedError, match=r"LetterSAE is not loaded; call its load\(\)"):
        sae.encode_chunk(["a"])
    for method in (sae.chat_template_exists, lambda: sae.encode_chat([])):
        with pytest.raises(SAENotLoadedError):
            method()
    sae.load()
    assert sae.is_loaded()
    assert sae.feature_labels() == {0: "the letter a"}
    assert not sae.chat_template_exists()
    sae.destroy()
    sae.destroy()
    assert not sae.is_loaded()
    assert sae.tokenizer is None


def test_repr_says_whether_it_is_loaded():
    sae = LetterSAE()
    assert repr(sae) == "LetterSAE(not loaded)"
    sae.load()
    assert repr(sae) == "LetterSAE(loaded)"
    named = LocalSAE(sae_id="a", release="b")
    assert repr(named) == "LocalSAE(release='b', sae_id='a', not loaded)"


@pytest.mark.parametrize(
    ("device", "gpus", "problem"),
    [
        ("cpu", 0, None),
        ("cuda:0", 0, "torch sees no GPU here"),
        ("cuda", 0, "torch sees no GPU here"),
        ("cuda", 1, None),
        ("cuda:1", 2, None),
        ("cuda:1", 1, "torch sees 1 GPU here, numbered from 0"),
        ("cuda:3", 2, "torch sees 2 GPUs here, numbered from 0"),
        ("gpu", 1, "torch knows no such device"),
    ],
)
def test_a_device_that_is_not_there_is_told(device, gpus, problem, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert device_problem(device) == problem
    monkeypatch.setitem(sys.modules, "torch", None)
    assert device_problem(device) is None


def test_the_abstract_methods_must_be_there():
    with pytest.raises(TypeError, match="abstract"):
        BaseSAE()


def test_a_users_subclass_encodes_a_chunk():
    texts = ["abba cab", "", "zoo", "  "]
    sae = loaded()
    assert sae.d_sae is None
    chunk = sae.encode_chunk(texts)
    assert chunk.d_sae == sae.d_sae == 26
    assert chunk.doc_id.tolist() == [0, 1, 2, 3]
    assert chunk.status.tolist() == [OK] * 4
    assert np.diff(chunk.doc_ptr).tolist()[:3] == [3, 0, 2]
    assert strings(chunk, texts, 0) == ["<s>", "abba", " cab"]
    assert chunk.tokens.special[:3].tolist() == [True, False, False]
    expected = sae.encode(["abba cab"])[0]
    assert (chunk.csr(0) != expected).nnz == 0


def test_ids_are_stable_where_the_tokenizer_has_none():
    a, b = loaded().encode_chunk(["abba cab"]), loaded().encode_chunk(["cab abba"])
    assert set(a.tokens.id.tolist()) == set(b.tokens.id.tolist())


def test_ids_of_the_tokenizer_are_used():
    class WithIds(LetterSAE):
        def tokenize(self, documents, as_tokens=True, padding=False):
            words = super().tokenize(documents)
            return words if as_tokens else {"input_ids": [[len(w) for w in d] for d in words]}

    assert loaded(WithIds).encode_chunk(["abba cab"]).tokens.id.tolist() == [3, 4, 3]


def test_one_bad_document_fails_alone():
    class Picky(LetterSAE):
        def _one(self, text):
            match text:
                case "raise":
                    raise RuntimeError("out of\nluck")
                case "none":
                    return None
                case "short":
                    return super()._one(text)[:1]
                case "nan":
                    return super()._one(text) * float("nan")
                case "wide":
                    return csr_matrix((2, 27))
            return super()._one(text)

    texts = ["abba", "raise", "none", "short", "nan", "wide", None, "cab"]
    chunk = loaded(Picky).encode_chunk(texts)
    assert chunk.status.tolist() == [OK, *[FAILED] * 6, OK]
    assert chunk.reasons[1] == "RuntimeError: out of luck"
    assert "returned None" in chunk.reasons[2]
    assert "1 rows but tokenize() returned 2 tokens" in chunk.reasons[3]
    assert "not finite" in chunk.reasons[4]
    assert "27 features, but other documents have 26" in chunk.reasons[5]
    assert chunk.reasons[6] == "the text is missing"
    assert np.diff(chunk.doc_ptr).tolist() == [2, 0, 0, 0, 0, 0, 0, 2]


def test_a_document_that_was_cut_is_recorded_as_truncated():
    class Cutting(LetterSAE):
        def tokenize(self, documents, as_tokens=True, padding=False):
            return [d[:3] for d in super().tokenize(documents, as_tokens)]

    texts = ["a b c d", "a b"]
    chunk = loaded(Cutting).encode_chunk(texts)
    assert chunk.status.tolist() == [TRUNCATED, OK]
    assert strings(chunk, texts, 0) == ["<s>", "a", " b"]


def test_nothing_but_failures_has_no_width():
    chunk = loaded().encode_chunk([None])
    assert chunk.d_sae == 0
    assert chunk.status.tolist() == [FAILED]
    assert loaded().encode_chunk([]).n_documents == 0


def test_the_base_class_tokenises_with_any_tokenizer():
    pytest.importorskip("transformers")
    from tests.support.tiny_models import BOS, CHAT_TEMPLATE, TEXTS, tiny_tokenizer

    class Tokenizing(LetterSAE):
        template = None

        def load_models(self):
            self.tokenizer = tiny_tokenizer(chat_template=self.template)

        tokenize = BaseSAE.tokenize

        def encode(self, texts):
            ids = self.tokenize(texts, as_tokens=False, padding=True)
            lengths = np.array(ids["attention_mask"]).sum(axis=1)
            return [csr_matrix(np.ones((n, 5))) for n in lengths]

    plain = loaded(Tokenizing)
    assert ["".join(row) for row in plain.tokenize(TEXTS)] == TEXTS
    chunk = plain.encode_chunk(TEXTS)
    assert chunk.status.tolist() == [OK] * len(TEXTS)
    assert ["".join(strings(chunk, TEXTS, i)) for i in range(len(TEXTS))] == TEXTS
    assert chunk.tokens.id[: chunk.doc_ptr[1]].tolist() == plain.tokenizer(TEXTS[0])["input_ids"]

    class Chatting(Tokenizing):
        template = CHAT_TEMPLATE

    chat = loaded(Chatting)
    assert chat.chat_template_exists()
    texts = ["assistant", "Hello 👋🏽 fox"]
    chunk = chat.encode_chunk(texts)
    assert chunk.status.tolist() == [OK, OK]
    for number, text in enumerate(texts):
        tokens = chunk.tokens.take(slice(chunk.doc_ptr[number], chunk.doc_ptr[number + 1]))
        assert (
            "".join(
                text[a:b]
                for a, b, s in zip(tokens.start, tokens.end, tokens.special, strict=True)
                if not s
            )
            == text
        )
        assert "".join(strings(chunk, texts, number)).endswith(f"assistant\n{text}<|im_end|>\n")
    assert BOS not in chat.tokenize(texts)[0]
    assert len(chat.encode_chat([[{"role": "user", "content": "x"}]])) == 1


def test_metadata_build_the_same_sae_again():
    sae = LetterSAE(scale=2.0, truncate=False)
    record = json.loads(json.dumps(sae_record(sae)))
    again = load_sae_from_metadata(record)
    assert type(again) is LetterSAE
    assert again.metadata() == sae.metadata()
    assert again.fingerprint() == sae.fingerprint()
    assert type(load_sae_from_metadata(sae.fingerprint())) is LetterSAE


def test_metadata_of_a_local_sae_need_no_class():
    sae = LocalSAE(sae_id="a", release="b", truncate=False, device={"model": "auto", "sae": "cpu"})
    metadata = json.loads(json.dumps(sae.metadata()))
    assert metadata["sae_type"] == SAEType.LOCAL == "local"
    again = load_sae_from_metadata(metadata)
    assert isinstance(again, LocalSAE)
    assert again.metadata() == sae.metadata()
    assert LocalSAE.from_metadata(metadata).model_device == "auto"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "neither 'sae_type' nor 'sae_class'"),
        ({"sae_type": "nonsense"}, "cannot be rebuilt"),
        ({"sae_class": "no_such_module:X"}, "is not imported"),
        ({"sae_class": "interp_embed.sae:NoSuchSAE"}, "cannot be imported"),
        ({"sae_class": "subprocess:Popen"}, "not a subclass"),
        ({"sae_class": "os:system"}, "not a subclass"),
        ({"sae_class": "interp_embed.sae:LocalSAE", "colour": 1}, "does not take"),
    ],
)
def test_what_cannot_be_rebuilt_says_why(record, message):
    with pytest.raises(ValueError, match=message):
        load_sae_from_metadata(record)


def test_fingerprints_leave_out_devices():
    here, there = LetterSAE(device="cpu"), LetterSAE(device="cuda")
    assert here.fingerprint() == there.fingerprint()
    assert here.fingerprint() != LetterSAE(truncate=False).fingerprint()
    assert here.fingerprint()["class"].endswith("test_base:LetterSAE")


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(5), 5),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.array([object], object), ["<class 'object'>"]),
        (PurePosixPath("a/b"), "a/b"),
        (Colour.RED, "red"),
        (SAEType.LOCAL, "local"),
        ((1, {3, 1, 2}), [1, [1, 2, 3]]),
        ({"b", 1}, ["b", 1]),
        ({1: {Colour.RED: np.int8(2)}}, {"1": {"red": 2}}),
        (b"x", "b'x'"),
        (1 + 2j, "(1+2j)"),
    ],
)
def test_plain_json(value, plain):
    found = plain_json(value)
    assert found == plain
    assert type(found) is type(plain)
    assert json.loads(json.dumps(found)) == found


def test_plain_json_knows_no_addresses():
    assert plain_json(object()) == plain_json(object()) == "<object object>"


def test_fingerprints_tell_values_apart_that_json_does_not_know():
    for a, b in ((np.int64(5), np.int64(6)), (PurePosixPath("a"), PurePosixPath("b"))):
        assert LetterSAE(scale=a).fingerprint() != LetterSAE(scale=b).fingerprint()
        json.dumps(LetterSAE(scale=a).fingerprint())
