"""The documents' own columns: from a data frame to Zarr arrays and back, without loss.

Numbers, booleans and times keep their dtype; strings are Zarr strings; categoricals are codes;
anything else a data frame may hold (nested values, mixed types) is kept as JSON text, where tuples,
sets and arrays become lists. Whether a value is missing is kept apart from the values, so that an
empty string and no string stay two things.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numcodecs
import numpy as np
import pandas as pd

from interp_embed.store.shard import ArraySpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["Column", "decode_frame", "encode_frame", "hash_frame", "inner_documents", "schema_of"]

_TEXT_INNER_BYTES = 2**18  # about this much text is decoded to read one document's
_ARROW_STRING = "arrow[string]"  # pandas has "string[pyarrow]" for another dtype
_MISSING: dict[str, Any] = {"none": None, "nan": float("nan"), "na": pd.NA, "nat": pd.NaT}
# JSON reads a high and a low surrogate in a row as the one character that they stand for.
_SPLIT_CHARACTER = re.compile("[\ud800-\udbff][\udc00-\udfff]")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the documents.

    Attributes
    ----------
    name : str or int or float or bool or None
        As in the data frame.
    key : str
        Name of its array, safe in a path.
    kind : {"plain", "masked", "time", "codes", "string", "escaped", "date", "json"}
        How values are stored. ``masked`` are pandas' nullable numbers and booleans; ``escaped`` are
        strings that UTF-8 cannot hold (lone surrogates), as Python writes them.
    dtype : str
        The dtype to restore; of a categorical column, that of its categories.
    nullable : bool
        Whether some values are missing; then an array under ``null/`` says which.
    null : {"none", "nan", "na", "nat"}
        What a missing value of an object column is: None, NaN, ``pd.NA`` or ``pd.NaT``.
    categories : list or None
        Of a categorical column, in order.
    ordered : bool
        Of a categorical column.
    """

    name: Any
    key: str
    kind: str
    dtype: str
    nullable: bool = False
    null: str = "none"
    categories: Sequence[Any] | None = None
    ordered: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value; ``Column(**value)`` reads it."""
        return asdict(self)

    @property
    def arrays(self) -> list[str]:
        """Names of the arrays of the column."""
        return [f"row/{self.key}", *([f"null/{self.key}"] if self.nullable else [])]


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
        if isinstance(name, str) and _SPLIT_CHARACTER.search(name):
            raise TypeError(f"column name {name!r} holds a character split into two surrogates")
        columns.append(_column(frame.iloc[:, number], name, _key(name, number)))
    if len({c.key.lower() for c in columns}) < len(columns):  # file systems may fold case
        columns = [replace(c, key=f"column-{i}") for i, c in enumerate(columns)]
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
        categories = [json.loads(c) for c in _json_values(dtype.categories, name)]
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
        kind = "string" if _encodable(values) else "escaped"
    elif values and all(type(v) is dt.date for v in values):
        kind = "date"
    if isinstance(dtype, np.dtype) and dtype.kind == "O":
        nulls = {_null_of(v) for v in series[absent]}
        null = nulls.pop() if len(nulls) == 1 else "none"
        if nulls or (kind == "json" and null in {"none", "nan"}):  # JSON has both of these
            kind, nullable, null = "json", False, "none"
        return Column(name, key, kind, "object", nullable, null)
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
        return _ARROW_STRING
    return str(dtype)


def _dtype(name: str) -> Any:
    if name == "str":  # the default of pandas 3; not what ``astype("str")`` means before
        try:
            return pd.StringDtype(na_value=np.nan)
        except TypeError:  # pandas 2.2 knows no such dtype
            return np.dtype(object)
    if name == _ARROW_STRING:
        import pyarrow as pa

        return pd.ArrowDtype(pa.string())
    try:
        return pd.api.types.pandas_dtype(name)
    except ImportError:
        if name.startswith("string["):
            return pd.StringDtype()  # without pyarrow
        raise


def _zone_name(zone: Any, name: Any) -> str:
    """Return a time zone's name from which pandas makes an equivalent one."""
    try:
        pd.api.types.pandas_dtype(f"datetime64[ns, {zone}]")
    except (TypeError, ValueError):
        offset = zone.utcoffset(None)
        if offset is None:
            raise TypeError(
                f"column {name!r}: the time zone {zone!r} has no name to store; convert the column "
                "with .dt.tz_convert('UTC') or to a named zone first"
            ) from None
        return str(dt.timezone(offset))
    return str(zone)


