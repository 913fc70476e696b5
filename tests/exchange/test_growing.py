"""Adding documents to a store, and joining stores: the same as if they had come together."""

from __future__ import annotations

import itertools
import shutil
import uuid

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import interp_embed
from interp_embed import Dataset
from interp_embed.cli.run import run as run_cli
from interp_embed.errors import CorruptStoreError, FingerprintMismatchError, StoreExistsError
from interp_embed.selection.selection import Selection
from interp_embed.store import Store, is_store
from interp_embed.store.format import document_blocks as blocks
from interp_embed.store.storage import LocalStorage, open_storage
from interp_embed.store.verify.verifier import verify
from interp_embed.store.write.compaction import collect_garbage
from interp_embed.testing import (
    FaultyStorage,
    InjectedError,
    assert_chunks_equal,
    dense,
    oracle,
    random_chunk,
    read_everything,
    store_from_chunk,
)
from tests.support.fake_sae import WideSAE, WordSAE
from tests.support.hypotheses import examples


def made(path, data, **settings):
    return Dataset(data, WordSAE(), save_path=path, save_every_batch=1, batch_size=2, **settings)


def assert_same(found, expected):
    """Compare two datasets: columns, rows, aggregates, failures."""
    pd.testing.assert_frame_equal(found.pandas(), expected.pandas())
    assert found.status().tolist() == expected.status().tolist()
    assert found.failures().equals(expected.failures())
    for method in ("max", "sum", "count", "mean"):
        np.testing.assert_array_equal(found.latents(method), expected.latents(method))
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.tokenized_document == b.tokenized_document
            assert (a.activations != b.activations).nnz == 0


def errors(path):
    return [problem for problem in verify(path) if problem.severity == "error"]


# Appending


def test_a_run_that_began_earlier_leaves_added_documents_alone(tmp_path, data):
    data[3]["text"] = "python FAIL language"
    made(tmp_path / "s", data[:6])
    earlier, later = (Dataset.load_from_file(tmp_path / "s") for _ in range(2))
    later.append(data[6:], compute_activations=False)
    earlier._compute(2)  # tries the failed document again, and clears up
    found = Dataset.load_from_file(tmp_path / "s")
    assert found.documents() == [record["text"] for record in data]
    assert errors(tmp_path / "s") == []


def test_a_lost_object_of_the_plan_is_noticed(tmp_path, data):
    grown = made(tmp_path / "s", data[:4])
    grown.append(data[4:])
    (tmp_path / "s/plan-000001.json").unlink()
    with pytest.raises(CorruptStoreError, match="the plan says that there are 4"):
        Dataset.load_from_file(tmp_path / "s")


@pytest.mark.parametrize("cut", [1, 4, 11])
def test_documents_added_are_as_if_they_had_been_there(tmp_path, data, cut):
    data[5]["text"] = None
    data[9]["text"] = "python FAIL language"
    whole = made(tmp_path / "whole", data)
    grown = made(tmp_path / "grown", pd.DataFrame(data[:cut], columns=list(data[0])))
    grown.append(data[cut:])
    assert len(grown) == len(data)
    assert_same(grown, whole)
    assert_same(Dataset.load_from_file(tmp_path / "grown"), whole)
    assert errors(tmp_path / "grown") == []
    assert (tmp_path / "grown/plan-000001.json").exists() == (cut < len(data))


def test_documents_are_added_to_none(tmp_path, data):
    grown = made(tmp_path / "s", [])
    grown.append(data)
    whole = made(tmp_path / "whole", data)
    assert grown.documents() == whole.documents()
    np.testing.assert_array_equal(grown.latents("max"), whole.latents("max"))
    assert errors(tmp_path / "s") == []


def test_documents_are_added_again_and_again(tmp_path, data):
    whole = made(tmp_path / "whole", data)
    grown = made(tmp_path / "grown", data[:3])
    for start, stop in ((3, 4), (4, 9), (9, 11)):
        grown.append(pd.DataFrame(data[start:stop]))
        assert grown[stop - 1].row["score"] == data[stop - 1]["score"]
        assert errors(tmp_path / "grown") == []
    assert_same(grown, whole)
    assert Store(tmp_path / "grown").plan.additions == 3


