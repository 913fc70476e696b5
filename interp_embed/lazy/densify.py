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
    """Return the same with dense blocks: for plots, for files, and for what sparse cannot do.

    Nothing is computed: each block is made dense when it is asked for, and only then takes
    4 bytes for every document, token and feature of it. Select before, not after: a selection of a
    lazy array reads what is selected, one of its dense copy reads whole blocks.

    Parameters
    ----------
    obj : DataArray, Dataset, Variable or dask array
        What is dense already stays as it is; columns of a Dataset are not read.

    Raises
    ------
    TypeError
        If it is something else.
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
        f"densify takes xarray's objects and dask arrays, got {type(obj).__name__}. "
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
