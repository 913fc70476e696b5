"""Code blocks of Markdown pages, and running them."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def text_of(page):
    """The text of a page, named by its path in the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(text):
    """Each fenced block at the margin: its language, and what is in it."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section_of(text, title):
    """What stands below a heading of the second level."""
    _, heading, after = text.partition(f"\n## {title}\n")
    assert heading, f"no section {title!r}"
    return after.partition("\n## ")[0]


def commands_of(text):
    """The lines of the blocks of shell, without comments."""
    return [
        line.split("#")[0].strip()
        for kind, block in blocks_of(text)
        if kind == "sh"
        for line in block.splitlines()
        if line.strip()
    ]


def run_blocks(blocks, namespace):
    """Execute python blocks in order; what one prints must stand in the text block below it."""
    printed = ""
    for kind, text in blocks:
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out, warnings.catch_warnings():
                # The one that the pages speak of.
                warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr")
                exec(compile(text, namespace["__name__"], "exec"), namespace)
            printed = out.getvalue()
        elif kind == "text":
            assert same(printed, text), printed


def same(found, expected):
    """Whether two texts have the same words, numbers to within 0.03: another CPU rounds otherwise."""
    a, b = found.split(), expected.split()
    return len(a) == len(b) and all(x == y or near(x, y) for x, y in zip(a, b, strict=True))


def near(x, y):
    try:
        return "." in x and abs(float(x) - float(y)) < 0.03
    except ValueError:
        return False
