"""Running a language model up to the hooked layer, and no further.

A runner takes token ids of ragged documents and returns the hooked activations of all tokens, end
to end and without padding. It knows nothing of SAEs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from interp_embed.sae.model.hooks import find_hook

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from interp_embed.sae.model.hooks import HookSite

__all__ = ["LensRunner", "ModelRunner", "Runner"]


class Runner(Protocol):
    """Something that returns the hooked activations of tokens."""

    def __call__(self, documents: Sequence[NDArray[np.integer]]) -> torch.Tensor:
        """Return activations of shape (tokens of all documents, d_in)."""


class _StopForward(Exception):  # noqa: N818 - control flow, not an error
    """Raised from the hook once the activations are there: nothing behind it need be computed."""


def _padded(
    documents: Sequence[NDArray[np.integer]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Return ids padded on the right with 0, the mask of what is not padding, and where that is.

    The mask is None where nothing is padded; where real tokens are is their rows in the flattened
    batch. All of it is worked out on the host, so that a GPU is not waited for.
    """
    import numpy as np
    import torch

    width = max(len(d) for d in documents)
    ids = np.zeros((len(documents), width), np.int64)
    mask = np.zeros((len(documents), width), np.bool_)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = document
        mask[row, : len(document)] = True

    def put(values: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if device.type != "cuda":
            return tensor.to(device)
        return tensor.pin_memory().to(device, non_blocking=True)

    padded = None if mask.all() else put(mask.astype(np.int64))
    return put(ids), padded, put(np.flatnonzero(mask))


class ModelRunner:
    """Run a transformers model to one module and take what goes in or comes out of it.

    Documents are padded on the right. With causal attention that leaves every real token's
    activations as they are without padding, and positions count from 0 in each document; the mask
    is passed all the same, so that nothing depends on how a model treats padding.

    Parameters
    ----------
    model : PreTrainedModel
    site : HookSite
        What to capture, from `find_hook`.
    center : bool
        Subtract each vector's mean. A residual stream that only LayerNorms read is the same
        function of the input with and without its mean; TransformerLens's
        ``center_writing_weights`` takes it out of the weights, and some SAEs were trained so.
    """

    def __init__(self, model: Any, site: HookSite, *, center: bool = False) -> None:
        self.model = model
        self.site = site
        self.center = center

    @classmethod
    def at(
        cls,
        model: Any,
        hook_name: str,
        *,
        hf_hook_name: str | None = None,
        head: int | None = None,
        center: bool = False,
    ) -> ModelRunner:
        """Return a runner for a TransformerLens hook name.

        Raises
        ------
        HookNotFoundError
            If the model has no module for it.
        """
        return cls(model, find_hook(model, hook_name, hf_hook_name, head=head), center=center)

    def __call__(self, documents: Sequence[NDArray[np.integer]]) -> torch.Tensor:
        """Return activations of shape (tokens of all documents, d_in)."""
        device = self.model.get_input_embeddings().weight.device
        if device.type == "meta":  # on the disk until it is run: accelerate moves what goes in
            device = type(device)("cpu")
        ids, mask, rows = _padded(documents, device)
        captured: list[torch.Tensor] = []

        def capture(hidden: torch.Tensor) -> None:
            captured.append(hidden)
            raise _StopForward

        handle = self.site.register(capture)
        try:
            self.model(
                input_ids=ids,
                attention_mask=mask,
                use_cache=False,
            )
        except _StopForward:
            pass
        finally:
            handle.remove()
        if not captured:
            raise RuntimeError(
                f"the model never ran {self.site.name!r}, so there is nothing for the SAE to encode"
            )
        hidden = captured[0]
        hidden = hidden.flatten(0, 1).index_select(0, rows.to(hidden.device))
        hidden = self.site.select(hidden)
        if self.center:
            hidden = hidden - hidden.mean(dim=-1, keepdim=True)
        return hidden


class LensRunner:
    """Run a TransformerLens model to the layer of one of its hooks.

    The slower way, for hooks that have no module in transformers and for models whose weights
    TransformerLens changes.

    Parameters
    ----------
    model : HookedRootModule
        `HookedTransformer`, `TransformerBridge` or what SAELens's `load_model` returns.
    hook_name : str
    head : int, optional
        Take one attention head of the hook's output.
    """

    def __init__(self, model: Any, hook_name: str, *, head: int | None = None) -> None:
        self.model = model
        self.hook_name = hook_name
        self.head = head

    def __call__(self, documents: Sequence[NDArray[np.integer]]) -> torch.Tensor:
        """Return activations of shape (tokens of all documents, d_in)."""
        from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name

        ids, _, rows = _padded(documents, next(self.model.parameters()).device)
        arguments: Mapping[str, Any] = {
            "names_filter": [self.hook_name],
            "stop_at_layer": extract_stop_at_layer_from_tlens_hook_name(self.hook_name),
        }
        _, cache = self.model.run_with_cache(ids, prepend_bos=False, **arguments)
        hooked = cache[self.hook_name]
        hidden = hooked.flatten(0, 1).index_select(0, rows.to(hooked.device))
        if self.head is not None:
            return hidden[:, self.head]  # type: ignore[no-any-return]
        return hidden.flatten(1)  # type: ignore[no-any-return]
