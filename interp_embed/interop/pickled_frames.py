"""Frames out of pickles, whichever release of pandas wrote them.

Owns the knowledge of how pandas 1.5 to 3 lay a frame out in a pickle, and builds an ordinary frame
from it with public constructors only. Reads the notes that `interp_embed.interop.restricted`
takes; never imports a name because a file asked for it. Text columns that pandas 3 keeps in
Arrow's memory layout are decoded here, so pyarrow is not needed.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any, TypeGuard

import numpy as np
import pandas as pd

from interp_embed.errors import UnsafePickleError
from interp_embed.interop.restricted import (
    Array,
    Constructor,
    Record,
    RestrictedUnpickler,
    plain,
    resolve_array,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["load"]


def _named(*names: str) -> dict[str, type[Record]]:
    """Return one class of records per name, so that they can be told apart."""
    sealed: Any = type(Record)
    return {name: sealed(name, (Record,), {"__slots__": ()}) for name in names}


_INTEGERS = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
_NUMERIC_INDEXES = ("Int64Index", "UInt64Index", "Float64Index")  # pandas < 2
_OFFSETS = (
    "Day", "Hour", "Minute", "Second", "Milli", "Micro", "Nano", "BusinessDay", "Week",
    "MonthBegin", "MonthEnd", "QuarterBegin", "QuarterEnd", "YearBegin", "YearEnd",
)  # fmt: skip
_RECORDS = _named(
    "DataFrame", "BlockManager", "_unpickle_block", "new_block",
    "Index", "RangeIndex", "MultiIndex", "DatetimeIndex", "TimedeltaIndex", "CategoricalIndex",
    *_NUMERIC_INDEXES, "_new_Index", "_new_DatetimeIndex",
    "__pyx_unpickle_NDArrayBacked", "Categorical", "CategoricalDtype",
    "DatetimeArray", "TimedeltaArray", "DatetimeTZDtype",
    "StringArray", "StringArrayNumpySemantics", "ArrowStringArray",
    "ArrowStringArrayNumpySemantics", "StringDtype", "ArrowExtensionArray", "ArrowDtype",
    "IntegerArray", "FloatingArray", "BooleanArray", "BooleanDtype", "Float32Dtype", "Float64Dtype",
    *(f"{name}Dtype" for name in _INTEGERS), *_OFFSETS,
    "_unpickle_timestamp", "_timedelta_unpickle", "_nat_unpickle", "__nat_unpickle",
    "_restore_array", "chunked_array",
)  # fmt: skip
_MISSING = Record()
_RESOLUTION = {7: "s", 8: "ms", 9: "us", 10: "ns"}


class _Unpickler(RestrictedUnpickler):
    """A restricted unpickler that also knows the classes of a frame."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("pandas", "pandas._libs.missing") and name == "NA":
            return _MISSING
        return super().find_class(module, name)


def load(file: IO[bytes]) -> Any:
    """Return what the pickle in ``file`` holds, as plain values, arrays, matrices and frames.

    Raises
    ------
    UnsafePickleError
        The pickle asks for anything else.
    """
    noted = _Unpickler(file, _RECORDS, frozenset({"pandas", "pyarrow"})).load()
    return plain(noted, _resolve)


def _is(value: object, *names: str) -> TypeGuard[Record]:
    return isinstance(value, Record) and type(value).__name__ in names


def _unsupported(value: object, what: str) -> UnsafePickleError:
    name = value.__name__ if isinstance(value, type) else type(value).__name__
    return UnsafePickleError(
        f"the pickle holds {what} of kind {name}, which is not read. Convert it to text, numbers "
        "or dates where it was written, and save again."
    )


