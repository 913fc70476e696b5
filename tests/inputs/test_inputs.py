"""Whatever documents come as, the same ones end up in the store, in the same blocks."""

from __future__ import annotations

import datetime as dt
import decimal
import gzip
import itertools
import json
import math
import re
import sys
import uuid

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp_embed import Dataset
from interp_embed.errors import FingerprintMismatchError
from interp_embed.exchange.opening import plan_store
from interp_embed.inputs import as_documents
from interp_embed.inputs.read_json_array import json_items
from interp_embed.inputs.records import typed
from interp_embed.store.format import document_blocks as blocks
from interp_embed.store.format.document_hash import hash_frame
from interp_embed.store.verify.verifier import verify
from interp_embed.testing import frames
from tests.support.fake_sae import WideSAE, WordSAE
from tests.support.hypotheses import examples

QUICK = settings(max_examples=examples(40), suppress_health_check=list(HealthCheck))
RECORDS = [
    {"text": "a b", "n": 1, "x": 0.5, "ok": True, "tags": ["u", "v"]},
    {"text": "\N{GRINNING FACE} c", "n": None, "x": None, "ok": None, "tags": []},
    {"text": None, "n": 3, "x": 2.5, "ok": False, "tags": None},
    {"text": "", "n": -4, "x": 1e300, "ok": True, "tags": ["w"]},
]


def plan(data, path, **options):
    options = {"field": "text", "documents_per_chunk": 4, **options}
    return plan_store(data, path, WideSAE(), **options)


def rows_of(data, field="text"):
    """The documents as plain dictionaries, whatever held them."""
    frame = pd.concat(list(as_documents(data, field).blocks()), ignore_index=True)
    return plain(frame)


def plain(frame):
    def value(v):
        if isinstance(v, np.ndarray):
            v = v.tolist()
        if isinstance(v, list):
            return [value(each) for each in v]
        missing = v is None or v is pd.NA or v is pd.NaT or (isinstance(v, float) and math.isnan(v))
        return None if missing else v

    return [{k: value(v) for k, v in record.items()} for record in frame.to_dict("records")]


def in_file(folder, kind, frame):
    path = folder / f"a.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "json":
        frame.to_json(path, orient="records")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(frame.to_json(orient="records", lines=True).encode()))
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


# --- one store whatever the form -------------------------------------------------------------------


def hugging_face(records):
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_list(records)


FORMS = {
    "frame": lambda folder: pd.DataFrame(RECORDS),
    "list": lambda folder: RECORDS,
    "tuple": lambda folder: tuple(RECORDS),
    "generator": lambda folder: (dict(r) for r in RECORDS),
    "function": lambda folder: lambda: iter(RECORDS),
    "table": lambda folder: pa.Table.from_pylist(RECORDS),
    "batch": lambda folder: pa.RecordBatch.from_pylist(RECORDS),
    "reader": lambda folder: pa.Table.from_pylist(RECORDS).to_reader(max_chunksize=3),
    "dataset": lambda folder: pa.dataset.dataset(in_file(folder, "parquet", pd.DataFrame(RECORDS))),
    "parquet": lambda folder: in_file(folder, "parquet", pd.DataFrame(RECORDS)),
    "jsonl": lambda folder: str(in_file(folder, "jsonl", pd.DataFrame(RECORDS))),
    "jsonl.gz": lambda folder: in_file(folder, "jsonl.gz", pd.DataFrame(RECORDS)),
    "json": lambda folder: in_file(folder, "json", pd.DataFrame(RECORDS)),
    "hugging face": lambda folder: hugging_face(RECORDS),
    "hugging face, selected": lambda folder: hugging_face(RECORDS[::-1]).select([3, 2, 1, 0]),
    "hugging face, streamed": lambda folder: hugging_face(RECORDS).to_iterable_dataset(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_store_made_of_a_frame_is_gone_on_with_in_any_other_form(tmp_path, monkeypatch, form):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 3)
    first = plan(pd.DataFrame(RECORDS), tmp_path / "s")
    again = plan(FORMS[form](tmp_path), tmp_path / "s")
    assert again.plan.to_json() == first.plan.to_json()
    other = plan(FORMS[form](tmp_path), tmp_path / "t")
    assert other.plan.hashes == first.plan.hashes
    assert plain(other.frame()) == RECORDS
    assert plan(RECORDS, tmp_path / "t").plan.to_json() == other.plan.to_json()
    assert [p.key for p in verify(tmp_path / "t")] == ["commits"]


@pytest.mark.parametrize("form", FORMS)
def test_any_form_can_be_encoded(tmp_path, form):
    expected = Dataset(RECORDS, WordSAE())
    dataset = Dataset(FORMS[form](tmp_path), WordSAE(), batch_size=2)
    assert dataset.status().tolist() == ["ok", "ok", "failed", "ok"]
    assert dataset.documents() == [r["text"] for r in RECORDS]
    np.testing.assert_array_equal(dataset.latents(), expected.latents())


def test_columns_of_a_stream_have_types_and_keep_what_is_missing(tmp_path):
    records = [
        {**r, "when": dt.datetime(2024, 1, i + 1), "day": dt.date(2024, 1, i + 1), "in": {"a": [i]}}
        for i, r in enumerate(RECORDS)
    ]
    frame = plan(iter(records), tmp_path / "s").frame()
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        "text": "object", "n": "Int64", "x": "float64", "ok": "boolean", "tags": "object",
        "when": "datetime64[us]", "day": "object", "in": "object",
    }  # fmt: skip
    assert plain(frame) == [{**r, "when": pd.Timestamp(r["when"])} for r in records]
    table = pa.Table.from_pylist(records)
    assert plain(plan(table, tmp_path / "t").frame()) == plain(frame)
    assert plan(table, tmp_path / "s").n_documents == 4


