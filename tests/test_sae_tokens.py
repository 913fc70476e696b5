"""Spans partition the text, whatever the tokenizer reports."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from interp_embed.core.chunk import TokenTable
from interp_embed.core.spans import align_strings, partition_spans, token_strings

WEIRD = st.sampled_from(
    [
        "👋🏽",
        "👨‍👩‍👧",
        "你好",
        "é",
        "ﬁ",
        "​",
        " ",
        "\r\n",
        "\t",
        " ",
        "ñ",
        "a",
        "Z",
        "\uff0e",
        "\x00",
        "ß",
    ]
)
TEXT = st.lists(st.one_of(WEIRD, st.text(max_size=5)), max_size=12).map("".join)


def strings_of(text, spans, vocabulary=None):
    start, end, special = spans
    table = TokenTable(np.arange(len(start), dtype=np.uint32), start, end, special)
    return token_strings(text, table, vocabulary or {})


def joined(text, spans):
    start, end, special = spans
    return "".join(text[a:b] for a, b, s in zip(start, end, special, strict=True) if not s)


def byte_pieces(text, cuts):
    """Cut a text's bytes anywhere, as byte-level BPE does; return the offsets it would report."""
    starts = []
    for number, character in enumerate(text):
        starts.extend([number] * len(character.encode("utf-8", "surrogatepass")))
    bounds = sorted({0, len(starts), *(c % (len(starts) + 1) for c in cuts)})
    return [(starts[a], starts[b - 1] + 1) for a, b in pairwise(bounds)]


@given(TEXT, st.lists(st.integers(0, 1000), max_size=20))
@example("👋🏽", [1, 2, 3, 4, 5])
@example(r"a\ñb", [1, 2, 3, 4])
def test_byte_level_tokens_partition_the_text(text, cuts):
    offsets = byte_pieces(text, cuts)
    start, end, special = partition_spans(text, offsets, [False] * len(offsets))
    assert joined(text, (start, end, special)) == text
    assert (start[1:] == end[:-1]).all()
    for (a, _), begin, stop in zip(offsets, start, end, strict=True):
        # The first token that holds a part of a character has it, and the others have none of it.
        assert begin in (a, a + 1)
        assert stop >= begin


@given(TEXT.filter(str.strip), st.randoms())
def test_dropped_whitespace_goes_to_the_next_token_and_at_the_end_to_the_last(text, random):
    offsets, position = [], 0
    while position < len(text):
        length = random.randint(1, 3)
        piece = text[position : position + length]
        if piece.strip():
            offsets.append((position, position + len(piece)))
        position += length
    if offsets:
        assert joined(text, partition_spans(text, offsets, [False] * len(offsets))) == text


def test_gaps_are_given_forwards():
    text = " ab  cd "
    start, end, _ = partition_spans(text, [(1, 3), (5, 7)], [False, False])
    assert [text[a:b] for a, b in zip(start, end, strict=True)] == [" ab", "  cd "]


def test_special_tokens_have_no_span_and_do_not_interrupt():
    spans = partition_spans("abcd", [(0, 0), (0, 2), (0, 0), (2, 4), (0, 0)], [1, 0, 1, 0, 1])
    assert joined("abcd", spans) == "abcd"
    assert strings_of("abcd", spans, {0: "<s>", 2: "<sep>"}) == ["<s>", "ab", "<sep>", "cd", "<4>"]


def test_a_truncated_document_is_partitioned_up_to_its_last_token():
    spans = partition_spans("one two three", [(0, 3), (3, 7)], [False, False], complete=False)
    assert joined("one two three", spans) == "one two"


def test_offsets_and_special_must_be_of_one_length():
    with pytest.raises(ValueError, match="2 offsets for 1 tokens"):
        partition_spans("ab", [(0, 1), (1, 2)], [False])


def test_no_tokens():
    assert joined("text", partition_spans("text", [], [])) == ""


@given(TEXT.filter(str.strip), st.lists(st.integers(0, 1000), max_size=20))
@example("👋🏽 x", [1, 2, 3, 4, 5])
def test_strings_decoded_byte_by_byte_are_aligned(text, cuts):
    data = text.encode("utf-8", "replace")
    text = data.decode()
    bounds = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    pieces = [data[a:b] for a, b in pairwise(bounds)]
    strings = ["<s>", *(p.decode("utf-8", "replace") for p in pieces), "</s>"]
    spans = align_strings(text, strings)
    assert len(spans[0]) == len(strings)
    assert spans[2][0]
    if "\ufffd" in "".join(strings):
        # Which characters a broken piece held cannot always be told, but they are never repeated.
        assert text.startswith(joined(text, spans))
    else:
        assert joined(text, spans) == text


