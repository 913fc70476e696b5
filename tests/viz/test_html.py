"""HTML shows the text that it was given, escaped, and needs nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_embed.viz import (
    FeatureDifference,
    HighlightedDocument,
    dataset_html,
    diff_page,
    page,
    row_html,
    token_html,
)
from tests.support.hypotheses import examples

NASTY = "<script>alert('x')</script>&\"<b>"
VOID = {"meta", "line", "circle", "rect", "path", "br", "link"}


class Reader(HTMLParser):
    """Collects the text, tags and attributes of HTML whose tags are balanced."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(content)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open):
            self.text += data

    def marks(self):
        """Return the title and shade of each highlighted piece."""
        shades = [
            (a["title"], re.search(r"rgba\((.*?),([\d.]+)\)", a["style"]).groups())
            for tag, a in self.tags
            if tag == "mark"
        ]
        return [(title, colour, float(shade)) for title, (colour, shade) in shades]


def shades(html):
    return [shade for _, _, shade in Reader(html).marks()]


# --- tokens --------------------------------------------------------------------------------------


@settings(max_examples=examples(300))
@given(st.data())
def test_the_text_of_the_tokens_is_shown_whole_and_as_text(data):
    alphabet = st.sampled_from(
        ["<", "&", ">", '"', "'", "a", " ", "\n", "é", "🙂", "&lt;", "</span>"]
    )
    tokens = data.draw(st.lists(st.lists(alphabet, max_size=4).map("".join), max_size=12))
    n = len(tokens)
    number = st.sampled_from([0.0, 1.0, -2.5, 1e-9, 1e9, float("nan"), float("inf")])
    activations = data.draw(st.lists(number, min_size=n, max_size=n))
    special = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    html = token_html(tokens, activations, special=special)
    shown = Reader(html).text
    text = "".join(tokens)
    assert shown.count("↵") == text.count("\n")
    assert shown.replace("↵", "").replace("·", "") == text
    assert {tag for tag, _ in Reader(html).tags} <= {"span", "mark"}


def test_shades_grow_with_activation_and_values_show_on_hover():
    html = token_html(list("abcd"), [0.0, 1.0, 2.0, 4.0])
    marks = Reader(html).marks()
    assert [title for title, _, _ in marks] == ["1", "2", "4"]
    assert [shade for *_, shade in marks] == sorted(shade for *_, shade in marks)
    assert len({shade for *_, shade in marks}) == 3
    assert ">a<" in html


def test_negative_values_have_another_hue():
    marks = Reader(token_html(["a", "b"], [2.0, -2.0])).marks()
    assert marks[0][1] != marks[1][1]
    assert marks[0][2] == marks[1][2]
    assert marks[1][0] == "\N{MINUS SIGN}2"


def test_a_common_scale_makes_documents_comparable():
    assert shades(token_html(["a"], [1.0])) == shades(token_html(["a"], [5.0]))
    weak, strong = (shades(token_html(["a"], [v], max_activation=5.0)) for v in (1.0, 5.0))
    assert weak[0] < strong[0]
    assert shades(token_html(["a"], [50.0], max_activation=5.0)) == strong


def test_empty_tokens_are_shaded_with_the_character_they_continue():
    html = token_html(["a", "🙂", "", "", "b"], [0.0, 1.0, 0.0, 3.0, 0.0])
    (mark,) = Reader(html).marks()
    assert mark[0] == "1, 0, 3"
    assert re.search(r"<mark[^>]*>🙂</mark>b", html)
    assert shades(html) == shades(token_html(["x"], [3.0]))


def test_an_active_empty_token_with_nothing_before_it_is_still_seen():
    assert Reader(token_html(["", "a"], [1.0, 0.0])).text == "·a"


def test_special_tokens_are_dimmed_and_do_not_set_the_scale():
    html = token_html(["<bos>", "a"], [99.0, 2.0], special=[True, False])
    assert re.search(r"opacity[^>]*><mark[^>]*>&lt;bos&gt;</mark></span>", html)
    assert shades(html)[1] == shades(token_html(["a"], [2.0]))[0]
    assert "opacity" not in token_html(["a"], [2.0])


def test_line_breaks_are_visible_and_kept():
    text = Reader(token_html(["a\r\n", "\nb\t", "\x00"], [0.0, 1.0, 0.0])).text
    assert text == "a↵\n↵\nb\t␀"


def test_values_that_are_no_numbers_are_not_shaded():
    assert shades(token_html(["a", "b"], [float("nan"), float("inf")])) == []
    assert len(shades(token_html(["a", "b"], [float("nan"), 1.0]))) == 1


def test_numpy_arrays_are_taken_as_lists_are():
    values = np.array([0.0, 1.5], np.float32)
    special = np.array([True, False])
    assert token_html(["a", "b"], values, special=special) == token_html(
        ["a", "b"], [0.0, 1.5], special=[True, False]
    )


def test_lengths_that_differ_are_an_error():
    with pytest.raises(ValueError, match="must have one length, got 2, 1 and 2"):
        token_html(["a", "b"], [1.0])


# --- notebooks -----------------------------------------------------------------------------------


def test_a_data_set_shows_its_facts_and_rows_escaped_and_cut():
    preview = pd.DataFrame({NASTY: [NASTY, "x" * 500], "n": [1.23456789, None]}, index=["<i>", 2])
    html = dataset_html({"documents": "1,000", NASTY: NASTY}, preview)
    reader = Reader(html)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert NASTY in reader.text
    assert "1,000" in reader.text
    assert "<i>" in reader.text
    assert "1.23457" in reader.text
    assert "x" * 200 not in html
    assert "xxx…" in html
    assert [tag for tag, _ in reader.tags].count("tr") == 3


def test_a_data_set_without_columns_or_rows_has_html_too():
    Reader(dataset_html({}, pd.DataFrame()))
    assert "a" in Reader(dataset_html({"x": "1"}, pd.DataFrame({"a": []}))).text


def test_a_row_shows_its_tokens_and_columns():
    html = row_html({"group": NASTY}, ["a", NASTY], [0.0, 2.0], title=NASTY, special=[False, False])
    reader = Reader(html)
    assert reader.text.count(NASTY) == 3
    assert "script" not in {tag for tag, _ in reader.tags}
    assert len(reader.marks()) == 1
    assert shades(row_html({}, ["a"])) == []
    assert shades(row_html({}, ["a"], [1.0], max_activation=9.0)) < shades(
        row_html({}, ["a"], [1.0])
    )


# --- pages ---------------------------------------------------------------------------------------


def differences():
    return [
        FeatureDifference(7, NASTY, 0.6, 0.1, 0.4, 0.6, 1e-9, tokens=[NASTY, "\n"]),
        FeatureDifference(3, "", 0.0, 0.25, -0.32, -0.17, 0.04, tokens=[" film"]),
        FeatureDifference(9, "", 1.0, 1.0, -0.02, 0.02),
    ]


def documents():
    return {
        7: [
            HighlightedDocument(
                ["<bos>", "a", NASTY], [50, 0, 4.0], [True, False, False], NASTY, "a"
            ),
            HighlightedDocument(["b"], [2.0], group="b"),
        ],
        3: [HighlightedDocument(["c"], [1.0])],
        9: [],
    }


def full_page(**changes):
    options = {
        "name_a": NASTY, "name_b": "editorials", "n_a": 1200, "n_b": 5,
        "introduction": NASTY, "source": NASTY,
    }  # fmt: skip
    return diff_page(NASTY, differences(), documents(), **{**options, **changes})


def test_the_page_is_whole_and_needs_nothing_from_elsewhere():
    html = full_page()
    reader = Reader(html)
    assert html.startswith("<!doctype html>")
    tags = [tag for tag, _ in reader.tags]
    assert not {"script", "link", "img", "iframe", "b>"} & set(tags)
    assert tags.count("h1") == tags.count("main") == tags.count("title") - tags.count("svg") == 1
    for _, attributes in reader.tags:
        assert attributes.get("href", "#").startswith("#")
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in html


def test_the_page_escapes_all_that_it_is_given():
    html = full_page()
    assert "<script" not in html
    assert "&amp;lt;" not in html  # not twice
    reader = Reader(html)
    # Heading, introduction, group, table head, label, document, its caption, tokens and source.
    assert reader.text.count(NASTY) >= 9
    names = [a["data-name"] for tag, a in reader.tags if "data-name" in a]
    assert names[0] == NASTY


def test_the_table_states_shares_differences_and_intervals():
    text = Reader(full_page(name_a="reviews")).text
    for expected in ("60.0 %", "10.0 %", "+50.0", "+40.0 to +60.0", "~25.0", "~32.0 to ~17.0"):
        assert expected.replace("~", "\N{MINUS SIGN}") in text
    assert "1,200 documents" in text
    assert "no label" in text
    assert "film" in text
    assert "false discovery rate below 0.001" in full_page()


def test_links_lead_to_the_documents_that_are_there():
    reader = Reader(full_page())
    links = {a["href"][1:] for tag, a in reader.tags if tag == "a"}
    targets = [a["id"] for _, a in reader.tags if "id" in a]
    assert links == set(targets) == {"feature-7", "feature-3"}
    assert len(targets) == len(set(targets))


def test_documents_of_one_feature_share_a_scale_without_special_tokens():
    marks = Reader(full_page()).marks()
    by_title = {title: shade for title, _, shade in marks}
    assert by_title["4"] > by_title["2"]
    assert by_title["4"] == by_title["1"]  # the strongest of another feature


def test_marks_in_the_plots_lie_inside_them():
    reader = Reader(full_page())
    for tag, a in reader.tags:
        if tag == "circle":
            assert 4 <= float(a["cx"]) <= 156
        if tag == "rect":
            assert 0 <= float(a["x"]) <= float(a["x"]) + float(a["width"]) <= 140
    shares = [(a["class"], float(a["cx"])) for tag, a in reader.tags if tag == "circle"][:2]
    assert dict(shares) == {
        "a": pytest.approx(4 + 152 * 0.6, abs=0.1),
        "b": pytest.approx(19.2, abs=0.1),
    }


def test_a_page_without_differences_or_documents_is_whole_too():
    html = diff_page("t", [], {}, name_a="a", name_b="b", n_a=0, n_b=0)
    assert "most active" not in Reader(html).text


def test_pages_escape_their_headings_but_not_their_content():
    html = page("<t>", [("<h>", "<p>kept</p>"), ("", "<p>no heading</p>")])
    reader = Reader(html)
    assert [tag for tag, _ in reader.tags].count("p") == 2
    assert "<h>" in reader.text
    assert [tag for tag, _ in reader.tags].count("h2") == 1


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_has_the_contrast_that_wcag_aa_asks_for(theme):
    css = re.search(r"<style>(.*?)</style>", page("t", []), re.DOTALL)[1]
    colours = dict(re.findall(r"--(\w+):(#\w{6})", css.split("@media")[theme]))
    for text in ("fg", "soft", "a", "b"):
        assert contrast(colours[text], colours["bg"]) >= 4.5, text
        assert contrast(colours[text], colours["wash"]) >= 4.5, text
    # The strongest shade of amber, over the page's background.
    amber = [245, 140, 0]
    ground = [int(colours["bg"][i : i + 2], 16) for i in (1, 3, 5)]
    mixed = "#" + "".join(
        f"{round(0.56 * a + 0.44 * g):02x}" for a, g in zip(amber, ground, strict=True)
    )
    assert contrast(colours["fg"], mixed) >= 4.5