@QUICK
@given(frames(min_rows=1), st.data())
def test_a_stream_of_frames_cut_anywhere_is_the_frame(tmp_path_factory, frame, data):
    """Through Arrow and through dictionaries, with blocks of three documents."""
    frame = frame[[name for name in frame.columns if isinstance(name, str)]]
    frame = frame.assign(text=[f"t{i}" for i in range(len(frame))])
    cuts = sorted(data.draw(st.sets(st.integers(1, len(frame)), max_size=3)) | {0, len(frame)})
    folder = tmp_path_factory.mktemp("s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_DOCUMENTS", 3)
        store = plan(frame, folder / "frame")
        pieces = [frame.iloc[a:b] for a, b in itertools.pairwise(cuts)]
        sources = [lambda: (r for piece in pieces for r in piece.to_dict("records"))]
        try:
            schema = pa.Schema.from_pandas(frame, preserve_index=False)
            tables = [pa.Table.from_pandas(p, schema, preserve_index=False) for p in pieces]
            nested = any(pa.types.is_nested(t) or pa.types.is_null(t) for t in schema.types)
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError, OverflowError):
            nested = True  # values of several types, surrogates
        if not nested:
            batches = [b for t in tables for b in t.to_batches()]
            sources.append(lambda: pa.RecordBatchReader.from_batches(schema, batches))
            sources.append(lambda: parquet(folder, tables))
        for number, source in enumerate(sources):
            streamed = plan(source(), folder / f"{number}")
            assert streamed.plan.hashes == store.plan.hashes
            assert [b[:2] for b in streamed.plan.blocks] == [b[:2] for b in store.plan.blocks]
            plan(source(), folder / "frame")
            plan(frame, folder / f"{number}")
            assert hash_frame(streamed.frame(), "text") == hash_frame(store.frame(), "text")
            pick = np.array([len(frame) - 1, 0])
            assert hash_frame(streamed.frame(pick), "text") == hash_frame(frame.iloc[pick], "text")
            assert [p for p in verify(folder / f"{number}") if p.severity == "error"] == []


def parquet(folder, tables):
    path = folder / f"{uuid.uuid4().hex}.parquet"
    with pq.ParquetWriter(path, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=2)
    return path


@QUICK
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8"), max_size=6),
            st.none() | st.integers(-(2**40), 2**40),
            st.none() | st.floats(allow_nan=False, allow_infinity=False),
            st.none() | st.text(st.characters(codec="utf-8"), max_size=4),
            st.lists(st.integers(0, 9), max_size=2),
        ),
        min_size=1,
        max_size=9,
    )
)
def test_every_kind_of_file_holds_the_same_documents(tmp_path_factory, values):
    records = [dict(zip(("text", "n", "x", "s", "l"), v, strict=True)) for v in values]
    folder = tmp_path_factory.mktemp("f")
    text = "".join(json.dumps(r) + "\n" for r in records)
    (folder / "a.jsonl").write_text(text, encoding="utf-8")
    (folder / "a.json").write_text(json.dumps(records, indent=2), encoding="utf-8")
    (folder / "b.json.gz").write_bytes(gzip.compress(json.dumps(records).encode()))
    pq.write_table(pa.Table.from_pylist(records), folder / "a.parquet", row_group_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_DOCUMENTS", 4)
        stores = [
            plan(folder / name, folder / f"s{i}")
            for i, name in enumerate(["a.jsonl", "a.json", "b.json.gz", "a.parquet"])
        ]
        stores.append(plan(iter(records), folder / "s4"))
    assert all(plain(store.frame()) == records for store in stores)
    assert len({json.dumps(store.plan.hashes) for store in stores}) == 1


# --- types that change on the way ------------------------------------------------------------------

CHANGES = [
    ([[1, 2], [3, None]], "Int64"),
    ([[1, 2], [3, None], [0.5, 1.0]], "float64"),
    ([[None, None], [3, 4]], "Int64"),
    ([[None, None], [True, False]], "boolean"),
    ([[True, None], [True, False]], "boolean"),
    ([[1, 2], ["a", 4]], "object"),
    ([[1, 2], [True, False]], "object"),
    ([["a", None], ["\ud800", "b"]], "object"),
    ([["a", "b"], [None, None], [["x"], {"y": 1}]], "object"),
    ([[2**63, 1], [-1, 0]], "object"),
    ([[2**63, 1], [0, 2**64 - 1]], "uint64"),
    ([[10**30, 1], [1, 2]], "object"),
    ([[dt.datetime(2024, 1, 1), None], [None, None]], "datetime64[us]"),
    ([["2024-01-01", None], [dt.date(2024, 1, 1), None]], "object"),
    ([[dt.datetime(2024, 1, 1), None], [1, None]], "object"),
    ([[pd.NaT, pd.NaT], [pd.Timestamp("2024-01-01", tz="UTC"), None]], "datetime64[ns, UTC]"),
    ([[np.int8(1), np.int8(2)], [np.int16(300), None]], "Int16"),
    ([[np.float32(0.5), None], [1, 2]], "float64"),
]


@pytest.mark.parametrize(("values", "dtype"), CHANGES, ids=map(str, range(len(CHANGES))))
def test_a_column_may_change_its_type_from_block_to_block(tmp_path, monkeypatch, values, dtype):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 2)
    flat = [v for block in values for v in block]
    records = [{"text": str(i), "v": v} for i, v in enumerate(flat)]
    store = plan(iter(records), tmp_path / "s")
    assert len(store.plan.blocks) == len(values)
    found = store.frame()
    assert str(found["v"].dtype) == dtype
    flat = [None if v is pd.NaT else v for v in flat]
    if dtype == "object":  # beside other values, times are text
        flat = [v.isoformat() if isinstance(v, dt.date) else v for v in flat]
    assert [r["v"] for r in plain(found)] == flat
    Dataset(found, WideSAE())
    for pick in ([0], [len(flat) - 1, 0, 2], []):
        part = store.frame(np.array(pick, np.int64), ["v"])
        assert str(part["v"].dtype) == dtype
        assert [r["v"] for r in plain(part)] == [flat[i] for i in pick]
    assert store.plan.columns[1]["dtype"] == dtype
    assert [p.key for p in verify(tmp_path / "s")] == ["commits"]
    assert Dataset(iter(records), WideSAE(), save_path=tmp_path / "s").to_xarray()["v"].shape == (
        len(flat),
    )


