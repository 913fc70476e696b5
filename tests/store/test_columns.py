"""Documents' columns come back from a store as they went in, whatever they hold."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import zarr
from dateutil.zoneinfo import get_zonefile_instance
from hypothesis import HealthCheck, given, settings

from interp_embed.errors import CorruptStoreError
from interp_embed.store import Store, create_store
from interp_embed.store.format import document_blocks as blocks
from interp_embed.store.format.columns import Column, decode_frame, encode_frame
from interp_embed.store.format.document_hash import hash_frame
from interp_embed.store.format.schema import schema_of
from interp_embed.store.storage import open_storage
from interp_embed.testing import frames
from tests.support.hypotheses import examples

NEW_PANDAS = int(pd.__version__.split(".")[0]) >= 3


def through_a_store(path, frame, field=None):
    create_store(
        path,
        frame,
        field=frame.columns[0] if field is None else field,
        identifier="x",
        documents_per_chunk=4,
    )
    return Store(path)


def in_memory(frame):
    """Through arrays and through JSON, as a store has them."""
    schema = [Column(**json.loads(json.dumps(c.to_json()))) for c in schema_of(frame)]
    arrays = {name: values for name, (values, _) in encode_frame(frame, schema).items()}
    assert set(arrays) == {name for column in schema for name in column.arrays}
    return decode_frame(arrays, schema, len(frame))


def hashes(frame, field="text"):
    return hash_frame(frame, field)


def exactly(found, expected):
    pd.testing.assert_frame_equal(found, expected, check_column_type=False)
    for name in expected.columns:
        for a, b in zip(found[name], expected[name], strict=True):
            assert type(a) is type(b), (name, a, b)


@settings(max_examples=examples(150), suppress_health_check=list(HealthCheck))
@given(frames())
def test_any_frame_comes_back(frame):
    exactly(in_memory(frame), frame)


@settings(max_examples=examples(15), suppress_health_check=list(HealthCheck))
@given(frames(min_rows=1).filter(lambda f: len(f.columns) > 0))
def test_any_frame_comes_back_through_a_store(tmp_path_factory, frame):
    path = tmp_path_factory.mktemp("s") / "s"
    store = through_a_store(path, frame)
    exactly(store.frame(), frame)
    pick = np.array([len(frame) - 1, 0])
    exactly(store.frame(pick), frame.iloc[pick].reset_index(drop=True))
    one = frame.columns[-1]
    exactly(store.frame(columns=[one]), frame[[one]])


COLUMNS = {
    "int8": pd.Series([1, -128], dtype="int8"),
    "uint64": pd.Series([2**64 - 1, 0], dtype="uint64"),
    "float16": pd.Series([0.1, np.nan], dtype="float16"),
    "float-signs": pd.Series([-0.0, -np.inf]),
    "bool": pd.Series([True, False]),
    "Int64": pd.Series([2**63 - 1, pd.NA], dtype="Int64"),
    "UInt64": pd.Series([2**64 - 1, pd.NA], dtype="UInt64"),
    "Float32": pd.Series([0.5, pd.NA], dtype="Float32"),
    "boolean": pd.Series([True, pd.NA], dtype="boolean"),
    "Int64-whole": pd.Series([1, 2], dtype="Int64"),
    "string": pd.Series(["a", pd.NA], dtype="string"),
    "string-python": pd.Series(["a", pd.NA], dtype=pd.StringDtype("python")),
    "string-missing": pd.Series([pd.NA, pd.NA], dtype="string"),
    "str": pd.Series(["a", None], dtype=pd.StringDtype(na_value=np.nan)),
    "ns": pd.Series(pd.to_datetime(["2024-01-01T00:00:00.000000001", None])),
    "s": pd.Series(pd.to_datetime(["9999-01-01", None])).astype("datetime64[s]")
    if NEW_PANDAS
    else pd.Series(np.array(["9999-01-01", "NaT"], "datetime64[s]")),
    "utc": pd.Series(pd.to_datetime(["2024-01-01", None])).dt.tz_localize("UTC"),
    "berlin-us": pd.Series(pd.to_datetime(["2024-10-27T00:30", "2024-07-01T00:00"]))
    .dt.tz_localize("UTC")
    .dt.tz_convert("Europe/Berlin")
    .astype("datetime64[us, Europe/Berlin]"),
    "offset": pd.Series(pd.to_datetime(["2024-01-01T00:00+05:30"])).repeat(2, ),
    "timedelta": pd.Series(pd.to_timedelta([1, None], "s")),
    "timedelta-ms": pd.Series(pd.to_timedelta([1, None], "s")).astype("timedelta64[ms]"),
    "category": pd.Series(["b", None], dtype=pd.CategoricalDtype(["b", "a", "never"], ordered=True)),
    "category-int": pd.Series([5, None], dtype=pd.CategoricalDtype([7, 5])),
    "category-float": pd.Series([0.5, None], dtype=pd.CategoricalDtype([0.5])),
    "category-bool": pd.Series([True, False], dtype="category"),
    "category-mixed": pd.Series([1, "1"], dtype="category"),
    "date": pd.Series([dt.date(1, 1, 1), None], dtype=object),
    "empty-and-none": pd.Series(["", None], dtype=object),
    "nan": pd.Series(["a", np.nan], dtype=object),
    "na": pd.Series(["a", pd.NA], dtype=object),
    "nat": pd.Series([dt.date(2024, 1, 1), pd.NaT], dtype=object),
    "none-and-nan": pd.Series([None, np.nan], dtype=object),
    "only-none": pd.Series([None, None], dtype=object),
    "only-na": pd.Series([pd.NA, pd.NA], dtype=object),
    "mixed": pd.Series([1, "1"], dtype=object),
    "bool-and-int": pd.Series([True, 1], dtype=object),
    "float-and-none": pd.Series([0.1, None], dtype=object),
    "lists": pd.Series([[1, 2], [3, 4]], dtype=object),
    "one-lists": pd.Series([[1], [2]], dtype=object),
    "empty-lists": pd.Series([[], []], dtype=object),
    "dicts": pd.Series([{"a": [None, {"b": "ü"}]}, {}], dtype=object),
    "emoji": pd.Series(["👩‍👩‍👧 ü", "\U0010ffff"], dtype=object),
    "nul": pd.Series(["a\0b", "\0"], dtype=object),
    "surrogates": pd.Series(["\ud800", "a\\u0041"], dtype=object),
    "split-emoji": pd.Series(["\ud83d\ude00", None], dtype=object),
    "newlines": pd.Series(["\r\n\u2028", " "], dtype=object),
    "long": pd.Series(["ab🙂" * 2**19, "x"], dtype=object),
    "big-int": pd.Series([10**30, -1], dtype=object),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_comes_back(name):
    frame = pd.DataFrame({name: COLUMNS[name].reset_index(drop=True)})
    exactly(in_memory(frame), frame)
    exactly(in_memory(frame.iloc[:0]), frame.iloc[:0])


def test_all_columns_come_back_through_a_store_cut_into_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 3)
    frame = pd.concat(
        [pd.DataFrame({n: s.reset_index(drop=True) for n, s in COLUMNS.items()})] * 4,
        ignore_index=True,
    ).astype({n: s.dtype for n, s in COLUMNS.items()})
    store = through_a_store(tmp_path / "s", frame)
    assert len(store.plan.blocks) == 3
    exactly(store.frame(), frame)
    for pick in ([0], [7, 2, 2, 5], []):
        rows = np.array(pick, np.int64)
        exactly(store.frame(rows), frame.iloc[rows].reset_index(drop=True))
    assert store.record(1)["dicts"] == {}


@pytest.mark.parametrize("engine", ["int64[pyarrow]", "string[pyarrow]", "arrow", "bool[pyarrow]"])
def test_columns_of_arrow_come_back(engine):
    pa = pytest.importorskip("pyarrow")
    dtype = pd.ArrowDtype(pa.string()) if engine == "arrow" else engine
    values = {"int64[pyarrow]": [2**62 + 1, None], "bool[pyarrow]": [True, None]}
    frame = pd.DataFrame({"a": pd.Series(values.get(engine, ["ü", None]), dtype=dtype)})
    exactly(in_memory(frame), frame)


NAMES = [
    "a/b", "..", ".", "", " ", "x.", "zarr.json", "c", "__x", "n" * 300, "Text", "text", "TEXT",
    "ü 🙂", "%2F", "a%2Fb", "\ud800", "\0", "CON", "column-0", "column-1", 0, 1.5, -1, None, "null",
    "*?<>|\"\\:", "row", "\n", float("inf"),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_columns_of_any_name_come_back(tmp_path, kind):
    frame = pd.DataFrame([[f"{i}{n!r}" for i, n in enumerate(NAMES)]] * 2, dtype=object)
    frame.columns = pd.Index(NAMES, dtype=object)
    where = tmp_path / "s" if kind == "local" else f"memory://{tmp_path.name}"
    store = through_a_store(where, frame, field="text")
    found = store.frame()
    assert found.columns.tolist() == NAMES
    assert (found.to_numpy() == frame.to_numpy()).all()
    assert store.frame(columns=["a%2Fb", None]).columns.tolist() == ["a%2Fb", None]


@pytest.mark.parametrize(
    "columns", [[0, 1], [True, False], [0.5, 1.5], ["a", "b"], [None, "a"], ["\ud800"]]
)
def test_names_keep_their_type(columns):
    frame = pd.DataFrame([range(len(columns))])
    frame.columns = pd.Index(columns, dtype=object if columns[0] in (None, "\ud800") else None)
    assert [type(c) for c in in_memory(frame).columns] == [type(c) for c in frame.columns]
    assert in_memory(frame).columns.tolist() == columns


def test_frames_without_rows_or_columns_come_back(tmp_path):
    empty = pd.DataFrame({"text": pd.Series([], dtype=object), "n": pd.Series([], dtype="int64")})
    store = through_a_store(tmp_path / "s", empty, "text")
    exactly(store.frame(), empty)
    assert store.is_complete
    assert in_memory(pd.DataFrame(index=pd.RangeIndex(3))).shape == (3, 0)


def test_plain_zarr_reads_the_columns(tmp_path):
    frame = pd.DataFrame({"text": ["a", "ü", ""], "n": [1, 2, 3]})
    store = through_a_store(tmp_path / "s", frame, "text")
    block = zarr.open_group(tmp_path / "s" / store.plan.blocks[0][2].key, mode="r")
    assert block["row/text"][:].tolist() == ["a", "ü", ""]
    assert block["row/n"][:].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "values",
    [
        [1 + 2j],
        [b"bytes"],
        [decimal.Decimal(1)],
        [dt.datetime(2024, 1, 1), "mixed"],
        [dt.time(1)],
        [object()],
        [{1: "a"}],
        [[{"a": object()}]],
        [1, "\ud83d\ude00"],
        pd.period_range("2024", periods=1, freq="D"),
        pd.cut([0.5], [0, 1]),
        pd.Categorical(pd.to_datetime(["2024-01-01"])),
    ],
    ids=lambda v: repr(v)[:20],
)
def test_a_column_that_cannot_be_stored_is_refused_by_name(tmp_path, values):
    frame = pd.DataFrame({"text": ["a"] * len(values), "odd": pd.Series(values)})
    with pytest.raises(TypeError, match="'odd'"):
        through_a_store(tmp_path / "s", frame, "text")
    assert not (tmp_path / "s").exists()


def test_a_list_within_itself_is_refused():
    inside = []
    inside.append(inside)
    with pytest.raises(TypeError, match="'odd', row 0"):
        in_memory(pd.DataFrame({"odd": pd.Series([inside])}))


def test_a_time_zone_without_a_name_is_refused():
    zone = get_zonefile_instance().get("Europe/Berlin")
    times = pd.Series(pd.to_datetime(["2024-01-01"])).dt.tz_localize(zone)
    with pytest.raises(TypeError, match="'when' has the time zone"):
        schema_of(pd.DataFrame({"when": times}))


def test_duplicate_and_odd_column_names_are_refused():
    twice = pd.DataFrame([[1, 2]])
    twice.columns = ["a", "a"]
    with pytest.raises(ValueError, match=r"columns \['a'\] occur more than once"):
        schema_of(twice)
    with pytest.raises(TypeError, match="column names must be strings or numbers"):
        schema_of(pd.DataFrame({("a", "b"): [1]}))
    split = pd.DataFrame([[1]])
    split.columns = pd.Index(["\ud83d\ude00"], dtype=object)
    with pytest.raises(TypeError, match="split into two surrogates"):
        schema_of(split)


def test_tuples_sets_and_arrays_come_back_as_lists():
    frame = pd.DataFrame(
        {"a": pd.Series([(1, 2), {"b", "a"}, np.arange(2), np.float32(0.5), [pd.NA]])}
    )
    assert in_memory(frame)["a"].tolist() == [[1, 2], ["a", "b"], [0, 1], 0.5, [None]]


BASE = pd.DataFrame(
    {"text": pd.Series(["a", "b"], dtype=object), "n": [1, 2], "k": pd.Categorical(["x", "y"])}
)


@pytest.mark.parametrize(
    "changed",
    [
        BASE.iloc[::-1],
        BASE.assign(text=["a", "c"]),
        BASE.assign(text=["ab", ""]),
        BASE.assign(text=pd.Series(["a", None], dtype=object)),
        BASE.assign(n=[1, 3]),
        BASE.assign(n=[1.0, 2.5]),
        BASE.assign(n=["1", "2"]),
        BASE.assign(n=[True, 2]),
        BASE.assign(n=pd.Series([1, None], dtype="Int64")),
        BASE.assign(k=pd.Categorical(["x", "z"])),
        BASE.assign(k=pd.Categorical(["y", "x"])),
        BASE.rename(columns={"n": "m"}),
        BASE[["text", "k"]],
        BASE.assign(more=1),
        BASE.iloc[:1],
    ],
    ids=range(15),
)
def test_a_frame_with_anything_changed_has_another_hash(changed):
    assert hashes(changed) != hashes(BASE)
    same_text = changed["text"].tolist() == BASE["text"].tolist()
    assert (hashes(changed)["text"] == hashes(BASE)["text"]) == same_text


@pytest.mark.parametrize(
    "same",
    [
        BASE[["text", "k", "n"]],
        BASE.assign(n=[1.0, 2.0]),
        BASE.assign(n=pd.Series([1, 2], dtype="Int8")),
        BASE.assign(n=pd.Series([1, 2.0], dtype=object)),
        BASE.assign(k=pd.Categorical(["x", "y"], ordered=True)),
        BASE.assign(k=["x", "y"]),
        BASE.assign(k=pd.Series(["x", "y"], dtype="string")),
        BASE.assign(more=None),
    ],
    ids=range(8),
)
def test_the_same_values_in_other_dtypes_have_the_same_hash(same):
    assert hashes(same) == hashes(BASE)


def test_the_hash_does_not_depend_on_the_frames_index_or_layout():
    assert hashes(BASE) == hashes(BASE.set_index(pd.Index([7, 3])))
    assert hashes(BASE) == hashes(pd.concat([BASE, BASE]).iloc[:2])


def test_the_hash_of_the_text_does_not_depend_on_pandas_idea_of_strings():
    values = ["a", None]
    text = [
        hashes(pd.DataFrame({"text": pd.Series(values, dtype=dtype)}))["text"]
        for dtype in (object, "string", pd.StringDtype(na_value=np.nan))
    ]
    assert len(set(text)) == 1


def test_the_hash_does_not_depend_on_what_a_missing_value_is():
    found = [
        hashes(
            BASE.assign(n=pd.Series(["x", missing], dtype=object)).assign(
                m=pd.Series([[1], missing])
            )
        )
        for missing in (None, np.nan, pd.NA, pd.NaT)
    ]
    assert found == found[:1] * 4


def test_sets_hash_alike_in_every_process():
    code = (
        "import pandas as pd; from interp_embed.store.format.document_hash import *;"
        "f = pd.DataFrame({'text': ['a'], 's': pd.Series([set('abcdefgh')])});"
        "print(hash_frame(f, 'text')['columns'])"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        check=True,
        text=True,
    )
    frame = pd.DataFrame({"text": ["a"], "s": pd.Series([set("abcdefgh")])})
    assert hashes(frame)["columns"] == other.stdout.strip()


def test_a_document_that_does_not_exist_is_an_error(tmp_path):
    store = through_a_store(tmp_path / "s", BASE, "text")
    for wrong in (-1, 2):
        with pytest.raises(IndexError, match="are out of range for 2 documents"):
            store.frame(np.array([wrong]))


def test_a_missing_column_object_is_a_corrupt_store(tmp_path):
    store = through_a_store(tmp_path / "s", BASE, "text")
    open_storage(tmp_path / "s").delete(f"{store.plan.blocks[0][2].key}/row/text/c/0")
    with pytest.raises(CorruptStoreError, match="is missing"):
        Store(tmp_path / "s").frame()
