"""Pickles of the original library: read without running them, written so that it can read them."""

from __future__ import annotations

import datetime as dt
import decimal
import functools
import importlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from interp_embed.errors import UnsafePickleError
from interp_embed.interop import LegacyDataset, is_pickle, read_pickle, write_pickle
from interp_embed.interop import pickled_frames as frames
from tests.support.hypotheses import examples
from tests.support.paths import FIXTURES

PROTOCOLS = (2, 3, 4, 5)


def legacy(frame: pd.DataFrame | None = None, **changes) -> LegacyDataset:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"text": ["a b", "ü 🙂", "lost"]}) if frame is None else frame
    dense = [rng.standard_normal((n, 5)).astype(np.float32) for n in (2, 3)]
    parts = {
        "dataset": frame,
        "rows": [*map(csr_matrix, dense), None],
        "aggregate_activations": [
            *(
                {"max": csr_matrix(m.max(0)[None]), "sum": csr_matrix(m.sum(0)[None])}
                for m in dense
            ),
            None,
        ],
        "tokenized_documents": [["a", " b"], ["ü", " ", "🙂"], None],
        "field": "text",
        "dataset_description": "three",
        "id": "abc123",
        "sae_metadata": {
            "truncate": True,
            "sae_id": "blocks.8",
            "device": {"model": "cpu", "sae": "cpu"},
            "list": [1, 2.5, None, (3, "x")],
            "sae_type": "local",
        },
        "feature_labels": {0: "cats", 4: "smiles"},
    }
    return LegacyDataset(**{**parts, **changes})


