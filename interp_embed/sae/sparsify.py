"""From hooked activations to sparse feature activations, on the device where they are.

Only what is nonzero leaves the device. Tokens come end to end, without padding, and in slices, so
that the dense (tokens, d_sae) buffer is bounded whatever the batch and the width of the SAE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

__all__ = ["SparseEncoder", "SparseTokens"]

DENSE_BYTES = 256 * 2**20
"""Largest dense buffer of feature activations that is held on the device."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseTokens:
    """Feature activations of tokens as CSR.

    Attributes
    ----------
    count : ndarray of int64, shape (tokens,)
        Number of nonzeros of each token.
    feature : ndarray of int32, shape (nnz,)
        Ascending within a token.
    activation : ndarray of float32, shape (nnz,)
        Nonzero.
    finite : ndarray of bool, shape (tokens,)
        False where the model's or the SAE's activations were not finite.
    """

    count: NDArray[np.int64]
    feature: NDArray[np.int32]
    activation: NDArray[np.float32]
    finite: NDArray[np.bool_]


class SparseEncoder:
    """Encode activations with an SAELens SAE.

    The SAE's own `encode` does the work, in its own dtype, so every architecture and every
    normalisation of SAELens is as SAELens has it.

    Parameters
    ----------
    sae : sae_lens.SAE
        An inference SAE. Its ``hook_z`` reshaping is turned off, since vectors come flat.
    dense_bytes : int
        Bound of the dense buffer.
    """

    def __init__(self, sae: Any, *, dense_bytes: int = DENSE_BYTES) -> None:
        self.sae = sae
        self.d_sae = int(sae.cfg.d_sae)
        self._slice = max(1, dense_bytes // (4 * self.d_sae))
        sae.turn_off_forward_pass_hook_z_reshaping()
        # Attention over the document inside the SAE: documents must not be joined or cut.
        self._temporal = sae.cfg.architecture() == "temporal"
        self._topk = _topk_of(sae)

    def __call__(self, hidden: torch.Tensor, lengths: Sequence[int]) -> SparseTokens:
        """Encode tokens that lie end to end.

        Parameters
        ----------
        hidden : Tensor, shape (tokens, d_in)
        lengths : sequence of int
            Tokens of each document; they sum to ``tokens``.
        """
        import torch

        hidden = hidden.to(device=self.sae.device, dtype=torch.float32)
        pieces: list[SparseTokens] = []
        if self._temporal:
            pieces.extend(
                self._extract(vectors, self.sae.encode(vectors[None])[0])
                for vectors in torch.split(hidden, list(lengths))
            )
        else:
            pieces.extend(
                self._extract(vectors, self.sae.encode(vectors))
                for vectors in torch.split(hidden, self._slice)
            )
        return SparseTokens(
            np.concatenate([np.empty(0, np.int64), *(p.count for p in pieces)]),
            np.concatenate([np.empty(0, np.int32), *(p.feature for p in pieces)]),
            np.concatenate([np.empty(0, np.float32), *(p.activation for p in pieces)]),
            np.concatenate([np.empty(0, np.bool_), *(p.finite for p in pieces)]),
        )

    def _extract(self, vectors: torch.Tensor, activations: torch.Tensor) -> SparseTokens:
        import torch

        tokens = len(vectors)
        if self._topk is not None:  # k values a token, in no order
            feature, order = self._topk.feature.sort(dim=1)
            value = activations.float().gather(1, order)
            kept = value != 0
            count = kept.sum(dim=1)
            feature, value = feature[kept], value[kept]
        else:
            kept = activations != 0
            count = kept.sum(dim=1)
            feature = kept.nonzero()[:, 1]
            value = activations[kept].float()
        finite = torch.isfinite(vectors).all(dim=1)
        result = SparseTokens(
            count.cpu().numpy(),
            feature.to(torch.int32).cpu().numpy(),
            value.cpu().numpy(),
            finite.cpu().numpy(),
        )
        bad = ~np.isfinite(result.activation)
        if bad.any():
            result.finite[np.repeat(np.arange(tokens), result.count)[bad]] = False
        return result


class _TopK:
    """SAELens's TopK activation without the dense matrix: the values, and their features beside."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.feature: Any = None

    def __call__(self, hidden_pre: torch.Tensor) -> torch.Tensor:
        values, self.feature = hidden_pre.topk(self.k, dim=-1, sorted=False)
        return values.relu()


def _topk_of(sae: Any) -> _TopK | None:
    """Let a TopK SAE return its k values a token; None for any other architecture."""
    from sae_lens.saes.topk_sae import TopK, TopKSAE

    if type(sae) is not TopKSAE or type(sae.activation_fn) is not TopK:
        return None
    topk = _TopK(sae.cfg.k)
    del sae.activation_fn  # a registered module, which only another module could replace
    sae.activation_fn = topk
    return topk