def test_columns_of_added_documents_are_united(tmp_path):
    grown = made(tmp_path / "s", pd.DataFrame({"text": ["a", "b"], "n": [1, 2], "old": ["x", "y"]}))
    grown.append(pd.DataFrame({"text": ["c"], "n": [0.5], "new": [True]}))
    grown.append(pd.DataFrame({"text": ["d"], "n": [7]}))
    for dataset in (grown, Dataset.load_from_file(tmp_path / "s")):
        frame = dataset.pandas()
        assert frame["text"].tolist() == ["a", "b", "c", "d"]
        assert frame["n"].tolist() == [1, 2, 0.5, 7]
        assert frame["old"].tolist() == ["x", "y", None, None]
        assert frame["new"].tolist() == [pd.NA, pd.NA, True, pd.NA]
        assert dataset.columns == ["text", "n", "old", "new"]
    assert errors(tmp_path / "s") == []


def test_documents_may_be_added_now_and_encoded_later(tmp_path, data):
    grown = made(tmp_path / "s", data[:5])
    grown.append(data[5:], compute_activations=False)
    assert grown.status().tolist() == ["ok"] * 5 + ["missing"] * 6
    with pytest.raises(ValueError, match=r"6 documents of the store .* are not encoded yet"):
        grown.append(data[:1])
    resumed = Dataset.load_from_file(tmp_path / "s", resume=True)
    assert_same(resumed, made(tmp_path / "whole", data))


def test_nothing_to_add_changes_nothing(tmp_path, data):
    grown = made(tmp_path / "s", data)
    before = sorted(p for p in (tmp_path / "s").rglob("*"))
    grown.append([])
    assert sorted(p for p in (tmp_path / "s").rglob("*")) == before
    assert len(grown) == len(data)


def test_an_sae_that_cannot_be_had_leaves_the_store_as_it_was(tmp_path, data, monkeypatch):
    made(tmp_path / "s", data[:5])
    grown = Dataset.load_from_file(tmp_path / "s")

    def gone(self):
        raise ConnectionError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(WordSAE, "load_models", gone)
        with pytest.raises(ConnectionError, match="the server is gone"):
            grown.append(data[5:])
    assert len(grown) == len(Dataset.load_from_file(tmp_path / "s")) == 5
    grown.append(data[5:])
    assert_same(grown, made(tmp_path / "whole", data))


def test_parts_of_a_store_are_not_added_to(tmp_path, data):
    dataset = made(tmp_path / "s", data)
    for part in (dataset[:4], dataset.sort_by_features(3), dataset[::-1]):
        with pytest.raises(ValueError, match="cannot be added to"):
            part.append(data[:1])
    dataset.sae = WideSAE()
    with pytest.raises(FingerprintMismatchError, match="Differences: "):
        dataset.append(data[:1])
    dataset.sae = None
    with pytest.raises(ValueError, match="cannot be rebuilt"):
        dataset.append(data[:1])
    assert len(Store(tmp_path / "s").plan.blocks) == 1


def test_the_index_covers_what_was_added(tmp_path, data):
    grown = made(tmp_path / "s", data[:6])
    grown.build_index()
    grown.append(data[6:])
    index = Store(tmp_path / "s").index()
    assert index.is_complete
    assert index.documents_covered == 11
    whole = made(tmp_path / "whole", data)
    for feature in range(8):
        assert grown.top_documents_for_feature(feature) == whole.top_documents_for_feature(feature)


def test_documents_that_were_cleared_away_while_they_were_written_are_not_planned(
    tmp_path, data, monkeypatch
):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 2)
    monkeypatch.setattr("interp_embed.inputs.readers._PIECE_RECORDS", 2)
    grown = made(tmp_path / "s", data[:3])

    def cleared():
        yield from data[3:8]
        collect_garbage(Store(tmp_path / "s"))  # by another process
        yield from data[8:]

    with pytest.raises(CorruptStoreError, match=r"documents 3 to 4, just written .* are gone"):
        grown.append(cleared())
    assert errors(tmp_path / "s") == []
    grown.append(iter(data[3:]))
    assert grown.documents() == [record["text"] for record in data]
    assert errors(tmp_path / "s") == []


