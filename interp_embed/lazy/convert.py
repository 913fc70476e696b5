"""Converting a selection of documents to xarray's objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from interp_embed.aggregate.matrices import feature_count
from interp_embed.aggregate.reductions import REDUCTIONS
from interp_embed.core.chunk import DocumentStatus
from interp_embed.lazy.array import Selection, stored_array
from interp_embed.lazy.columns import column_variable
from interp_embed.lazy.partition import as_positions
from interp_embed.lazy.sources import Pooled, Tokens, TokenWeights
from interp_embed.lazy.variable import StoredVariable
from interp_embed.store import MISSING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interp_embed.lazy.partition import Positions
    from interp_embed.lazy.sources import Source
    from interp_embed.store import Store

__all__ = ["latents", "to_dataset"]


def latents(
    store: Store,
    documents: NDArray[np.int64],
    method: str,
    threshold: float,
    keep: object = None,
) -> xr.DataArray:
    """Return activations as a lazy array; see `Dataset.latents`.

    Parameters
    ----------
    store, documents
        The documents, in order.
    method
        A reduction's name, or ``"all"``.
    threshold
        See `Dataset.latents`.
    keep
        An object that must live as long as the result.
    """
    where = as_positions(documents)
    width = feature_count(store)
    coords: dict[str, Any] = {"doc": _index(where), "feature": _index(range(width))}
    if method == "all":
        n_tokens = store.n_tokens(documents)
        length = _padded(n_tokens)
        source: Source = Tokens(store, width, length, keep)
        coords |= {"token": _index(range(length)), "n_tokens": ("doc", n_tokens)}
    else:
        source = Pooled(store, width, method, threshold, keep)
    # Through a Dataset, because a DataArray would make a plain variable of it.
    return xr.Dataset({method: _variable(source, where)}, coords)[method]


def to_dataset(
    store: Store,
    documents: NDArray[np.int64],
    *,
    extra: Mapping[Any, NDArray[Any]],
    labels: Mapping[int, str],
    attributes: Mapping[str, Any],
    keep: object = None,
) -> xr.Dataset:
    """Return everything known about some documents; see `Dataset.to_xarray`.

    Parameters
    ----------
    store, documents
        The documents, in order.
    extra
        Columns in memory; they take the place of stored ones of the same name.
    labels
        Names of features.
    attributes
        Of the result.
    keep
        An object that must live as long as the result.
    """
    where = as_positions(documents)
    width = feature_count(store)
    n_tokens = store.n_tokens(documents)
    length = _padded(n_tokens)
    coords: dict[str, Any] = {
        "doc": _index(where),
        "token": _index(range(length)),
        "feature": _index(range(width)),
        "n_tokens": ("doc", n_tokens),
        "status": ("doc", store.status(documents), _flags()),
    }
    if labels:
        names = np.array([labels.get(feature, "") for feature in range(width)], object)
        coords["feature_label"] = ("feature", names)
    sources: dict[str, Source] = {
        "activations": Tokens(store, width, length, keep),
        **{name: Pooled(store, width, name, 0.0, keep) for name in REDUCTIONS},
        "token_mask": TokenWeights(store, width, length, True, keep),
        "token_weight": TokenWeights(store, width, length, False, keep),
    }
    variables: dict[str, xr.Variable] = {
        name: _variable(source, where) for name, source in sources.items()
    }
    columns: dict[Any, xr.Variable] = {
        column.name: column_variable(store, column, where, keep)
        for column in store.schema
        if column.name not in extra
    }
    columns |= {name: xr.Variable(("doc",), values) for name, values in extra.items()}
    taken = {*coords, "feature_label"}
    text = ""
    for name, variable in columns.items():
        free = str(name)
        while free in taken or free in variables:
            free = f"column_{free}"
        variables[free] = variable
        if name == store.field:
            text = free
    return xr.Dataset(variables, coords, {**attributes, "d_sae": width, "field": text})


def _variable(source: Source, documents: Positions) -> StoredVariable:
    names = {Tokens: ("token", "feature"), Pooled: ("feature",), TokenWeights: ("token",)}
    attributes = {}
    if isinstance(source, Pooled) and REDUCTIONS[source.reduction].uses_threshold:
        attributes["activated_threshold"] = source.threshold
    dims = ("doc", *names[type(source)])
    return StoredVariable(dims, stored_array(Selection(source, documents)), attributes)


def _padded(n_tokens: NDArray[np.int64]) -> int:
    """Return the length of the token axis; a document without activations needs one position."""
    return max(1, int(n_tokens.max(initial=0)))


def _index(values: Positions) -> pd.Index[Any]:
    return pd.RangeIndex(values) if isinstance(values, range) else pd.Index(values)


def _flags() -> dict[str, Any]:
    # As the CF conventions have it, so that the numbers explain themselves.
    names = {int(status): status.name.lower() for status in DocumentStatus} | {MISSING: "missing"}
    return {"flag_values": list(names), "flag_meanings": " ".join(names.values())}
