"""Where a TransformerLens hook lies in a transformers model.

SAEs name the place they read in TransformerLens's terms (``blocks.8.hook_resid_pre``) and sometimes
in transformers' own (``model.layers.8.output``). Here either becomes a module and the side of it
(input or output) on which the same tensor passes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

__all__ = ["HookNotFoundError", "HookSite", "decoder_layers", "find_hook"]

# Paths of the stack of decoder layers, by family.
_STACKS = (
    "model.layers",  # llama, mistral, qwen, gemma, phi, olmo
    "model.language_model.layers",  # the text part of multimodal models
    "language_model.model.layers",
    "language_model.layers",
    "transformer.h",  # gpt2, gpt-neo, gpt-j, falcon
    "gpt_neox.layers",  # pythia
    "model.decoder.layers",  # opt
    "layers",
    "h",
)
_ATTENTION = ("self_attn", "attn", "attention")
_OUT_PROJECTION = ("o_proj", "c_proj", "dense", "out_proj", "attention.out_proj")
# Families whose sublayers are wired as `_inside` says; others answer for the residual stream only.
_FAMILIES = frozenset(
    [
        "gpt2",
        "gpt_neo",
        "gpt_neox",
        "llama",
        "mistral",
        "mixtral",
        "ministral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "olmo",
        "olmo2",
        "olmo3",
        "smollm3",
        "gpt_oss",
    ]
)
_LAYER = re.compile(r"\.(\d+)(?=\.|$)")


class HookNotFoundError(LookupError):
    """A transformers model has no module that carries a hook's tensor."""


@dataclass(frozen=True, slots=True)
class HookSite:
    """One side of one module.

    Attributes
    ----------
    name : str
        Path of the module in the model.
    module : torch.nn.Module
    incoming : bool
        Whether the tensor is the module's input, else its output.
    layer : int or None
        Number of the decoder layer it is in.
    heads : int or None
        Number of attention heads that lie end to end in the tensor.
    head : int or None
        The one head to take.
    """

    name: str
    module: Any
    incoming: bool
    layer: int | None
    heads: int | None = None
    head: int | None = None

    def register(self, capture: Callable[[torch.Tensor], None]) -> Any:
        """Call ``capture`` with the tensor whenever it passes; returns a removable handle."""
        if self.incoming:

            def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                capture(_first_tensor([*args, *kwargs.values()]))

            return self.module.register_forward_pre_hook(before, with_kwargs=True)

        def after(_: Any, __: Any, output: Any) -> None:
            capture(_first_tensor(output if isinstance(output, tuple | list) else [output]))

        return self.module.register_forward_hook(after)

    def select(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the SAE reads of the captured vectors, (tokens, width)."""
        if self.head is None:
            return hidden
        if self.heads is None:
            raise HookNotFoundError(f"{self.name!r} has no attention heads to choose from")
        return hidden.view(len(hidden), self.heads, -1)[:, self.head]


def decoder_layers(model: Any) -> tuple[str, Any]:
    """Return the path and the ModuleList of a model's decoder layers.

    Raises
    ------
    HookNotFoundError
        If the model has no such stack at a known place.
    """
    for path in _STACKS:
        stack = _descend(model, path)
        if stack is not None and hasattr(stack, "__len__"):
            return path, stack
    raise HookNotFoundError(f"no stack of decoder layers found in {type(model).__name__}")


def find_hook(
    model: Any, hook_name: str, hf_hook_name: str | None = None, *, head: int | None = None
) -> HookSite:
    """Return where a hook's tensor passes in a transformers model.

    Parameters
    ----------
    model : PreTrainedModel
    hook_name : str
        A TransformerLens name, or the path of a module (whose output is meant).
    hf_hook_name : str, optional
        The path of a module in transformers, optionally with ``.input`` or ``.output`` behind it;
        preferred where the model has it.
    head : int, optional
        Take one attention head.

    Raises
    ------
    HookNotFoundError
        If the model has no module for it, with the reason.
    ValueError
        If the model has too few layers.
    """
    if hf_hook_name:
        site = _by_path(model, hf_hook_name, head)
        if site is not None:
            return site
    if not re.match(r"blocks\.\d+\.|hook_embed$", hook_name):
        site = _by_path(model, hook_name, head)
        if site is not None:
            return site
    return _by_lens_name(model, hook_name, head)


def _by_path(model: Any, path: str, head: int | None) -> HookSite | None:
    incoming = path.endswith(".input")
    path = path.removesuffix(".input").removesuffix(".output")
    found = _LAYER.search(path)
    module = _descend(model, path)
    if module is None and found is not None:
        # The same model may be wrapped differently (with a vision part, without a head).
        try:
            stack_path, stack = decoder_layers(model)
        except HookNotFoundError:
            return None
        number = int(found.group(1))
        rest = path[found.end() :].lstrip(".")
        if number < len(stack):
            module = _descend(stack[number], rest) if rest else stack[number]
            path = ".".join(filter(None, (stack_path, str(number), rest)))
    if module is None:
        return None
    layer = int(found.group(1)) if found is not None else None
    return HookSite(path, module, incoming, layer, heads=_heads(model), head=head)


def _by_lens_name(model: Any, hook_name: str, head: int | None) -> HookSite:
    if hook_name == "hook_embed":
        return _embedding(model)
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
    if match is None:
        raise HookNotFoundError(f"{hook_name!r} is not the name of a hook")
    number, place = int(match.group(1)), match.group(2)
    path, stack = decoder_layers(model)
    if number >= len(stack):
        raise ValueError(
            f"{hook_name!r} is in layer {number}, but {type(model).__name__} has {len(stack)} layers"
        )
    base = f"{path}.{number}"
    layer = stack[number]
    sub: str | None
    if place in ("hook_resid_pre", "hook_resid_post"):
        sub, incoming = None, place == "hook_resid_pre"
    elif getattr(getattr(model, "config", None), "model_type", None) in _FAMILIES:
        sub, incoming = _inside(layer, place, hook_name)
    else:
        raise HookNotFoundError(
            f"the modules of {type(model).__name__} behind {hook_name!r} are not known"
        )
    module = layer if sub is None else _descend(layer, sub)
    name = base if sub is None else f"{base}.{sub}"
    return HookSite(name, module, incoming, number, heads=_heads(model), head=head)


def _inside(layer: Any, place: str, hook_name: str) -> tuple[str, bool]:
    """Return the module of a decoder layer that carries a hook's tensor, and if it is its input."""
    attention = _first(layer, _ATTENTION)
    sandwich = hasattr(layer, "pre_feedforward_layernorm")  # gemma 2 and 3: norms on both sides
    post_norm = not hasattr(layer, "input_layernorm") and hasattr(
        layer, "post_feedforward_layernorm"
    )  # olmo 2 and 3: norms behind the sublayers only
    if place == "hook_resid_mid":
        if sandwich:
            return "pre_feedforward_layernorm", True
        if post_norm:
            return "mlp", True
        if not getattr(layer, "use_parallel_residual", False):
            norm = _first(layer, ("post_attention_layernorm", "ln_2"))
            if norm is not None:
                return norm, True
    if place == "hook_attn_out" and attention is not None:
        return ("post_attention_layernorm" if sandwich or post_norm else attention), False
    if place == "hook_mlp_out":
        if sandwich or post_norm:
            return "post_feedforward_layernorm", False
        if hasattr(layer, "mlp"):
            return "mlp", False
    if place == "mlp.hook_in" and hasattr(layer, "mlp"):
        return "mlp", True
    if place == "attn.hook_z" and attention is not None:
        projection = _first(getattr(layer, attention), _OUT_PROJECTION)
        if projection is not None:
            return f"{attention}.{projection}", True
    raise HookNotFoundError(f"{hook_name!r} has no module of its own in {type(layer).__name__}")


def _embedding(model: Any) -> HookSite:
    path, stack = decoder_layers(model)
    positions = _first(model, ("transformer.wpe", "model.decoder.embed_positions"))
    if positions is None:  # nothing is added before the first layer
        return HookSite(f"{path}.0", stack[0], True, 0)
    return HookSite("embedding", model.get_input_embeddings(), False, None)


def _heads(model: Any) -> int | None:
    config = getattr(model, "config", None)
    config = getattr(config, "text_config", None) or config
    heads = getattr(config, "num_attention_heads", None)
    return None if heads is None else int(heads)


def _first(module: Any, names: Iterable[str]) -> str | None:
    return next((n for n in names if _descend(module, n) is not None), None)


def _descend(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return module


def _first_tensor(values: Iterable[Any]) -> torch.Tensor:
    import torch

    for value in values:
        if isinstance(value, torch.Tensor):
            return value
    raise HookNotFoundError("the hooked module's input or output holds no tensor")