def test_adding_that_is_interrupted_anywhere_can_be_repeated(quick_path, data):
    """Every call of the storage fails once; then the same is called again, or the rest encoded."""
    made(quick_path / "start", data[:4])
    made(quick_path / "whole", data)
    whole = Dataset.load_from_file(quick_path / "whole")

    def grow(storage):
        dataset = Dataset.from_selection(Selection.whole(Store(storage)), WordSAE())
        dataset.append(data[4:])

    shutil.copytree(quick_path / "start", quick_path / "count")
    counted = FaultyStorage(LocalStorage(quick_path / "count"))
    grow(counted)
    opening = 8  # reads of a store that is opened
    for fail_at in range(opening, len(counted.calls), 13):
        path = quick_path / f"s{fail_at}"
        shutil.copytree(quick_path / "start", path)
        with pytest.raises(InjectedError):
            grow(FaultyStorage(LocalStorage(path), fail_at))
        found = Dataset.load_from_file(path, resume=True)
        if len(found) == 4:
            found.append(data[4:])
        assert_same(found, whole)
        assert errors(path) == []
        shutil.rmtree(path)


# Merging


@settings(max_examples=examples(25))
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 99), st.booleans())
def test_merged_stores_are_what_their_documents_are(tmp_path_factory, sizes, seed, finished):
    folder = tmp_path_factory.mktemp("merge")
    chunk = random_chunk(seed, sum(sizes), d_sae=40, mean_tokens=4)
    cuts = np.cumsum([0, *sizes])
    paths = []
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        part = chunk.take(np.arange(start, stop)).with_doc_id(np.arange(stop - start))
        paths.append(folder / str(number))
        store_from_chunk(paths[-1], part, finished=finished)
    merged = interp_embed.merge(paths, folder / "out")
    store = Store(folder / "out")
    assert_chunks_equal(read_everything(store), chunk)
    assert errors(folder / "out") == []
    np.testing.assert_allclose(
        merged.latents("sum"), oracle(dense(chunk), "sum", d_sae=40), rtol=1e-5, atol=1e-5
    )
    # ... and stays so when its chunks are merged in turn
    assert run_cli(["compact", str(folder / "out")]) == 0
    assert_chunks_equal(read_everything(Store(folder / "out")), chunk)
    assert errors(folder / "out") == []
    shutil.rmtree(folder)


def test_merged_objects_are_the_same_files(tmp_path, data):
    made(tmp_path / "a", data[:5])
    made(tmp_path / "b", data[5:])
    merged = interp_embed.merge([tmp_path / "a", str(tmp_path / "b")], tmp_path / "out")
    assert_same(merged, made(tmp_path / "whole", data))
    commits = Store(tmp_path / "out").ledger.live
    assert [(c.start, c.shift) for c in commits if c.shift] == [(5, 5)]
    for commit in commits:
        for file in (tmp_path / "out" / commit.folder.key).rglob("c/0"):
            assert file.stat().st_nlink == 2
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    assert errors(tmp_path / "out") == []
    assert_same(Dataset.load_from_file(tmp_path / "out"), merged)


def test_columns_of_merged_stores_are_united(tmp_path):
    made(tmp_path / "a", pd.DataFrame({"text": ["a", "b"], "n": [1, 2]}))
    made(tmp_path / "b", pd.DataFrame({"text": ["c"], "source": ["web"]}))
    merged = interp_embed.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    frame = merged.pandas()
    assert frame["text"].tolist() == ["a", "b", "c"]
    assert frame["n"].tolist() == [1, 2, pd.NA]
    assert frame["source"].tolist() == [None, None, "web"]
    assert errors(tmp_path / "out") == []
    merged.append([{"text": "d", "n": 4}])
    assert Dataset.load_from_file(tmp_path / "out").pandas()["n"].tolist() == [1, 2, pd.NA, 4]
    assert errors(tmp_path / "out") == []


