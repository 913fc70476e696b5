"""Damage of any kind to any file: `verify` names it, and reading never gives wrong data."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interp_embed.core.chunk import DocumentStatus
from interp_embed.errors import (
    CorruptStoreError,
    NotAStoreError,
    UnsupportedFormatError,
)
from interp_embed.inputs import batches as pieces
from interp_embed.kernels.document_level import pool
from interp_embed.store import MISSING, Store, StoreWriter, create_store
from interp_embed.store.format.document_blocks import describe_block
from interp_embed.store.format.sealed import seal, unseal
from interp_embed.store.verify.verifier import Problem, verify
from interp_embed.testing import (
    assert_chunks_equal,
    random_chunk,
    read_everything,
    store_from_chunk,
    texts_of,
)

READ_ERRORS = (CorruptStoreError, NotAStoreError, UnsupportedFormatError)
LABELS = {3: "cats", 7: "ü 🙂"}


def small_chunk(dtype="float32", **options):
    chunk = random_chunk(5, 12, d_sae=90, mean_tokens=4, active=3, dtype=dtype, **options)
    chunk = chunk.with_failures({2: "no reason"})
    status = chunk.status.copy()
    status[5] = DocumentStatus.TRUNCATED
    return replace(chunk, status=status)


def frame_of(chunk):
    n = chunk.n_documents
    return pd.DataFrame(
        {
            "text": pd.Series(texts_of(chunk), dtype=object),
            "date": pd.to_datetime("2024-01-01") + pd.to_timedelta(np.arange(n), "D"),
            "score": np.linspace(0, 1, n),
            "kind": pd.Series(["x", None, ""] * (n // 3), dtype=object),
        }
    )


@pytest.fixture(scope="module", params=["float32-parts", "float16-merged"])
def original(request, tmp_path_factory):
    dtype, form = request.param.split("-")
    chunk = small_chunk(dtype)
    path = tmp_path_factory.mktemp("store") / "corpus.zarr"
    store_from_chunk(
        path,
        chunk,
        frame_of(chunk),
        documents_per_chunk=6,
        feature_labels=LABELS,
        finished=form == "merged",
    )
    assert errors(path) == {}
    return path, chunk


@pytest.fixture
def store(original, tmp_path):
    path, chunk = original
    return Path(shutil.copytree(path, tmp_path / "copy.zarr")), chunk


def files(path, pattern="*"):
    return sorted(p for p in path.rglob(pattern) if p.is_file())


def some_files(path):
    """All of the ledger; of the data files of the store of many chunks, some."""
    step = 1 if (path / "manifest.json").exists() else 5
    data = [f for f in files(path) if not is_ledger(path, f)]
    return [f for f in files(path) if is_ledger(path, f)] + data[::step]


def key(path, file):
    return file.relative_to(path).as_posix()


def errors(path):
    return {p.key: p.what for p in verify(path) if p.severity == "error"}


def notes(path):
    return {p.key: p.what for p in verify(path) if p.severity == "note"}


def is_ledger(path, file):
    return "/" not in key(path, file) or key(path, file).split("/")[0] in {"commits", "labels"}


def flipped(data, position, bit):
    damaged = bytearray(data)
    damaged[position] ^= 1 << bit
    return bytes(damaged)


def positions(data, n=10):
    return sorted({int(p) for p in np.linspace(0, len(data) - 1, n)})


def cuts(data):
    return [b"", data[: len(data) // 2], data[:-1], data + b"\0"]


def everything(path):
    """All that a reader can be asked for."""
    store = Store(path)
    documents = np.arange(store.n_documents)
    pooled = store.consistently(
        lambda: [
            c.pooled(("max", "sum", "count", "positive")) for c, _, _ in store.parts(documents)
        ]
    )
    return (
        read_everything(store),
        store.status(documents),
        store.n_tokens(documents),
        store.failures(documents),
        store.frame(),
        store.feature_labels(),
        pooled,
    )


def assert_same(found, expected):
    assert_chunks_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[2], expected[2])
    assert found[3] == expected[3]
    pd.testing.assert_frame_equal(found[4], expected[4])
    assert found[5] == expected[5]
    for a, b in zip(found[6], expected[6], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_sound_store_has_no_problems(store):
    path, chunk = store
    assert [p for p in verify(path, progress=True) if p.severity == "error"] == []
    assert set(notes(path)) <= {"manifest.json"}
    found = everything(path)
    assert_chunks_equal(found[0], chunk)
    pd.testing.assert_frame_equal(found[4], frame_of(chunk))


def test_every_damaged_data_file_is_named(store):
    """All files of all folders at once, at one place after the other."""
    path, _ = store
    data = {f: f.read_bytes() for f in files(path) if not is_ledger(path, f)}
    damages = [
        lambda d, i=i: flipped(d, positions(d)[min(i, len(positions(d)) - 1)], i % 8)
        for i in range(10)
    ]
    damages += [lambda d, i=i: cuts(d)[i] for i in range(4)]
    for number, damage in enumerate(damages):
        for file, content in data.items():
            file.write_bytes(damage(content))
        found = errors(path)
        assert set(found) >= {key(path, f) for f in data}, number
    for file in data:
        file.unlink()
    assert set(errors(path)) >= {key(path, f) for f in data}


def test_every_byte_of_the_json_files_is_covered(store):
    path, _ = store
    data = {f: f.read_bytes() for f in files(path) if is_ledger(path, f)}
    rng = np.random.default_rng(len(data))
    n = len(data[path / "zarr.json"])
    for i in range(rng.integers(2), n, 2):
        for file, content in data.items():
            file.write_bytes(flipped(content, i * len(content) // n, int(rng.integers(8))))
        assert set(errors(path)) >= {key(path, f) for f in data}, i
    for cut in range(4):
        for file, content in data.items():
            file.write_bytes(cuts(content)[cut])
        assert set(errors(path)) >= {key(path, f) for f in data}, cut


def test_one_flipped_bit_is_reported_once_and_nowhere_else(store):
    path, _ = store
    rng = np.random.default_rng(1)
    for file in some_files(path):
        content = file.read_bytes()
        file.write_bytes(flipped(content, int(rng.integers(len(content))), int(rng.integers(8))))
        problems = [p for p in verify(path) if p.severity == "error"]
        assert {p.key for p in problems} == {key(path, file)} or is_ledger(path, file)
        assert key(path, file) in {p.key for p in problems}
        file.write_bytes(content)
    assert errors(path) == {}


def test_a_deleted_file_is_named(store):
    path, _ = store
    finished = (path / "manifest.json").exists()
    for file in some_files(path):
        content = file.read_bytes()
        file.unlink()
        name = key(path, file)
        found, noted = errors(path), notes(path)
        if name == "manifest.json":
            assert name in noted  # it can be made again
        elif name.startswith("labels/"):
            assert not found  # a store need not have labels
        elif name.startswith("commits/") and not finished:
            assert "commits" in noted  # as if it had not been encoded yet
            assert any(k.startswith("chunks/") for k in noted)
        else:
            assert name in found, name
        file.write_bytes(content)
    assert errors(path) == {}


def test_reading_a_damaged_store_raises_or_gives_the_right_data(store):
    path, _ = store
    expected = everything(path)
    raised = 0
    for file in files(path):
        content = file.read_bytes()
        number_of_positions = 24 if is_ledger(path, file) else 6
        damaged = [flipped(content, p, p % 8) for p in positions(content, number_of_positions)]
        for data in [*damaged, *cuts(content)]:
            file.write_bytes(data)
            try:
                found = everything(path)
            except READ_ERRORS:
                raised += 1
            else:
                assert_same(found, expected)
        file.write_bytes(content)
    assert raised > 150


def test_reading_without_a_file_raises_or_gives_the_right_data(store):
    path, _ = store
    expected = everything(path)
    finished = (path / "manifest.json").exists()
    for file in files(path):
        content = file.read_bytes()
        file.unlink()
        try:
            found = everything(path)
        except READ_ERRORS:
            pass
        else:
            name = key(path, file)
            if name.startswith("labels/"):
                assert found[5] == {}
            elif name.startswith("commits/") and not finished:
                gone = found[1] == MISSING
                assert gone.any()
                np.testing.assert_array_equal(found[1][~gone], expected[1][~gone])
                assert_chunks_equal(found[0], expected[0].take(np.flatnonzero(~gone)))
            else:
                assert_same(found, expected)
        file.write_bytes(content)


def test_what_a_killed_run_leaves_is_a_note(store):
    path, _ = store
    (path / "commits/.tmp-0123").write_bytes(b"half")
    (path / "chunks/000-left").mkdir()
    (path / "chunks/000-left/zarr.json").write_bytes(b"half")
    (path / "writer.json").write_bytes(b"process 1")
    (path / "README.md").write_bytes(b"mine")
    assert errors(path) == {}
    assert {"commits/.tmp-0123", "chunks/000-left", "writer.json", "README.md"} <= set(notes(path))


def test_a_file_that_does_not_belong_in_a_folder_is_an_error(store):
    path, _ = store
    folder = next((path / "chunks").glob("*-*"))
    (folder / "feature/c/1").write_bytes(b"x")
    assert errors(path).keys() == {key(path, folder / "feature/c/1")}


def test_documents_that_are_not_encoded_are_a_note(tmp_path):
    chunk = small_chunk()
    store = store_from_chunk(
        tmp_path / "s", chunk.take(np.arange(5)), frame_of(chunk), finished=False
    )
    assert store.ledger.missing == ((5, 12),)
    assert errors(tmp_path / "s") == {}
    assert "7 of 12 documents are not encoded yet, document 5 " in notes(tmp_path / "s")["commits"]


def test_an_empty_place_is_no_store_and_a_newer_format_is_refused(tmp_path, store):
    with pytest.raises(NotAStoreError, match="there is no store at"):
        verify(tmp_path / "nothing")
    path, _ = store
    plan = unseal((path / "plan.json").read_bytes(), "")
    (path / "plan.json").write_bytes(seal({**plan, "format_version": 2}))
    with pytest.raises(UnsupportedFormatError, match="has store format 2"):
        verify(path)


def test_problems_read_well():
    assert str(Problem("zarr.json", "is missing")) == "error: zarr.json: is missing"


# Mistakes that carry right checksums: what a faulty writer would leave.


def reseal(file, **changes):
    document = unseal(file.read_bytes(), "")
    file.write_bytes(seal({**document, **changes}))


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("nnz", 1, "feature"),
        ("n_tokens", 1, "token_ptr"),
        ("pooled_nnz", 1, "pooled/feature"),
        ("n_failed", 9, "status"),
        ("n_truncated", 9, "status"),
        ("n_special", 9, "token/special"),
        ("has_negative", False, "activation"),
        ("d_sae", 91, None),
        ("start", 1, "doc_id"),
    ],
)
def test_a_commit_that_says_what_is_not_so_is_an_error(store, name, value, named):
    path, _ = store
    commit = files(path, "commits/*.json")[0]
    folder = unseal(commit.read_bytes(), "")["folder"]["key"]
    reseal(commit, **{name: value})
    found = errors(path)
    assert f"{folder}/zarr.json" in found
    assert (f"{folder}/{named}" if named else key(path, commit)) in found


def test_an_entry_that_contradicts_the_arrays_metadata_is_an_error(store):
    path, _ = store
    commit = files(path, "commits/*.json")[0]
    folder = unseal(commit.read_bytes(), "")["folder"]
    for change in ({"dtype": "int32"}, {"inner": 3}, {"encoding": "lz4"}, {"dimension": "x"}):
        arrays = {**folder["arrays"], "token/id": {**folder["arrays"]["token/id"], **change}}
        reseal(commit, folder={**folder, "arrays": arrays})
        assert f"{folder['key']}/token/id/zarr.json" in errors(path)
    reseal(commit, folder={k: v for k, v in folder.items() if k != "objects"})
    assert errors(path)[key(path, commit)] == "names no folder"


def test_a_commit_or_manifest_in_the_wrong_place_is_an_error(store):
    path, _ = store
    commit = files(path, "commits/*.json")[0]
    shutil.copy(commit, path / "commits/000000000000-000000000001-000000.json")
    assert "belongs in" in errors(path)["commits/000000000000-000000000001-000000.json"]


def test_a_manifest_of_other_commits_is_an_error(store):
    path, _ = store
    commit = unseal(files(path, "commits/*.json")[0].read_bytes(), "")
    manifest = path / "manifest.json"
    manifest.write_bytes(seal({"commits": [{**commit, "start": 1}]}))
    found = errors(path)
    assert found["manifest.json"] == "differs from the commits"
    assert any("though manifest.json names it" in what for what in found.values())


def test_plan_and_root_must_belong_together(store):
    path, _ = store
    plan = unseal((path / "plan.json").read_bytes(), "")
    reseal(path / "plan.json", hashes={}, n_documents=99)
    assert "plan.json" in errors(path)
    reseal(path / "plan.json", hashes=plan["hashes"], columns=plan["columns"][1:])
    assert any("not those of the columns" in what for what in errors(path).values())
    root = json.loads((path / "zarr.json").read_bytes())
    (path / "zarr.json").write_bytes(json.dumps({**root, "more": 1}, indent=1).encode())
    assert errors(path)["zarr.json"] == "is not the document of a Zarr group"


def swap(array, i, j):
    out = array.copy()
    out[[i, j]] = out[[j, i]]
    return out


def busiest_token(chunk):
    return int(np.argmax(np.diff(chunk.token_ptr)))


def with_value(array, index, value):
    out = array.copy()
    out[index] = value
    return out


def unsorted_features(chunk):
    at = int(chunk.token_ptr[busiest_token(chunk)])
    return replace(chunk, feature=swap(chunk.feature, at, at + 1))


def repeated_feature(chunk):
    at = int(chunk.token_ptr[busiest_token(chunk)])
    return replace(chunk, feature=with_value(chunk.feature, at + 1, chunk.feature[at]))


def overlapping_spans(chunk):
    ordinary = np.flatnonzero(~chunk.tokens.special)
    last = ordinary[np.argmax(chunk.tokens.start[ordinary])]
    tokens = replace(chunk.tokens, start=with_value(chunk.tokens.start, last, 0))
    return replace(chunk, tokens=tokens)


def special_with_text(chunk):
    first = int(np.flatnonzero(chunk.tokens.special)[0])
    return replace(chunk, tokens=replace(chunk.tokens, end=with_value(chunk.tokens.end, first, 3)))


def failed_with_tokens(chunk):
    document = int(np.argmax(np.diff(chunk.doc_ptr)))
    return replace(chunk, status=with_value(chunk.status, document, 2), reasons={document: "?"})


def falling_pointer(chunk):
    token = busiest_token(chunk)
    return replace(
        chunk, token_ptr=with_value(chunk.token_ptr, token, chunk.token_ptr[token + 1] + 1)
    )


def unknown_status(chunk):
    return replace(chunk, status=with_value(chunk.status, 0, 9))


@pytest.mark.parametrize(
    ("mistake", "name"),
    [
        (unsorted_features, "feature"),
        (repeated_feature, "feature"),
        (overlapping_spans, "token/start"),
        (special_with_text, "token/start"),
        (failed_with_tokens, "doc_ptr"),
        (falling_pointer, "token_ptr"),
        (unknown_status, "status"),
    ],
)
def test_a_chunk_that_breaks_a_promise_is_an_error(tmp_path, mistake, name):
    chunk = small_chunk(failures=False)
    right = pool(chunk.feature, chunk.activation, chunk.token_ptr, chunk.doc_ptr, chunk.d_sae)
    store = store_from_chunk(tmp_path / "s", chunk.take([]), frame_of(chunk), finished=False)
    with StoreWriter(store) as writer:
        commit = writer.write(mistake(chunk), pooled=right)
    assert f"{commit.folder.key}/{name}" in errors(tmp_path / "s")


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("name", ["max", "sum", "count", "positive", "feature"])
def test_a_document_level_that_the_tokens_do_not_give_is_an_error(tmp_path, name, negative):
    chunk = small_chunk(failures=False, negative=negative)
    right = pool(chunk.feature, chunk.activation, chunk.token_ptr, chunk.doc_ptr, chunk.d_sae)
    value = getattr(right, name)
    at = 0 if name == "sum" else int(np.argmax(right.count))
    wrong = replace(right, **{name: with_value(value, at, value[at] + 1)})
    store = store_from_chunk(tmp_path / "s", chunk.take([]), frame_of(chunk), finished=False)
    with StoreWriter(store) as writer:
        commit = writer.write(chunk, pooled=wrong)
    found = errors(tmp_path / "s")
    if name == "positive" and not negative:
        assert found == {}  # not stored: the same as count
    else:
        assert f"{commit.folder.key}/pooled/{name}" in found


@pytest.fixture
def blocks_of_two(tmp_path, monkeypatch):
    """A store of two blocks of documents, each with a schema of its own."""
    monkeypatch.setattr("interp_embed.store.format.document_blocks.BLOCK_DOCUMENTS", 2)
    records = [{"text": "a", "n": 1}, {"text": "b"}, {"text": "c", "n": "x"}, {"text": "d", "m": 2}]
    blocks = map(
        describe_block, pieces.cut([pieces.RecordPiece(records)]), itertools.repeat("text")
    )
    path = tmp_path / "s"
    create_store(path, blocks, field="text", identifier="x", documents_per_chunk=4)
    assert errors(path) == {}
    return path


def with_blocks(path, change):
    """Change the last two blocks of the plan, and say so in its hashes."""
    plan = unseal((path / "plan.json").read_bytes(), "")
    change(plan)
    reseal(path / "plan.json", **plan)
    return [p.what for p in verify(path) if p.severity == "error"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda p: p["blocks"][0][3]["hashes"].update(text="0"), "hash of text is not that of its"),
        (lambda p: p["hashes"].update(columns="0"), "its hash of columns is not that of its blocks"),
        (lambda p: p["columns"].pop(), "has no column \"m\", which a block has"),
        (lambda p: p["columns"].append({**p["columns"][0], "name": "z"}), "which no block has"),
        (lambda p: p["columns"].append(p["columns"][0]), "names a column twice"),
        (lambda p: p["columns"][0].update(kind="odd"), "of kind 'odd'"),
        (lambda p: p["blocks"][1][3]["columns"][0].update(kind="mixed"), "has kind 'mixed' for a"),
        (lambda p: p["blocks"][1][3]["columns"].pop(), "not those of the columns: null/m"),
        (lambda p: p["blocks"][1][3].update(columns=None), "blocks that do not say theirs"),
        (lambda p: p["blocks"][0][3]["columns"][1].update(kind="codes"), "beyond its 0 categories"),
        (lambda p: p["blocks"][0][3]["columns"][1].update(kind="string"), "the column is of kind string"),
        (lambda p: p["blocks"][1][3]["columns"][0].update(kind="json"), "what is no JSON, in row 0"),
        (lambda p: p["blocks"].reverse(), "do not follow each other at document 2"),
    ],
)  # fmt: skip
def test_a_plan_that_contradicts_its_blocks_is_found(blocks_of_two, change, what):
    assert any(what in found for found in with_blocks(blocks_of_two, change))


def test_records_of_planning_that_a_killed_process_left_are_a_note(blocks_of_two):
    (blocks_of_two / "planning").mkdir(exist_ok=True)
    record = blocks_of_two / "planning" / "000000000000-000000000002-0123456789ab.json"
    record.write_bytes(seal({"folder": {}}))
    found = {p.key: (p.severity, p.what) for p in verify(blocks_of_two)}
    assert found[f"planning/{record.name}"] == (
        "note", "is a record that a killed process left while it wrote documents",
    )  # fmt: skip
