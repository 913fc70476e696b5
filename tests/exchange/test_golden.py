"""Stores that an earlier release left are opened, resumed and added to.

`fixtures/golden.tar.gz` is made by `fixtures/make_golden.py` and is not made again when the library
changes: what it holds is what users have on their disks.
"""

from __future__ import annotations

import importlib.util
import sys
import tarfile

import numpy as np
import pytest

from interp_embed import Dataset
from interp_embed.data import load_demo
from interp_embed.sae import LocalSAE
from interp_embed.store.verify.verifier import verify
from tests.support.fake_sae import expected
from tests.support.paths import FIXTURES, ROOT

FAILED = {3}
"""Of the documents with a text, the one that the SAE cannot encode."""


def imported(name, path):
    """Import a file as the module of a name."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# The stores name their SAE "fake_sae:WideSAE", by the path that it had in that release, and so does
# the script that made them, which says what documents are in them. The module has the name while the
# tests of this file run: others give the name to a class of their own.
FAKE_SAE = imported("fake_sae", ROOT / "tests" / "support" / "fake_sae.py")
GOLDEN = imported("make_golden", FIXTURES / "make_golden.py")
WideSAE = FAKE_SAE.WideSAE
del sys.modules["fake_sae"], sys.modules["make_golden"]


@pytest.fixture(autouse=True)
def _the_name_of_that_release(monkeypatch):
    monkeypatch.setitem(sys.modules, "fake_sae", FAKE_SAE)


@pytest.fixture
def golden(tmp_path):
    with tarfile.open(FIXTURES / "golden.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def check(dataset, texts, tolerance=0.0):
    """Compare every document's activations with what the words of its text give."""
    assert len(dataset) == len(texts)
    for row, text in zip(dataset.rows, texts, strict=True):
        if not isinstance(text, str) or "FAIL" in text:
            assert row is None
        else:
            np.testing.assert_allclose(
                row.activations.toarray(), expected(text), rtol=tolerance, atol=0
            )


def sound(path):
    assert [problem for problem in verify(path) if problem.severity != "note"] == []


def test_a_finished_store_has_its_activations_columns_labels_and_index(golden):
    dataset = Dataset.load_from_file(golden / "whole")
    texts = [*GOLDEN.DOCUMENTS["text"], *GOLDEN.APPENDED["text"]]
    check(dataset, texts)
    assert dataset.feature_labels() == {0: "zeroth", 3: "given by hand", 7: "<b>seventh</b>"}
    frame = dataset.pandas()
    np.testing.assert_array_equal(
        frame["score"], [*GOLDEN.DOCUMENTS["score"], *GOLDEN.APPENDED["score"]]
    )
    assert frame["tags"][3] == ["c"]
    assert frame["when"][1].isoformat() == "2026-01-02T00:00:00"
    best = dataset.top_documents_for_feature(0, k=1, document_only=False)
    values = dataset.filter_na_rows().latents("max")[:, 0]
    assert best[0].latents("max").ravel()[0] == values.max() > 0
    sound(golden / "whole")


@pytest.mark.parametrize("name", ["whole", "float16"])
def test_documents_are_added_to_a_finished_store(golden, name):
    dataset = Dataset.load_from_file(golden / name)
    before = len(dataset)
    dataset.append([{"text": "loyal cats", "score": 1.5}, {"text": "the end of it"}])
    check(
        dataset[before:],
        ["loyal cats", "the end of it"],
        tolerance=1e-3 if name == "float16" else 0,
    )
    again = Dataset.load_from_file(golden / name)
    assert len(again) == before + 2
    sound(golden / name)


def test_a_store_in_float16_has_its_activations(golden):
    check(Dataset.load_from_file(golden / "float16"), list(GOLDEN.DOCUMENTS["text"]), 1e-3)


def test_an_interrupted_run_goes_on_from_the_store_alone(golden):
    assert sum(s == "missing" for s in Dataset.load_from_file(golden / "half").status()) == 4
    WideSAE.loads = 0
    resumed = Dataset.load_from_file(golden / "half", resume=True)
    check(resumed, list(GOLDEN.DOCUMENTS["text"]))
    assert WideSAE.loads == 1
    sound(golden / "half")


def test_an_interrupted_run_goes_on_with_the_same_data_and_sae(golden):
    sae = WideSAE()
    Dataset(GOLDEN.DOCUMENTS, sae, save_path=golden / "half")
    assert len([text for text in sae.seen if text == "the cat sat on the mat"]) == 0
    check(Dataset.load_from_file(golden / "half"), list(GOLDEN.DOCUMENTS["text"]))


@pytest.mark.model
def test_a_run_of_the_embedded_sae_goes_on(golden):
    texts = load_demo()["text"].iloc[:6].tolist()
    resumed = Dataset.load_from_file(golden / "embedded", resume=True, device="cpu")
    assert resumed.documents() == texts
    again = Dataset([{"text": text} for text in texts], LocalSAE.embedded(device="cpu"))
    np.testing.assert_allclose(resumed.latents("max"), again.latents("max"), rtol=1e-4, atol=1e-4)
    sound(golden / "embedded")
