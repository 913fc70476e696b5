"""How a data frame's columns are stored, and what columns of several blocks have in common."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from interp_embed.store.format.columns import (
    ARROW_STRING,
    SPLIT_CHARACTER,
    Column,
    decode,
    encodable,
    encode,
    json_values,
    missing_values,
    restored_dtype,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["as_column", "schema_of", "unified_schema"]


def schema_of(frame: pd.DataFrame) -> list[Column]:
    """Decide how each column of ``frame`` is stored.

    Raises
    ------
    ValueError
        If two columns have one name.
    TypeError
        If a column holds values that cannot be stored.
    """
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()].unique().tolist()
        raise ValueError(f"columns {twice} occur more than once; rename them")
    columns = []
    for number, name in enumerate(frame.columns):
        if isinstance(name, np.generic):
            name = name.item()
        if not isinstance(name, (str, int, float, bool, type(None))):
            raise TypeError(f"column names must be strings or numbers, got {name!r}")
        if isinstance(name, str) and SPLIT_CHARACTER.search(name):
            raise TypeError(
                f"column name {name!r} has a character split into two surrogates; rename it"
            )
        columns.append(_column(frame.iloc[:, number], name, _key(name, number)))
    return _with_safe_keys(columns)


def _with_safe_keys(columns: list[Column]) -> list[Column]:
    if len({c.key.lower() for c in columns}) < len(columns):  # file systems may fold case
        return [replace(c, key=f"column-{i}") for i, c in enumerate(columns)]
    return columns


def _key(name: Any, number: int) -> str:
    """Return the name of a column's array: the column's own, or its number where that is unsafe."""
    if not isinstance(name, str) or not name:
        return f"column-{number}"
    key = quote(name, safe=" ", errors="surrogatepass")
    unsafe = key[0] in ". " or key[-1] in ". " or key.startswith("__") or key == "zarr.json"
    return f"column-{number}" if unsafe or len(key) > 100 else key


def _column(series: pd.Series[Any], name: Any, key: str) -> Column:
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        categories = [json.loads(c) for c in json_values(dtype.categories, name)]
        stored = _dtype_name(dtype.categories.dtype)
        return Column(
            name, key, "codes", stored, categories=categories, ordered=bool(dtype.ordered)
        )
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf" and dtype.itemsize <= 8:
        return Column(name, key, "plain", dtype.name)
    if isinstance(dtype, np.dtype) and dtype.kind in "mM":
        return Column(name, key, "time", str(dtype))
    if isinstance(dtype, pd.DatetimeTZDtype):
        return Column(name, key, "time", f"datetime64[{dtype.unit}, {_zone_name(dtype.tz, name)}]")
    absent = series.isna().to_numpy(np.bool_)
    nullable = bool(absent.any())
    if _is_masked(dtype):
        return Column(name, key, "masked", str(dtype), nullable)
    values = series[~absent].tolist()
    kind = "json"
    if values and all(type(v) is str for v in values):
        kind = "string" if encodable(values) else "escaped"
    elif values and all(type(v) is dt.date for v in values):
        kind = "date"
    if isinstance(dtype, np.dtype) and dtype.kind == "O":
        nulls = {_null_of(v) for v in series[absent]}
        if not values and len(nulls) <= 1:
            return Column(name, key, "null", "object", True, "".join(nulls) or "none")
        null = nulls.pop() if len(nulls) == 1 else "none"
        if nulls or (kind == "json" and null in {"none", "nan"}):  # JSON has both of these
            kind, nullable, null = "json", False, "none"
        return Column(name, key, kind, "object", nullable, null)
    if not values:
        kind, nullable = "null", True
    column = Column(name, key, kind, _dtype_name(dtype), nullable and kind != "json")
    _check_restores(series, column)
    return column


def _null_of(value: Any) -> str:
    if value is None:
        return "none"
    return "na" if value is pd.NA else "nat" if value is pd.NaT else "nan"


def _is_masked(dtype: Any) -> bool:
    return isinstance(getattr(dtype, "numpy_dtype", None), np.dtype) and not hasattr(
        dtype, "pyarrow_dtype"
    )


def _dtype_name(dtype: Any) -> str:
    """Return a name from which `_dtype` makes the same dtype, under any version of pandas."""
    if isinstance(dtype, pd.StringDtype):
        return "str" if dtype.na_value is not pd.NA else f"string[{dtype.storage}]"
    if str(dtype) == "string[pyarrow]":
        return ARROW_STRING
    return str(dtype)


def _zone_name(zone: Any, name: Any) -> str:
    """Return a time zone's name from which pandas makes an equivalent one."""
    try:
        pd.api.types.pandas_dtype(f"datetime64[ns, {zone}]")
    except (TypeError, ValueError):
        offset = zone.utcoffset(None)
        if offset is None:
            raise TypeError(
                f"column {name!r} has the time zone {zone!r}, which has no name to store. Convert the "
                "column first, to UTC with .dt.tz_convert('UTC') or to a named zone"
            ) from None
        return str(dt.timezone(offset))
    return str(zone)


def _check_restores(series: pd.Series[Any], column: Column) -> None:
    """Refuse an extension dtype whose values would not come back."""
    head = series.iloc[:8]
    try:
        if column.kind == "null":
            restored = missing_values(column, len(head))
        else:
            values, missing = encode(head, column)
            restored = decode(values, missing if column.nullable else None, column)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TypeError(
            f"column {column.name!r} has dtype {series.dtype}, which cannot be stored ({error}). "
            "Convert it to numbers, strings, dates, lists or dicts first"
        ) from error
    if restored.dtype != series.dtype:
        raise TypeError(
            f"column {column.name!r} has dtype {series.dtype}, which would come back as "
            f"{restored.dtype}. Convert it to numbers, strings, dates, lists or dicts first"
        )


def unified_schema(known: Sequence[Column], added: Sequence[Column]) -> list[Column]:
    """Return the combined columns of two runs of documents, those of the first run first.

    A column that only one of them has is missing in the other. Integers with missing values become
    pandas' nullable integers; integers and floats become floats; whatever else has no dtype in
    common becomes ``object``.
    """
    by_name = {column.name: column for column in added}
    columns = [_unified(column, by_name.pop(column.name, None)) for column in known]
    columns += [_unified(column, None) for column in added if column.name in by_name]
    return _with_safe_keys([replace(c, key=_key(c.name, i)) for i, c in enumerate(columns)])


def _unified(a: Column, b: Column | None) -> Column:
    if b is None:
        b = Column(a.name, a.key, "null", "object", True)
    if a.kind == "null":
        a, b = b, a
    if a == replace(b, key=a.key):
        return a
    if b.kind == "null":
        return _with_missing(a, b)
    nullable, null = a.nullable or b.nullable, a.null if a.null == b.null else "none"
    if a.kind == b.kind == "codes":
        # 1 == True == 1.0, which are three categories of an index of objects.
        alike = a.dtype == b.dtype and a.dtype != "object" and a.ordered == b.ordered
        if alike and (a.categories == b.categories or not a.ordered):
            categories = dict.fromkeys([*(a.categories or ()), *(b.categories or ())])
            return replace(a, categories=list(categories))
    elif a.dtype == b.dtype:
        kinds = {a.kind, b.kind}
        kind = a.kind if len(kinds) == 1 else "mixed"
        if kinds == {"string", "escaped"}:
            kind = "escaped"
        return replace(a, kind=kind, nullable=nullable, null=null)
    elif {a.kind, b.kind} <= {"plain", "masked"}:
        dtype = _common_number(a, b)
        if dtype is not None:
            masked = isinstance(restored_dtype(dtype), pd.api.extensions.ExtensionDtype)
            return Column(
                a.name, a.key, "masked" if masked else "plain", dtype, masked and nullable
            )
    elif {a.kind, b.kind} <= {"string", "escaped"}:
        kind = "string" if a.kind == b.kind == "string" else "escaped"
        return Column(a.name, a.key, kind, "object", nullable)
    return Column(a.name, a.key, "mixed", "object", nullable, null)


def _with_missing(column: Column, null: Column) -> Column:
    """Return a column that holds its values, and others that are all missing."""
    if column.kind in ("time", "codes"):
        return column
    if column.kind == "null":
        same = column.dtype == null.dtype and column.null == null.null
        return column if same else Column(column.name, column.key, "null", "object", True)
    if column.kind == "plain" or (column.kind == "masked" and null.dtype == "object"):
        dtype = restored_dtype(column.dtype)
        if column.kind == "masked":
            return replace(column, nullable=True)
        if dtype.kind == "f":
            return column
        return Column(column.name, column.key, "masked", _nullable_name(dtype), True)
    if column.dtype == null.dtype == "object":
        return replace(
            column, nullable=True, null=null.null if not column.nullable else column.null
        )
    if null.dtype in ("object", column.dtype):
        return replace(column, nullable=True)
    return Column(column.name, column.key, "mixed", "object", True)


def _nullable_name(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "b":
        return "boolean"
    return dtype.name.replace("uint", "UInt").replace("int", "Int")


def _common_number(a: Column, b: Column) -> str | None:
    """Return a dtype that holds the numbers of both; None if pandas has no such dtype."""
    found = [restored_dtype(c.dtype) for c in (a, b)]
    bases = [d.numpy_dtype if c.kind == "masked" else d for c, d in zip((a, b), found, strict=True)]
    if (bases[0].kind == "b") != (bases[1].kind == "b"):
        return None
    common = np.result_type(*bases)
    if common.kind == "f" and not any(base.kind == "f" for base in bases):
        return None  # signed and unsigned 64 bits
    masked = [base for base, c in zip(bases, (a, b), strict=True) if c.kind == "masked"]
    if common.kind == "f":  # a missing integer among floats is NaN
        return f"Float{8 * common.itemsize}" if any(m.kind == "f" for m in masked) else common.name
    return _nullable_name(common) if masked else common.name


def as_column(series: pd.Series[Any], column: Column) -> pd.Series[Any]:
    """Return the values of one block as the column of the whole store has them."""
    if column.dtype == "object" and column.kind != "codes":
        if column.kind == "mixed":
            series = _without_times(series)
        if pd.api.types.is_object_dtype(series.dtype):
            return series
        values = series.astype(object)
        values[series.isna()] = None
        return values
    if column.kind == "codes":
        dtype = missing_values(column, 0).dtype
        return series if series.dtype == dtype else series.astype(dtype)
    dtype = restored_dtype(column.dtype)
    if series.dtype == dtype:
        return series
    if isinstance(dtype, np.dtype) and dtype.kind == "f":
        return pd.Series(series.to_numpy(dtype, na_value=np.nan))
    return series.astype(dtype)


def _without_times(series: pd.Series[Any]) -> pd.Series[Any]:
    """Return times and dates as ISO 8601 text, because they cannot stand beside other values."""
    if getattr(series.dtype, "kind", "O") not in "mMO":
        return series
    values = np.empty(len(series), object)
    for number, value in enumerate(series.tolist()):
        timed = isinstance(value, dt.date | pd.Timedelta) and not pd.isna(value)
        values[number] = value.isoformat() if timed else value
    return pd.Series(values, dtype=object)
