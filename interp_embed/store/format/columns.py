"""The documents' own columns: from a data frame to Zarr arrays and back, without loss.

Numbers, booleans and times keep their dtype; strings are Zarr strings; categoricals are codes;
anything else a data frame may hold (nested values, mixed types) is kept as JSON text, where tuples,
sets and arrays become lists. Whether a value is missing is kept apart from the values, so that an
empty string and no string stay two things.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp_embed.store.arrays.shard import ArraySpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "ARROW_STRING",
    "SPLIT_CHARACTER",
    "Column",
    "column_names",
    "decode",
    "decode_frame",
    "encodable",
    "encode",
    "encode_frame",
    "inner_documents",
    "json_values",
    "missing_values",
    "plain_value",
    "restored_dtype",
]

_TEXT_INNER_BYTES = 2**18  # about this much text is decoded to read one document's
ARROW_STRING = "arrow[string]"  # pandas has "string[pyarrow]" for another dtype
_MISSING: dict[str, Any] = {"none": None, "nan": float("nan"), "na": pd.NA, "nat": pd.NaT}
# JSON reads a high and a low surrogate in a row as the one character that they stand for.
SPLIT_CHARACTER = re.compile("[\ud800-\udbff][\udc00-\udfff]")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the documents.

    Attributes
    ----------
    name : str or int or float or bool or None
        As in the data frame.
    key : str
        Name of its array, safe in a path.
    kind : {"plain", "masked", "time", "codes", "string", "escaped", "date", "json", "null", "mixed"}
        How values are stored. ``masked`` are pandas' nullable numbers and booleans; ``escaped`` are
        strings that UTF-8 cannot hold (lone surrogates), as Python writes them. ``null`` are values
        that are all missing, and ``mixed``, in the schema of a whole store, what is stored in other
        ways in other blocks; neither has arrays.
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
        if self.kind in ("null", "mixed"):
            return []
        return [f"row/{self.key}", *([f"null/{self.key}"] if self.nullable else [])]


def restored_dtype(name: str) -> Any:
    """Return the dtype that a column's ``dtype`` names, under any version of pandas."""
    if name == "str":  # the default of pandas 3; not what ``astype("str")`` means before
        try:
            return pd.StringDtype(na_value=np.nan)
        except TypeError:  # pandas 2.2 knows no such dtype
            return np.dtype(object)
    if name == ARROW_STRING:
        import pyarrow as pa

        return pd.ArrowDtype(pa.string())
    try:
        return pd.api.types.pandas_dtype(name)
    except ImportError:
        if name.startswith("string["):
            return pd.StringDtype()  # without pyarrow
        raise


def encodable(values: Iterable[str]) -> bool:
    """Return whether UTF-8 can hold all strings: whether none has a lone surrogate."""
    try:
        for value in values:
            value.encode()
    except UnicodeEncodeError:  # a lone surrogate: escapes can hold it, UTF-8 cannot
        return False
    return True


def json_values(
    values: Iterable[Any], name: Any, *, sort_keys: bool = False, first: int = 0
) -> list[str]:
    """Return each value as JSON text; ``first`` is the number of the first row, for errors.

    Raises
    ------
    TypeError
        If one would not come back, naming the column ``name`` and the row.
    """
    texts = []
    encoder = json.JSONEncoder(sort_keys=sort_keys)  # once: json.dumps may make one a call
    for number, value in enumerate(values, first):
        try:
            texts.append(encoder.encode(plain_value(value)))
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(
                f"column {name!r}, row {number}: a value of type {type(value).__name__} cannot be "
                f"stored ({error}). Convert the column to numbers, strings, dates, lists or "
                "dicts first"
            ) from error
    return texts


def plain_value(value: Any) -> Any:
    """Return ``value`` as JSON has it; refuse values that would come back as other values."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, str):
        if not value.isascii() and SPLIT_CHARACTER.search(value):
            raise TypeError("a string with a character split into two surrogates has no JSON form")
        return value
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, np.ndarray | np.generic):
        converted = value.tolist()
        if type(converted) is not type(value):  # a type that Python lacks gives itself
            return plain_value(converted)
    if isinstance(value, list | tuple):
        return [plain_value(v) for v in value]
    if isinstance(value, set | frozenset):  # in an order that is the same in every process
        return [plain_value(v) for v in sorted(value, key=lambda v: (type(v).__name__, repr(v)))]
    if isinstance(value, dict):
        if odd := [k for k in value if not isinstance(k, str)]:
            raise TypeError(f"the key {odd[0]!r} of a dict is not a string")
        return {plain_value(k): plain_value(v) for k, v in value.items()}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def encode_frame(
    frame: pd.DataFrame, schema: Sequence[Column]
) -> dict[str, tuple[NDArray[Any], ArraySpec]]:
    """Return the arrays to write for the rows of ``frame``, by name."""
    arrays: dict[str, tuple[NDArray[Any], ArraySpec]] = {}
    for number, column in enumerate(schema):
        if column.kind == "null":
            continue
        values, missing = encode(frame.iloc[:, number], column)
        text = values.dtype == object
        spec = ArraySpec("string", "text", "doc") if text else ArraySpec(
            values.dtype.name, "zstd", "doc"
        )  # fmt: skip
        arrays[f"row/{column.key}"] = (values, spec)
        if column.nullable:
            arrays[f"null/{column.key}"] = (missing, ArraySpec("bool", "zstd", "doc"))
    return arrays


def encode(series: pd.Series[Any], column: Column) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the values to store, and which of them are missing."""
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
        return _objects(json_values(series, column.name)), missing
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
    series = [
        decode(arrays[f"row/{c.key}"], arrays.get(f"null/{c.key}"), c)
        if c.kind != "null"
        else missing_values(c, n_documents)
        for c in schema
    ]
    frame = pd.DataFrame(dict(enumerate(series)), index=pd.RangeIndex(n_documents))
    frame.columns = column_names([c.name for c in schema])
    return frame


def column_names(names: Sequence[Any]) -> pd.Index[Any]:
    """Return the names of a data frame's columns, each as it was."""
    if not names:
        return pd.RangeIndex(0)
    # What pandas would turn into other names, or refuse, in an index of strings.
    kept = None in names or not encodable(n for n in names if isinstance(n, str))
    index: pd.Index[Any] = pd.Index(list(names), dtype=object if kept else None)
    return index


def missing_values(column: Column, n_documents: int) -> pd.Series[Any]:
    """Return a series of a column's dtype in which everything is missing."""
    if column.kind == "codes":
        return decode(np.full(n_documents, -1, np.int8), None, column)
    if column.dtype == "object":
        return pd.Series(np.full(n_documents, _MISSING[column.null], object), dtype=object)
    if column.kind == "plain":  # of which only floats have a missing value
        dtype = np.dtype(column.dtype)
        return pd.Series(np.full(n_documents, np.nan if dtype.kind == "f" else 0, dtype))
    return pd.Series([None] * n_documents, dtype=restored_dtype(column.dtype))


def decode(
    values: NDArray[Any], missing: NDArray[np.bool_] | None, column: Column
) -> pd.Series[Any]:
    """Return what `encode` was given."""
    if column.kind == "codes":
        categories = pd.Index(list(column.categories or ()), dtype=restored_dtype(column.dtype))
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
    return series if column.dtype == "object" else series.astype(restored_dtype(column.dtype))


def _decode_time(values: NDArray[np.int64], dtype: str) -> pd.Series[Any]:
    parsed = pd.api.types.pandas_dtype(dtype)
    if isinstance(parsed, pd.DatetimeTZDtype):
        naive = pd.Series(values.astype("int64").view(f"datetime64[{parsed.unit}]"))
        return naive.dt.tz_localize("UTC").dt.tz_convert(parsed.tz)
    return pd.Series(values.astype("int64").view(str(parsed)))
