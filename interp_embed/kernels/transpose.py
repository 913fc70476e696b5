"""From documents to features: the document level of many documents, put in order of the features.

Counting first says where each feature's entries go; then entries are copied there document by
document. Several threads share a block of documents by features, so that each feature is filled by
one of them in order of the documents, whatever their number, and each thread goes over its share a
range of features at a time, as many as its caches hold the ends of. The loops hold no lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["add_counts", "feature_ranges", "scatter", "summarize"]

_RANGE = 512  # features of which a core's cache holds where they are written to


@numba.njit(cache=True, nogil=True)
def add_counts(feature, total):  # type: ignore[no-untyped-def]
    """Add to ``total`` how often each feature occurs."""
    for f in feature:
        total[f] += 1


def feature_ranges(total: NDArray[np.int64], shares: int) -> list[NDArray[np.int64]]:
    """Cut the features into shares of about as many entries each, and each share into ranges.

    Parameters
    ----------
    total
        Entries of each feature, shape (d_sae,).
    shares
        How many at most.

    Returns
    -------
    list of ndarray
        For each share the edges of its ranges, ascending; the first begins at feature 0, and each of
        the others where the one before ends.
    """
    d_sae = len(total)
    ends = np.cumsum(total)
    wanted = np.arange(1, shares) * (int(ends[-1]) / shares)
    cuts = np.unique(np.concatenate([[0], np.searchsorted(ends, wanted, side="right"), [d_sae]]))
    return [
        np.unique(np.append(np.arange(begin, end, _RANGE), end))
        for begin, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)
    ]


@numba.njit(cache=True, nogil=True)
def scatter(  # type: ignore[no-untyped-def]
    feature, bounds, first, edges, value, count, positive, summand,
    cursor, out, out_sum,
):  # fmt: skip
    """Copy the entries of a block of documents, of some features, to where their features stand.

    Parameters
    ----------
    feature : array, shape (entries,)
        Ascending within a document.
    bounds : array of int64, shape (documents + 1,)
        Where each document's entries begin.
    first : int
        Number of the first document.
    edges : array of int64
        Ranges of features to copy, as `feature_ranges` returns them.
    value, count, summand : array, shape (entries,)
        What to copy, and what to add up.
    positive : array, shape (entries,), or None
        Copied where there is any.
    cursor : array of int64, shape (d_sae,)
        Where the next entry of each feature goes; moved on.
    out : structured array
        Where to: records of ``document``, ``max``, ``count`` and, where there is any, ``positive``.
        One place is written for each entry, which is twice as fast as three.
    out_sum : array of float64, shape (d_sae,)
        Sum of each feature's ``summand``, added to.
    """
    n = len(bounds) - 1
    at = np.empty(n, np.int64)
    for d in range(n):  # the first entry of a document in the first range
        low, high = bounds[d], bounds[d + 1]
        while low < high:
            middle = (low + high) >> 1
            if feature[middle] < edges[0]:
                low = middle + 1
            else:
                high = middle
        at[d] = low
    for r in range(1, len(edges)):
        end = edges[r]
        for d in range(n):
            i = at[d]
            stop = bounds[d + 1]
            while i < stop and feature[i] < end:
                f = feature[i]
                target = cursor[f]
                cursor[f] = target + 1
                out[target]["document"] = first + d
                out[target]["max"] = value[i]
                out[target]["count"] = count[i]
                if positive is not None:  # left out of the compiled code where it is None
                    out[target]["positive"] = positive[i]
                out_sum[f] += summand[i]
                i += 1
            at[d] = i


@numba.njit(cache=True, nogil=True)
def _summarize(  # type: ignore[no-untyped-def]
    bounds, document, value, count, positive, k,
    out_documents, out_tokens, out_nonzero, out_max, out_top, top_document, top_value,
):  # fmt: skip
    top = 0
    for f in range(len(bounds) - 1):
        begin, end = bounds[f], bounds[f + 1]
        documents = 0
        tokens = 0
        nonzero = 0
        highest = value[begin] if end > begin else np.float32(0)
        for i in range(begin, end):
            documents += value[i] > 0
            tokens += positive[i]
            nonzero += count[i]
            highest = max(highest, value[i])
        n = 0
        best, best_document = top_value[top : top + k], top_document[top : top + k]
        for i in range(begin, end):
            v = value[i]
            if v == 0 or (n == k and v <= best[k - 1]):
                continue
            n = min(n + 1, k)
            # Documents ascend: after those that are as high.
            j = n - 1
            while j > 0 and best[j - 1] < v:
                best[j] = best[j - 1]
                best_document[j] = best_document[j - 1]
                j -= 1
            best[j] = v
            best_document[j] = document[i]
        out_documents[f] = documents
        out_tokens[f] = tokens
        out_nonzero[f] = nonzero
        out_max[f] = highest
        out_top[f] = n
        top += n


def summarize(
    bounds: NDArray[np.int64],
    document: NDArray[np.unsignedinteger],
    value: NDArray[np.float32],
    count: NDArray[np.unsignedinteger],
    positive: NDArray[np.unsignedinteger],
    k: int,
) -> dict[str, NDArray[Any]]:
    """Return what there is to say of some features.

    Parameters
    ----------
    bounds
        Feature ``f`` has the entries ``bounds[f]:bounds[f + 1]``, shape (features + 1,).
    document
        Ascending within a feature.
    value
        The pooled max.
    count, positive
        Tokens on which the feature is not zero, and above zero.
    k
        How many top documents to list.

    Returns
    -------
    dict
        ``document_frequency``, ``token_frequency``, ``nonzero_tokens`` and ``max``, one a feature;
        ``top``, how many top documents a feature has, and feature by feature ``top_document`` and
        ``top_max``: highest first, ties by document, without those where the max is 0.
    """
    n = len(bounds) - 1
    found: dict[str, NDArray[Any]] = {
        "document_frequency": np.empty(n, np.int64),
        "token_frequency": np.empty(n, np.int64),
        "nonzero_tokens": np.empty(n, np.int64),
        "max": np.empty(n, np.float32),
        "top": np.empty(n, np.int64),
    }
    room = int(np.minimum(np.diff(bounds), k).sum())
    top_document, top_value = np.empty(room, document.dtype), np.empty(room, np.float32)
    _summarize(
        bounds, document, value, count, positive, k, *found.values(), top_document, top_value
    )
    filled = int(found["top"].sum())
    return {**found, "top_document": top_document[:filled], "top_max": top_value[:filled]}
