"""Private parts of xarray that lazy arrays need. No other module uses such parts.

- xarray documents `BackendArray` and `LazilyIndexedArray` for the columns of a file that are read when
  they are indexed. That what was read is kept, and that assigning to it leaves the file alone, is what
  `xarray.open_dataset` adds with two further classes. `Dataset.to_xarray` is not `open_dataset`, so it
  adds them itself.
- ``Variable.data`` reads a column that is not read yet. Code that inspects what a variable holds
  without reading it needs the private attribute behind it.

``make oldest`` runs the tests of this package with the oldest versions of xarray and dask that are
allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

try:
    from xarray.core.indexing import (
        CopyOnWriteArray,
        ExplicitIndexer,
        ExplicitlyIndexed,
        LazilyIndexedArray,
        MemoryCachedArray,
    )
except ImportError as error:  # pragma: no cover - no release is known in which it fails
    raise ImportError(
        f"lazy arrays need names of xarray.core.indexing that xarray {xr.__version__} does not have: "
        f"{error}. Install xarray 2025.1, and tell the authors of interp_embed"
    ) from error

if TYPE_CHECKING:
    from xarray.backends import BackendArray

__all__ = ["ExplicitIndexer", "ExplicitlyIndexed", "held", "read_when_indexed"]


def read_when_indexed(array: BackendArray) -> Any:
    """Return an array for a variable. Indexed values are read; values that were read whole are kept."""
    lazy: Any = LazilyIndexedArray(array)
    kept: Any = MemoryCachedArray
    return kept(CopyOnWriteArray(lazy))


def held(variable: xr.Variable) -> Any:
    """Return the data that a variable holds, without reading a column that is not read yet."""
    return variable._data  # noqa: SLF001 - .data would read a column