def _resolve(value: Record) -> Any:
    """Return the frame or the pandas scalar that ``value`` stands for."""
    if value is _MISSING:
        return pd.NA
    if _is(value, "DataFrame"):
        return _frame(value)
    if _is(value, "_nat_unpickle", "__nat_unpickle"):
        return pd.NaT
    if _is(value, "_unpickle_timestamp"):
        number, _, zone, *resolution = value.args
        stamp = pd.Timestamp(np.datetime64(int(number), _unit(resolution)))
        return stamp if zone is None else stamp.tz_localize("UTC").tz_convert(plain(zone))
    if _is(value, "_timedelta_unpickle"):
        number, *resolution = value.args
        return pd.Timedelta(np.timedelta64(int(number), _unit(resolution)))
    raise _unsupported(value, "a value")


def _unit(resolution: list[Any]) -> Any:
    return _RESOLUTION[resolution[0] if resolution else 10]


def _frame(record: Record) -> pd.DataFrame:
    """Build a frame from its blocks: runs of columns that share a type."""
    state = record.state if isinstance(record.state, dict) else {}
    manager = state.get("_mgr", state.get("_data"))
    if not (_is(manager, "BlockManager") and len(manager.args) == 2):
        raise ValueError("a DataFrame in this pickle has no blocks; pandas 1.5 to 3 are read")
    blocks, axes = manager.args
    if len(axes) != 2:
        raise ValueError(f"a DataFrame in this pickle has {len(axes)} axes, expected 2")
    names, index = (_index(axis) for axis in axes)
    columns: dict[int, Any] = {}
    for block in blocks:
        if not (_is(block, "_unpickle_block", "new_block") and len(block.args) >= 2):
            raise _unsupported(block, "a block of a frame")
        where = block.args[1]
        where = where if isinstance(where, slice) else resolve_array(where, "a block's placement")
        positions = np.arange(len(names))[where].tolist()
        values = _columns(block.args[0])
        if len(values) != len(positions) or any(len(v) != len(index) for v in values):
            raise ValueError("a block of a DataFrame in this pickle does not fit its axes")
        columns.update(zip(positions, values, strict=True))
    if len(columns) != len(names):
        raise ValueError(f"a DataFrame in this pickle has {len(columns)} of {len(names)} columns")
    frame = pd.DataFrame({i: columns[i] for i in range(len(names))}, index=index)
    frame.columns = names
    return frame


def _columns(block: object) -> list[Any]:
    """Return the columns of a block, each something that a frame takes as one."""
    array, zone = _datetimes(block)
    if array is not None:
        return [_localise(pd.Series(column), zone).array for column in np.atleast_2d(array)]
    if isinstance(block, np.ndarray):
        return [_column(column) for column in np.atleast_2d(plain(block, _resolve))]
    return [_extension(block)]


def _column(values: NDArray[Any]) -> Any:
    """Keep an object column one, whatever pandas would infer from its cells."""
    return pd.Series(values, dtype=object).array if values.dtype.hasobject else values


def _datetimes(value: object) -> tuple[NDArray[Any] | None, object]:
    """Return the numpy array and time zone of a pickled array of dates, or None twice."""
    content, dtype = _backed(value, "DatetimeArray", "TimedeltaArray")
    if content is None or content.dtype.kind not in "mM":
        return None, None
    if _is(dtype, "DatetimeTZDtype"):
        state = dtype.state if isinstance(dtype.state, dict) else {}
        return content, plain(state.get("tz"))
    return content, None


def _backed(value: object, *names: str) -> tuple[NDArray[Any] | None, Any]:
    """Return the numpy array behind a pandas array, and its dtype as pickled."""
    if not _is(value, "__pyx_unpickle_NDArrayBacked"):
        return None, None
    kind = value.args[0] if value.args else None
    if not (isinstance(kind, type) and kind.__name__ in names):
        return None, None
    state = value.state if value.state is not None else value.args[-1]
    arrays = [v for v in state if isinstance(v, Array)]
    dtypes = [v for v in state if isinstance(v, Record)]
    if len(arrays) != 1:
        raise ValueError(f"a {kind.__name__} in this pickle has no values")
    return arrays[0].view(np.ndarray), dtypes[0] if dtypes else None


