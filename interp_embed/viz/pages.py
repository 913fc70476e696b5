"""Whole pages that need no other file, such as the comparison of two groups of documents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from interp_embed.viz.style import PAGE_CSS
from interp_embed.viz.texts import MINUS, cut
from interp_embed.viz.tokens import full_shade, token_html, token_units

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["FeatureDifference", "HighlightedDocument", "diff_page", "page"]


@dataclass(frozen=True, slots=True)
class FeatureDifference:
    """How often a feature is active in each of two groups of documents.

    Attributes
    ----------
    feature : int
        Its number.
    label : str
        The meaning of the feature; empty if unknown.
    share_a, share_b : float
        Shares of the documents of each group in which it is active, 0 to 1.
    low, high : float
        Confidence interval of ``share_a - share_b``.
    q_value : float or None
        False discovery rate at which the difference would count as one.
    tokens : sequence of str
        Some tokens on which it is most active, as a hint if there is no label.
    """

    feature: int
    label: str
    share_a: float
    share_b: float
    low: float
    high: float
    q_value: float | None = None
    tokens: Sequence[str] = ()

    @property
    def difference(self) -> float:
        """``share_a - share_b``."""
        return self.share_a - self.share_b


@dataclass(frozen=True, slots=True)
class HighlightedDocument:
    """A document with one feature's activations.

    Attributes
    ----------
    tokens : sequence of str
        Its token strings.
    activations : sequence of float
        One per token.
    special : sequence of bool or None
        Which tokens stand for no part of the text.
    caption : str
        A line under it, for example its source.
    group : str
        "a", "b" or empty: which of two groups it is in.
    """

    tokens: Sequence[str]
    activations: Sequence[float]
    special: Sequence[bool] | None = None
    caption: str = ""
    group: str = ""


def page(title: str, sections: Sequence[tuple[str, str]], *, introduction: str = "") -> str:
    """Return a whole page that needs no other file.

    Parameters
    ----------
    title
        Plain text.
    sections
        Headings (plain text; empty for none) and the HTML below each, which is not escaped.
    introduction
        Plain text under the title.
    """
    body = "".join(
        f"<section>{f'<h2>{escape(heading)}</h2>' if heading else ''}{content}</section>"
        for heading, content in sections
    )
    lede = f'<p class="lede">{escape(introduction)}</p>' if introduction else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{PAGE_CSS}</style>\n</head>\n"
        f"<body>\n<main>\n<header><h1>{escape(title)}</h1>{lede}</header>\n"
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def diff_page(
    title: str,
    differences: Sequence[FeatureDifference],
    documents: Mapping[int, Sequence[HighlightedDocument]],
    *,
    name_a: str,
    name_b: str,
    n_a: int,
    n_b: int,
    introduction: str = "",
    source: str = "",
) -> str:
    """Return a page that compares two groups of documents.

    Parameters
    ----------
    title, introduction
        Plain text at the top.
    differences
        The features, in the order to list them.
    documents
        For some features, the documents in which they are most active. Their shading is scaled
        to the strongest activation among one feature's documents.
    name_a, name_b, n_a, n_b
        Names of the groups, and their numbers of documents.
    source
        Plain text at the end: where the documents come from, and their licence.
    """
    groups = (
        '<p class="groups">'
        f'<span><i class="dot a"></i><b>{escape(name_a)}</b> {n_a:,} documents</span>'
        f'<span><i class="dot b"></i><b>{escape(name_b)}</b> {n_b:,} documents</span></p>'
    )
    explanation = (
        '<p class="note">The share of documents of each group in which a feature is active anywhere, '
        "and the difference in percentage points with its 95 % confidence interval "
        "(hybrid score, Newcombe 1998). "
        "Text on amber is where a feature is active; hover over it for the value.</p>"
    )
    limit = max((max(abs(d.low), abs(d.high), abs(d.difference)) for d in differences), default=0)
    limit = math.ceil(limit * 10 + 1e-9) / 10 or 0.1
    rows = "".join(_difference_row(d, documents, name_a, name_b, limit) for d in differences)
    head = "".join(
        f'<th scope="col"{attributes}>{text}</th>'
        for text, attributes in (
            ("Feature", ""),
            ("Share, 0 to 100 %", ""),
            (cut(name_a, 28), ' class="n"'),
            (cut(name_b, 28), ' class="n"'),
            ("Difference in points", ' colspan="2"'),
        )
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    chosen = [d for d in differences if documents.get(d.feature)]
    sections = [("", groups), ("Features that differ", explanation + table)]
    if chosen:
        content = "".join(
            _feature_documents(d, documents[d.feature], name_a, name_b) for d in chosen
        )
        sections.append(("Where they are most active", content))
    if source:
        sections.append(("", f'<p class="note">{escape(source)}</p>'))
    return page(title, sections, introduction=introduction)


def _difference_row(
    difference: FeatureDifference,
    documents: Mapping[int, Sequence[HighlightedDocument]],
    name_a: str,
    name_b: str,
    limit: float,
) -> str:
    d = difference
    points = _points(d.difference)
    interval = f"{_points(d.low)} to {_points(d.high)}"
    shares = f"{name_a}: {_percent(d.share_a)}, {name_b}: {_percent(d.share_b)}"
    chance = "" if d.q_value is None else f"; false discovery rate {_chance(d.q_value)}"
    return (
        f'<tr><th scope="row">{_feature_name(d, linked=bool(documents.get(d.feature)))}</th>'
        f'<td class="plot">{_dumbbell(d, shares)}</td>'
        f'<td class="n a" data-name="{escape(name_a)}">{_percent(d.share_a)}</td>'
        f'<td class="n b" data-name="{escape(name_b)}">{_percent(d.share_b)}</td>'
        f'<td class="n d" title="{interval} points{chance}">{points}'
        f"<small>{interval}</small></td>"
        f'<td class="plot">{_interval_bar(d, limit, interval)}</td></tr>'
    )


def _feature_name(difference: FeatureDifference, *, linked: bool) -> str:
    d = difference
    number = f'<span class="id">{d.feature}</span>'
    if linked:
        number = f'<a class="id" href="#feature-{d.feature}">{d.feature}</a>'
    label = escape(d.label)
    if not label:
        label = _token_list(d.tokens) if d.tokens else "<i>no label</i>"
    return f'{number} <span class="label">{label}</span>'


def _token_list(tokens: Sequence[str]) -> str:
    return " ".join(f"<code>{cut(t.strip() or repr(t)[1:-1], 24)}</code>" for t in tokens)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(difference: float) -> str:
    """Return a difference of shares in percentage points, signed."""
    rounded = round(100 * difference, 1)
    if rounded == 0:
        return "0.0"
    return f"{'+' if rounded > 0 else MINUS}{abs(rounded):.1f}"


def _chance(q_value: float) -> str:
    return f"{q_value:.3f}" if q_value >= 0.001 else "below 0.001"


def _dumbbell(difference: FeatureDifference, description: str) -> str:
    """Draw the two shares on one scale from 0 to 100 %."""
    x_a, x_b = 4 + 152 * difference.share_a, 4 + 152 * difference.share_b
    return (
        f'<svg viewBox="0 0 160 16" width="160" height="16" role="img"><title>{escape(description)}'
        '</title><line class="axis" x1="4" x2="156" y1="8" y2="8"/>'
        f'<line class="link" x1="{x_a:.1f}" x2="{x_b:.1f}" y1="8" y2="8"/>'
        f'<circle class="b" cx="{x_b:.1f}" cy="8" r="4"/>'
        f'<circle class="a" cx="{x_a:.1f}" cy="8" r="4"/></svg>'
    )


def _interval_bar(difference: FeatureDifference, limit: float, description: str) -> str:
    """Draw the difference as a bar from 0 in the middle, with its interval as a whisker."""
    x, low, high = (
        70 + 66 * max(-1.0, min(1.0, v / limit))
        for v in (difference.difference, difference.low, difference.high)
    )
    side = "a" if difference.difference >= 0 else "b"
    return (
        f'<svg viewBox="0 0 140 16" width="140" height="16" role="img"><title>{escape(description)}'
        '</title><line class="axis" x1="70" x2="70" y1="0" y2="16"/>'
        f'<rect class="{side}" x="{min(x, 70):.1f}" y="4" width="{abs(x - 70):.1f}" height="8"/>'
        f'<path class="whisker" d="M{low:.1f} 8H{high:.1f}M{low:.1f} 5v6M{high:.1f} 5v6"/></svg>'
    )


def _flags(document: HighlightedDocument) -> Sequence[bool]:
    return [False] * len(document.tokens) if document.special is None else document.special


def _feature_documents(
    difference: FeatureDifference,
    documents: Sequence[HighlightedDocument],
    name_a: str,
    name_b: str,
) -> str:
    d = difference
    units = [unit for x in documents for unit in token_units(x.tokens, x.activations, _flags(x))]
    strongest = full_shade(units)
    names = {"a": name_a, "b": name_b}
    items = []
    for document in documents:
        shaded = token_html(
            document.tokens,
            document.activations,
            special=document.special,
            max_activation=strongest,
        )
        group = document.group if document.group in names else ""
        mark = f'<i class="dot {group}"></i>{escape(names[group])}' if group else ""
        parts = [mark, escape(document.caption)]
        caption = " · ".join(part for part in parts if part)
        caption = f"<footer>{caption}</footer>" if caption else ""
        items.append(f"<li>{shaded}{caption}</li>")
    shares = f"{_percent(d.share_a)} of {escape(name_a)}, {_percent(d.share_b)} of {escape(name_b)}"
    tokens = f'<p class="note">Strongest on {_token_list(d.tokens)}</p>' if d.tokens else ""
    label = f' <span class="label">{escape(d.label)}</span>' if d.label else ""
    return (
        f'<article id="feature-{d.feature}"><h3><span class="id">{d.feature}</span>{label}'
        f'<small class="{"a" if d.difference >= 0 else "b"}">{_points(d.difference)} points: '
        f"{shares}</small></h3>{tokens}<ol>{''.join(items)}</ol></article>"
    )
