"""Draw the README's picture from the demo's store: what tells foods from animals, and where.

    make demo && .venv/bin/python scripts/make_picture.py [STORE]

STORE is the store that `make demo` writes, demo/demo.zarr. Draws docs/images/demo.svg: shapes and text
only, so that no browser is needed to make it and every viewer shows the same. Runs of text say how long
they are, so that the shading fits whichever font there is.
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from interp_embed import Dataset
from interp_embed.analysis import diff

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interp_embed import DatasetRow

TARGET = Path(__file__).parent.parent / "docs" / "images" / "demo.svg"
GROUPS = ("food", "animal")
FEATURES, DOCUMENTS = 4, 3  # features that lean to either group; documents of the first feature
WIDTH, MARGIN = 900, 28
LINE = 80  # characters in a line of a document
ADVANCE = 9.63  # pixels per character: 0.602 of 16, as in most monospaced fonts

INK, SOFT, RULE = "#1c1e21", "#5b6068", "#e1e2de"
COLOURS = {"food": "#0b6e66", "animal": "#6b3fc0"}
SANS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


@dataclass
class Drawing:
    """Shapes, and how far down they reach."""

    parts: list[str]
    y: float = MARGIN

    def text(
        self,
        x: float,
        content: str,
        *,
        size: float = 15,
        colour: str = INK,
        font: str = SANS,
        more: str = "",
    ) -> None:
        """Write a line at the present height."""
        self.parts.append(
            f'<text x="{x:g}" y="{self.y:g}" font-size="{size:g}" fill="{colour}" '
            f'font-family="{font}" xml:space="preserve" {more}>{escape(content)}</text>'
        )

    def line(self, x1: float, x2: float, y: float, colour: str, width: float = 1) -> None:
        """Draw a horizontal line."""
        self.parts.append(
            f'<path d="M{x1:g} {y:g}H{x2:g}" stroke="{colour}" stroke-width="{width:g}"/>'
        )

    def dot(self, x: float, y: float, colour: str) -> None:
        """Draw a small disc."""
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:g}" r="5" fill="{colour}"/>')

    def svg(self, description: str) -> str:
        """Return the whole as a document."""
        height = self.y + MARGIN
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
            f'width="{WIDTH}" height="{height:g}" role="img"><title>{escape(description)}</title>\n'
            f'<rect width="{WIDTH}" height="{height:g}" fill="#fcfcfa"/>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def draw_features(drawing: Drawing, table: pd.DataFrame) -> None:
    """Draw one line per feature: its label, and the shares of both groups on one scale."""
    left, right = 520, 810
    drawing.y += 20
    drawing.text(MARGIN, "Features that tell foods from animals", size=19, more='font-weight="650"')
    drawing.text(left, "active in this share of documents", size=13, colour=SOFT)
    drawing.y += 14
    for record in table.to_dict(orient="records"):
        drawing.line(MARGIN, WIDTH - MARGIN, drawing.y, RULE)
        drawing.y += 24
        drawing.text(MARGIN, str(record["feature"]), colour=SOFT, size=14)
        drawing.text(MARGIN + 56, textwrap.shorten(record["label"], 56, placeholder=" …"))
        height = drawing.y - 5
        drawing.line(left, right, height, RULE, 2)
        places = {
            group: left + (right - left) * record[f"share_{side}"]
            for group, side in zip(GROUPS, "ab", strict=True)
        }
        drawing.line(min(places.values()), max(places.values()), height, SOFT, 2)
        for group, x in places.items():
            drawing.dot(x, height, COLOURS[group])
        points = 100 * record["difference"]
        sign = "+" if points > 0 else "\N{MINUS SIGN}"
        drawing.text(WIDTH - MARGIN, f"{sign}{abs(points):.0f}", size=14, more='text-anchor="end"')
        drawing.y += 11
    drawing.line(MARGIN, WIDTH - MARGIN, drawing.y, RULE)
    drawing.y += 22
    x = float(left)
    for group in GROUPS:
        drawing.dot(x + 5, drawing.y - 5, COLOURS[group])
        drawing.text(x + 16, f"{group}s", size=13, colour=SOFT)
        x += 100
    drawing.text(WIDTH - MARGIN, "points", size=13, colour=SOFT, more='text-anchor="end"')


def letters(row: DatasetRow, feature: int) -> Iterator[tuple[str, float]]:
    """Yield a document's characters with the activation of the token that each is of."""
    row.truncate_chat_template = True  # without the BOS token
    for token in row.token_activations(feature, as_string=False):
        word = token["token"].lstrip()
        space = len(token["token"]) - len(word)  # many tokens begin with one: only words are shaded
        yield from ((letter, 0.0) for letter in token["token"][:space])
        yield from ((letter, token["activation"]) for letter in word)


