"""Documents with similar features: negatives that are hard to tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interp_embed.llm.samples.samples import Samples

__all__ = ["nearest"]

_POOL = 1_024
"""Largest number of documents that are compared, drawn at random."""
_SHARED = 8
"""Features of the positive documents whose top documents are also compared, if an index has them."""
_LISTED = 64


def nearest(
    samples: Samples,
    candidates: NDArray[np.int64],
    positive: Samples,
    examples: NDArray[np.int64],
    most: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return the candidates that are most similar to some documents, the most similar first.

    A document is its features' highest activations, each times the feature's inverse document
    frequency ``log((1 + n) / (1 + df))`` among those compared (Salton and Buckley 1988, smoothed),
    so that features that are everywhere count for nothing; alike is the cosine of two. Each of
    the examples in turn takes the candidate that is nearest to it, so that all have some.

    Parameters
    ----------
    samples, candidates
        Documents, and positions in them.
    positive, examples
        Documents, and positions in them.
    most
        Largest number to return.
    rng
        Draws the documents that are compared: at most 1,024, and the top documents of the features
        that stand out in the examples, if the index lists them.

    References
    ----------
    .. [1] G. Salton and C. Buckley, "Term-weighting approaches in automatic text retrieval",
       Information Processing & Management 24 (1988), 513-523.
    """
    if len(candidates) == 0:
        return candidates
    pool = rng.choice(candidates, min(_POOL, len(candidates)), replace=False)
    wanted = _positive_part(positive.matrix(examples))
    compared = _positive_part(samples.matrix(np.sort(pool)))
    weights = _weights(compared)
    listed = _listed(
        samples, np.asarray((wanted @ sp.diags_array(weights)).sum(axis=0), np.float64).ravel()
    )
    pool = np.union1d(pool, np.intersect1d(listed, candidates))
    compared = _positive_part(samples.matrix(pool))
    alike = (_unit(compared, weights) @ _unit(wanted, weights).T).toarray()

    order = np.argsort(-alike, axis=0, kind="stable")
    ranked = order.ravel()  # the nearest of each example, then the second nearest of each, ...
    _, firsts = np.unique(ranked, return_index=True)
    return pool[ranked[np.sort(firsts)][:most]]


def _positive_part(matrix: sp.csr_matrix) -> sp.csr_array:
    found = sp.csr_array(matrix)
    found.data = np.maximum(np.nan_to_num(found.data, nan=0.0), 0.0)
    found.eliminate_zeros()
    return found


def _weights(matrix: sp.csr_array) -> NDArray[np.float64]:
    frequency = np.bincount(matrix.indices, minlength=matrix.shape[1])
    weights: NDArray[np.float64] = np.log((1 + matrix.shape[0]) / (1 + frequency))
    return weights


def _unit(matrix: sp.csr_array, weights: NDArray[np.float64]) -> sp.csr_array:
    weighted = sp.csr_array(matrix @ sp.diags_array(weights))
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    return sp.csr_array(sp.diags_array(1 / np.maximum(norms, 1e-30)) @ weighted)


def _listed(samples: Samples, weight: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the top documents of the features of most weight, as far as an index lists them."""
    best = np.argsort(-weight, kind="stable")[:_SHARED]
    found = [samples.listed_top(int(f), _LISTED) for f in best[weight[best] > 0]]
    return np.concatenate([np.empty(0, np.int64), *(part for part in found if part is not None)])