def _check_restores(series: pd.Series[Any], column: Column) -> None:
    """Refuse an extension dtype whose values would not come back."""
    head = series.iloc[:8]
    try:
        values, missing = _encode(head, column)
        restored = _decode(values, missing if column.nullable else None, column)
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


def _encodable(values: Iterable[str]) -> bool:
    try:
        for value in values:
            value.encode()
    except UnicodeEncodeError:  # a lone surrogate: escapes can hold it, UTF-8 cannot
        return False
    return True


def _json_values(values: Iterable[Any], name: Any) -> list[str]:
    texts = []
    for number, value in enumerate(values):
        try:
            texts.append(json.dumps(_plain(value)))
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(
                f"column {name!r}, row {number}: a value of type {type(value).__name__} cannot be "
                f"stored ({error}). Convert the column to numbers, strings, dates, lists or "
                "dicts first"
            ) from error
    return texts


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON has it; refuse what would come back as another value."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, str):
        if _SPLIT_CHARACTER.search(value):
            raise TypeError("a string with a character split into two surrogates has no JSON form")
        return value
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, np.ndarray | np.generic):
        converted = value.tolist()
        if type(converted) is not type(value):  # a type that Python lacks gives itself
            return _plain(converted)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, set | frozenset):  # in an order that is the same in every process
        return [_plain(v) for v in sorted(value, key=lambda v: (type(v).__name__, repr(v)))]
    if isinstance(value, dict):
        if odd := [k for k in value if not isinstance(k, str)]:
            raise TypeError(f"the key {odd[0]!r} of a dict is not a string")
        return {_plain(k): _plain(v) for k, v in value.items()}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def encode_frame(
    frame: pd.DataFrame, schema: Sequence[Column]
) -> dict[str, tuple[NDArray[Any], ArraySpec]]:
    """Return the arrays to write for the rows of ``frame``, by name."""
    arrays: dict[str, tuple[NDArray[Any], ArraySpec]] = {}
    for number, column in enumerate(schema):
        values, missing = _encode(frame.iloc[:, number], column)
        text = values.dtype == object
        spec = ArraySpec("string", "text", "doc") if text else ArraySpec(
            values.dtype.name, "zstd", "doc"
        )  # fmt: skip
        arrays[f"row/{column.key}"] = (values, spec)
        if column.nullable:
            arrays[f"null/{column.key}"] = (missing, ArraySpec("bool", "zstd", "doc"))
    return arrays


def _encode(series: pd.Series[Any], column: Column) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    missing = series.isna().to_numpy(np.bool_)
    if column.kind == "codes":
        return series.cat.codes.to_numpy(), missing
    if column.kind == "plain":
        return series.to_numpy(np.dtype(column.dtype)), missing
    if column.kind == "masked":
        dtype: np.dtype[Any] = series.dtype.numpy_dtype  # type: ignore[union-attr]
        return series.to_numpy(dtype=dtype, na_value=dtype.type(0)), missing
    if column.kind == "time":
        return series.to_numpy().view("int64") if not _aware(series) else (
            series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().view("int64")
        ), missing  # fmt: skip
    if column.kind == "json":
        return _objects(_json_values(series, column.name)), missing
    out = np.full(len(series), "", object)
    present = series[~missing].tolist()
    if column.kind == "date":
        present = [d.isoformat() for d in present]
    elif column.kind == "escaped":
        present = [v.encode("unicode_escape").decode("ascii") for v in present]
    out[~missing] = present
    return out, missing


def _objects(values: Sequence[Any]) -> NDArray[Any]:
    """Return a 1-D array of the values, whatever they are: numpy would look into lists."""
    out = np.empty(len(values), object)
    for number, value in enumerate(values):
        out[number] = value
    return out


def _aware(series: pd.Series[Any]) -> bool:
    return isinstance(series.dtype, pd.DatetimeTZDtype)


def inner_documents(values: NDArray[Any]) -> int:
    """Return how many documents share an inner chunk of a string array."""
    if len(values) == 0:
        return 1
    mean = sum(map(len, values)) / len(values)
    return int(np.clip(_TEXT_INNER_BYTES / max(mean, 1), 1, 4096))


def decode_frame(
    arrays: Mapping[str, NDArray[Any]], schema: Sequence[Column], n_documents: int
) -> pd.DataFrame:
    """Return the data frame of the given rows.

    Parameters
    ----------
    arrays
        By name, each of length ``n_documents``.
    schema
        The columns to decode.
    n_documents
        Number of rows.
    """
    series = [_decode(arrays[f"row/{c.key}"], arrays.get(f"null/{c.key}"), c) for c in schema]
    frame = pd.DataFrame(dict(enumerate(series)), index=pd.RangeIndex(n_documents))
    frame.columns = _names([c.name for c in schema])
    return frame


def _names(names: Sequence[Any]) -> pd.Index[Any]:
    if not names:
        return pd.RangeIndex(0)
    # What pandas would turn into other names, or refuse, in an index of strings.
    kept = None in names or not _encodable(n for n in names if isinstance(n, str))
    index: pd.Index[Any] = pd.Index(list(names), dtype=object if kept else None)
    return index


def _decode(
    values: NDArray[Any], missing: NDArray[np.bool_] | None, column: Column
) -> pd.Series[Any]:
    if column.kind == "codes":
        categories = pd.Index(list(column.categories or ()), dtype=_dtype(column.dtype))
        return pd.Series(pd.Categorical.from_codes(values, categories, ordered=column.ordered))
    if column.kind == "plain":
        return pd.Series(values.astype(np.dtype(column.dtype), copy=False))
    if column.kind == "masked":
        masked = pd.array(values, dtype=column.dtype)  # type: ignore[call-overload]
        if missing is not None:
            masked[missing] = pd.NA
        return pd.Series(masked)
    if column.kind == "time":
        return _decode_time(values, column.dtype)
    if column.kind == "json":
        out = _objects([json.loads(v) for v in values])
    elif column.kind == "date":
        out = _objects([dt.date.fromisoformat(v) if v else None for v in values])
    elif column.kind == "escaped":
        out = _objects([v.encode("ascii").decode("unicode_escape") for v in values])
    else:
        out = values.copy()
    if missing is not None:
        out[missing] = _MISSING[column.null]
    series: pd.Series[Any] = pd.Series(out, dtype=object)
    return series if column.dtype == "object" else series.astype(_dtype(column.dtype))


def _decode_time(values: NDArray[np.int64], dtype: str) -> pd.Series[Any]:
    parsed = pd.api.types.pandas_dtype(dtype)
    if isinstance(parsed, pd.DatetimeTZDtype):
        naive = pd.Series(values.astype("int64").view(f"datetime64[{parsed.unit}]"))
        return naive.dt.tz_localize("UTC").dt.tz_convert(parsed.tz)
    return pd.Series(values.astype("int64").view(str(parsed)))


def hash_frame(frame: pd.DataFrame, schema: Sequence[Column], field: str) -> dict[str, str]:
    """Return SHA-256 of the field's values (``text``) and of the other columns (``columns``).

    Two frames with equal hashes hold equal values. The field's hash does not depend on the dtype
    that a version of pandas gives to strings, nor on what stands for a missing one.
    """
    hashes = {"text": hashlib.sha256(), "columns": hashlib.sha256()}
    for number, column in enumerate(schema):
        is_text = column.name == field
        state = hashes["text" if is_text else "columns"]
        values, missing = _encode(frame.iloc[:, number], column)
        identity = [column.name, column.kind, column.categories]
        if not is_text:
            identity += [column.dtype, column.ordered, column.null]
        # Lengths first, so that no two sequences of columns run into the same bytes.
        if values.dtype == object:
            data = bytes(numcodecs.VLenUTF8().encode(values))
        else:
            data = np.ascontiguousarray(values).tobytes()
        state.update(json.dumps([*identity, len(values), len(data), column.nullable]).encode())
        state.update(data)
        if column.nullable:
            state.update(missing.tobytes())
    return {name: state.hexdigest() for name, state in hashes.items()}