def _localise(values: pd.Series[Any], zone: Any) -> pd.Series[Any]:
    return values if zone is None else values.dt.tz_localize("UTC").dt.tz_convert(zone)


def _extension(value: object) -> Any:
    """Return the pandas array of one column that numpy alone cannot hold."""
    codes, dtype = _backed(value, "Categorical")
    if codes is not None:
        state = dtype.state if _is(dtype, "CategoricalDtype") else None
        if not isinstance(state, dict):
            raise ValueError("a Categorical in this pickle has no categories")
        kind = pd.CategoricalDtype(_index(state["categories"]), ordered=bool(state["ordered"]))
        return pd.Categorical.from_codes(codes.astype(np.int64), dtype=kind)
    text, dtype = _backed(value, "StringArray", "StringArrayNumpySemantics")
    if text is not None:
        return _text(plain(text, _resolve).tolist(), dtype)
    if isinstance(value, Record) and isinstance(value.state, dict):
        state = value.state
        if _is(value, "IntegerArray", "FloatingArray", "BooleanArray"):
            return _masked(
                resolve_array(state.get("_data"), "a column's values"),
                resolve_array(state.get("_mask"), "a column's mask"),
            )
        if _is(value, "ArrowStringArray", "ArrowStringArrayNumpySemantics"):
            texts, _ = _arrow(state.get("_pa_array", state.get("_data")))
            return _text(list(texts), state.get("_dtype"))
        if _is(value, "ArrowExtensionArray"):
            values, missing = _arrow(state.get("_pa_array", state.get("_data")))
            return _text(list(values), None) if values.dtype == object else _masked(values, missing)
    if _is(value, "__pyx_unpickle_NDArrayBacked"):
        raise _unsupported(value.args[0] if value.args else value, "a column")
    raise _unsupported(value, "a column")


def _masked(values: NDArray[Any], missing: NDArray[Any]) -> Any:
    if values.dtype.kind not in "biuf" or missing.dtype != bool or values.shape != missing.shape:
        raise ValueError("a column with missing values in this pickle does not fit its mask")
    kinds = {"b": pd.arrays.BooleanArray, "f": pd.arrays.FloatingArray}
    return kinds.get(values.dtype.kind, pd.arrays.IntegerArray)(values, missing)


def _text(values: Sequence[Any], dtype: Any) -> Any:
    """Return a text column: "string" if it marks gaps with ``NA``, objects and NaN otherwise."""
    numpy_like = False
    if _is(dtype, "StringDtype"):
        numpy_like = any(isinstance(a, float) and a != a for a in dtype.args)
        state = dtype.state if isinstance(dtype.state, dict) else {}
        numpy_like |= isinstance(state.get("_na_value"), float)
    if not all(isinstance(v, str) or v is None or v is pd.NA or v != v for v in values):
        raise ValueError("a text column in this pickle holds values that are not text")
    gap = np.nan if numpy_like else pd.NA
    filled = np.empty(len(values), object)
    filled[:] = [v if isinstance(v, str) else gap for v in values]
    return _column(filled) if numpy_like else pd.array(filled, dtype="string")