def test_a_store_grown_and_merged_twice_is_read_right(tmp_path, data):
    grown = made(tmp_path / "a", data[:3])
    grown.append(data[3:7])
    made(tmp_path / "b", data[7:])
    first = interp_embed.merge([grown, tmp_path / "b"], tmp_path / "first")
    assert_same(first, made(tmp_path / "whole", data))
    second = interp_embed.merge([tmp_path / "first", tmp_path / "first"], tmp_path / "second")
    assert_same(second, made(tmp_path / "twice", [*data, *data]))
    assert errors(tmp_path / "second") == []


def test_documents_added_since_a_dataset_was_opened_are_merged_too(tmp_path, data):
    """Their chunks may hold older documents as well, and must not reach into the next store's."""
    made(tmp_path / "a", data[:3])
    made(tmp_path / "b", data[7:])
    stale = Dataset.load_from_file(tmp_path / "a")
    other = Dataset.load_from_file(tmp_path / "a")
    for document in data[3:7]:
        other.append([document])
    merged = interp_embed.merge([stale, tmp_path / "b"], tmp_path / "out")
    assert_same(merged, made(tmp_path / "whole", data))
    assert errors(tmp_path / "out") == []
    assert len(stale) == 3
    shutil.rmtree(tmp_path / "a")
    made(tmp_path / "a", data)
    with pytest.raises(CorruptStoreError, match="replaced"):
        interp_embed.merge([stale], tmp_path / "again")


@pytest.mark.parametrize("failed", [[None, None], ["a FAIL", "FAIL"]])
def test_a_store_in_which_all_failed_is_merged_though_it_knows_less(tmp_path, data, failed):
    records = [{**data[0], "text": text} for text in failed]
    made(tmp_path / "a", records)
    made(tmp_path / "b", data)
    assert Store(tmp_path / "a").d_sae is None
    merged = interp_embed.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert_same(merged, made(tmp_path / "whole", records + data))
    assert merged.status().tolist()[:3] == ["failed", "failed", "ok"]
    assert errors(tmp_path / "out") == []
    both = interp_embed.merge([tmp_path / "b", tmp_path / "a"], tmp_path / "back")
    assert both.status().tolist()[-2:] == ["failed", "failed"]
    assert run_cli(["compact", str(tmp_path / "out")]) == 0
    assert errors(tmp_path / "out") == []