def assert_same(a: LegacyDataset, b: LegacyDataset) -> None:
    pd.testing.assert_frame_equal(a.dataset, b.dataset)
    for x, y in zip(a.rows, b.rows, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x.toarray(), y.toarray())
    for x, y in zip(a.aggregate_activations, b.aggregate_activations, strict=True):
        assert (x is None) == (y is None)
        for name in x or {}:
            np.testing.assert_array_equal(x[name].toarray(), y[name].toarray())
    for name in ("tokenized_documents", "field", "dataset_description", "id", "sae_metadata"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.feature_labels == b.feature_labels


def load(content: bytes):
    return frames.load(io.BytesIO(content))


# --- what is written can be read, here and there -------------------------------------------------


def test_what_is_written_is_read_back(tmp_path):
    write_pickle(tmp_path / "new folder" / "d.pkl", legacy())
    assert_same(read_pickle(tmp_path / "new folder" / "d.pkl"), legacy())


@pytest.mark.parametrize("kind", ["local", "goodfire", "goodfire_api", "embedded", None])
def test_a_plain_unpickler_with_the_originals_enumeration_opens_what_is_written(tmp_path, kind):
    metadata = {"truncate": False, "device": {"model": "cpu", "sae": "cuda:0"}, "n": [1, None]}
    if kind:
        metadata["sae_type"] = kind
    write_pickle(tmp_path / "d.pkl", legacy(sae_metadata=metadata))
    script = f"""
        import enum, pickle, sys, types
        for name in ("interp_embed", "interp_embed.sae", "interp_embed.sae.base_sae"):
            sys.modules[name] = types.ModuleType(name)
        class SAEType(enum.Enum):
            LOCAL = "local"
            GOODFIRE = "goodfire"
            GOODFIRE_API = "goodfire_api"
        sys.modules["interp_embed.sae.base_sae"].SAEType = SAEType
        for unpickle in (pickle.load, pickle._load):
            with open(sys.argv[1], "rb") as file:
                content = unpickle(file)
                assert file.read() == b""
            metadata = content["sae_metadata"]
            kind = metadata.pop("sae_type", None)
            expected = SAEType({kind!r}) if {kind!r} in ("local", "goodfire", "goodfire_api") else {kind!r}
            assert kind == expected, kind
            assert metadata == {{"truncate": False, "device": {{"model": "cpu", "sae": "cuda:0"}}, "n": [1, None]}}
            assert [None if r is None else r.shape for r in content["rows"]] == [(2, 5), (3, 5), None]
            assert list(content["dataset"]["text"]) == ["a b", "ü 🙂", "lost"]
            assert content["tokenized_documents"] == [["a", " b"], ["ü", " ", "🙂"], None]
    """
    environment = {**os.environ, "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "d.pkl")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("release", ["1.5", "2.2", "3.0"])
def test_files_of_each_generation_of_pandas_are_read(release):
    found = read_pickle(FIXTURES / f"original-pandas-{release}.pkl")
    frame = found.dataset
    assert list(frame.columns) == ["text", "n", "score", "when", "zoned", "tags", "note", "day"]
    assert frame["text"].tolist() == ["The cat sat.", "Ünïcode 🙂", "failed"]
    assert frame["n"].tolist() == [1, 2, 3]
    assert frame["score"].fillna(-1).tolist() == [0.5, -1, 2.0]
    assert frame["when"].iloc[0] == pd.Timestamp("2021-03-04 05:06:07")
    assert frame["when"].isna().tolist() == [False, True, False]
    assert frame["zoned"].iloc[1] == pd.Timestamp("2021-07-04", tz="Europe/Paris")
    assert str(frame["zoned"].dt.tz) == "Europe/Paris"
    assert frame["tags"].tolist() == [["a", {"b": 1}], [], None]
    assert frame["note"].isna().tolist() == [True, False, True]
    assert frame["day"].iloc[0] == dt.date(2020, 1, 2)
    assert found.sae_metadata["sae_type"] == "local"
    assert type(found.sae_metadata["sae_type"]) is str
    assert found.tokenized_documents[1] == ["Ünï", "code", " 🙂"]
    assert found.feature_labels == {0: "cats", 5: "smiles"}
    assert found.rows[2] is None
    for row, pooled in zip(found.rows[:2], found.aggregate_activations[:2], strict=True):
        assert row.dtype == np.float32
        assert row.nnz > 0
        tolerance = 2e-3 if release == "1.5" else 1e-6  # that one holds float16
        np.testing.assert_allclose(pooled["max"].toarray()[0], row.toarray().max(0), atol=tolerance)
        np.testing.assert_allclose(pooled["sum"].toarray()[0], row.toarray().sum(0), atol=tolerance)


def test_the_enumeration_is_read_as_its_value():
    class SAEType:
        def __reduce__(self):
            return functools.partial, ("local",)

    content = pickle.dumps({"sae_type": SAEType()}, protocol=2)
    content = content.replace(b"functools\npartial\n", b"interp_embed.sae.base_sae\nSAEType\n")
    assert load(content) == {"sae_type": "local"}


# --- frames and values ---------------------------------------------------------------------------

FRAMES = {
    "text and gaps": pd.DataFrame({"t": ["a", None, "é🙂"], "u": ["x", np.nan, 3]}, dtype=object),
    "numbers": pd.DataFrame({"i": [1, 2, 3], "f": [1.5, np.nan, -0.0], "b": [True, False, True]}),
    "narrow": pd.DataFrame({"i": np.array([1, 2], np.int8), "f": np.array([1, 2], np.float16)}),
    "big-endian": pd.DataFrame({"i": np.array([1, 2], ">i4")}),
    "dates": pd.DataFrame({"d": pd.to_datetime(["2020-01-01", None]), "e": pd.to_timedelta([1, 2])}),
    "seconds": pd.DataFrame({"d": np.array(["2020-01-01", "NaT"], "M8[s]")}),
    "zones": pd.DataFrame({"d": pd.date_range("2020", periods=2, tz="UTC")}),
    "categories": pd.DataFrame(
        {"c": pd.Categorical(["a", None, "b"], ["b", "a"], ordered=True), "n": pd.Categorical([3, 1, 3])}
    ),
    "nullable": pd.DataFrame(
        {
            "i": pd.array([1, None], dtype="Int16"),
            "f": pd.array([1.5, None], dtype="Float64"),
            "b": pd.array([True, None], dtype="boolean"),
            "s": pd.array(["x", None], dtype=pd.StringDtype("python")),
        }
    ),
    "nested": pd.DataFrame({"n": [[1, [2]], {"a": (1, None)}, {3}], "m": [b"x", 1j, "s"]}),
    "cells": pd.DataFrame(
        {
            "c": pd.Series(
                [dt.date(2020, 1, 1), dt.datetime(2020, 1, 1, tzinfo=dt.UTC), decimal.Decimal("1.5")],
                dtype=object,
            ),
            "d": pd.Series([pd.Timestamp("2020", tz="UTC"), pd.NaT, pd.NA], dtype=object),
            "e": pd.Series([np.float32(1.5), np.int64(2), np.bool_(True)], dtype=object),
            "f": pd.Series([pd.Timedelta("1s"), dt.timedelta(1), np.datetime64("2020")], dtype=object),
            "g": pd.Series([range(3), slice(1), frozenset({1})], dtype=object),
            "h": pd.Series([bytearray(b"x"), b"", np.str_("s")], dtype=object),
        }
    ),
    "same column name twice": pd.DataFrame([[1, "a"], [2, "b"]], columns=["x", "x"]),
    "numbered columns": pd.DataFrame([[1, 2.0]]),
    "filtered": pd.DataFrame({"t": list("abcd"), "i": range(4)})[[True, False, True, True]],
    "text index": pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "y"], name="k")),
    "date index": pd.DataFrame({"a": [1, 2]}, index=pd.DatetimeIndex(["2020", "2021"])),
    "two indices": pd.DataFrame({"a": [1, 2]}, index=pd.MultiIndex.from_tuples([(1, "x"), (2, "y")])),
    "no rows": pd.DataFrame({"t": pd.Series([], dtype=object)}),
    "nothing": pd.DataFrame(),
}  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", FRAMES)
def test_frames_come_back_as_they_were(name, protocol):
    content = pickle.dumps(FRAMES[name], protocol)
    found, expected = load(content), pickle.loads(content)
    pd.testing.assert_frame_equal(found, expected)
    for column in range(found.shape[1]):
        kinds = [list(map(type, f.iloc[:, column])) for f in (found, expected)]
        assert kinds[0] == kinds[1]


