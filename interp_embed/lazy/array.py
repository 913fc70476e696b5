"""dask arrays of a store's documents, with one task per block that carries references and no data."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import sparse
from dask.array.core import Array
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.utils import parse_bytes

from interp_embed.lazy.partition import block_edges
from interp_embed.lazy.transfer import register

if TYPE_CHECKING:
    from interp_embed.lazy.partition import Positions
    from interp_embed.lazy.sources import Source

__all__ = ["Selection", "selection_of", "stored_array"]


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The source of an array, or of a block of it.

    Attributes
    ----------
    source : Source
        The source that reads the data.
    documents : range or ndarray of int64
        Document numbers in the store, in any order, repetitions allowed.
    features : range or ndarray of int64, optional
        Likewise; None is all.
    """

    source: Source
    documents: Positions
    features: Positions | None = None


class _StoredLayer(MaterializedLayer):  # type: ignore[misc]
    """The tasks of an array, and the selection that they were made from."""

    def __init__(self, tasks: dict[Any, Any], selection: Selection) -> None:
        super().__init__(tasks)
        self.selection = selection


def stored_array(selection: Selection) -> da.Array:
    """Return a dask array whose blocks are read from a store; nothing is read yet.

    Parameters
    ----------
    selection
        The data to read.

    Returns
    -------
    dask.array.Array of sparse.COO blocks, fill value 0
        One block along tokens and features. A plain array: xarray refuses to compute arrays of
        two classes together.
    """
    if da.Array is not Array:
        raise NotImplementedError(
            "lazy arrays are graphs of tasks, but dask is configured to use expressions: unset "
            "array.query-planning"
        )
    source, documents, features = selection.source, selection.documents, selection.features
    shape = source.shape if features is None else (*source.shape[:-1], len(features))
    # dask's own idea of a block: 128 MiB, unless it is configured otherwise.
    limit = parse_bytes(dask.config.get("array.chunk-size"))
    edges = block_edges(source.store, documents, source.width, limit)
    state = (source.store.storage.url, source.store.ledger.state, source.identity())
    name = f"interp-embed-{tokenize(state, documents, features, edges)}"
    zeros = (0,) * len(shape)
    tasks = {
        (name, number, *zeros): (_read, Selection(source, documents[begin:end], features))
        for number, (begin, end) in enumerate(itertools.pairwise(edges.tolist()))
    }
    return Array(
        HighLevelGraph.from_collections(name, _StoredLayer(tasks, selection), dependencies=()),
        name,
        chunks=(tuple(np.diff(edges).tolist()), *((n,) for n in shape)),
        meta=sparse.zeros((0, *zeros), dtype=source.dtype, format="coo"),
    )


def selection_of(array: Any) -> Selection | None:
    """Return the selection from which `stored_array` made an array; None for other arrays."""
    if not isinstance(array, Array):
        return None
    layer = array.dask.layers.get(array.name)
    return layer.selection if isinstance(layer, _StoredLayer) else None


def _read(block: Selection) -> sparse.COO:
    register()
    if block.features is None:
        return block.source.read(block.documents, None)
    features, where = np.unique(np.asarray(block.features, np.int64), return_inverse=True)
    found = block.source.read(block.documents, features)
    in_order = np.array_equal(where, np.arange(len(features)))
    return found if in_order else found[..., where]
