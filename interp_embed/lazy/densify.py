"""From sparse blocks to dense ones."""

from __future__ import annotations

from typing import Any, TypeVar

import dask.array as da
import numpy as np
import sparse
import xarray as xr
from dask.array.utils import meta_from_array

from interp_embed.lazy.xarray_internals import held

__all__ = ["densify"]

T = TypeVar("T", xr.DataArray, xr.Dataset, xr.Variable, da.Array)


def densify(obj: T) -> T:
    """Return the same object with dense blocks, for plots, files and operations that sparse lacks.

    Nothing is computed. Each block becomes dense when it is requested, and only then takes 4 bytes for
    each of its documents, tokens and features. Select before you densify: a selection of a lazy array
    reads only the selected values, but a selection of its dense copy reads whole blocks.

    Parameters
    ----------
    obj : DataArray, Dataset, Variable or dask array
        Data that is already dense does not change; columns of a Dataset are not read.

    Raises
    ------
    TypeError
        If ``obj`` is something else.
    """
    if isinstance(obj, xr.Dataset):
        variables = {name: densify(variable) for name, variable in obj.variables.items()}
        changed = {n: v for n, v in variables.items() if v is not obj.variables[n]}
        return obj.assign(changed)
    if isinstance(obj, xr.DataArray):
        return obj.copy(data=_dense(held(obj.variable)))
    if isinstance(obj, xr.Variable):
        data = _dense(held(obj))
        return obj if data is held(obj) else obj.copy(data=data)
    if isinstance(obj, da.Array):
        return _dense(obj)
    raise TypeError(
        f"obj must be an xarray object or a dask array, got {type(obj).__name__}. "
        "A sparse array has the method todense()"
    )


def _dense(data: Any) -> Any:
    if isinstance(data, sparse.SparseArray):
        return data.todense()
    if isinstance(data, da.Array) and not isinstance(meta_from_array(data), np.ndarray):
        return data.map_blocks(
            _dense_block, dtype=data.dtype, meta=np.empty((0,) * data.ndim, data.dtype)
        )
    return data


def _dense_block(block: Any) -> Any:
    # A reduction of dask's may have made it dense already.
    return block.todense() if isinstance(block, sparse.SparseArray) else block
