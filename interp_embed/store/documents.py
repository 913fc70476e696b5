"""Reading the documents' own columns from the blocks of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp_embed.store.arrays.folder import OpenFolder
from interp_embed.store.arrays.readahead import ReadAhead
from interp_embed.store.format.columns import Column, column_names, decode, missing_values
from interp_embed.store.format.schema import as_column

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from interp_embed.store.arrays.folder import Folder
    from interp_embed.store.arrays.readahead import Wanted
    from interp_embed.store.arrays.shard_reader import BlockCache, ShardedArray
    from interp_embed.store.ledger import Plan, PlannedBlock
    from interp_embed.store.storage import Storage

__all__ = ["DocumentReader"]

_Here = tuple["PlannedBlock", "NDArray[np.intp]", "NDArray[np.int64]"]
"""A block, where in the result its documents are, and where in the block."""


class DocumentReader:
    """Reads columns of a store's documents.

    Parameters
    ----------
    storage
        Where they are.
    cache
        Where decoded inner chunks are kept.
    """

    def __init__(self, storage: Storage, cache: BlockCache | None = None) -> None:
        self._storage = storage
        self._cache = cache
        self._folders: dict[str, OpenFolder] = {}

    def frame(
        self, plan: Plan, schema: Sequence[Column], documents: NDArray[np.int64]
    ) -> pd.DataFrame:
        """Return some columns of some documents, in their order.

        Parameters
        ----------
        plan
            Where the documents are.
        schema
            The columns to read, as they are in the whole store.
        documents
            Numbers of documents that exist.
        """
        touched = _touched(plan, documents)
        with ReadAhead(self._storage).follow([self._steps(touched, schema)]):
            series = [self._column(touched, column, len(documents)) for column in schema]
        frame = pd.DataFrame(dict(enumerate(series)), index=pd.RangeIndex(len(documents)))
        frame.columns = column_names([column.name for column in schema])
        return frame

    def steps(
        self, plan: Plan, schema: Sequence[Column], documents: NDArray[np.int64]
    ) -> Iterator[Iterable[Wanted]]:
        """Yield what `frame` reads, to be read ahead; see `interp_embed.store.arrays.readahead`."""
        yield from self._steps(_touched(plan, documents), schema)

    def _open(self, folder: Folder) -> OpenFolder:
        if folder.key not in self._folders:
            self._folders[folder.key] = OpenFolder(self._storage, folder, self._cache)
        return self._folders[folder.key]

    def _steps(
        self, touched: Sequence[_Here], schema: Sequence[Column]
    ) -> Iterator[Iterable[Wanted]]:
        steps: list[Wanted] = []
        for block, _, position in touched:
            names = [name for column in schema for name in _column_of(block, column).arrays]
            arrays = [self._open(block.folder).array(name) for name in names]
            low, high = int(position.min()), int(position.max()) + 1
            if high - low <= 4 * len(position):
                steps += [(array, low, high) for array in arrays]
            else:
                steps += [(array, p, p + 1) for array in arrays for p in position.tolist()]
        yield steps

    def _column(self, touched: Sequence[_Here], column: Column, n: int) -> pd.Series[Any]:
        stored = [_column_of(block, column) for block, _, _ in touched]
        if n and all(c == column for c in stored) and column.arrays:
            values, missing = self._arrays(touched, column, n)
            return decode(values, missing, column)
        parts: list[pd.Series[Any]] = []
        for each, kind in zip(touched, stored, strict=True):
            block, here, position = each
            if kind.arrays:
                alone = (block, np.arange(len(here)), position)
                found = decode(*self._arrays([alone], kind, len(here)), kind)
                parts.append(as_column(found, column))
            elif kind.dtype in (column.dtype, "object") and column.dtype == "object":
                parts.append(missing_values(kind, len(here)))
            else:
                parts.append(missing_values(column, len(here)))
        if not parts:
            return missing_values(column, 0)
        where = np.concatenate([here for _, here, _ in touched])
        whole = parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)
        return whole.iloc[np.argsort(where)].reset_index(drop=True)

    def _arrays(
        self, touched: Sequence[_Here], column: Column, n: int
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        found = [self._array(touched, name, n) for name in column.arrays]
        return found[0], found[1] if column.nullable else None

    def _array(self, touched: Sequence[_Here], name: str, n: int) -> NDArray[Any]:
        out: NDArray[Any] | None = None
        for block, here, position in touched:
            array = self._open(block.folder).array(name)
            if out is None:
                out = np.empty(n, array.dtype)
            _read_into(out, here, array, position)
        return np.empty(0, object) if out is None else out


def _touched(plan: Plan, documents: NDArray[np.int64]) -> list[_Here]:
    """Return the blocks that documents are in."""
    touched: list[_Here] = []
    for block in plan.blocks:
        here = np.flatnonzero((documents >= block.start) & (documents < block.stop))
        if len(here):
            touched.append((block, here, documents[here] - block.start))
    return touched


def _column_of(block: PlannedBlock, column: Column) -> Column:
    """Return how a block stores a column. If it lacks the column, all its values are missing."""
    if block.columns is None:
        return column
    found = next((c for c in block.columns if c["name"] == column.name), None)
    return (
        Column(column.name, column.key, "null", "object", True)
        if found is None
        else Column(**found)
    )


def _read_into(
    out: NDArray[Any], here: NDArray[np.intp], array: ShardedArray, position: NDArray[np.int64]
) -> None:
    low, high = int(position.min()), int(position.max()) + 1
    if high - low == array.length:
        out[here] = array.read_all()[position]
    elif high - low <= 4 * len(here):
        out[here] = array.read(low, high)[position - low]
    else:
        for target, p in zip(here.tolist(), position.tolist(), strict=True):
            out[target] = array.read(p, p + 1)[0]