@pytest.mark.parametrize("other", [None, 0.5, 2**63, "x"])
@pytest.mark.parametrize("number", [2**60 + 1, -(2**53) - 1])
def test_integers_of_a_list_are_not_rounded(tmp_path, number, other):
    records = [{"text": "a", "n": number}, {"text": "b", "n": other}, {"text": "c"}]
    found = plan(records, tmp_path / "s").frame()["n"].tolist()
    assert [None if pd.isna(v) else v for v in found] == [number, other, None]
    plan(iter(records), tmp_path / "s")
    rounded = [{"text": "a", "n": 1e300}, {"text": "b", "n": 1}]
    assert as_documents(rounded, "text").frame()["n"].dtype == np.float64


def test_a_column_may_come_and_go(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 2)
    records = [{"text": "a", "n": 1}, {"text": "b"}, {"text": "c"}, {"text": "d"}, {"more": "e"}]
    store = plan(iter(records), tmp_path / "s")
    assert [c["name"] for c in store.plan.columns] == ["text", "n", "more"]
    assert plain(store.frame()) == [{"text": None, "n": None, "more": None, **r} for r in records]
    assert plain(store.frame(np.array([2, 3]))) == [
        {"text": "c", "n": None, "more": None}, {"text": "d", "n": None, "more": None},
    ]  # fmt: skip
    dataset = Dataset(iter(records), WideSAE(), save_path=tmp_path / "s")
    assert dataset.columns == ["text", "n", "more"]
    assert dataset.failures()["document"].tolist() == [4]
    assert [p for p in verify(tmp_path / "s") if p.severity == "error"] == []


def test_categories_of_two_files_are_put_together(tmp_path):
    for name, values in (("a", ["u", "v", None]), ("b", ["w", "v", "w"])):
        frame = pd.DataFrame({"text": values, "k": pd.Categorical(values)})
        frame.to_parquet(tmp_path / f"{name}.parquet")
    frame = plan(tmp_path, tmp_path / "s").frame()
    assert frame["k"].tolist() == ["u", "v", np.nan, "w", "v", "w"]
    assert sorted(frame["k"].cat.categories) == ["u", "v", "w"]


# --- texts -----------------------------------------------------------------------------------------


def test_awkward_texts_come_through_as_they_are(tmp_path):
    texts = ["", None, "👩‍👩‍👧", "\ud800 lone", "\ud83d\ude00", "a\0b", "\r\n", "🙂" * 2**21, "NA"]
    for number, data in enumerate([
        pd.DataFrame({"text": pd.Series(texts, dtype=object)}),
        [{"text": t} for t in texts],
        ({"text": t} for t in texts),
    ]):  # fmt: skip
        store = plan(data, tmp_path / f"{number}")
        assert store.frame()["text"].tolist() == texts


def test_texts_that_cannot_be_stored_fail_alone(tmp_path):
    dataset = Dataset(({"text": t} for t in ["a", b"bytes", 5, object(), "b"]), WordSAE())
    assert dataset.failures()["document"].tolist() == [1, 2, 3]
    assert dataset.status().tolist() == ["ok", "failed", "failed", "failed", "ok"]


