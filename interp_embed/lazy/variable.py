"""xarray variables that pass selections on to the code that reads the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import sparse
import xarray as xr
from dask.array import Array
from dask.array.utils import meta_from_array
from typing_extensions import override

from interp_embed.lazy.array import Selection, selection_of, stored_array
from interp_embed.lazy.partition import chosen
from interp_embed.lazy.xarray_internals import ExplicitlyIndexed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["StoredVariable"]

_ALL = slice(None)


class StoredVariable(xr.Variable):
    """A variable whose selections of documents and features are made before anything is read.

    dask alone would do so for one slice, and read whole blocks for a list, or for a second
    selection. What is computed from the variable is not selected from any more, and is dask's.
    """

    __slots__ = ()

    @property
    def data(self) -> Any:
        """The dask array."""
        return super().data

    @data.setter
    def data(self, data: Any) -> None:
        # xarray.open_dataset puts what an engine returns behind a cache, under which compute()
        # would give back the dask array and not its values.
        if not (isinstance(data, ExplicitlyIndexed) and self.chunks is not None):
            xr.Variable.data.fset(self, data)  # type: ignore[attr-defined]

    @override
    def __getitem__(self, key: Any) -> Self:
        if isinstance(key, tuple) and len(key) == self.ndim:
            key = tuple(_empty_as_such(part, n) for part, n in zip(key, self.shape, strict=True))
        held = selection_of(self.data)
        parts = None if held is None else _parts(key, self.dims)
        if held is None or parts is None:
            return super().__getitem__(key)
        documents, features = held.documents, held.features
        left = list(parts)
        for axis in (0, self.ndim - 1) if held.source.has_features else (0,):
            taken = _taken(parts[axis], self.shape[axis])
            if taken is None:
                return super().__getitem__(key)
            selected, left[axis] = taken
            if selected is None:
                continue
            if axis == 0:
                documents = chosen(documents, selected)
            else:
                features = chosen(range(self.shape[-1]) if features is None else features, selected)
        narrowed = self
        if documents is not held.documents or features is not held.features:
            array = stored_array(Selection(held.source, documents, features))
            narrowed = type(self)(self.dims, array, self.attrs, self.encoding, fastpath=True)
        return xr.Variable.__getitem__(narrowed, tuple(left))

    @override
    def reduce(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> xr.Variable:  # type: ignore[override]
        """Reduce as any variable; a sum that skips NaN leaves NaN out of the blocks first.

        xarray puts zeros in the place of NaN, and for that makes a block of zeros of which sparse
        lists every coordinate: 24 bytes for each element of the dense array.
        """
        skips = kwargs.get("skipna") in (None, True) and kwargs.get("min_count") is None
        sums = getattr(func, "__name__", "") == "sum" and skips
        array: Any = self.data
        lazy = isinstance(array, Array) and isinstance(meta_from_array(array), sparse.COO)
        if not (sums and lazy):
            return super().reduce(func, *args, **kwargs)
        summed = xr.Variable(self.dims, array.map_blocks(_without_nan), self.attrs)
        return summed.reduce(func, *args, **{**kwargs, "skipna": False})


def _without_nan(block: sparse.COO) -> sparse.COO:
    """Let what is NaN count as 0, which is what most blocks are where nothing is listed."""
    missing = np.isnan(block.data)
    if not missing.any():
        return block
    coordinates, values = block.coords, np.where(missing, block.dtype.type(0), block.data)
    if block.fill_value == 0:
        coordinates, values = coordinates[:, ~missing], values[~missing]
    return sparse.COO(
        coordinates,
        values,
        shape=block.shape,
        fill_value=block.fill_value,
        has_duplicates=False,
        sorted=True,
    )


def _empty_as_such(part: Any, n: int) -> Any:
    """Return a slice of nothing as one that dask takes for one: not so ``slice(-13, 0, -1)`` of 12."""
    return slice(0, 0) if isinstance(part, slice) and not range(n)[part] else part


def _parts(key: Any, dims: Sequence[Any]) -> list[Any] | None:
    """Return an index for each axis, or None for what is left to xarray."""
    parts = list(key) if isinstance(key, tuple) else [key]
    dots = [number for number, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1 or len(parts) - len(dots) > len(dims):
        return None
    at = dots[0] if dots else len(parts)
    missing = len(dims) - len(parts) + len(dots)
    parts[at : at + len(dots)] = [_ALL] * missing
    for axis, (part, dim) in enumerate(zip(parts, dims, strict=True)):
        if isinstance(part, xr.Variable):
            # With another dimension of its own it may select points.
            if part.dims != (dim,) or part.chunks is not None:
                return None
            parts[axis] = part.values
    return parts


def _taken(part: Any, n: int) -> tuple[slice | NDArray[np.int64] | None, Any] | None:
    """Return what to select along an axis of ``n`` (None: all), and what is left to do then.

    Returns None for what is left to xarray, errors among them.
    """
    if isinstance(part, slice):
        return (None if range(n)[part] == range(n) else part), _ALL
    if isinstance(part, int | np.integer) and not isinstance(part, bool):
        position = int(part) + n * (part < 0)
        return (slice(position, position + 1), 0) if 0 <= position < n else None
    if not isinstance(part, list | np.ndarray):
        return None
    values = np.asarray(part)
    if values.ndim == 1 and values.dtype.kind == "b" and len(values) == n:
        return np.flatnonzero(values), _ALL
    if values.size == 0 and values.ndim == 1:
        values = values.astype(np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu" or ((values < -n) | (values >= n)).any():
        return None
    return np.where(values < 0, values + n, values).astype(np.int64), _ALL
