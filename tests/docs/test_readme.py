"""Every block of the README does what it says, and prints what stands below it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interp_embed import Dataset
from interp_embed.testing import random_chunk, store_from_chunk

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FORMAT = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
PYTHON_PATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def same(found, expected):
    """Whether two texts have the same words, numbers to within 0.03: another CPU rounds otherwise."""
    a, b = found.split(), expected.split()
    return len(a) == len(b) and all(x == y or near(x, y) for x, y in zip(a, b, strict=True))


def near(x, y):
    try:
        return "." in x and abs(float(x) - float(y)) < 0.03
    except ValueError:
        return False


def shell_lines():
    return [
        line.split("#")[0].strip()
        for kind, text in BLOCKS
        if kind == "sh"
        for line in text.splitlines()
        if line.strip()
    ]


def test_every_block_says_what_it_is():
    assert {kind for kind, _ in BLOCKS} == {"sh", "python", "text"}
    for (kind, _), (before, _) in zip(BLOCKS[1:], BLOCKS, strict=False):
        assert kind != "text" or before == "python"


def test_the_first_thing_is_how_to_start():
    assert BLOCKS[0][0] == "sh"
    assert [line.split()[:2] for line in BLOCKS[0][1].splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]


def test_targets_and_extras_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in shell_lines():
        if line.startswith("make "):
            assert line.split()[1] in targets, line
        if line.startswith("pip "):
            for extra in re.findall(r"\[(\w+)\]", line):
                assert extra in project["optional-dependencies"], line
    for extra in re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE):
        assert extra in project["optional-dependencies"], extra


def test_links_lead_somewhere():
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for document in documents:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_description_of_the_format_reads_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chunk = random_chunk(3, 50, d_sae=70, failures=False)
    store_from_chunk("corpus.zarr", chunk, documents_per_chunk=8, finished=False)
    dataset = Dataset.load_from_file("corpus.zarr")
    namespace = {"__name__": "format.md"}
    blocks = re.findall(r"^```(python)\n(.*?)^```$", FORMAT, re.MULTILINE | re.DOTALL)
    run_blocks(blocks, namespace)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr")
        for document in range(50):
            found = namespace["activations"](document)
            assert (found != chunk.csr(document)).nnz == 0
    first = namespace["commits"][namespace["counts"][0]]
    dense = dataset[first["start"] : first["stop"]].latents("sum")
    np.testing.assert_allclose(namespace["sums"], dense[dense != 0], rtol=1e-6)
    assert namespace["texts"] == dataset.documents()


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["a", "", "NA", "b" * 5], "string"),
        (["a", None, "", "b"], "string"),
        (["a", None, "\ud800 lone\n", "\\n é"], "escaped"),
        (["a", None, 5, ["b", None]], "json"),
        (["a", "", {"b": 1.5}, True], "json"),
    ],
)
def test_the_description_of_the_format_reads_every_kind_of_text(tmp_path, monkeypatch, texts, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("interp_embed.store.blocks.BLOCK_DOCUMENTS", 3)
    frame = pd.DataFrame({"other": range(4), "text": pd.Series(texts, dtype=object)})
    chunk = random_chunk(0, 4, d_sae=7, failures=False)
    store = store_from_chunk("corpus.zarr", chunk, frame)
    assert [c["kind"] for c in store.plan.columns] == ["plain", kind]
    assert len(store.plan.blocks) == 2
    namespace = {"__name__": "format.md"}
    run_blocks(re.findall(r"^```(python)\n(.*?)^```$", FORMAT, re.MULTILINE | re.DOTALL), namespace)
    assert namespace["texts"] == texts


def run_blocks(blocks, namespace):
    """Execute python blocks in order; what one prints must stand in the text block below it."""
    printed = ""
    for kind, text in blocks:
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out, warnings.catch_warnings():
                # The one that the README speaks of.
                warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr")
                exec(compile(text, namespace["__name__"], "exec"), namespace)
            printed = out.getvalue()
        elif kind == "text":
            assert same(printed, text), printed


def test_the_example_of_an_sae_of_ones_own_runs():
    text = (ROOT / "docs" / "sae.md").read_text(encoding="utf-8")
    text = text.partition("\n## An SAE of your own\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "python", "text"]
    run_blocks(blocks, {"__name__": "sae.md"})


@pytest.mark.model
@pytest.mark.timeout(300)
def test_every_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", PYTHON_PATH)
    namespace = {"__name__": "README.md"}
    run_blocks(BLOCKS, namespace)

    namespace["texts"].head(20).to_csv("documents.csv", index=False)
    program = tmp_path / "bin" / "interp-embed"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -c '
        '"from interp_embed.cli import main; main()" "$@"\n'
    )  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(program.parent), os.environ["PATH"]]))
    lines = [line for line in shell_lines() if line.startswith("interp-embed ")]
    assert len(lines) == 10
    for line in lines:
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout
