"""Hashes of documents, by which two runs of documents are compared. They do not depend on the container.

The same documents may come as a data frame, as the Parquet file that was written from it, or as a
stream of dictionaries. So values are hashed, not dtypes: numbers by value (1 and 1.0 are one number,
whatever their width), times as instants, categoricals as the values that they stand for. What stands
for a missing value does not matter, nor does the order of columns, nor a column without any value.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp_embed.store.format.columns import json_values
from interp_embed.store.format.sealed import digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["combined_hashes", "hash_frame"]

_EXACT = 2.0**53
_STRINGS_AT_ONCE = 4096
_NUMBER = (int, float, np.integer, np.floating)


def hash_frame(frame: pd.DataFrame, field: Any, first: int = 0) -> dict[str, str]:
    """Return SHA-256 of the field's values (``text``) and of the other columns (``columns``).

    Two frames with equal hashes hold equal values.

    Parameters
    ----------
    frame
        The documents, one per row.
    field
        Column with the text.
    first
        Number of the first document, for errors.
    """
    text, columns = hashlib.sha256(), []
    for number, name in enumerate(frame.columns):
        series = frame.iloc[:, number]
        if name == field:
            for piece in _pieces(series, first):
                text.update(piece)
        elif not series.isna().all():
            state = hashlib.sha256()
            for piece in _pieces(series, first):
                state.update(piece)
            name = name.item() if isinstance(name, np.generic) else name
            columns.append([json.dumps(name), state.hexdigest()])
    return {"text": text.hexdigest(), "columns": digest(sorted(columns))}


def combined_hashes(blocks: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the hashes of all documents, from those of their blocks in order."""
    return {name: digest([block[name] for block in blocks]) for name in ("text", "columns")}


def _pieces(series: pd.Series[Any], first: int) -> Iterator[bytes]:
    missing = series.isna().to_numpy(np.bool_)
    present = series[~missing]
    if isinstance(present.dtype, pd.CategoricalDtype):
        present = present.astype(object)
    kind, arrays = _canonical(present)
    if kind == "json":
        values = [
            None if absent else value
            for value, absent in zip(series.tolist(), missing.tolist(), strict=True)
        ]
        arrays = [_objects(json_values(values, series.name, sort_keys=True, first=first))]
    yield json.dumps([kind, len(series)]).encode()
    yield np.packbits(missing).tobytes()
    for array in arrays:
        if array.dtype != object:
            yield np.ascontiguousarray(array).tobytes()
            continue
        for start in range(0, len(array), _STRINGS_AT_ONCE):
            strings = array[start : start + _STRINGS_AT_ONCE]
            # Lengths first, so that no two sequences of strings run into the same bytes.
            yield np.array([len(s) for s in strings], "<i8").tobytes()
            yield "".join(strings).encode("utf-8", "surrogatepass")


def _canonical(present: pd.Series[Any]) -> tuple[str, list[NDArray[Any]]]:
    """Return what the values are, and arrays that say which."""
    dtype = present.dtype
    if len(present) == 0:
        return "nothing", []
    if pd.api.types.is_bool_dtype(dtype):
        return "boolean", [present.to_numpy(np.bool_)]
    if pd.api.types.is_numeric_dtype(dtype):
        base = dtype if isinstance(dtype, np.dtype) else getattr(dtype, "numpy_dtype", None)
        if isinstance(base, np.dtype) and base.kind in "iuf":
            return _numbers(present.to_numpy(base))
    if pd.api.types.is_datetime64_any_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype):
        return _times(present)
    values = present.tolist()
    types = set(map(type, values))
    if all(issubclass(t, str) for t in types):
        return "text", [_objects(values)]
    if types <= {bool, np.bool_}:
        return "boolean", [np.array(values, np.bool_)]
    if types == {dt.date}:
        return "date", [_objects([v.isoformat() for v in values])]
    if bool not in types and all(issubclass(t, _NUMBER) for t in types):
        found = _python_numbers(values)
        if found is not None:
            return _numbers(found)
    return "json", []


def _python_numbers(values: list[Any]) -> NDArray[Any] | None:
    """Return numbers as an array that holds each exactly; None if no such array exists."""
    if any(isinstance(v, (float, np.floating)) for v in values):
        exact = all(isinstance(v, (float, np.floating)) or abs(int(v)) <= _EXACT for v in values)
        return np.array(values, np.float64) if exact else None
    lowest, highest = min(values, default=0), max(values, default=0)
    if lowest >= -(2**63) and highest < 2**63:
        return np.array(values, np.int64)
    return np.array(values, np.uint64) if lowest >= 0 and highest < 2**64 else None


def _numbers(values: NDArray[Any]) -> tuple[str, list[NDArray[Any]]]:
    if values.dtype.kind == "f":
        wide = values.astype("<f8")
        whole = np.isfinite(wide) & (np.abs(wide) <= _EXACT) & (np.trunc(wide) == wide)
        if not whole.all():
            return "float", [wide]
        values = wide.astype(np.int64)
    if values.dtype == np.uint64 and values.max(initial=0) >= 2**63:
        return "unsigned", [values.astype("<u8")]
    return "integer", [values.astype("<i8")]


def _times(present: pd.Series[Any]) -> tuple[str, list[NDArray[Any]]]:
    """Return times as seconds and nanoseconds: one instant may be stored in several units."""
    zoned = isinstance(present.dtype, pd.DatetimeTZDtype)
    if zoned:
        present = present.dt.tz_convert("UTC").dt.tz_localize(None)
    values = present.to_numpy()
    unit = np.datetime_data(values.dtype)[0]
    a_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    seconds, rest = np.divmod(values.view("int64"), a_second)
    kind = "duration" if values.dtype.kind == "m" else "instant" if zoned else "time"
    return kind, [seconds.astype("<i8"), (rest * (10**9 // a_second)).astype("<i8")]


def _objects(values: list[str]) -> NDArray[Any]:
    out = np.empty(len(values), object)
    out[:] = values
    return out
