"""The name by which a store records the class of an SAE: a class may move, and its stores go on."""

from __future__ import annotations

import sys
import tarfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from interp_embed import Dataset, merge
from interp_embed.core.recorded_names import FORMER_NAMES, current_name
from interp_embed.errors import FingerprintMismatchError
from interp_embed.sae import BaseSAE, GoodfireApiSAE, GoodfireSAE, HttpSAE, LocalSAE
from interp_embed.sae.loading import load_sae_from_metadata, sae_record
from interp_embed.store.fingerprint import check_fingerprint, fingerprint_differences
from interp_embed.store.store import Store
from interp_embed.store.verify.verifier import verify
from interp_embed.testing import ReplaySAE, random_chunk
from tests.support.fake_sae import WordSAE, expected

FIXTURES = next(p / "fixtures" for p in Path(__file__).parents if (p / "fixtures").is_dir())
OLD = "interp_embed.testing.saes:ReplaySAE"
NEW = "interp_embed.testing:ReplaySAE"
LIBRARY = {
    "interp_embed.sae:LocalSAE": lambda: LocalSAE.embedded(),
    "interp_embed.sae:GoodfireSAE": lambda: GoodfireSAE("Llama-3.1-8B-Instruct-SAE-l19"),
    "interp_embed.sae:GoodfireApiSAE": lambda: GoodfireApiSAE("meta-llama/Llama-3.3-70B-Instruct"),
    "interp_embed.sae:HttpSAE": lambda: HttpSAE("http://localhost:1"),
    NEW: ReplaySAE,
}


MOVED = f"""
from {WordSAE.__module__} import D_SAE, WordSAE

class MovedSAE(WordSAE):
    recorded_as = "fake_sae:WideSAE"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._d_sae = D_SAE

class BelowSAE(MovedSAE):
    pass
"""


class ReplayedSAE(ReplaySAE):
    """A user's subclass of a class of the library."""


@pytest.fixture
def moved(tmp_path, monkeypatch):
    """A module with a class that earlier stores know under another name, and a subclass of it.

    It is unloaded afterwards: other tests mean the class that has this name by itself.
    """
    (tmp_path / "moved_sae.py").write_text(MOVED)
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("moved_sae")
    del sys.modules["moved_sae"]


@pytest.fixture(scope="module")
def chunk():
    """Eight documents that can be replayed: each has tokens."""
    found = random_chunk(0, 20, d_sae=20, failures=False)
    return found.take(np.flatnonzero(np.diff(found.doc_ptr) > 2)[:8])


def recorded(monkeypatch, name):
    """Have ReplaySAE record itself under a name, as another version did or does."""
    monkeypatch.setattr(ReplaySAE, "recorded_as", name)


def made(path, chunk, n=6, first=0):
    sae = ReplaySAE(chunk)
    sae.load()
    texts = [{"text": f"{i} of the texts"} for i in range(first, first + n)]
    return Dataset(texts, sae, save_path=path, save_every_batch=1, batch_size=2)


def name_of(path):
    attributes = Store(path).attributes
    assert attributes["sae"]["sae_class"] == attributes["fingerprint"]["class"]
    return attributes["sae"]["sae_class"]


def errors(path):
    return [problem for problem in verify(path) if problem.severity == "error"]


def test_a_class_is_recorded_by_where_it_is_unless_it_says_otherwise(moved):
    assert ReplayedSAE.recorded_as == f"{__name__}:ReplayedSAE"
    assert moved.MovedSAE.recorded_as == "fake_sae:WideSAE"
    assert moved.BelowSAE.recorded_as == "moved_sae:BelowSAE"
    for cls in (moved.MovedSAE, moved.BelowSAE):
        assert cls().fingerprint()["class"] == sae_record(cls())["sae_class"] == cls.recorded_as


@pytest.mark.parametrize("name", ["Moved", "", ":Moved", "module:", None, 3])
def test_a_name_of_another_form_is_refused_where_the_class_is_defined(name):
    with pytest.raises(ValueError, match="must have the form 'module:name', got"):
        type("Misnamed", (BaseSAE,), {"recorded_as": name})


@pytest.mark.parametrize("name", LIBRARY)
def test_classes_of_the_library_are_recorded_by_their_public_names(name):
    sae = LIBRARY[name]()
    assert sae_record(sae)["sae_class"] == sae.fingerprint()["class"] == name
    module, _, attribute = name.partition(":")
    assert getattr(import_module(module), attribute) is type(sae)


def test_every_former_name_leads_to_a_class_of_the_library():
    assert set(FORMER_NAMES.values()) == set(LIBRARY)
    assert [current_name(new) for new in LIBRARY] == list(LIBRARY)