def test_arrays_in_cells_are_ordinary_arrays():
    cells = [np.arange(3), np.array(["a", None], object), {"deep": [np.zeros((2, 2), order="F")]}]
    found = load(pickle.dumps(pd.DataFrame({"c": cells}), 5))["c"]
    assert [type(found[0]), type(found[1]), type(found[2]["deep"][0])] == [np.ndarray] * 3
    np.testing.assert_array_equal(found[0], np.arange(3))
    np.testing.assert_array_equal(found[2]["deep"][0], np.zeros((2, 2)))


@pytest.mark.parametrize("storage", ["python", "pyarrow"])
@pytest.mark.parametrize("missing", [np.nan, pd.NA])
def test_text_columns_of_pandas_3_are_read_without_pyarrow(monkeypatch, storage, missing):
    if storage == "pyarrow":
        pytest.importorskip("pyarrow")
    dtype = pd.StringDtype(storage, na_value=missing)
    values = ["a", None, "é🙂", "", "d"]
    # A slice, so that the offsets do not begin at 0.
    content = pickle.dumps(pd.DataFrame({"t": pd.array(["zero", *values], dtype=dtype)})[1:], 5)
    monkeypatch.setattr(importlib, "import_module", None)
    found = load(content)["t"]
    assert [v if isinstance(v, str) else None for v in found] == values
    assert found.isna().tolist() == [False, True, False, False, False]


def test_nullable_arrow_columns_are_read():
    pa = pytest.importorskip("pyarrow")
    frame = pd.DataFrame(
        {
            "i": pd.array([1, None, 3], dtype=pd.ArrowDtype(pa.int64())),
            "b": pd.array([True, None, False], dtype=pd.ArrowDtype(pa.bool_())),
            "f": pd.array([1.5, None, 2.5], dtype=pd.ArrowDtype(pa.float32())),
        }
    )
    found = load(pickle.dumps(frame, 5))
    assert found["i"].fillna(-1).tolist() == [1, -1, 3]
    assert found["b"].isna().tolist() == [False, True, False]
    assert found["b"].iloc[[0, 2]].tolist() == [True, False]
    assert found["f"].iloc[[0, 2]].tolist() == [1.5, 2.5]


