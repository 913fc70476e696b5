"""Documents longer than the context, run in windows: each row is that of the window it belongs to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_embed import Dataset
from interp_embed.core.chunk import DocumentStatus
from interp_embed.errors import FingerprintMismatchError
from interp_embed.sae import LocalSAE
from interp_embed.sae.model.tokenizing import DocumentTokenizer, resolve_overflow
from interp_embed.store.verify.verifier import verify
from tests.support.hypotheses import examples
from tests.support.tiny_models import (
    CHAT_TEMPLATE,
    TEXTS,
    assert_close,
    dense,
    random_sae,
    tiny_model,
    tiny_tokenizer,
)

HOOK = "blocks.2.hook_resid_post"
TOKENIZER = tiny_tokenizer(chat_template=CHAT_TEMPLATE)
LONG = TEXTS[5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("windows") / "sae"
    random_sae("topk", HOOK).save_model(path)
    return path


def local(folder, **settings):
    sae = LocalSAE(
        release=folder, model=tiny_model("llama"), tokenizer=tiny_tokenizer(), **settings
    )
    sae.load()
    return sae


def tokenizer(max_tokens, overlap=None, bos=0, role=None):
    return DocumentTokenizer(
        TOKENIZER, bos=bos, max_tokens=max_tokens, overflow="window", role=role,
        window_overlap=overlap,
    )  # fmt: skip


@given(
    words=st.integers(0, 40),
    max_tokens=st.integers(3, 24),
    overlap=st.integers(0, 20),
    bos=st.sampled_from([None, 0]),
)
@settings(max_examples=examples(60))
def test_windows_have_every_token_once_with_the_context_that_they_promise(
    words, max_tokens, overlap, bos
):
    room = max_tokens - (bos is not None)
    if overlap >= room:
        with pytest.raises(ValueError, match="window_overlap"):
            tokenizer(max_tokens, overlap, bos)
        return
    (document,) = tokenizer(max_tokens, overlap, bos).documents(["fox lazy " * words])
    whole = document.tokens.id.tolist()
    assert not document.truncated
    rows = [i for run in document.runs for i in run.id.tolist()[run.skip :]]
    assert rows == whole
    assert all(len(run.id) <= max_tokens for run in document.runs)
    if len(whole) <= max_tokens:
        assert len(document.runs) <= 1
        return
    first, *rest = document.runs
    assert first.skip == 0
    assert len(first.id) == max_tokens
    body, at = whole[len(whole) - (len(whole) - (bos is not None)) :], room
    for run in rest:
        ids = run.id.tolist()
        if bos is not None:
            assert ids[0] == bos
            ids = ids[1:]
        assert run.skip == overlap + (bos is not None)
        assert ids == body[at - overlap : at - overlap + room]
        at += room - overlap
    assert at >= len(body)
    assert len(rest[-1].id) > rest[-1].skip, "a window for nothing"


def test_a_quarter_of_the_context_overlaps_unless_told_otherwise():
    assert tokenizer(16).window_overlap == 4
    assert tokenizer(160).window_overlap == 40
    assert tokenizer(16, 0).window_overlap == 0


@pytest.mark.parametrize(
    "settings", [{}, {"window_overlap": 0}, {"window_overlap": 6}, {"prepend_bos": False}]
)
def test_each_row_is_that_of_its_window_run_by_hand(folder, settings):
    import torch

    sae = local(folder, context_size=9, overflow="window", **settings)
    chunk = sae.encode_chunk(["fox", LONG, ""])
    assert chunk.status.tolist() == [DocumentStatus.OK] * 3
    bos = [] if settings.get("prepend_bos") is False else [0]
    ids = sae.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    room, overlap = 9 - len(bos), settings.get("window_overlap", 9 // 4)
    expected, done = [], 0
    while done < len(ids):
        begin = max(0, done - overlap) if done else 0
        window = bos + ids[begin : begin + room]
        with torch.no_grad():
            hidden = sae.model(torch.tensor([window]), output_hidden_states=True).hidden_states[3][
                0
            ]
            rows = _reference(folder).encode(hidden).numpy()
        expected.append(rows[len(bos) + done - begin if done else 0 :])
        done = begin + room
    by_hand = np.concatenate(expected)
    assert_close(dense(chunk.csr(1)), by_hand)
    assert chunk.tokens.id[chunk.doc_ptr[1] : chunk.doc_ptr[2]].tolist() == bos + ids
    assert "".join(sae.tokenize([LONG])[0][len(bos) :]) == LONG
    short = local(
        folder, context_size=64, **{k: v for k, v in settings.items() if "window" not in k}
    )
    assert_close(dense(chunk.csr(0)), dense(short.encode(["fox"])[0]))
    assert_close(
        dense(chunk.csr(1))[: room + len(bos)], dense(short.encode([LONG])[0])[: room + len(bos)]
    )


def _reference(folder):
    from tests.support.tiny_models import sae_lens

    return sae_lens.SAE.load_from_disk(folder)


def test_bos_may_be_silent_in_windows(tmp_path):
    random_sae("topk", HOOK, metadata={"exclude_bos_activation": True}).save_model(tmp_path)
    silent = local(tmp_path, context_size=9, overflow="window").encode([LONG])[0]
    kept = local(tmp_path, context_size=9, overflow="window", bos_activations=True).encode([LONG])[
        0
    ]
    assert dense(silent)[0].sum() == 0
    assert dense(kept)[0].sum() > 0
    assert_close(dense(silent)[1:], dense(kept)[1:])


def test_windows_of_a_rendered_template_each_begin_with_bos():
    template = CHAT_TEMPLATE.replace("<|im_start|>system", "<|endoftext|><|im_start|>system", 1)
    own = DocumentTokenizer(
        tiny_tokenizer(chat_template=template), bos=0, max_tokens=12, overflow="window", role="user"
    )
    (document,) = own.documents([LONG])
    assert document.tokens.id.tolist().count(0) == 1
    assert all(run.id[0] == 0 and len(run.id) <= 12 for run in document.runs)
    rows = [i for run in document.runs for i in run.id.tolist()[run.skip :]]
    assert rows == document.tokens.id.tolist()


def test_a_window_that_fails_fails_its_document_and_no_other(folder):
    sae = local(folder, context_size=9, overflow="window")
    run = sae._encoder._runner
    last = sae.prepare([LONG])[0].runs[-1].id.tolist()

    def breaks(documents):
        if any(d.tolist() == last for d in documents):
            raise RuntimeError("no luck")
        return run(documents)

    sae._encoder._runner = breaks
    chunk = sae.encode_chunk(["fox", LONG, "dog"])
    assert chunk.reasons == {1: "RuntimeError: no luck"}
    assert np.diff(chunk.doc_ptr)[1] == 0


def test_a_dataset_of_long_documents_has_all_of_their_tokens(folder, tmp_path):
    sae = LocalSAE(
        release=folder, model=tiny_model("llama"), tokenizer=tiny_tokenizer(), context_size=9,
        overflow="window",
    )  # fmt: skip
    data = [{"text": LONG}, {"text": "fox"}, {"text": LONG * 3}]
    dataset = Dataset(data, sae, save_path=tmp_path / "s")
    for row, record in zip(dataset, data, strict=True):
        assert "".join(row.tokenized_document[1:]) == record["text"]
    assert verify(tmp_path / "s") == []
    for other in ({}, {"overflow": "window", "window_overlap": 3}):
        again = LocalSAE(
            release=folder, model=tiny_model("llama"), tokenizer=tiny_tokenizer(), context_size=9,
            **other,
        )  # fmt: skip
        with pytest.raises(FingerprintMismatchError, match="truncate"):
            Dataset(data, again, save_path=tmp_path / "s")


# --- the arguments -------------------------------------------------------------------------------


def test_overflow_and_truncate_say_the_same_or_are_refused():
    assert LocalSAE().overflow == "truncate"
    assert LocalSAE(truncate=False).overflow == "fail"
    assert LocalSAE(truncate=False, overflow="fail").truncate is False
    assert LocalSAE(overflow="fail").truncate is False
    assert LocalSAE(overflow="window").truncate is True
    for overflow in ("truncate", "window"):
        with pytest.raises(ValueError, match="truncate=False contradicts overflow="):
            LocalSAE(truncate=False, overflow=overflow)
    with pytest.raises(ValueError, match="one of truncate, window, fail, got 'cut'"):
        LocalSAE(overflow="cut")
    with pytest.raises(ValueError, match="overflow must be 'window' with window_overlap="):
        LocalSAE(window_overlap=3)
    with pytest.raises(ValueError, match="at least 0"):
        resolve_overflow("window", -1, truncate=True)


@pytest.mark.parametrize("value", [1.5, "3", True])
@pytest.mark.parametrize("name", ["window_overlap", "context_size", "batch_tokens"])
def test_what_counts_tokens_is_an_integer(name, value):
    with pytest.raises(TypeError, match=f"{name} must be an integer, got {value!r}"):
        LocalSAE(overflow="window", **{name: value})


@pytest.mark.parametrize(
    "settings", [{}, {"truncate": False}, {"overflow": "window", "window_overlap": 7}]
)
def test_the_metadata_build_the_same_sae(settings):
    sae = LocalSAE(**settings)
    again = LocalSAE.from_metadata(sae.metadata())
    assert again.metadata() == sae.metadata()
    assert (again.overflow, again.window_overlap) == (sae.overflow, sae.window_overlap)


def test_only_windows_are_in_the_fingerprint():
    for chosen in ({}, {"truncate": False}, {"overflow": "truncate"}, {"overflow": "fail"}):
        assert not {"overflow", "window_overlap"} & set(LocalSAE(**chosen).fingerprint())
    assert LocalSAE(overflow="fail").fingerprint() == LocalSAE(truncate=False).fingerprint()
    assert LocalSAE().fingerprint()["truncate"] is True
    found = LocalSAE(overflow="window", window_overlap=7).fingerprint()
    assert found["truncate"] == "window, overlap 7"
    assert LocalSAE(overflow="window").fingerprint()["truncate"] == "window"
