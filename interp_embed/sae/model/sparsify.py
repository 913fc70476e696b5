"""From hooked activations to sparse feature activations, on the device where they are.

Only what is nonzero leaves the device. Tokens come end to end, without padding, and in slices, so
that the dense (tokens, d_sae) buffer is bounded whatever the batch and the width of the SAE. From a
GPU results are copied while it computes on: `PendingTokens` waits for them when they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from numpy.typing import NDArray

__all__ = ["PendingTokens", "SparseEncoder", "SparseTokens"]

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


class PendingTokens:
    """Sparse activations that may still be on their way from a GPU.

    Parameters
    ----------
    slices : list of (count, feature, activation, finite)
        Tensors on the host, one tuple per slice of tokens. A slice of a TopK SAE has no count, and
        its features and activations have the shape (tokens, k), with zeros among them.
    wait : callable, optional
        Returns when the copies are complete.
    """

    def __init__(
        self,
        slices: Sequence[tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]],
        wait: Callable[[], Any] | None = None,
    ) -> None:
        self._slices = slices
        self._wait = wait

    def result(self) -> SparseTokens:
        """Wait until the activations are here, and return them."""
        if self._wait is not None:
            self._wait()
        pieces = [_on_host(*tensors) for tensors in self._slices]
        return SparseTokens(
            np.concatenate([np.empty(0, np.int64), *(p.count for p in pieces)]),
            np.concatenate([np.empty(0, np.int32), *(p.feature for p in pieces)]),
            np.concatenate([np.empty(0, np.float32), *(p.activation for p in pieces)]),
            np.concatenate([np.empty(0, np.bool_), *(p.finite for p in pieces)]),
        )


def _on_host(
    counts: torch.Tensor | None,
    features: torch.Tensor,
    activations: torch.Tensor,
    are_finite: torch.Tensor,
) -> SparseTokens:
    feature, activation = features.numpy(), activations.numpy()
    if counts is None:
        kept = activation != 0
        count = kept.sum(axis=1, dtype=np.int64)
        feature, activation = feature[kept], activation[kept]
    else:
        count = counts.numpy()
    finite = are_finite.numpy()
    bad = ~np.isfinite(activation)
    if bad.any():
        finite = finite.copy()
        finite[np.repeat(np.arange(len(count)), count)[bad]] = False
    return SparseTokens(count, feature, activation, finite)


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

    def __call__(self, hidden: torch.Tensor, lengths: Sequence[int]) -> PendingTokens:
        """Encode tokens that lie end to end.

        Parameters
        ----------
        hidden : Tensor, shape (tokens, d_in)
        lengths : sequence of int
            Tokens of each document; they sum to ``tokens``.
        """
        import torch

        hidden = hidden.to(device=self.sae.device, dtype=torch.float32, non_blocking=True)
        if self._temporal:
            slices = [
                self._extract(vectors, self.sae.encode(vectors[None])[0])
                for vectors in torch.split(hidden, list(lengths))
            ]
        else:
            slices = [
                self._extract(vectors, self.sae.encode(vectors))
                for vectors in torch.split(hidden, self._slice)
            ]
        if not hidden.is_cuda:
            return PendingTokens(slices)
        return PendingTokens(
            slices, torch.cuda.current_stream(hidden.device).record_event().synchronize
        )

    def _extract(
        self, vectors: torch.Tensor, activations: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return counts, features, activations and finiteness, on their way to the host."""
        import torch

        finite = torch.isfinite(vectors).all(dim=1)
        count: torch.Tensor | None = None
        if self._topk is not None:  # k values a token, in no order; nearly all of them are kept
            feature, order = self._topk.feature.sort(dim=1)
            value = activations.float().gather(1, order)
        else:
            kept = activations != 0
            count = _to_host(kept.sum(dim=1))
            token, feature = kept.nonzero(as_tuple=True)  # a GPU is waited for here, and only here
            value = activations[token, feature].float()
        return count, _to_host(feature.to(torch.int32)), _to_host(value), _to_host(finite)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the host; from a GPU, one that is filled while the GPU computes on."""
    if not tensor.is_cuda:
        return tensor.cpu()
    import torch

    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


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