def test_pandas_3_text_is_written_as_objects(tmp_path):
    dtype = pd.StringDtype("python", na_value=np.nan)
    frame = pd.DataFrame({"text": pd.array(["a", None, "c"], dtype=dtype), "n": [1, 2, 3]})
    frame.columns = pd.Index(["text", "n"], dtype=dtype)
    write_pickle(tmp_path / "d.pkl", legacy(frame))
    assert b"StringDtype" not in (tmp_path / "d.pkl").read_bytes()
    found = read_pickle(tmp_path / "d.pkl").dataset
    assert found["text"].dtype == object
    assert found["text"].fillna("").tolist() == ["a", "", "c"]
    assert found["n"].tolist() == [1, 2, 3]


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False) | st.dates() | st.datetimes() | st.timedeltas()
    | st.decimals(allow_nan=False)
)  # fmt: skip
HASHABLE = st.recursive(SCALARS, lambda s: st.lists(s, max_size=3).map(tuple), max_leaves=5)
VALUES = st.recursive(
    SCALARS,
    lambda s: (
        st.lists(s, max_size=4)
        | st.dictionaries(st.text(), s, max_size=4)
        | st.frozensets(HASHABLE, max_size=3)
        | st.sets(HASHABLE, max_size=3)
    ),
    max_leaves=20,
)


@settings(max_examples=examples(150))
@given(VALUES, st.sampled_from(PROTOCOLS))
def test_any_plain_value_comes_back_equal(value, protocol):
    assert load(pickle.dumps(value, protocol)) == value


@settings(max_examples=examples(100))
@given(
    st.sampled_from(["?", "i1", "u2", "<i4", ">i8", "f2", "f4", ">f8", "c8", "U3", "S2", "M8[ms]", "m8[D]"]),
    st.lists(st.integers(0, 3), min_size=0, max_size=3),
    st.booleans(),
    st.sampled_from(PROTOCOLS),
)  # fmt: skip
def test_any_array_comes_back_equal(dtype, shape, fortran, protocol):
    array = np.arange(1, 1 + int(np.prod(shape))).astype("i8").astype(dtype).reshape(shape)
    array = np.asfortranarray(array) if fortran else array
    content = pickle.dumps(array, protocol)
    found = load(content)
    assert type(found) is np.ndarray
    assert found.dtype == pickle.loads(content).dtype  # numpy itself may change the byte order
    np.testing.assert_array_equal(found, array)
    if array.size:
        scalar = load(pickle.dumps(array.flat[0], protocol))
        assert scalar == array.flat[0]
        assert type(scalar) is type(array.flat[0])


# --- what is refused -----------------------------------------------------------------------------


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args) -> None:
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def global_opcodes(module: str, name: str) -> bytes:
    """Push ``module.name`` the way protocol 4 does, which resolves dots in ``name``."""
    strings = b"".join(
        pickle.BINUNICODE + struct.pack("<I", len(s)) + s.encode() for s in (module, name)
    )
    return strings + pickle.STACK_GLOBAL


CALLS = {
    "os.system": Call(os.system, "touch {witness}"),
    "builtins.eval": Call(eval, "open({witness!r}, 'w')"),
    "builtins.exec": Call(exec, "open({witness!r}, 'w')"),
    "builtins.open": Call(open, "{witness}", "w"),
    "builtins.getattr": Call(getattr, "x", "upper"),
    "builtins.__import__": Call(__import__, "this"),
    "functools.partial": Call(functools.partial, os.system, "touch {witness}"),
    "importlib.import_module": Call(importlib.import_module, "this"),
    "subprocess.Popen": Call(subprocess.Popen, ["touch", "{witness}"]),
    "pandas.read_pickle": Call(pd.read_pickle, "{witness}"),
    "pandas.eval": Call(pd.eval, "1"),
    "numpy.load": Call(np.load, "{witness}"),
    "numpy.save": Call(np.save, "{witness}", [1]),
    "pickle.loads": Call(pickle.loads, b"N."),
    "pathlib.Path": Call(Path, "x"),
    "operator.attrgetter": Call(__import__("operator").attrgetter, "system"),
}


