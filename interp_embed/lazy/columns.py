"""The documents' own columns as xarray variables that are read on access."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from xarray.backends import BackendArray

from interp_embed.lazy.partition import chosen
from interp_embed.lazy.xarray_internals import read_when_indexed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interp_embed.lazy.partition import Positions
    from interp_embed.lazy.xarray_internals import ExplicitIndexer
    from interp_embed.store import Store
    from interp_embed.store.format.columns import Column

__all__ = ["column_variable"]


def column_variable(
    store: Store, column: Column, documents: Positions, keep: object = None
) -> xr.Variable:
    """Return a column of some documents, dims ("doc",). Indexed values are read, and then kept.

    Numbers, booleans and times keep their dtype, times with a zone become UTC, and all other values
    have dtype object and are those of the data frame.

    Parameters
    ----------
    store, column, documents
        The column to read, and for which documents.
    keep
        An object that must live as long as the variable.
    """
    stored = _StoredColumn(store, column, documents, keep)
    return xr.Variable(("doc",), read_when_indexed(stored))


class _StoredColumn(BackendArray):
    """Reads a column of some documents."""

    def __init__(
        self, store: Store, column: Column, documents: Positions, keep: object = None
    ) -> None:
        self._store = store
        self._column = column
        self._documents = documents
        self._keep = keep
        self.shape = (len(documents),)
        self.dtype = _numpy_dtype(column)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_keep": None}

    def __getitem__(self, key: ExplicitIndexer) -> NDArray[Any]:
        # One axis: an integer, a slice or an array, which is the same to every kind of indexer.
        (index,) = key.tuple
        wanted = index if isinstance(index, slice) else np.ravel(index)
        documents = np.asarray(chosen(self._documents, wanted), np.int64)
        frame = self._store.frame(documents, [self._column.name])
        values = _values(frame.iloc[:, 0], self.dtype)
        return values if isinstance(index, slice) else values.reshape(np.shape(index))


def _numpy_dtype(column: Column) -> np.dtype[Any]:
    dtype: Any = object
    if column.kind == "plain":
        dtype = column.dtype
    elif column.kind == "masked" and not column.nullable:
        dtype = pd.api.types.pandas_dtype(column.dtype).numpy_dtype  # type: ignore[union-attr]
    elif column.kind == "time":
        stored = pd.api.types.pandas_dtype(column.dtype)
        zoned = isinstance(stored, pd.DatetimeTZDtype)
        dtype = f"datetime64[{stored.unit}]" if zoned else stored  # type: ignore[union-attr]
    found: np.dtype[Any] = np.dtype(dtype)
    return found


def _values(series: pd.Series[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if isinstance(series.dtype, pd.DatetimeTZDtype):
        series = series.dt.tz_convert("UTC").dt.tz_localize(None)
    if dtype.kind != "O":
        return series.to_numpy(dtype)
    values = np.empty(len(series), object)
    for number, value in enumerate(series.tolist()):  # numpy would look into lists
        values[number] = value
    return values
