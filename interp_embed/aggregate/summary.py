"""The statistics that callers request, computed from those that add up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.aggregate.statistics import availability, count_features

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from interp_embed.store.store import Store

__all__ = ["DEFAULT_STATISTICS", "check_statistics", "feature_statistics"]

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "document_frequency": ("document_frequency",),
    "token_frequency": ("token_frequency",),
    "mean": ("total",),
    "max": ("highest", "entries"),
    "histogram": ("histogram",),
}
DEFAULT_STATISTICS = ("document_frequency", "token_frequency", "mean", "max")


def check_statistics(
    statistics: Sequence[str] | str, quantiles: Sequence[float]
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return the requested names and quantiles.

    Raises
    ------
    TypeError
        If they are not lists of names and of numbers.
    ValueError
        If a name is unknown or a quantile is not from 0 to 1.
    """
    try:
        names = (statistics,) if isinstance(statistics, str) else tuple(statistics)
    except TypeError:
        raise TypeError(
            f"statistics must be a list of names among {list(_NEEDS)}, got {statistics!r}"
        ) from None
    for name in names:
        if name not in _NEEDS:
            raise ValueError(f"statistics must be among {list(_NEEDS)}, got {name!r}")
    if isinstance(quantiles, str | bytes) or not isinstance(quantiles, Iterable):
        raise TypeError(f"quantiles must be a list such as [0.5, 0.9], got {quantiles!r}")
    wanted = tuple(float(q) for q in quantiles)
    for q in wanted:
        if not 0 <= q <= 1:
            raise ValueError(f"quantiles must be from 0 to 1, got {q!r}")
    return names, wanted


def feature_statistics(
    store: Store,
    documents: NDArray[np.int64],
    names: Sequence[str],
    quantiles: Sequence[float],
    threshold: float,
    labels: Mapping[int, str],
    *,
    known: Mapping[str, NDArray[Any]] | None = None,
) -> xr.Dataset:
    """Return statistics over "feature"; see `Dataset.feature_statistics`.

    ``known`` are totals that are already counted.
    """
    import xarray as xr

    from interp_embed.kernels import statistics as kernels

    needed = {total for name in names for total in _NEEDS[name]}
    if quantiles:
        needed |= {"histogram", "highest"}
    known = known or {}
    missing = sorted(needed - set(known))
    totals = {name: known[name] for name in needed & set(known)}
    if missing:
        totals |= count_features(store, documents, missing, threshold=threshold)
    n_documents, n_tokens = availability(store, documents)
    width = store.d_sae or 0
    variables: dict[str, Any] = {}
    coordinates: dict[str, Any] = {"feature": np.arange(width)}
    for name in ("document_frequency", "token_frequency"):
        if name in names:
            variables[name] = ("feature", totals[name])
    if "mean" in names:
        with np.errstate(invalid="ignore"):
            variables["mean"] = ("feature", totals["total"] / np.float64(n_tokens))
    if "max" in names:
        # A document without the feature counts as 0.
        everywhere = totals["entries"] >= max(1, n_documents)
        highest = np.where(everywhere, totals["highest"], np.maximum(totals["highest"], 0))
        if n_documents == 0:
            highest = np.full(width, np.nan)
        variables["max"] = ("feature", highest.astype(np.float32))
    if "histogram" in names:
        edges = kernels.bin_edges()
        variables["histogram"] = (("feature", "bin"), totals["histogram"])
        coordinates |= {"bin_low": ("bin", edges[:-1]), "bin_high": ("bin", edges[1:])}
    if quantiles:
        found = kernels.quantiles(totals["histogram"], np.asarray(quantiles, np.float64))
        # The middle of the last bin may be above every value.
        variables["quantiles"] = (("quantile", "feature"), np.minimum(found, totals["highest"]))
        coordinates["quantile"] = list(quantiles)
    if labels:
        names_of = np.array([labels.get(f, "") for f in range(width)], object)
        coordinates["feature_label"] = ("feature", names_of)
    return xr.Dataset(variables, coordinates, {"n_documents": n_documents, "n_tokens": n_tokens})