@pytest.mark.parametrize("former", FORMER_NAMES)
def test_an_sae_is_built_from_a_record_with_a_former_name(former):
    sae = LIBRARY[FORMER_NAMES[former]]()
    again = load_sae_from_metadata({**sae.metadata(), "sae_class": former})
    assert type(again) is type(sae)
    assert again.metadata() == sae.metadata()
    assert again.fingerprint() == sae.fingerprint()


def test_a_class_is_found_by_what_it_is_recorded_as(moved):
    sae = load_sae_from_metadata({"sae_class": "fake_sae:WideSAE", "scale": 2.0})
    assert type(sae) is moved.MovedSAE
    assert sae.scale == 2.0


def test_of_classes_with_one_name_the_last_one_counts():
    def again():
        return type("AgainSAE", (WordSAE,), {"recorded_as": "notebook:AgainSAE"})

    kept = [again(), again()]
    assert type(load_sae_from_metadata({"sae_class": "notebook:AgainSAE"})) is kept[1]


@pytest.mark.parametrize("former", FORMER_NAMES)
def test_former_and_present_names_are_no_difference(former):
    old, new = {"class": former, "k": 1}, {"class": FORMER_NAMES[former], "k": 1}
    assert fingerprint_differences(old, new) == fingerprint_differences(new, old) == []
    behind = {"server": {"server": old}}, {"server": {"server": new}}
    assert fingerprint_differences(*behind) == fingerprint_differences(*behind[::-1]) == []
    assert fingerprint_differences({"k": former}, {"k": FORMER_NAMES[former]}) != []


def test_other_classes_are_a_difference():
    local, http = "interp_embed.sae.local:LocalSAE", "interp_embed.sae:HttpSAE"
    assert fingerprint_differences({"class": local}, {"class": http}) == [("class", local, http)]
    assert fingerprint_differences({"class": {"a": 1}}, {"class": {"a": 2}}) == [("class.a", 1, 2)]


@pytest.mark.parametrize(("before", "now"), [(OLD, NEW), (NEW, OLD)])
def test_a_run_goes_on_under_another_name(tmp_path, monkeypatch, chunk, before, now):
    recorded(monkeypatch, before)
    dataset = made(tmp_path / "s", chunk)
    expected_values = dataset.latents("max")
    recorded(monkeypatch, now)
    sae = ReplaySAE(chunk)
    sae.load()
    check_fingerprint(Store(tmp_path / "s"), sae.fingerprint())
    again = Dataset.load_from_file(tmp_path / "s")
    again.sae = sae
    again.append([{"text": "6 more"}, {"text": "7 more"}])
    assert name_of(tmp_path / "s") == before
    np.testing.assert_array_equal(again[:6].latents("max"), expected_values)
    assert (again.status() == "ok").all()
    assert errors(tmp_path / "s") == []


def test_a_run_does_not_go_on_with_a_subclass(tmp_path, chunk):
    made(tmp_path / "s", chunk)
    with pytest.raises(FingerprintMismatchError, match="ReplayedSAE"):
        check_fingerprint(Store(tmp_path / "s"), ReplayedSAE(chunk).fingerprint())


@pytest.mark.parametrize("names", [(OLD, NEW), (NEW, OLD)])
def test_stores_under_two_names_are_merged_and_the_result_is_added_to(
    tmp_path, monkeypatch, chunk, names
):
    for number, name in enumerate(names):
        recorded(monkeypatch, name)
        made(tmp_path / f"{number}", chunk, n=3, first=3 * number)
    recorded(monkeypatch, NEW)
    merged = merge([tmp_path / "0", tmp_path / "1"], tmp_path / "both")
    assert errors(tmp_path / "both") == []
    assert name_of(tmp_path / "both") == names[0]
    merged.sae = ReplaySAE(chunk)
    merged.sae.load()
    merged.append([{"text": "6 more"}])
    assert errors(tmp_path / "both") == []
    whole = made(tmp_path / "whole", chunk, n=7)
    np.testing.assert_array_equal(merged.latents("max"), whole.latents("max"))


def test_a_store_goes_on_with_the_class_that_has_moved(tmp_path, moved):
    with tarfile.open(FIXTURES / "golden.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    assert name_of(tmp_path / "half") == "fake_sae:WideSAE"
    resumed = Dataset.load_from_file(tmp_path / "half", resume=True)
    assert type(resumed.sae) is moved.MovedSAE
    assert resumed.sae.seen == ["  two  spaces  ", "the the the", "loyal pets sat on python"]
    for row, text in zip(resumed.rows, resumed.documents(), strict=True):
        if row is not None:
            np.testing.assert_array_equal(row.activations.toarray(), expected(text))
    assert errors(tmp_path / "half") == []
