"""Pure functions from plain values to HTML strings.

Owns the look of data sets and rows in a notebook. All of these functions are imported from here: tokens
are in `interp_embed.viz.tokens`, pages in `interp_embed.viz.pages`, and the style sheets in
`interp_embed.viz.style`. Every text that comes from outside is escaped, nothing is loaded from
elsewhere and nothing needs JavaScript: values show on hover by way of ``title``. Colours are
translucent or follow the reader's theme, so that light and dark notebooks both work.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from interp_embed.viz.pages import FeatureDifference, HighlightedDocument, diff_page, page
from interp_embed.viz.style import FRAGMENT_CSS
from interp_embed.viz.texts import cut
from interp_embed.viz.tokens import token_html

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

__all__ = [
    "FeatureDifference",
    "HighlightedDocument",
    "dataset_html",
    "diff_page",
    "page",
    "row_html",
    "token_html",
]


def dataset_html(summary: Mapping[str, str], preview: pd.DataFrame) -> str:
    """Return a data set's properties and first rows for a notebook.

    Parameters
    ----------
    summary
        Names and values, in the order to show them. A value of "" makes its name a heading.
    preview
        Some rows. Long cells are cut.
    """
    facts = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{cut(value)}</dd></div>"
        if value
        else f"<h4>{escape(str(name))}</h4>"
        for name, value in summary.items()
    )
    head = "".join(f'<th scope="col">{cut(c, 60)}</th>' for c in preview.columns)
    body = "".join(
        f'<tr><th scope="row">{cut(index, 40)}</th>'
        + "".join(f"<td>{cut(v)}</td>" for v in values)
        + "</tr>"
        for index, *values in preview.itertuples(name=None)
    )
    table = (
        f'<div class="ie-scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        if len(preview.columns)
        else ""
    )
    return f'<style>{FRAGMENT_CSS}</style><div class="ie"><dl>{facts}</dl>{table}</div>'


def row_html(
    columns: Mapping[str, object],
    tokens: Sequence[str],
    activations: Sequence[float] | None = None,
    *,
    special: Sequence[bool] | None = None,
    title: str = "",
    max_activation: float | None = None,
) -> str:
    """Return a document for a notebook: its tokens, then its other columns.

    Parameters
    ----------
    columns
        The document's columns to show beside its text; long values are cut.
    tokens, special
        As for `token_html`.
    activations
        One feature's activation per token; None to show the text alone.
    title
        A line above, such as the feature and its label.
    max_activation
        As for `token_html`.
    """
    values = [0.0] * len(tokens) if activations is None else activations
    text = token_html(tokens, values, special=special, max_activation=max_activation)
    heading = f"<h4>{escape(title)}</h4>" if title else ""
    facts = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{cut(value)}</dd></div>"
        for name, value in columns.items()
    )
    facts = f"<dl>{facts}</dl>" if facts else ""
    return (
        f'<style>{FRAGMENT_CSS}</style><div class="ie">{heading}'
        f'<div class="ie-text">{text}</div>{facts}</div>'
    )