def test_other_settings_are_not_merged(tmp_path, data):
    made(tmp_path / "a", data[:3])
    made(tmp_path / "half", data[3:], dtype="float16")
    Dataset(data, WideSAE(), save_path=tmp_path / "wide")
    with pytest.raises(FingerprintMismatchError, match="dtype: 'float32' and 'float16'"):
        interp_embed.merge([tmp_path / "a", tmp_path / "half"], tmp_path / "out")
    with pytest.raises(FingerprintMismatchError, match="sae"):
        interp_embed.merge([tmp_path / "a", tmp_path / "wide"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(StoreExistsError):
        interp_embed.merge([tmp_path / "a"], tmp_path / "half")
    for stores in ([], str(tmp_path / "a"), tmp_path / "a", iter([tmp_path / "a"])):
        with pytest.raises(ValueError, match="must be a list"):
            interp_embed.merge(stores, tmp_path / "out")
    with pytest.raises(ValueError, match="cannot be merged"):
        interp_embed.merge([Dataset.load_from_file(tmp_path / "a")[:2]], tmp_path / "out")


def test_documents_that_are_missing_stay_missing(tmp_path, data):
    made(tmp_path / "a", data[:4])
    made(tmp_path / "b", data[4:], compute_activations=False)
    merged = interp_embed.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert merged.status().tolist() == ["ok"] * 4 + ["missing"] * 7
    resumed = Dataset.load_from_file(tmp_path / "out", resume=True)
    assert_same(resumed, made(tmp_path / "whole", data))


def test_damage_is_not_merged(tmp_path, data, monkeypatch):
    made(tmp_path / "a", data)
    folder = tmp_path / "a" / Store(tmp_path / "a").ledger.live[0].folder.key
    victim = folder / "activation/c/0"
    content = bytearray(victim.read_bytes())
    content[3] ^= 1
    victim.write_bytes(content)
    monkeypatch.setattr(LocalStorage, "link", lambda *_: False)  # as on another disk
    with pytest.raises(CorruptStoreError, match="is not what was committed"):
        interp_embed.merge([tmp_path / "a"], tmp_path / "out")
    assert not is_store(tmp_path / "out")


def test_merging_that_is_cut_off_is_no_store_and_goes_on(quick_path, data, monkeypatch):
    made(quick_path / "a", data[:5])
    made(quick_path / "b", data[5:])
    paths = [quick_path / "a", quick_path / "b"]
    whole = made(quick_path / "whole", data)
    from interp_embed.exchange import joining

    real = joining.open_storage
    counted = FaultyStorage(LocalStorage(quick_path / "count"))
    with monkeypatch.context() as patch:
        patch.setattr(joining, "open_storage", lambda _: counted)
        interp_embed.merge(paths, quick_path / "count")
    for fail_at in range(3, len(counted.calls), 4):
        out = quick_path / f"out{fail_at}"
        with monkeypatch.context() as patch:
            broken = FaultyStorage(LocalStorage(out), fail_at)
            patch.setattr(joining, "open_storage", lambda _, broken=broken: broken)
            with pytest.raises(InjectedError):
                interp_embed.merge(paths, out)
        assert joining.open_storage is real
        if not is_store(out):
            with pytest.raises(FileNotFoundError, match="no store"):
                Dataset.load_from_file(out)
            assert_same(interp_embed.merge(paths, out), whole)
        assert_same(Dataset.load_from_file(out), whole)
        assert errors(out) == []
        shutil.rmtree(out)


def test_stores_are_merged_across_storages(tmp_path, data):
    made(tmp_path / "a", data[:5])
    url = f"memory://{uuid.uuid4().hex}"
    made(f"{url}/b", data[5:])
    merged = interp_embed.merge([tmp_path / "a", f"{url}/b"], f"{url}/out")
    assert_same(merged, made(tmp_path / "whole", data))
    assert errors(f"{url}/out") == []
    assert "saving.json" not in dict(open_storage(f"{url}/out").list())


# The command line


def test_the_command_line_adds_and_merges(tmp_path, data, capsys):
    frame = pd.DataFrame(data)
    frame[:4].to_parquet(tmp_path / "a.parquet")
    frame[4:8].to_json(tmp_path / "b.jsonl", orient="records", lines=True)
    frame[8:].to_parquet(tmp_path / "c.parquet")
    sae = ["--sae", "tests.support.fake_sae:WordSAE"]
    for name in ("a", "c"):
        source, store = str(tmp_path / f"{name}.parquet"), str(tmp_path / name)
        assert run_cli(["encode", source, store, *sae]) == 0
    assert run_cli(["append", str(tmp_path / "b.jsonl"), str(tmp_path / "a")]) == 0
    assert "4 documents added, 8 now" in capsys.readouterr().out
    out = str(tmp_path / "out")
    assert run_cli(["merge", out, str(tmp_path / "a"), str(tmp_path / "c")]) == 0
    assert "11 documents of 2 stores" in capsys.readouterr().out
    assert run_cli(["verify", out]) == 0
    found = Dataset.load_from_file(out)
    assert found.documents() == [record["text"] for record in data]
    np.testing.assert_array_equal(
        found.latents("max"), made(tmp_path / "whole", data).latents("max")
    )
    assert run_cli(["merge", out, str(tmp_path / "a")]) == 1
    assert "give another path" in capsys.readouterr().err


def test_views_have_the_columns_that_were_added_whatever_they_were_asked_before(tmp_path):
    dataset = Dataset([{"text": "the cat"}, {"text": "sat"}], WordSAE(), save_path=tmp_path / "s")
    asked, fresh = dataset[:1], dataset[:1]
    assert list(asked.pandas().columns) == asked.columns == ["text"]
    assert asked.rows[0].row == {"text": "the cat"}
    dataset.append([{"text": "mat", "extra": 1}])
    for view in (asked, fresh, dataset[:1]):
        assert list(view.pandas().columns) == list(view.dataset.columns) == view.columns
        assert view.columns == ["text", "extra"]
        assert view.rows[0].row == view.list()[0] == {"text": "the cat", "extra": None}
        assert len(view) == len(view.rows) == 1
    held = dataset.rows
    assert dataset.rows is held  # what was read stays
    assert dataset.pandas()["extra"].tolist()[2] == 1