def insert(value, witness: str):
    if isinstance(value, str):
        return value.replace("{witness!r}", repr(witness)).replace("{witness}", witness)
    return [insert(v, witness) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", CALLS)
def test_calls_are_refused_by_name_and_do_not_happen(tmp_path, name, protocol):
    witness = tmp_path / "witness"
    function, args = CALLS[name].reduced
    payload = Call(function, *(insert(a, str(witness)) for a in args))
    path = tmp_path / "d.pkl"
    path.write_bytes(pickle.dumps({"dataset": payload}, protocol))
    modules = set(sys.modules)
    with pytest.raises(UnsafePickleError) as error:
        read_pickle(path)
    expected = {name.replace("builtins.", "__builtin__."), name, f"{function.__module__}."}
    # Modules that protocol 2 writes under an older name, or that hold the function really.
    expected |= {"posix.system", "nt.system", "commands.Popen"}
    assert any(e in str(error.value) for e in expected), error.value
    assert not witness.exists()
    assert "this" not in set(sys.modules) - modules


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("numpy", "ndarray.tofile"),
        ("numpy", "f2py.os.system"),
        ("pandas", "DataFrame.to_pickle"),
        ("pandas", "io.common.os.system"),
        ("pandas.io.pickle", "read_pickle"),
        ("pandas.core.frame", "DataFrame.eval"),
        ("pandas.compat.pickle_compat", "Unpickler"),
        ("numpy._core.multiarray", "scalar.__self__"),
        ("numpy._core.multiarray", "fromfile"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("scipy.sparse", "load_npz"),
        ("scipy.sparse._csr", "csr_matrix.__init__"),
        ("datetime", "datetime.__class__"),
        ("builtins", "bytes.fromhex"),
        ("builtins", "object"),
        ("builtins", "type"),
        ("copyreg", "_reconstructor"),
        ("_codecs", "decode"),
        ("collections", "OrderedDict.__init__"),
        ("interp_embed.sae.base_sae", "SAEType.__class__"),
        ("interp_embed.sae.base_sae", "os.system"),
        ("interp_embed.interop.restricted", "Record"),
        ("pyarrow.lib", "_restore_array.__globals__"),
        ("pyarrow", "memory_map"),
        ("zoneinfo", "ZoneInfo.from_file"),
        ("decimal", "getcontext"),
    ],
)
def test_names_with_dots_and_neighbours_of_allowed_names_are_refused(module, name):
    for content in (
        b"\x80\x04" + global_opcodes(module, name) + b".",
        b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n.",
    ):
        with pytest.raises(UnsafePickleError, match=f"asks for {module}.{name}"):
            load(content)


def dtype_opcodes(code: str, *state) -> bytes:
    """Push ``numpy.dtype(code)``, with a forged state if one is given."""
    made = global_opcodes("numpy", "dtype") + pickle.dumps((code, False, True), 3)[2:-1] + b"R"
    return made + (pickle.dumps(state, 3)[2:-1] + b"b" if state else b"")


