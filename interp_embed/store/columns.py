"""The documents' own columns: from a data frame to Zarr arrays and back, without loss.

Numbers, booleans and times keep their dtype; strings are Zarr strings; anything else a data frame may
hold (nested values, mixed types) is kept as JSON text. Whether a value is missing is kept apart from
the values, so that an empty string and no string stay two things.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the documents.

    Attributes
    ----------
    name : str or int or float or bool or None
        As in the data frame.
    key : str
        Name of its array, safe in a path.
    kind : {"plain", "time", "string", "date", "json"}
        How values are stored.
    dtype : str
        The pandas dtype to restore.
    nullable : bool
        Whether some values are missing; then an array under ``null/`` says which.
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
        key = quote(str(name), safe=" ") if isinstance(name, str) else ""
        # A name that would clash with a path, or is too long for a file, is replaced by its number.
        if not key.strip(" .") or len(key) > 100 or key.startswith((".", "__", " ")):
            key = f"column-{number}"
        columns.append(_column(frame.iloc[:, number], name, key))
    if len({c.key.lower() for c in columns}) < len(columns):  # file systems may fold case
        columns = [Column(**{**c.to_json(), "key": f"column-{i}"}) for i, c in enumerate(columns)]
    return columns


def _column(series: pd.Series[Any], name: Any, key: str) -> Column:
    dtype = series.dtype
    nullable = bool(series.isna().any())
    if isinstance(dtype, pd.CategoricalDtype):
        inner = _column(series.astype(dtype.categories.dtype), name, key)
        categories = _json_values(list(dtype.categories), name)
        return Column(
            name, key, inner.kind, inner.dtype, inner.nullable,
            [json.loads(c) for c in categories], bool(dtype.ordered),
        )  # fmt: skip
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf" and dtype.itemsize <= 8:
        return Column(name, key, "plain", dtype.name)
    if isinstance(dtype, pd.DatetimeTZDtype) or (
        isinstance(dtype, np.dtype) and dtype.kind in "mM"
    ):
        return Column(name, key, "time", str(dtype))
    values = [v for v, missing in zip(series, series.isna(), strict=True) if not missing]
    if values and all(type(v) is str for v in values) and _encodable(values):
        return Column(name, key, "string", str(dtype), nullable)
    if values and all(type(v) is datetime.date for v in values):
        return Column(name, key, "date", str(dtype), nullable)
    return Column(name, key, "json", str(dtype))


def _encodable(values: Iterable[str]) -> bool:
    try:
        for value in values:
            value.encode()
    except UnicodeEncodeError:  # a lone surrogate: JSON escapes can hold it, UTF-8 cannot
        return False
    return True


def _json_values(values: Iterable[Any], name: Any) -> list[str]:
    texts = []
    for number, value in enumerate(values):
        try:
            texts.append(json.dumps(value, default=_plain))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"column {name!r}, row {number}: a value of type {type(value).__name__} cannot be "
                f"stored ({error}). Convert the column to numbers, strings, dates, lists or "
                "dicts first"
            ) from error
    return texts


def _plain(value: Any) -> Any:
    if value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | set):
        return list(value)
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
    if column.kind == "plain":
        return series.to_numpy(np.dtype(column.dtype)), missing
    if column.kind == "time":
        return series.to_numpy().view("int64") if not _aware(series) else (
            series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().view("int64")
        ), missing  # fmt: skip
    out = np.full(len(series), "", object)
    if column.kind == "json":
        out[:] = _json_values(series, column.name)
    else:
        present = series[~missing]
        out[~missing] = (
            [d.isoformat() for d in present] if column.kind == "date" else present.tolist()
        )
    return out, missing


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
    frame.columns = pd.Index([c.name for c in schema]) if schema else pd.RangeIndex(0)
    return frame


def _decode(
    values: NDArray[Any], missing: NDArray[np.bool_] | None, column: Column
) -> pd.Series[Any]:
    if column.kind == "plain":
        series: pd.Series[Any] = pd.Series(values.astype(np.dtype(column.dtype), copy=False))
    elif column.kind == "time":
        series = _decode_time(values, column.dtype)
    else:
        out = np.empty(len(values), object)
        if column.kind == "json":
            out[:] = [json.loads(v) for v in values]
        elif column.kind == "date":
            out[:] = [datetime.date.fromisoformat(v) if v else None for v in values]
        else:
            out[:] = values
        if missing is not None:
            out[missing] = None
        series = pd.Series(out, dtype=object)
    if column.categories is not None:
        return pd.Series(
            pd.Categorical(series, categories=list(column.categories), ordered=column.ordered)
        )
    return series if column.dtype == "object" else series.astype(column.dtype)  # type: ignore[call-overload,no-any-return]


def _decode_time(values: NDArray[np.int64], dtype: str) -> pd.Series[Any]:
    parsed = pd.api.types.pandas_dtype(dtype)
    if isinstance(parsed, pd.DatetimeTZDtype):
        naive = pd.Series(values.astype("int64").view(f"datetime64[{parsed.unit}]"))
        return naive.dt.tz_localize("UTC").dt.tz_convert(parsed.tz)
    return pd.Series(values.astype("int64").view(parsed))


def hash_frame(frame: pd.DataFrame, schema: Sequence[Column], field: str) -> dict[str, str]:
    """Return SHA-256 of the field's values (``text``) and of the other columns (``columns``).

    Two frames with equal hashes are stored as equal bytes.
    """
    hashes = {"text": hashlib.sha256(), "columns": hashlib.sha256()}
    for number, column in enumerate(schema):
        state = hashes["text" if column.name == field else "columns"]
        values, missing = _encode(frame.iloc[:, number], column)
        state.update(json.dumps([column.name, column.kind, column.dtype]).encode())
        if values.dtype == object:
            state.update(numcodecs.VLenUTF8().encode(values))
        else:
            state.update(np.ascontiguousarray(values).tobytes())
        if column.nullable:
            state.update(missing.tobytes())
    return {name: state.hexdigest() for name, state in hashes.items()}