def test_large_documents_get_blocks_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 2**21)
    texts = ["x", "y" * 2**21, "z", "w" * (2**21 + 1), "", "v" * 2**20, "u" * 2**20, "t"]
    records = [{"text": t, "more": [t[:3]]} for t in texts]
    streamed = plan(iter(records), tmp_path / "a")
    assert [b[:2] for b in streamed.plan.blocks] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 6), (6, 8)]
    assert plan(pd.DataFrame(records), tmp_path / "b").plan.hashes == streamed.plan.hashes
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    assert plan(tmp_path / "a.parquet", tmp_path / "a").frame()["text"].tolist() == texts


def test_every_cell_of_a_csvs_text_column_is_a_text(tmp_path):
    (tmp_path / "a.csv").write_text("text,n,k,b,e\nNA,1,007,True,\n,2,,,\n007,,a,False,\n")
    assert rows_of(tmp_path / "a.csv") == [
        {"text": "NA", "n": 1, "k": "007", "b": True, "e": None},
        {"text": "", "n": 2, "k": None, "b": None, "e": None},
        {"text": "007", "n": None, "k": "a", "b": False, "e": None},
    ]
    assert str(plan(tmp_path / "a.csv", tmp_path / "s").frame()["n"].dtype) == "Int64"


def test_a_csvs_column_has_one_type_for_all_rows_and_files(tmp_path):
    lines = "".join(f"t{i},{i:03d},{i}\n" for i in range(20_000))
    (tmp_path / "a.csv").write_text("text,code,n\n" + lines)
    (tmp_path / "b.csv").write_text("text,n,code\nlast,0.5,x1\n")
    documents = as_documents([tmp_path / "a.csv", tmp_path / "b.csv"], "text").frame()
    assert documents["code"].iloc[[0, 7, -1]].tolist() == ["000", "007", "x1"]
    assert documents["n"].iloc[[1, -1]].tolist() == [1.0, 0.5]


def test_cells_with_quotes_and_line_ends_are_read(tmp_path):
    texts = ['a "quoted", word', "two\nlines", "tab\there", "🙂"]
    for kind, separator in (("csv", ","), ("tsv", "\t")):
        path = tmp_path / f"a.{kind}.gz"
        pd.DataFrame({"n": range(4), "text": texts}).to_csv(path, sep=separator, index=False)
        assert [r["text"] for r in rows_of(path)] == texts


# --- many files ------------------------------------------------------------------------------------


