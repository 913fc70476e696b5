"""HTML for notebooks and pages.

Owns the look of tokens, rows, data sets and comparisons. Takes plain values and returns strings. It
does not know data sets, stores or models, and only code that shows things to people imports it.
"""

from __future__ import annotations

from interp_embed.viz.html import (
    FeatureDifference,
    HighlightedDocument,
    dataset_html,
    diff_page,
    page,
    row_html,
    token_html,
)

__all__ = [
    "FeatureDifference",
    "HighlightedDocument",
    "dataset_html",
    "diff_page",
    "page",
    "row_html",
    "token_html",
]