def draw_document(drawing: Drawing, row: DatasetRow, feature: int, strongest: float) -> None:
    """Write a document in lines, its tokens shaded by the feature's activation."""
    shaded = list(letters(row, feature))
    text = "".join(letter for letter, _ in shaded)
    begin = 0
    for line in textwrap.wrap(text, LINE, drop_whitespace=False, break_long_words=False):
        values = np.array([value for _, value in shaded[begin : begin + len(line)]])
        begin += len(line)
        cuts = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(line)]
        for first, last in pairwise(cuts):
            if values[first] <= 0:
                continue
            opacity = 0.14 + 0.42 * min(1.0, values[first] / strongest)
            drawing.parts.append(
                f'<rect x="{MARGIN + first * ADVANCE:.1f}" y="{drawing.y - 15:g}" '
                f'width="{(last - first) * ADVANCE:.1f}" height="20" rx="3" '
                f'fill="rgb(245,140,0)" fill-opacity="{opacity:.2f}"/>'
            )
        shown = line.rstrip()
        length = f'textLength="{len(shown) * ADVANCE:.1f}"'
        drawing.text(MARGIN, shown, size=16, font=MONO, more=length)
        drawing.y += 26


def draw_documents(drawing: Drawing, dataset: Dataset, feature: int, label: str) -> None:
    """Draw the documents in which a feature is strongest."""
    drawing.y += 44
    title = f"Where feature {feature} is strongest"
    drawing.text(MARGIN, title, size=19, more='font-weight="650"')
    drawing.text(520, label, size=13, colour=SOFT)
    ranked = dataset.sort_by_features([feature])[:DOCUMENTS]
    frame = ranked.pandas()
    strongest = float(frame["feature_activation"].max())
    drawing.y += 30
    for row, word, group in zip(ranked, frame["word"], frame["group"], strict=True):
        draw_document(drawing, row, feature, strongest)
        drawing.y -= 4
        drawing.dot(MARGIN + 5, drawing.y - 4, COLOURS[group])
        drawing.text(MARGIN + 16, word, size=13, colour=SOFT)
        drawing.y += 28
    drawing.y -= 28


def main(path: str) -> None:
    """Draw the picture of a store."""
    dataset = Dataset.load_from_file(path)
    group = dataset.pandas()["group"].to_numpy()
    table = diff(dataset[group == GROUPS[0]], dataset[group == GROUPS[1]], k=None)
    ahead = table[table["difference"] > 0].head(FEATURES)
    behind = table[table["difference"] < 0].head(FEATURES)[::-1]
    if ahead.empty or behind.empty:
        raise SystemExit(f"{path}: expected features that differ in both directions")
    drawing = Drawing([])
    draw_features(drawing, pd.concat([ahead, behind]))
    first = ahead.iloc[0]
    draw_documents(drawing, dataset, int(first["feature"]), first["label"])
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(
        drawing.svg("Features that tell foods from animals, and where one is active"),
        encoding="utf-8",
    )
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo/demo.zarr")