def test_an_emoji_split_into_bytes_goes_to_its_first_token():
    text = "Hi 👋🏽!"
    strings = ["Hi", " \ufffd", "\ufffd", "\ufffd", "\ufffd", "\ufffd", "!"]
    spans = align_strings(text, strings)
    assert joined(text, spans) == text
    assert strings_of(text, spans) == ["Hi", " 👋🏽", "", "", "", "", "!"]


@pytest.mark.parametrize("end", [[], ["<|im_end|>", "\n"]])
def test_an_emoji_at_the_end_is_complete(end):
    text = "Hi 👋"
    spans = align_strings(text, ["Hi", " \ufffd", "\ufffd", "\ufffd", *end])
    assert joined(text, spans) == text
    assert spans[2].tolist() == [False] * 4 + [True] * len(end)


def test_a_literal_replacement_character_is_itself():
    text = "a\ufffdb"
    spans = align_strings(text, ["a", "\ufffd", "b"])
    assert strings_of(text, spans) == ["a", "\ufffd", "b"]


def test_words_of_a_chat_template_are_not_taken_for_the_document():
    strings = ["<s>", "user", "\n", "You", " are", "</s>", "assistant", "\n", "user", "</s>", "\n"]
    spans = align_strings("user", strings)
    assert np.flatnonzero(~spans[2]).tolist() == [8]


def test_special_tokens_inside_the_document_are_skipped():
    spans = align_strings("one two", ["<s>", "one", "<sep>", " two"])
    assert joined("one two", spans) == "one two"
    assert spans[2].tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    "strings",
    [
        ["one", "two"],  # whitespace lost
        ["one", "Ġtwo"],  # byte-level markers
        ["▁one", "▁two"],  # sentencepiece
        ["one", "t", "##wo"],  # wordpiece
    ],
)
def test_vocabulary_spellings_are_aligned(strings):
    assert joined("one  two ", align_strings("one  two ", strings)) == "one  two "


def test_a_truncated_document_is_aligned_as_far_as_it_goes():
    spans = align_strings("one two three", ["<s>", "one", " two"])
    assert joined("one two three", spans) == "one two"


@pytest.mark.parametrize("strings", [[], ["x", "y"], ["", ""]])
def test_what_cannot_be_placed_is_special(strings):
    assert align_strings("one two", strings)[2].all()


def test_an_empty_text_has_only_special_tokens():
    assert align_strings("", ["<s>", "a"])[2].all()


SPECIAL = ["<s>", "user", "\n"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("count", [4_000, 500_000])
@pytest.mark.parametrize(
    ("token", "inside", "behind", "rest"),
    [
        (" ha", [], [], ""),
        (" ha", [], ["</s>"], ""),
        (" ha", [], [], " ha" * 1000),  # truncated
        ("▁ha", [], ["</s>"], ""),
        ("ha", [], ["</s>"], ""),
        (" ha", ["\ufffd"] * 3, ["</s>"], ""),
        (" ha", ["<sep>"], ["</s>"], ""),
    ],
)
def test_a_long_repetitive_document_is_aligned(count, token, inside, behind, rest):
    character = "👋" if "\ufffd" in inside else ""
    text = " ha" * count + character + " ha"
    strings = [*SPECIAL, *[token] * count, *inside, token, *behind]
    start, end, special = align_strings(text + rest, strings)
    assert joined(text, (start, end, special)) == text
    assert np.flatnonzero(special).tolist() == [
        0, 1, 2,
        *([3 + count] if inside == ["<sep>"] else []),
        *([len(strings) - 1] if behind else []),
    ]  # fmt: skip


@pytest.mark.timeout(60)
def test_special_tokens_all_over_a_long_document_are_skipped():
    strings = [*SPECIAL, *([" ha"] * 50 + ["<sep>"]) * 4_000]
    text = " ha" * 200_000
    assert joined(text, align_strings(text, strings)) == text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("strings", [["y"] * 200_000, [*SPECIAL, *["ha"] * 200_000, "</s>"]])
def test_a_long_document_that_cannot_be_placed_ends(strings):
    assert align_strings("ha" * 300_000, strings)[2].all()


def test_only_whole_tokens_are_the_document():
    spans = align_strings("ha", ["<s>", "ha", "haha", "</s>"])
    assert np.flatnonzero(~spans[2]).tolist() == [1]
