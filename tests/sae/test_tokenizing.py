"""What the model is run on: BOS, templates, truncation, empty and unusable documents."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st

from interp_embed.core.spans import token_strings
from interp_embed.sae.model.template import ChatTemplate
from interp_embed.sae.model.tokenizing import DocumentTokenizer, bos_token_id
from tests.support.tiny_models import BOS, CHAT_TEMPLATE, TEXTS, tiny_tokenizer

TOKENIZER = tiny_tokenizer(chat_template=CHAT_TEMPLATE)
UNTRIMMED = tiny_tokenizer(chat_template=CHAT_TEMPLATE.replace(" | trim", ""))


def documents(
    texts, *, tokenizer=TOKENIZER, bos=0, max_tokens=None, overflow="truncate", role=None
):
    tokenize = DocumentTokenizer(
        tokenizer, bos=bos, max_tokens=max_tokens, overflow=overflow, role=role
    )
    found = tokenize.documents(texts)
    return found, [
        token_strings(t, d.tokens, tokenize.vocabulary(found))
        for t, d in zip(texts, found, strict=True)
    ]


def ordinary(text, document):
    tokens = document.tokens
    return "".join(
        text[a:b]
        for a, b, special in zip(tokens.start, tokens.end, tokens.special, strict=True)
        if not special
    )


TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("👋🏽你é \n\t ​")))


@given(st.lists(TEXT, max_size=4))
def test_ordinary_tokens_join_to_the_text(texts):
    for text, document in zip(texts, documents(texts)[0], strict=True):
        assert ordinary(text, document) == text


@given(TEXT, st.sampled_from(["assistant", "user"]), st.booleans())
def test_inside_a_template_ordinary_tokens_join_to_the_text(text, role, trim):
    tokenizer = TOKENIZER if trim else UNTRIMMED
    (document,), (strings,) = documents([text], tokenizer=tokenizer, role=role)
    assert document.reason is None
    if trim and not text.strip():
        assert strings == []
    else:
        assert ordinary(text, document) == text
        if text:
            assert strings[:2] == [BOS, "<|im_start|>"]
            assert strings[-1] == "\n" or ordinary(text, document).endswith("\n")


def test_bos_is_added_once_and_is_special():
    (document,), (strings,) = documents(["The fox"])
    assert strings[0] == BOS
    assert document.tokens.special.tolist() == [True] + [False] * (len(strings) - 1)
    assert "".join(strings[1:]) == "The fox"


def test_no_bos_unless_it_is_wanted():
    (document,), (strings,) = documents(["The fox"], bos=None)
    assert not document.tokens.special.any()
    assert "".join(strings) == "The fox"


def test_a_template_that_begins_with_bos_gets_no_second_one():
    tokenizer = tiny_tokenizer(chat_template=BOS + CHAT_TEMPLATE)
    _, (strings,) = documents(["The fox"], tokenizer=tokenizer, role="user")
    assert strings.count(BOS) == 1


def test_a_text_that_begins_like_bos_is_still_a_text():
    (document,), _ = documents([BOS + "x"])
    assert document.tokens.id[:2].tolist() == [0, 0]
    assert ordinary(BOS + "x", document) == BOS + "x"


def test_words_of_the_template_are_special_though_the_document_repeats_them():
    (document,), (strings,) = documents(["assistant"], role="assistant")
    inside = [s for s, special in zip(strings, document.tokens.special, strict=True) if not special]
    assert "".join(inside) == "assistant"
    assert "".join(strings) == (
        BOS + "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>assistant\nassistant<|im_end|>\n"
    )


def test_what_the_template_strips_stays_with_the_first_and_last_token():
    (document,), (strings,) = documents(["  fox \n"], role="user")
    inside = [s for s, special in zip(strings, document.tokens.special, strict=True) if not special]
    assert inside[0].startswith("  ")
    assert inside[-1].endswith(" \n")


def test_an_empty_text_has_no_tokens_not_even_bos():
    for role in (None, "user"):
        (empty,), _ = documents([""], role=role)
        assert len(empty.tokens) == 0
        assert empty.reason is None


@pytest.mark.parametrize("text", [None, 3.5, b"bytes", float("nan")])
def test_what_is_not_a_string_fails_alone(text):
    tokenize = DocumentTokenizer(TOKENIZER, bos=0, max_tokens=None, overflow="truncate", role=None)
    good, bad = tokenize.documents(["fox", text])
    assert good.reason is None
    assert (bad.reason or "").startswith(("the text is missing", "the text must be a string"))


def test_half_a_character_fails_alone():
    (good, bad, whole), _ = documents(["a", "ab\ud83d", "\U0001f600"])
    assert good.reason is whole.reason is None
    assert bad.reason == (
        r"the text is not Unicode: '\ud83d' at character 2 is half of a surrogate pair"
    )


def test_a_long_document_is_cut_to_the_limit_with_bos_counted():
    text = TEXTS[5]
    (document,), _ = documents([text], max_tokens=7)
    assert len(document.tokens) == 7
    assert document.truncated
    assert text.startswith(ordinary(text, document))
    (whole,), _ = documents([text], max_tokens=500)
    assert not whole.truncated
    assert whole.tokens.id[:7].tolist() == document.tokens.id.tolist()


def test_exactly_as_long_as_the_limit_is_not_truncated():
    (document,), _ = documents(["The fox"])
    (same,), _ = documents(["The fox"], max_tokens=len(document.tokens))
    assert not same.truncated


def test_without_truncation_only_the_long_document_fails():
    (short, long), _ = documents(["fox", TEXTS[5]], max_tokens=7, overflow="fail")
    assert short.reason is None
    assert long.reason is not None
    assert "more than the 7" in long.reason
    assert len(long.tokens) == 0


def test_a_document_cut_inside_a_template_ends_where_its_tokens_end():
    text = "The quick brown fox jumps over the lazy dog."
    (whole,), _ = documents([text], role="user")
    first = int((~whole.tokens.special).argmax())
    (cut,), _ = documents([text], role="user", max_tokens=first + 3)
    assert ordinary(text, cut) == text[: whole.tokens.end[first + 2]]
    assert cut.truncated


def test_a_document_cut_before_the_message_has_template_tokens_only():
    (cut,), _ = documents(["The fox"], role="user", max_tokens=3)
    assert cut.tokens.special.all()
    assert cut.truncated


def test_a_template_that_changes_the_document_is_an_error_for_that_document():
    template = CHAT_TEMPLATE.replace("m['content'] | trim", "m['content'] | upper")
    tokenizer = tiny_tokenizer(chat_template=template)
    (bad, good), _ = documents(["fox", "1 2 3"], tokenizer=tokenizer, role="user")
    assert "changed the document" in (bad.reason or "")
    assert good.reason is None


def test_a_template_that_refuses_the_role_says_what_to_do():
    template = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('no') }}{% endif %}"
    tokenizer = tiny_tokenizer(chat_template=template + "{{ messages[0]['content'] }}")
    with pytest.raises(ValueError, match="use_assistant_role=False"):
        ChatTemplate(tokenizer, "assistant")
    assert ChatTemplate(tokenizer, "user").render("x").text == "x"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"bos_token": "<|im_start|>"}, 1),
        ({"bos_token": None, "eos_token": "<|im_end|>"}, 2),
        ({"bos_token": None, "eos_token": None}, 0),
    ],
)
def test_the_bos_token_falls_back_on_eos_and_endoftext(settings, expected):
    assert bos_token_id(tiny_tokenizer(**settings)) == expected


def test_the_saes_own_bos_token_comes_first():
    assert bos_token_id(TOKENIZER, 2) == 2


def test_no_bos_token_at_all_is_an_error():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match="prepend_bos=False"):
        bos_token_id(bare)


def test_a_tokenizer_without_offsets_is_aligned_by_its_strings():
    class Slow:
        """The tiny tokenizer as one that reports no offsets."""

        is_fast = False

        def __call__(self, texts, **_):
            return {"input_ids": TOKENIZER(texts, add_special_tokens=False)["input_ids"]}

        def decode(self, ids):
            return TOKENIZER.decode(ids)

    for text in TEXTS:
        slow = documents([text], tokenizer=Slow())[0][0]
        fast = documents([text])[0][0]
        assert slow.tokens.id.tolist() == fast.tokens.id.tolist()
        assert ordinary(text, slow) == text


def test_a_template_with_a_date_has_the_same_one_every_day():
    template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }} {{ messages[0]['content'] }}"
    )
    tokenizer = tiny_tokenizer(chat_template=template)
    rendered = ChatTemplate(tokenizer, "assistant").render("fox")
    assert rendered.text == "26 Jul 2024 fox"