def test_files_of_a_pattern_a_folder_and_a_list_are_read_in_order(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jsonl").write_text(f'{{"text": "t{number}"}}\n')
    (folder / "_notes.jsonl").write_text('{"text": "no"}\n')
    (folder / "README").write_text("no")
    for data in (folder, folder / "[0-9].jsonl", str(folder / "?.jsonl"), f"{folder}/**/?.jsonl"):
        assert rows_of(data) == [{"text": "t0"}, {"text": "t1"}, {"text": "t2"}]
    chosen = [folder / "2.jsonl", str(folder / "0.jsonl")]
    assert rows_of(chosen) == [{"text": "t2"}, {"text": "t0"}]
    odd = tmp_path / "odd[1].jsonl"
    odd.write_text('{"text": "brackets"}\n')
    assert rows_of(odd) == [{"text": "brackets"}]


def test_files_of_several_formats_and_columns_go_together(tmp_path):
    (tmp_path / "a.csv").write_text("text,n\na,1\n")
    (tmp_path / "b.jsonl").write_text('{"text": "b", "more": [1]}\n')
    pd.DataFrame({"text": ["c"], "n": [2.5]}).to_parquet(tmp_path / "c.parquet")
    assert rows_of(tmp_path / "*.*") == [
        {"text": "a", "n": 1.0, "more": None},
        {"text": "b", "n": None, "more": [1]},
        {"text": "c", "n": 2.5, "more": None},
    ]


def test_parquet_files_of_other_columns_are_filled_up(tmp_path):
    pd.DataFrame({"text": ["a"], "n": [1]}).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame({"m": ["x"], "text": ["b"]}).to_parquet(tmp_path / "b.parquet")
    pd.DataFrame({"text": ["c"], "n": ["one"]}).to_parquet(tmp_path / "c.parquet")
    assert rows_of(tmp_path) == [
        {"text": "a", "n": 1, "m": None}, {"text": "b", "n": None, "m": "x"},
        {"text": "c", "n": "one", "m": None},
    ]  # fmt: skip


def test_files_may_be_far_away(tmp_path):
    base = f"memory://{tmp_path.name}"
    for number in range(2):
        with fsspec.open(f"{base}/{number}.parquet", "wb") as file:
            pd.DataFrame({"text": [f"t{number}"]}).to_parquet(file)
    with fsspec.open(f"{base}/a.csv.gz", "wb") as file:
        file.write(gzip.compress(b"text\nNA\n"))
    assert rows_of(f"{base}/*.parquet") == [{"text": "t0"}, {"text": "t1"}]
    assert rows_of(f"{base}/1.parquet") == [{"text": "t1"}]
    assert rows_of(f"{base}/a.csv.gz") == [{"text": "NA"}]
    assert len(rows_of(base)) == 3
    with pytest.raises(FileNotFoundError, match="No such file"):
        as_documents(f"{base}/none.parquet", "text")
    with pytest.raises(FileNotFoundError, match="No file matches"):
        as_documents(f"{base}/none*.parquet", "text")


def test_the_index_of_a_frame_is_no_column_in_a_file_either(tmp_path):
    frame = pd.DataFrame({"text": ["a", "b"]}, index=pd.Index([7, 3], name="number"))
    frame.to_parquet(tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == [{"text": "a"}, {"text": "b"}]
    plan(frame, tmp_path / "s")
    assert plan(tmp_path / "a.parquet", tmp_path / "s").n_documents == 2


def test_types_that_a_store_does_not_keep_become_those_that_it_does(tmp_path):
    when = dt.datetime(2024, 1, 2, 3)
    table = pa.table({
        "text": pa.array(["a"], pa.string_view()),
        "d": pa.array([1], pa.decimal128(5, 2)),
        "t": pa.array([dt.time(1, 2)]),
        "in": pa.array([{"when": when, "day": [dt.date(2024, 1, 2)]}]),
        "k": pa.array(["x"]).dictionary_encode(),
        "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    })  # fmt: skip
    frame = plan(table, tmp_path / "s").frame()
    record = frame.to_dict("records")[0]
    assert (record["text"], record["d"], record["k"]) == ("a", 1.0, "x")
    assert record["t"] == "01:02:00"
    assert record["in"]["when"] == "2024-01-02T03:00:00"
    assert record["in"]["day"] == ["2024-01-02"]
    assert record["map"] == [["a", 1]]


NESTED = [
    [[1, None], [2**60 + 1], [], None],
    [[True, None], [False], None],
    [[0.5, None, 1.0], [2.0]],
    [["a", None], ["b"]],
    [{"a": 1, "b": [None, 2**60 + 1]}, {"a": None, "b": []}],
    [[{"a": 1}, {"a": None}], [None]],
    [[[1, None], None], [[2**60 + 1]]],
    [[dt.date(2024, 1, 2), None], [dt.date(2024, 1, 3)]],
    [{"when": dt.datetime(2024, 1, 2, 3, 4, 5, 600)}, {"when": None}],
    [{"at": dt.time(1, 2, 3), "took": dt.timedelta(seconds=1.5)}],
    [dt.time(1, 2), None, dt.time(3, 4, 5, 6)],
    [decimal.Decimal("1.50"), None, decimal.Decimal("-0.25")],
    [[decimal.Decimal("1.50")], [None]],
]


@pytest.mark.parametrize("values", NESTED, ids=map(str, range(len(NESTED))))
def test_values_in_lists_are_the_same_from_arrow_and_from_dictionaries(tmp_path, values):
    records = [{"text": "a", "v": v} for v in values]
    store = plan(iter(records), tmp_path / "s")
    table = pa.Table.from_pylist(records)
    pq.write_table(table, tmp_path / "a.parquet")
    for number, data in enumerate([table, tmp_path / "a.parquet"]):
        assert plan(data, tmp_path / "s").plan.to_json() == store.plan.to_json()
        other = plan(data, tmp_path / f"{number}")
        assert other.plan.hashes == store.plan.hashes
        assert repr(other.frame()["v"].tolist()) == repr(store.frame()["v"].tolist())
    if not any(isinstance(v, dt.time | decimal.Decimal) for v in values):
        found = json.dumps([json.loads(json.dumps(v)) for v in plain_list(store)])
        assert found == json.dumps(values, default=in_json)


def plain_list(store):
    return [None if r["v"] is None else r["v"] for r in plain(store.frame())]


def in_json(value):
    if isinstance(value, decimal.Decimal):
        return float(value)
    return pd.Timedelta(value).isoformat() if isinstance(value, dt.timedelta) else value.isoformat()


UTC1, UTC2 = (dt.timezone(dt.timedelta(hours=h)) for h in (1, 2))
TOGETHER = [
    [dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC)],
    [dt.datetime(2024, 1, 1, tzinfo=UTC1), dt.datetime(2024, 1, 1, tzinfo=UTC2)],
    [dt.datetime(2024, 1, 1), 1],
    [dt.date(2024, 1, 1), "x"],
    [dt.date(2024, 1, 1), dt.datetime(2024, 1, 1)],
]


@pytest.mark.parametrize("values", TOGETHER, ids=map(str, range(len(TOGETHER))))
def test_times_beside_other_values_are_text_wherever_a_block_ends(tmp_path, monkeypatch, values):
    expected = [v.isoformat() if isinstance(v, dt.date) else v for v in values]
    for size in (1, 2):
        monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", size)
        store = plan(({"text": "a", "v": v} for v in values), tmp_path / f"{size}")
        assert store.frame()["v"].tolist() == expected


def test_times_that_nanoseconds_cannot_hold_stay_times(tmp_path):
    zones = (dt.UTC, UTC1)
    times = [
        [dt.datetime(9999, 12, 31, tzinfo=z), None, dt.datetime(1, 2, 1, tzinfo=z)] for z in zones
    ]
    for number, values in enumerate([*times, [dt.timedelta(days=10**6), None]]):
        store = plan(({"text": "a", "v": v} for v in values), tmp_path / f"{number}")
        assert store.frame()["v"].dtype.kind in "mM"
        found = [None if pd.isna(v) else v for v in store.frame()["v"]]
        assert [v and v.isoformat() for v in found] == [
            v
            and (
                pd.Timedelta(np.timedelta64(v, "us")) if isinstance(v, dt.timedelta) else v
            ).isoformat()
            for v in values
        ]


def test_a_document_without_any_column_is_a_document(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 2)
    dataset = Dataset(iter([{"text": "a"}, {"text": "b"}, {}, {}, {"text": "c"}]), WordSAE())
    assert dataset.documents() == ["a", "b", None, None, "c"]
    assert dataset.status().tolist() == ["ok", "ok", "failed", "failed", "ok"]


def test_dictionaries_of_arrow_of_any_kind_are_read(tmp_path):
    view = pa.array(["x", "y"]).cast(pa.string_view())
    indices = pa.array([1, 0, None], pa.uint32())
    table = pa.table({
        "text": ["a", "b", "c"],
        "view": pa.DictionaryArray.from_arrays(indices, view),
        "null": pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["x", None])),
    })  # fmt: skip
    frame = plan(table, tmp_path / "s").frame()
    assert frame["view"].tolist() == ["y", "x", None]
    assert frame["null"].tolist() == ["x", None, "x"]


@pytest.mark.parametrize("form", [None, "numpy", "arrow", "pandas"])
def test_a_streamed_dataset_of_hugging_face_may_have_a_format(form):
    stream = hugging_face([{"text": "a", "n": 1}, {"text": None, "n": None}]).to_iterable_dataset()
    assert rows_of(stream.with_format(form)) == [{"text": "a", "n": 1}, {"text": None, "n": None}]


def test_stores_in_a_folder_of_documents_are_no_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    path = Dataset(tmp_path, WordSAE(), save_path=tmp_path / "below" / "s").path
    assert Dataset(tmp_path, WordSAE(), save_path=path).documents() == ["a"]
    assert rows_of(f"file://{tmp_path}") == [{"text": "a"}]


# --- what is refused -------------------------------------------------------------------------------


class Untouched(WordSAE):
    def load_models(self):
        raise AssertionError("the SAE was loaded though the data are wrong")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": 1,}\n', r"a\.jsonl cannot be read.*: line 2: "),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "line 2 must be a JSON object, got list"),
        ("a.json", '[{"text": "a"}, {"text": ]', "record 2: Expecting value"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', r"expected ',' or '\]' after record 1"),
        ("a.json", '[{"text": "a"}] x', "unexpected data after the end of the JSON array"),
        ("a.json", '[{"text": "a"}', r"after record 1"),
        ("a.json", "[1]", "record 1 must be a JSON object, got int"),
        ("a.csv", 'text,n\na,1\n"b', "a.csv cannot be read as CSV"),
        ("a.csv", "text,n\na,1,2,3\n", "a.csv cannot be read as CSV"),
        (
            "a.jsonl",
            '{"body": "a"}\n',
            r"field 'text' not found in data; its columns are \['body'\]",
        ),
        ("a.csv", "body\na\n", r"field 'text' not found.*\['body'\]"),
        (
            "a.csv",
            "text,n\na,1\nb\0c,2\n",
            r"a\.csv cannot be read as CSV: line 3 has a NUL character",
        ),
        ("a.jsonl", '{"text": "a", "v": ' + "[" * 10**5, "line 1: maximum recursion depth"),
        ("a.json", '[{"text": "a", "v": ' + "[" * 10**5, "record 1: maximum recursion depth"),
        ("a.json", '[{"text": "a", "v": ' + "1" * 5000 + "}]", "record 1: Exceeds the limit"),
        ("a.txt", "text", "has an unknown format"),
        ("a.parquet", "PAR1 and no more", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_leaves_nothing(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Dataset(tmp_path / name, Untouched(), save_path=tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize(
    ("header", "twice"),
    [("text,a,a", ["a"]), ("text,b,text,b", ["b", "text"]), ('text,"a b",a b', ["a b"]),
     ("text,NA,NA", ["NA"]), ("\n\ntext,1,1", ["1"])],
)  # fmt: skip
def test_columns_of_one_name_are_refused_and_named(tmp_path, name, header, twice):
    cells = ",".join("x" * len(header.split(",")))
    content = f"{header}\n{cells}\n"
    (tmp_path / name).write_text(content if name == "a.csv" else content.replace(",", "\t"))
    with pytest.raises(
        ValueError, match=re.escape(f"columns {twice} occur more than once; rename")
    ):
        Dataset(tmp_path / name, WordSAE(), save_path=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_columns_without_a_name_are_numbered(tmp_path):
    (tmp_path / "a.csv").write_text("text,,\nthe cat,1,2\n")
    assert Dataset(tmp_path / "a.csv", WordSAE()).columns == ["text", "Unnamed: 1", "Unnamed: 2"]


def test_a_value_that_cannot_be_stored_is_named_by_its_document(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 10)
    records = [{"text": "a", "raw": b"x" if i == 37 else i} for i in range(40)]
    for data in (iter(records), pd.DataFrame(records)):
        with pytest.raises(TypeError, match="column 'raw', row 37"):
            plan(data, tmp_path / "s")


@pytest.mark.parametrize(
    ("depth", "error", "message"),
    [
        (600, TypeError, "column 'v', row 1: a value of type list cannot be stored"),
        (5000, ValueError, "record 2 is nested too deeply"),
    ],
)
def test_a_value_that_is_nested_too_deeply_is_named(tmp_path, depth, error, message):
    value = []
    for _ in range(depth):
        value = [value]
    with pytest.raises(error, match=message):
        plan(iter([{"text": "a"}, {"text": "b", "v": value}]), tmp_path / "s")


def test_a_compressed_file_that_is_damaged_is_named(tmp_path):
    whole = bytearray(gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(500))))
    whole[30] ^= 0xFF
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz cannot be read as gzip: Error -3"):
        as_documents(tmp_path / "a.jsonl.gz", "text")


def test_a_damaged_file_is_named_once_though_it_is_read_twice(tmp_path):
    (tmp_path / "a.csv").write_text("text,n\n" + "a,1\n" * 200_000 + "b,2,3\n")
    with pytest.raises(ValueError, match="Expected 2 fields in line 200002") as caught:
        rows_of(tmp_path / "a.csv")
    assert str(caught.value).count("cannot be read as CSV") == 1


def test_a_compressed_file_that_was_cut_off_is_named(tmp_path):
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(9999)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz cannot be read as JSON Lines: Compressed"):
        plan(tmp_path / "a.jsonl.gz", tmp_path / "s")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("none.csv", FileNotFoundError, "No such file or directory: 'none.csv'"),
        (["none.csv"], FileNotFoundError, "none.csv"),
        ("none*.csv", FileNotFoundError, "No file matches this pattern: 'none"),
        (".", FileNotFoundError, "No file in this folder ends in .csv"),
        ("", FileNotFoundError, "an empty path"),
        (iter([{}, {}]), ValueError, r"field 'text' not found in data; its columns are \[\]"),
        (
            pa.Table.from_arrays([pa.array(["a"])] * 3, ["text", "v", "v"]), ValueError,
            r"columns \['v'\] occur more than once; rename them",
        ),
        ((r for r in [{"text": "a"}, "b"]), TypeError, r"data\[1\] must be a dictionary, got str"),
        ((r for r in [{"body": "a"}]), ValueError, r"its columns are \['body'\]"),
        (lambda: 5, TypeError, "got int"),
        (5, TypeError, "data must be a DataFrame, .* got int"),
        ({"text": ["a"]}, TypeError, "got dict"),
        (pa.table({"body": ["a"]}), ValueError, r"field 'text' not found.*\['body'\]"),
        (pa.table({"text": ["a"], "raw": [b"x"]}), TypeError, "column 'raw'"),
        (iter([{"text": "a", "raw": b"x"}]), TypeError, "column 'raw', row 0"),
        (iter([{"text": "a", ("x", 1): 1}]), TypeError, "column names must be strings"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_read_are_refused_before_work(
    tmp_path, monkeypatch, data, error, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        Dataset(data, Untouched(), save_path=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_parquet_file_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    pd.DataFrame({"text": ["a"]}).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'interp_embed\[io\]'"):
        Dataset(tmp_path / "a.parquet", Untouched())
    assert len(Dataset([{"text": "a"}], WordSAE())) == 1


def test_a_list_of_texts_that_are_no_files_says_how_to_pass_texts(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Dataset(["one text", "another"], Untouched())
    assert "For texts pass [{'text': text} for text in texts]" in caught.value.__notes__[0]


def test_a_dictionary_of_datasets_is_refused_with_what_to_pass():
    datasets = pytest.importorskip("datasets")
    both = datasets.DatasetDict({"train": hugging_face(RECORDS)})
    with pytest.raises(TypeError, match=r"one split of the DatasetDict with .*; pass one, such as"):
        Dataset(both, Untouched())


@pytest.mark.parametrize(
    "data",
    [
        [], pd.DataFrame({"text": []}), iter([]), lambda: iter([]), pa.table({"text": pa.array([], "string")}),
        pa.table({"text": pa.array([], "string"), "n": pa.array([], "int64")}),
    ],
    ids=range(6),
)  # fmt: skip
def test_no_documents_are_a_data_set_without_documents(tmp_path, data):
    dataset = Dataset(data, Untouched(), save_path=tmp_path / "s")
    assert len(dataset) == 0
    assert dataset.columns[0] == "text"
    assert dataset.pandas().shape[0] == 0
    assert Dataset([], Untouched(), save_path=tmp_path / "s").path == dataset.path


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_files_without_documents_are_a_data_set_without_documents(tmp_path, name):
    (tmp_path / name).write_text({"a.jsonl": "", "a.csv": "text,n\n", "a.json": "[]"}[name])
    assert len(Dataset(tmp_path / name, Untouched())) == 0


# --- going on --------------------------------------------------------------------------------------


@pytest.fixture
def numbered(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 10)
    records = [{"text": f"word{i} and", "n": i} for i in range(35)]
    Dataset(iter(records), WordSAE(), save_path=tmp_path / "s", batch_size=5)
    return tmp_path / "s", records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: [*r[:12], {**r[12], "text": "x"}, *r[13:]], "the texts of documents 10 to 19"),
        (
            lambda r: [*r[:34], {**r[34], "n": -1}],
            "columns other than the text of documents 30 to 34",
        ),
        (lambda r: r[:20], r"the documents \(35 stored, 20 given\)"),
        (lambda r: r[:34], r"the documents \(35 stored, 34 given\)"),
        (lambda r: [*r, r[0]], r"the texts of documents 30 to 34"),
        (lambda r: r[::-1], "the texts of documents 0 to 9; columns other than the text of"),
        (
            lambda r: [{**i, "more": 1} for i in r],
            "columns other than the text of documents 0 to 9",
        ),
        (lambda r: [{"text": i["text"]} for i in r], "columns other than the text of documents 0"),
    ],
)
def test_another_stream_is_refused_naming_where_it_differs(numbered, change, message):
    path, records = numbered
    taken = []

    def stream():
        for record in change(records):
            taken.append(record)
            yield record

    with pytest.raises(FingerprintMismatchError, match=message):
        Dataset(stream(), WordSAE(), save_path=path)
    Dataset(iter(records), WordSAE(), save_path=path)


def test_a_stream_longer_by_blocks_is_refused(numbered, monkeypatch):
    path, records = numbered
    monkeypatch.setattr("interp_embed.inputs.readers._PIECE_RECORDS", 5)
    whole = Dataset(iter(records[:30]), WordSAE(), save_path=path.with_name("t"))
    with pytest.raises(FingerprintMismatchError, match=r"30 stored, more than 30 given"):
        Dataset(iter(records), WordSAE(), save_path=whole.path)


def test_the_rest_of_a_stream_that_differs_is_not_read(numbered, monkeypatch):
    path, records = numbered
    monkeypatch.setattr("interp_embed.inputs.readers._PIECE_RECORDS", 5)
    taken = []

    def stream():
        for record in [{"text": "other", "n": 0}, *records[1:]]:
            taken.append(record)
            yield record

    with pytest.raises(FingerprintMismatchError, match="documents 0 to 9"):
        Dataset(stream(), WordSAE(), save_path=path)
    assert len(taken) < 20


def test_views_of_a_stream_read_no_columns_until_asked(tmp_path, monkeypatch):
    from interp_embed.store import Store

    records = [{"text": f"word{i}", "n": i} for i in range(50)]
    dataset = Dataset(iter(records), WordSAE(), save_path=tmp_path / "s")
    asked = []
    frame = Store.frame
    monkeypatch.setattr(
        Store,
        "frame",
        lambda self, documents=None, columns=None: (
            asked.append(self.n_documents if documents is None else len(documents)),
            frame(self, documents, columns),
        )[1],
    )
    part = dataset[10:40][::3]
    assert (len(part), dataset.columns, len(dataset.failures())) == (10, ["text", "n"], 0)
    assert dataset.status()[0] == "ok"
    part.latents()
    part.filter_na_rows()
    assert sum(asked) == 0
    repr(part)
    assert part[2].data == "word16"
    assert max(asked) <= 4
    assert part.pandas()["n"].tolist() == list(range(10, 40, 3))


def test_rows_that_are_known_go_with_a_stream(tmp_path):
    known = Dataset(RECORDS[:2], WordSAE())
    dataset = Dataset(iter(RECORDS[:2]), Untouched(), rows=list(known.rows))
    np.testing.assert_array_equal(dataset.latents(), known.latents())


# --- parts -----------------------------------------------------------------------------------------


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3),
    max_leaves=6,
)


@QUICK
@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=4), st.integers(1, 5))
def test_a_json_array_is_read_item_by_item(value, step):
    class Slow:
        def __init__(self):
            self.text = json.dumps(value)

        def read(self, n):
            found, self.text = self.text[:step], self.text[step:]
            return found

    assert json.dumps(list(json_items(Slow()))) == json.dumps(value)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([True, False], "bool"), ([1, None], "Int64"), ([1, pd.NA], "Int64"), ([1, 0.5], "float64"),
        ([2**53 + 1, 0.5], "object"), ([1, True], "object"), ([None], "object"),
        ([np.uint8(1), None], "UInt8"), ([dt.timedelta(1), None], "timedelta64[ns]"),
        ([dt.datetime(2024, 1, 1, tzinfo=dt.UTC), None], "datetime64[ns, UTC]"),
    ],
)  # fmt: skip
def test_values_get_the_type_that_they_have_in_common(values, dtype):
    found = typed(values)
    if dtype.startswith(("timedelta", "datetime")):  # the unit is pandas' choice
        assert str(found.dtype).split("[")[0] == dtype.split("[")[0]
    else:
        assert str(found.dtype) == dtype
    assert len(found) == len(values)
