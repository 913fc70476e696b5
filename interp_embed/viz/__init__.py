"""HTML for notebooks and pages.

Owns how tokens, rows, data sets and comparisons look. Takes plain values and returns strings; knows
nothing of data sets, stores or models, and nothing imports it but what shows things to people.
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