def test_a_dtype_that_says_its_objects_are_bytes_is_not_believed():
    # numpy's own dtype takes these flags, and then reads the bytes below as pointers.
    forged = dtype_opcodes("O8", 3, "|", None, None, None, -1, -1, 0)
    reconstruct = global_opcodes("numpy._core.multiarray", "_reconstruct")
    empty = reconstruct + global_opcodes("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
    array = empty + b"(K\x01K\x01\x85" + forged + b"\x89C\x08AAAAAAAAtb"
    with pytest.raises(UnsafePickleError, match="array of object made of bytes"):
        load(b"\x80\x04" + array + b".")
    scalar = global_opcodes("numpy._core.multiarray", "scalar")
    with pytest.raises(UnsafePickleError, match="scalar of dtype object"):
        load(b"\x80\x04" + scalar + forged + b"C\x08AAAAAAAA\x86R.")
    frombuffer = global_opcodes("numpy._core.numeric", "_frombuffer")
    with pytest.raises(ValueError, match="OBJECT"):
        load(b"\x80\x04" + frombuffer + b"(C\x08AAAAAAAA" + forged + b"K\x01\x85X\x01\0\0\0CtR.")


def empty_array_opcodes():
    reconstruct = global_opcodes("numpy._core.multiarray", "_reconstruct")
    return reconstruct + global_opcodes("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"


@pytest.mark.parametrize(
    "shape", [(5,), (2**28,), (1,), (-1,), (-1, -2), (2**62, 4), "ab", (True, 2)]
)
def test_an_array_of_another_shape_than_its_list_is_refused(shape):
    # numpy reads beyond the end of a list that is too short.
    described = pickle.dumps(shape, 3)[2:-1] + dtype_opcodes("O8")
    content = pickle.dumps([1, 2], 3)[2:-1]
    with pytest.raises(UnsafePickleError, match="array of shape"):
        load(
            b"\x80\x04" + empty_array_opcodes() + b"(K\x01" + described + b"\x89" + content + b"tb."
        )


def test_an_array_has_one_state():
    # With a second one numpy frees memory that views of the first still use.
    state = b"(K\x01K\x02\x85" + dtype_opcodes("i8") + b"\x89C\x10" + bytes(16) + b"tb"
    array = empty_array_opcodes() + state
    assert load(b"\x80\x04" + array + b".").tolist() == [0, 0]
    with pytest.raises(UnsafePickleError, match="two states"):
        load(b"\x80\x04" + array + state + b".")


def test_a_dtype_that_says_its_numbers_are_objects_is_not_believed():
    forged = dtype_opcodes("i8", 3, "<", None, None, None, -1, -1, 63)
    reconstruct = global_opcodes("numpy._core.multiarray", "_reconstruct")
    empty = reconstruct + global_opcodes("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
    found = load(
        b"\x80\x04" + empty + b"(K\x01K\x01\x85" + forged + b"\x89C\x08" + bytes(8) + b"tb."
    )
    assert found.tolist() == [0]
    assert not found.dtype.hasobject


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2, [("a", "i4"), ("b", "O")]),
        np.zeros(2, "V8"),
        np.array([1, 2]).view(np.recarray),
        np.ma.array([1, 2]),
        pd.DataFrame({"p": pd.period_range("2020", periods=2, freq="M")}),
        pd.DataFrame({"i": pd.cut([1.0, 2.0], 2)}),
        pd.DataFrame({"s": pd.arrays.SparseArray([0, 1])}),
        pd.Series([1, 2]),
        pd.DataFrame,
        np.ndarray,
        csr_matrix,
        dt.datetime,
        len,
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_is_not_understood_is_refused_and_never_half_read(value):
    with pytest.raises(UnsafePickleError):
        load(pickle.dumps({"x": [value]}, 5))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("pandas", "DataFrame"),
        ("numpy", "ndarray"),
        ("scipy.sparse", "csr_matrix"),
        ("numpy._core.multiarray", "scalar"),
        ("datetime", "datetime"),
        ("pandas", "NA"),
    ],
)
def test_attributes_of_classes_and_functions_cannot_be_set(module, name):
    before = {c: dict(vars(c)) for c in (pd.DataFrame, csr_matrix, np.ndarray, type(pd.NA))}
    state = pickle.dumps(({"x": 1}, {"toarray": "gone", "_function": "gone"}), 3)[2:-1]
    content = b"\x80\x04" + global_opcodes(module, name) + state + b"b."
    if name == "NA":  # an object, of which the stand-in may take any state
        assert load(content) is pd.NA
    else:
        with pytest.raises((UnsafePickleError, TypeError)):
            load(content)
    assert not hasattr(pd.NA, "toarray")
    assert before == {c: dict(vars(c)) for c in before}
    assert load(pickle.dumps(FRAMES["numbers"], 5)).equals(FRAMES["numbers"])


def test_bytes_are_decoded_from_latin_1_only():
    encode = b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x06\0\0\0"
    assert load(encode + b"latin1\x86R.") == b"a"
    with pytest.raises(UnsafePickleError, match=r"_codecs\.encode"):
        load(encode[:-4] + b"\x03\0\0\0hex\x86R.")


@pytest.mark.parametrize("cut", [0, 1, 2, 50, 500, -1])
def test_a_file_that_is_cut_short_is_a_value_error(tmp_path, cut):
    content = (FIXTURES / "original-pandas-2.2.pkl").read_bytes()[:cut]
    (tmp_path / "d.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a pickle"):
        read_pickle(tmp_path / "d.pkl")


