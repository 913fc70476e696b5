"""`interp-embed top`, and the display of a document in a terminal."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from interp_embed import Dataset
from interp_embed.cli.facts import thousands
from interp_embed.core.checks import check_feature
from interp_embed.selection.row import highlight

if TYPE_CHECKING:
    from interp_embed.selection.row import DatasetRow

__all__ = ["document_lines", "markers", "run_top"]

_CHARACTERS = 400  # of a long document, around its strongest token
_INDENT = "     "


def run_top(path: str, feature: int, *, k: int, lowest: bool, by: str) -> None:
    """Print the documents in which a feature is strongest, or weakest."""
    dataset = Dataset.load_from_file(path)
    width = dataset.d_sae
    if width is not None:
        check_feature(feature, width)
    active = dataset.sort_by_features(
        [feature], aggregation_type=by, descending=not lowest, include_nonactive_samples=False
    )
    label = dataset.feature_labels().get(feature, "")
    name = f"feature {feature}" + (f" ({label})" if label else "")
    print(f"{name}: active in {thousands(len(active))} of {_documents(dataset)}")
    shown = active[:k]
    values = shown.pandas()["feature_activation"]
    left, right = markers()
    for rank, row in enumerate(shown):
        if row is None:  # never: it has an activation
            continue
        print(
            f"\n{rank + 1:>3}  {by} {values[rank]:.4g}, document {shown.selection.documents[rank]}"
        )
        print("\n".join(document_lines(row, feature, left, right)))


def _documents(dataset: Dataset) -> str:
    """Return how many documents there are to look at, and what became of the others."""
    status = dataset.status()
    missing, failed = int((status == "missing").sum()), int((status == "failed").sum())
    if not missing + failed:
        return f"{thousands(len(dataset))} documents"
    others = {
        f"{thousands(missing)} are not encoded yet": missing,
        f"{thousands(failed)} failed": failed,
    }
    return (
        f"the {thousands(len(dataset) - missing - failed)} encoded documents "
        f"({', '.join(said for said, n in others.items() if n)})"
    )


def markers() -> tuple[str, str]:
    """Return the markers around active tokens: bold amber in a terminal, else ``<<`` and ``>>``."""
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb":
        return "\x1b[1;33m", "\x1b[0m"
    return "<<", ">>"


def document_lines(row: DatasetRow, feature: int, left: str, right: str) -> list[str]:
    """Return a document as lines for a terminal; a long one is cut around its strongest token."""
    tokens = row.token_activations(feature, as_string=False)
    shown = [
        t
        for t, special in zip(tokens, row.special_tokens.tolist(), strict=True)
        if not special or t["activation"]
    ]
    strongest = max(range(len(shown)), key=lambda i: shown[i]["activation"], default=0)
    first, last = _window([len(t["token"]) for t in shown], strongest)
    cut = shown[first:last]
    text = highlight(*_pieces(cut), left, right)
    text = "… " * (first > 0) + " ".join(text.split()) + " …" * (last < len(shown))
    return textwrap.wrap(
        text,
        96,
        initial_indent=_INDENT,
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _pieces(tokens: list[dict[str, Any]]) -> tuple[list[str], list[bool]]:
    """Return texts and whether each is active; a space before a run of active tokens is not."""
    texts, active = [], []
    inside = False
    for token in tokens:
        word = token["token"].lstrip()
        texts += [token["token"][: len(token["token"]) - len(word)], word]
        active += [inside and token["activation"] > 0, token["activation"] > 0]
        inside = token["activation"] > 0
    return texts, active


def _window(lengths: list[int], centre: int) -> tuple[int, int]:
    """Return the tokens around ``centre`` that fit, growing to both sides."""
    first = last = centre
    room = _CHARACTERS
    while room > 0 and (first > 0 or last < len(lengths)):
        if last < len(lengths):
            room -= lengths[last]
            last += 1
        if first > 0:
            first -= 1
            room -= lengths[first]
    return first, last
