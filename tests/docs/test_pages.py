"""The pages are built without a warning, their links lead somewhere, and their examples run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings

import distributed
import numpy as np
import pandas as pd
import pytest

from interp_embed import Dataset
from interp_embed.testing import random_chunk, store_from_chunk
from tests.support.pages import DOCS, PAGES, ROOT, blocks_of, run_blocks, section_of, text_of

FORMAT = text_of("docs/reference/format.md")


def without_code(text):
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The headings of a page as GitHub and MyST link to them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_pages_that_the_code_names_exist():
    named = set()
    for folder in ("interp_embed", "benchmarks", "scripts", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            named |= {(name, path.name) for name in re.findall(r"docs/[\w/-]+\.md", text)}
    assert len(named) > 5
    for name, where in named:
        assert (ROOT / name).exists(), f"{where} names {name}"


def test_every_page_is_listed():
    listed = {"index"}
    for index in (DOCS / "index.md", DOCS / "reference" / "api" / "index.md"):
        folder = index.parent.relative_to(DOCS)
        for kind, block in blocks_of(index.read_text(encoding="utf-8")):
            if kind == "{toctree}":
                names = [line for line in block.splitlines() if line and not line.startswith(":")]
                listed |= {(folder / name).as_posix() for name in names}
    assert listed == {p.relative_to(DOCS).with_suffix("").as_posix() for p in DOCS.rglob("*.md")}


@pytest.mark.docs
@pytest.mark.timeout(300)
def test_the_pages_are_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    done = subprocess.run(
        [*command, "-b", "html", str(DOCS), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "api" / "dataset.html").read_text(encoding="utf-8")
    assert 'id="interp_embed.Dataset.top_documents_for_feature"' in page
    commands = (tmp_path / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert "--requests-per-minute" in commands
    # Nothing is loaded from elsewhere when a page is read.
    loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=\"(https?:[^\"]*)", page)
    assert not loaded


def test_the_description_of_the_format_reads_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chunk = random_chunk(3, 50, d_sae=70, failures=False)
    store_from_chunk("corpus.zarr", chunk, documents_per_chunk=8, finished=False)
    dataset = Dataset.load_from_file("corpus.zarr")
    namespace = {"__name__": "format.md"}
    run_python(FORMAT, namespace)
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
    monkeypatch.setattr("interp_embed.store.format.document_blocks.BLOCK_DOCUMENTS", 3)
    frame = pd.DataFrame({"other": range(4), "text": pd.Series(texts, dtype=object)})
    chunk = random_chunk(0, 4, d_sae=7, failures=False)
    store = store_from_chunk("corpus.zarr", chunk, frame)
    assert [c["kind"] for c in store.plan.columns] == ["plain", kind]
    assert len(store.plan.blocks) == 2
    namespace = {"__name__": "format.md"}
    run_python(FORMAT, namespace)
    assert namespace["texts"] == texts


def run_python(text, namespace):
    run_blocks([block for block in blocks_of(text) if block[0] == "python"], namespace)


def test_the_example_of_an_sae_of_ones_own_runs():
    blocks = blocks_of(section_of(text_of("docs/how-to/write-an-sae.md"), "Three methods"))
    assert [kind for kind, _ in blocks] == ["python", "python", "text"]
    run_blocks(blocks, {"__name__": "write-an-sae.md"})


def test_the_example_of_a_service_is_a_class_that_can_be_made(monkeypatch):
    pytest.importorskip("httpx")
    blocks = blocks_of(section_of(text_of("docs/reference/saes.md"), "ApiSAE"))
    assert [kind for kind, _ in blocks] == ["python"]
    namespace = {"__name__": "saes.md"}
    run_blocks(blocks, namespace)
    assert not namespace["ServiceSAE"]().is_loaded()


def test_the_page_on_lazy_arrays_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chunk = random_chunk(1, 60, d_sae=70, negative=False)
    texts = [None if n == 2 else f"text {i}" for i, n in enumerate(chunk.status)]
    frame = pd.DataFrame({"text": texts, "group": ["food", "animal"] * 30})
    labels = {3: "three"}
    store_from_chunk("corpus.zarr", chunk, frame, documents_per_chunk=8, feature_labels=labels)
    blocks = blocks_of(text_of("docs/how-to/lazy-arrays.md"))
    assert {kind for kind, _ in blocks} == {"python", "text"}
    run_blocks(blocks, {"__name__": "lazy-arrays.md"})


def test_the_script_that_aggregates_on_a_cluster_runs(tmp_path):
    page = blocks_of(text_of("docs/how-to/aggregate-on-a-cluster.md"))
    script = next(text for kind, text in page if kind == "python" and "argv" in text)
    (tmp_path / "frequent.py").write_text(script)
    path = tmp_path / "corpus.zarr"
    store_from_chunk(path, random_chunk(2, 60, d_sae=70), documents_per_chunk=8)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as cluster:
        child = subprocess.run(
            [sys.executable, "frequent.py", str(path), "out.csv", cluster.scheduler_address],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert child.returncode == 0, child.stderr
    assert len(re.findall(r"feature \d+: [\d.]+% of documents, median [\d.]+", child.stdout)) == 10
    table = pd.read_csv(tmp_path / "out.csv")
    expected = Dataset.load_from_file(path).feature_statistics()["document_frequency"]
    np.testing.assert_array_equal(table["document_frequency"], expected)