@settings(max_examples=examples(300))
@given(st.data())
def test_damaged_files_raise_a_value_error_or_are_read(data):
    content = bytearray((FIXTURES / "original-pandas-3.0.pkl").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = Path(tempfile.gettempdir()) / f"interp-embed-damaged-{os.getpid()}.pkl"
    path.write_bytes(content)
    try:
        read_pickle(path)
    except (ValueError, MemoryError, OverflowError):
        pass
    finally:
        path.unlink()


# --- structure -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"field": "body"}, "'field' names no column: 'body'"),
        ({"rows": [None]}, "'rows' has 1 entries for 3 documents"),
        (
            {"tokenized_documents": [["a"], ["ü", " ", "🙂"], None]},
            "document 0: 2 rows .* 1 tokens",
        ),
        ({"tokenized_documents": [["a", 1], ["ü", " ", "🙂"], None]}, "document 0: 'tokenized_doc"),
        ({"tokenized_documents": [["a", "b"], None, None]}, "document 1: 'tokenized_documents'"),
        ({"rows": [csr_matrix((2, 5)), csr_matrix((3, 4)), None]}, "document 1: 4 features"),
        ({"rows": [np.zeros((2, 5)), None, None]}, "document 0: 'rows' holds a ndarray"),
        (
            {"aggregate_activations": [{"max": csr_matrix((1, 4))}, None, None]},
            r"\(1, 5\) at 'max'",
        ),
        ({"sae_metadata": []}, "'sae_metadata' is not a dictionary"),
        ({"dataset": [1]}, "'dataset' is not a DataFrame"),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path, changes, message):
    wrong = legacy(**changes)
    with pytest.raises(ValueError, match=message):
        write_pickle(tmp_path / "d.pkl", wrong)
    assert list(tmp_path.iterdir()) == []
    content = {name: getattr(wrong, name) for name in LegacyDataset.__slots__}
    (tmp_path / "d.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_pickle(tmp_path / "d.pkl")


def test_missing_keys_are_named(tmp_path):
    (tmp_path / "d.pkl").write_bytes(pickle.dumps({"dataset": None, "rows": []}))
    with pytest.raises(ValueError, match=r"lacks \['aggregate_activations', .*'feature_labels'\]"):
        read_pickle(tmp_path / "d.pkl")
    (tmp_path / "d.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="holds a list"):
        read_pickle(tmp_path / "d.pkl")


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("indices", [9, 0]), ("indices", [-1, 0]), ("indptr", [0, 9, 2]), ("indptr", [0, 2])],
)
def test_matrices_whose_indices_lie_outside_are_refused(attribute, value):
    matrix = csr_matrix(np.eye(2, dtype=np.float32))
    setattr(matrix, attribute, np.array(value, np.int32))
    with pytest.raises(ValueError):  # noqa: PT011 (scipy words each its own way)
        load(pickle.dumps(matrix, 5))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_matrices_come_back_exactly(protocol):
    rng = np.random.default_rng(1)
    dense = np.where(rng.random((4, 7)) < 0.5, rng.standard_normal((4, 7)), 0)
    for dtype in (np.float32, np.float64, np.int64):
        found = load(pickle.dumps(csr_matrix(dense.astype(dtype)), protocol))
        assert type(found) is csr_matrix
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.toarray(), dense.astype(dtype))


# --- the file ------------------------------------------------------------------------------------


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_pickle(tmp_path / "d.pkl", legacy())
    before = (tmp_path / "d.pkl").read_bytes()

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_pickle(tmp_path / "d.pkl", legacy(id="other"))
    assert (tmp_path / "d.pkl").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["d.pkl"]


def test_metadata_that_is_no_plain_value_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not .*Path"):
        write_pickle(tmp_path / "d.pkl", legacy(sae_metadata={"path": Path()}))
    assert list(tmp_path.iterdir()) == []


def test_pickles_are_told_by_content(tmp_path):
    write_pickle(tmp_path / "d.zarr", legacy())
    assert is_pickle(tmp_path / "d.zarr")
    for protocol in PROTOCOLS:
        (tmp_path / "x").write_bytes(pickle.dumps([1], protocol))
        assert is_pickle(tmp_path / "x")
    for content in (b"", b"\x80", b"\x80\x04", b"\x80\x04N", b"\x80\x09N.", b"PK\x03\x04.", b"{}"):
        (tmp_path / "x.pkl").write_bytes(content)
        assert not is_pickle(tmp_path / "x.pkl")
    assert not is_pickle(tmp_path)
    assert not is_pickle(tmp_path / "absent.pkl")
    assert not is_pickle(tmp_path / "x.pkl" / "below")