def _index(value: object) -> Any:
    """Build the index, or the column names, that ``value`` describes."""
    if not (_is(value, "_new_Index", "_new_DatetimeIndex")):
        raise _unsupported(value, "an index")
    kind, described = value.args
    name = kind.__name__ if isinstance(kind, type) else ""
    label = plain(described.get("name"), _resolve)
    if name == "RangeIndex":
        start, stop, step = (int(described[k]) for k in ("start", "stop", "step"))
        return pd.RangeIndex(start, stop, step, name=label)
    if name == "MultiIndex":
        levels: list[Any] = [_index(level) for level in described["levels"]]
        codes: list[Any] = [resolve_array(c, "MultiIndex.codes") for c in described["codes"]]
        return pd.MultiIndex(levels, codes, names=plain(described["names"], _resolve))
    data = described.get("data")
    dates, zone = _datetimes(data)
    if dates is not None:
        return pd.Index(_localise(pd.Series(dates), zone), name=label)
    if isinstance(data, np.ndarray):
        values = plain(data, _resolve)
        if name == "DatetimeIndex" and (zone := described.get("tz")) is not None:
            return pd.Index(_localise(pd.Series(values), plain(zone)), name=label)
        return pd.Index(values, dtype=values.dtype, name=label)
    column = _extension(data)
    return pd.Index(column, dtype=column.dtype, name=label)


# --- Arrow ---------------------------------------------------------------------------------------
# https://arrow.apache.org/docs/format/Columnar.html

_ARROW_NUMBERS = {
    "int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8",
    "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8",
    "float": "f4", "double": "f8", "float32": "f4", "float64": "f8",
}  # fmt: skip
_ARROW_OFFSETS = {"string": "i4", "utf8": "i4", "large_string": "i8", "large_utf8": "i8"}


def _arrow(value: object) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the values of an Arrow array, and which are missing (None among text)."""
    if _is(value, "chunked_array"):
        parts = [_arrow(part) for part in value.args[0]]
        if not parts:
            return np.empty(0, object), np.empty(0, np.bool_)
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    if not _is(value, "_restore_array"):
        raise _unsupported(value, "an Arrow column")
    kind, length, _, offset, buffers, *_ = value.args[0]
    if isinstance(kind, Constructor) or kind not in {*_ARROW_NUMBERS, *_ARROW_OFFSETS, "bool"}:
        raise UnsafePickleError(
            f"the pickle holds an Arrow column of type {kind!r}, which is not read. Convert it "
            "to text or numbers where it was written, and save again."
        )
    validity, *rest = [None if b is None else np.frombuffer(b, np.uint8) for b in buffers]
    missing = np.zeros(length, np.bool_) if validity is None else ~_bits(validity, offset, length)
    if kind == "bool":
        return _bits(rest[0], offset, length), missing
    if kind in _ARROW_NUMBERS:
        numbers = _buffer(rest[0], _ARROW_NUMBERS[kind])[offset : offset + length]
        if len(numbers) != length:
            raise ValueError("an Arrow column in this pickle is shorter than it says")
        return numbers, missing
    bounds = _buffer(rest[0], _ARROW_OFFSETS[kind])[offset : offset + length + 1].astype(np.int64)
    content = b"" if rest[1] is None else rest[1].tobytes()
    if length and (len(bounds) != length + 1 or (np.diff(bounds) < 0).any()):
        raise ValueError("an Arrow text column in this pickle is shorter than it says")
    if length and (bounds[0] < 0 or bounds[-1] > len(content)):
        raise ValueError("an Arrow text column in this pickle points outside its text")
    texts = np.empty(length, object)
    for i in np.flatnonzero(~missing):
        texts[i] = content[bounds[i] : bounds[i + 1]].decode()
    return texts, missing


def _buffer(content: NDArray[np.uint8] | None, dtype: str) -> NDArray[Any]:
    """View bytes as little-endian numbers; Arrow pads its buffers, so a rest is dropped."""
    if content is None:
        return np.empty(0, f"<{dtype}")
    return content[: len(content) // int(dtype[1]) * int(dtype[1])].view(f"<{dtype}")


def _bits(content: NDArray[np.uint8] | None, offset: int, length: int) -> NDArray[np.bool_]:
    if length < 0 or offset < 0 or content is None or len(content) * 8 < offset + length:
        raise ValueError("an Arrow column in this pickle is shorter than it says")
    bits = np.unpackbits(content, bitorder="little", count=offset + length)
    return bits[offset:].astype(np.bool_)
