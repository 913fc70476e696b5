"""Chat templates that ask what day it is: the same answer on every day, and it is recorded."""

from __future__ import annotations

import datetime as dt
import threading

import pytest

pytest.importorskip("sae_lens")

from interp_embed import Dataset
from interp_embed.errors import FingerprintMismatchError
from interp_embed.sae import LocalSAE
from interp_embed.sae.hashing import hash_json
from interp_embed.sae.model import template
from interp_embed.sae.model.template import ChatTemplate, render_chat
from tests.support.tiny_models import (
    CHAT_TEMPLATE,
    assert_close,
    dense,
    random_sae,
    tiny_model,
    tiny_tokenizer,
)

HOOK = "blocks.2.hook_resid_post"
MESSAGE = "{{ messages[0]['content'] }}"
DATED = "Today is {{ strftime_now('%A, %d %B %Y, %H:%M') }}.\n" + MESSAGE
LLAMA = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ date_string }} " + MESSAGE
)


@pytest.fixture
def day(monkeypatch):
    """Make it another day, for whoever looks at the clock as transformers does for templates."""

    def be(*moment):
        class Clock(dt.datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(*moment, tzinfo=tz)

        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)

    return be


@pytest.fixture
def made(tmp_path):
    random_sae("topk", HOOK).save_model(tmp_path / "sae")

    def make(template, **settings):
        return LocalSAE(
            release=tmp_path / "sae",
            model=tiny_model("llama"),
            tokenizer=tiny_tokenizer(chat_template=template),
            **{"chat_template": True, **settings},
        )

    return make


def test_the_clock_of_these_tests_is_the_one_that_templates_are_told(day):
    """Or the others would pass whatever is done about it."""
    day(2030, 1, 2)
    tokenizer = tiny_tokenizer(chat_template=DATED)
    said = tokenizer.apply_chat_template([{"role": "user", "content": "fox"}], tokenize=False)
    assert said == "Today is Wednesday, 02 January 2030, 00:00.\nfox"


@pytest.mark.parametrize("template", [DATED, LLAMA, CHAT_TEMPLATE])
def test_documents_have_the_same_tokens_on_every_day(day, made, template):
    chunks = []
    for moment in ((2024, 1, 1), (2030, 12, 31, 23, 59)):
        day(*moment)
        sae = made(template)
        sae.load()
        chunks.append(sae.encode_chunk(["the fox", "a dog"]))
        conversation = [{"role": "assistant", "content": "the fox"}]
        assert_close(dense(sae.encode_chat([conversation])[0]), dense(chunks[-1].csr(0)))
        sae.destroy()
    first, second = chunks
    assert first.tokens.id.tolist() == second.tokens.id.tolist()
    assert first.activation.tolist() == second.activation.tolist()


def test_the_date_is_one_that_llamas_templates_write_too():
    conversation = [{"role": "user", "content": "fox"}]
    said = {t: render_chat(tiny_tokenizer(chat_template=t), conversation) for t in (DATED, LLAMA)}
    assert said == {DATED: "Today is Friday, 26 July 2024, 00:00.\nfox", LLAMA: "26 Jul 2024 fox"}


@pytest.mark.parametrize(
    ("template", "date"),
    [
        (CHAT_TEMPLATE, None),
        (LLAMA, None),  # it is given another way, and always was
        (DATED, "2024-07-26"),
        (f"{{% if strftime_now('%H') == '00' %}}Night. {{% endif %}}{MESSAGE}", "2024-07-26"),
        (f"{{% if strftime_now('%u') | int > 4 %}}Weekend! {{% endif %}}{MESSAGE}", "2024-07-26"),
        (f"{{% set now = strftime_now %}}{{{{ now('%y') }}}} {MESSAGE}", "2024-07-26"),
        (f"{{% set day = strftime_now('%d') %}}{MESSAGE}", None),  # nothing comes of it
    ],
)
def test_whether_a_template_makes_something_of_the_day_is_found_out(template, date):
    assert ChatTemplate(tiny_tokenizer(chat_template=template), "assistant").date == date


def test_the_date_is_part_of_the_fingerprint_where_there_is_one(made):
    prints = {}
    for name, text in {"dated": DATED, "llama": LLAMA, "none": CHAT_TEMPLATE}.items():
        sae = made(text)
        sae.load()
        prints[name] = sae.fingerprint()
        sae.destroy()
    assert prints["dated"]["template_date"] == "2024-07-26"
    assert prints["dated"]["template_sha256"] != hash_json(DATED)
    for name, text in (("llama", LLAMA), ("none", CHAT_TEMPLATE)):
        assert "template_date" not in prints[name]
        assert prints[name]["template_sha256"] == hash_json(text)  # as in stores there are
    without = made(DATED, chat_template=False)
    without.load()
    assert "template_date" not in without.fingerprint()


def test_a_store_goes_on_on_another_day_and_one_of_before_the_date_was_kept_does_not(
    day, made, tmp_path, monkeypatch
):
    texts = [{"text": f"document {i}"} for i in range(6)]
    path = tmp_path / "store.zarr"
    day(2024, 1, 1)
    sae = made(DATED)
    monkeypatch.setattr(sae, "encode_prepared", interrupt_after(sae, 2))
    with pytest.raises(KeyboardInterrupt):
        Dataset(texts, sae, save_path=path, batch_size=1, save_every_batch=2)
    day(2025, 2, 2)
    whole = Dataset(texts, made(DATED), save_path=path)
    assert (whole.status() == "ok").all()
    once = Dataset(texts, made(DATED))
    for row, other in zip(whole.rows, once.rows, strict=True):
        assert_close(dense(row.activations), dense(other.activations))

    old = tmp_path / "old.zarr"
    with monkeypatch.context() as patch:  # the fingerprint as it was
        patch.setattr(
            "interp_embed.sae.model.tokenizing.DocumentTokenizer.template_date",
            property(lambda _: None),
        )
        Dataset(texts[:3], made(DATED), save_path=old)
    loaded = made(DATED)
    loaded.load()
    with pytest.raises(FingerprintMismatchError, match="template_sha256"):
        Dataset(texts[:3], loaded, save_path=old)


def test_others_who_render_templates_meanwhile_are_told_the_time():
    """In another thread of this process, that is; and afterwards everything is as it was."""
    from transformers.utils import chat_template_utils

    tokenizer = tiny_tokenizer(chat_template="{{ strftime_now('%Y') }}" + MESSAGE)
    said, before = [], chat_template_utils.datetime
    year = str(before.now().year)

    def other():
        chat = [{"role": "user", "content": ""}]
        said.append(tokenizer.apply_chat_template(chat, tokenize=False))

    with template._templates_at(template.TEMPLATE_DATE):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        other()
    assert said[0] in {year, str(dt.datetime.now().year)}
    assert said[1] == "2024"
    assert chat_template_utils.datetime is before


def test_transformers_takes_no_function_for_a_template():
    """It would shadow ``strftime_now``; no clock would have to be replaced."""
    tokenizer = tiny_tokenizer(chat_template=DATED)
    chat = [{"role": "user", "content": ""}]
    with pytest.raises(TypeError, match="'str' object is not callable"):
        tokenizer.apply_chat_template(chat, tokenize=False, strftime_now=lambda form: "then")


def interrupt_after(sae, calls):
    """Encode so many times, and then be interrupted."""
    encode, left = sae.encode_prepared, [calls]

    def once(prepared):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return encode(prepared)

    return once
