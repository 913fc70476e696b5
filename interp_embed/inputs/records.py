"""Dictionaries as a data frame with a dtype for each column."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["frame_of_records", "plain", "typed", "with_plain_values"]

_EXACT = 2**53
_INTEGER = (int, np.integer)
_NUMBER = (int, float, np.integer, np.floating)
_TIMES = (dt.datetime, dt.timedelta, np.datetime64, np.timedelta64)
_NOT_PLAIN = (dt.date, dt.time, decimal.Decimal, *_TIMES)
_SIMPLE = {str, int, float, bool, type(None)}
_NESTED = (list, tuple, set, frozenset, dict, np.ndarray)


def frame_of_records(records: Sequence[dict[Any, Any]]) -> pd.DataFrame:
    """Return dictionaries as a data frame; keys that a dictionary lacks are missing values.

    Integers stay integers even if some are missing. Columns are in order of first appearance.
    """
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = [typed([record.get(name) for record in records]) for name in names]
    frame = pd.DataFrame(dict(enumerate(columns)), index=pd.RangeIndex(len(records)))
    frame.columns = pd.Index(names, dtype=object, tupleize_cols=False)
    return frame


def typed(values: Sequence[Any]) -> pd.Series[Any]:
    """Return values of any kind with their common dtype."""
    present: list[Any] = [v for v in values if not _is_missing(v)]
    types = set(map(type, present))
    whole = len(present) == len(values)
    found: pd.Series[Any] | None = None
    if types and types <= {bool, np.bool_}:
        found = pd.Series(list(values), dtype="bool" if whole else "boolean")
    elif types and bool not in types and all(issubclass(t, _INTEGER) for t in types):
        found = _integers(values, present, whole)
    elif types and bool not in types and all(issubclass(t, _NUMBER) for t in types):
        if all(abs(int(v)) <= _EXACT for v in present if isinstance(v, _INTEGER)):
            dtype = np.dtype(next(iter(types))) if len(types) == 1 else np.dtype(np.float64)
            filled = [np.nan if _is_missing(v) else v for v in values]
            found = pd.Series(np.array(filled, dtype))
    elif types and all(issubclass(t, _TIMES) for t in types):
        found = _times(values, types)
    if found is not None:
        return found
    out = np.empty(len(values), object)
    for number, value in enumerate(values):
        out[number] = None if _is_missing(value) else value
    return pd.Series(out, dtype=object)


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT


def _integers(values: Sequence[Any], present: Sequence[Any], whole: bool) -> pd.Series[Any] | None:
    types = set(map(type, present))
    dtype: np.dtype[Any] = np.dtype(np.int64)
    if len(types) == 1 and issubclass(kind := next(iter(types)), np.integer):
        dtype = np.dtype(kind)
    elif not -(2**63) <= min(present) <= max(present) < 2**63:
        if not 0 <= min(present) <= max(present) < 2**64:
            return None  # Python's integers have no bounds
        dtype = np.dtype(np.uint64)
    if whole:
        return pd.Series(np.array(values, dtype))
    missing = np.array([_is_missing(v) for v in values])
    filled = np.array([0 if _is_missing(v) else v for v in values], dtype)
    array_type = pd.arrays.IntegerArray
    return pd.Series(array_type(filled, missing))


def _times(values: Sequence[Any], types: set[type]) -> pd.Series[Any] | None:
    plain: list[Any] = [pd.NaT if _is_missing(v) else v for v in values]
    if types == {dt.datetime} and all(v is pd.NaT or v.tzinfo is None for v in plain):
        return pd.Series(np.array([None if v is pd.NaT else v for v in plain], "datetime64[us]"))
    try:
        series: pd.Series[Any] = pd.Series(plain)
    except (TypeError, ValueError, OverflowError):  # of several zones, or beyond what pandas holds
        return _far_times(values, types)
    return series if getattr(series.dtype, "kind", "O") in "mM" else _far_times(values, types)


def _far_times(values: Sequence[Any], types: set[type]) -> pd.Series[Any] | None:
    """Return Python's times in microseconds, because pandas' nanoseconds end in 2262."""
    present: list[Any] = [None if _is_missing(v) else v for v in values]
    if types == {dt.timedelta}:
        return pd.Series(np.array(present, "timedelta64[us]"))
    zone = next((v.tzinfo for v in present if isinstance(v, dt.datetime)), None)
    if types != {dt.datetime} or zone is None or any(v and v.tzinfo != zone for v in present):
        return None
    naive = [v and v.astimezone(dt.UTC).replace(tzinfo=None) for v in present]
    utc = pd.DatetimeIndex(np.array(naive, "datetime64[us]"), tz="UTC")
    return pd.Series(utc.tz_convert(zone))


def with_plain_values(frame: pd.DataFrame, field: Any) -> pd.DataFrame:
    """Return a frame that has times and decimals only where a store can keep them as such.

    Elsewhere, that is in lists and dictionaries and beside values of another kind, times become ISO
    8601 text and decimals become floats. The column ``field`` does not change: no such value is a text.
    """
    changed = {}
    for number, name in enumerate(frame.columns):
        series = frame.iloc[:, number]
        if name == field or not pd.api.types.is_object_dtype(series.dtype):
            continue
        values = series.tolist()
        types = {type(v) for v in values if not _is_missing(v)}
        if types != {dt.date} and any(issubclass(t, _NOT_PLAIN + _NESTED) for t in types):
            with contextlib.suppress(
                RecursionError
            ):  # it cannot be stored either, which is said then
                changed[number] = typed([plain(v) for v in values])
    if not changed:
        return frame
    columns = [changed.get(n, frame.iloc[:, n]) for n in range(frame.shape[1])]
    whole = pd.DataFrame(dict(enumerate(columns)), index=pd.RangeIndex(len(frame)))
    whole.columns = frame.columns
    return whole


def plain(value: Any) -> Any:
    """Return a value with times as text and decimals as floats."""
    if isinstance(value, list | tuple):
        return value if set(map(type, value)) <= _SIMPLE else [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return type(value)(plain(v) for v in value)
    if isinstance(value, np.ndarray):
        return plain(value.tolist()) if value.dtype.kind in "OmM" else value
    if _is_missing(value) or not isinstance(value, _NOT_PLAIN):
        return value
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else pd.Timestamp(value).isoformat()
    if isinstance(value, np.timedelta64 | dt.timedelta):
        if not isinstance(value, np.timedelta64 | pd.Timedelta):
            value = np.timedelta64(value, "us")  # pandas' own nanoseconds hold 292 years
        return None if pd.isna(value) else pd.Timedelta(value).isoformat()
    return value.isoformat()
