"""The README starts with two commands and stays short, and what it and the tutorial show is so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET

import pytest

from tests.support.pages import DOCS, ROOT, blocks_of, commands_of, run_blocks, section_of, text_of

README = text_of("README.md")
BLOCKS = blocks_of(README)
# Their examples run one after the other in one folder, on the store that the README's makes.
ON_DEFINITIONS = [
    "README.md",
    "docs/get-started/first-corpus.md",
    "docs/how-to/larger-than-memory.md",
    "docs/how-to/read-without-the-library.md",
]
PYTHON_PATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_every_block_says_what_it_is():
    assert {kind for kind, _ in BLOCKS} == {"sh", "python", "text"}
    for page in ON_DEFINITIONS:
        blocks = blocks_of(text_of(page))
        for (kind, _), (before, _) in zip(blocks[1:], blocks, strict=False):
            assert kind != "text" or before == "python", page


def test_the_first_thing_is_how_to_start():
    assert BLOCKS[0][0] == "sh"
    assert [line.split()[:2] for line in BLOCKS[0][1].splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]
    assert README.startswith("# interp_embed\n\n```sh\nmake demo ")


def test_it_is_read_in_a_minute_or_two():
    assert len(README.splitlines()) <= 120


def test_its_picture_is_small_and_says_what_it_shows():
    alternative, path = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", README)[0]
    assert len(alternative) > 100
    assert (ROOT / path).stat().st_size < 300_000
    picture = ET.parse(ROOT / path).getroot()
    shown = " ".join(text for text in picture.itertext() if text.strip())
    # The features of the example's table are those of the picture.
    table = next(text for kind, text in BLOCKS if kind == "text")
    features = re.findall(r'^\d +(\d+) +(".*?…)', table, re.MULTILINE)
    assert len(features) == 4
    for number, label in features:
        assert number in shown
        assert label in shown


def test_targets_and_extras_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pages = [README, *(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))]
    for line in [line for page in pages for line in commands_of(page)]:
        if line.startswith("make "):
            assert line.split()[1] in targets, line
        if line.startswith("pip "):
            for extra in re.findall(r"\[([\w,]+)\]", line):
                assert set(extra.split(",")) <= set(extras), line
    installation = text_of("docs/get-started/installation.md")
    assert set(re.findall(r"^\| `(\w+)` \|", installation, re.MULTILINE)) == set(extras)


@pytest.mark.model
@pytest.mark.timeout(600)
def test_every_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", PYTHON_PATH)
    for page in ON_DEFINITIONS:
        namespace = {"__name__": page}
        run_blocks(blocks_of(text_of(page)), namespace)
        if page == "README.md":
            namespace["texts"].head(20).to_csv("documents.csv", index=False)

    program = tmp_path / "bin" / "interp-embed"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -c '
        '"from interp_embed.cli import main; main()" "$@"\n'
    )  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(program.parent), os.environ["PATH"]]))
    cluster = text_of("docs/how-to/encode-on-a-cluster.md")
    lines = commands_of(section_of(cluster, "Try it on one machine"))
    lines += commands_of(text_of("docs/reference/command-line.md"))
    assert len(lines) == 10
    for line in lines:
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout
