"""Loading the language model that an SAE reads, the way the SAE was trained to see it.

The fast way is transformers, run to one module (`ModelRunner`). Where the SAE's metadata ask for
what only TransformerLens does, or name a hook that has no module, TransformerLens runs the model
(`LensRunner`), as SAELens itself would.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_embed.sae.hashing import hash_config, hash_tensors
from interp_embed.sae.model.hooks import HookNotFoundError, decoder_layers
from interp_embed.sae.model.runner import LensRunner, ModelRunner
from interp_embed.sae.model.trunk import hub_commit, load_trunk
from interp_embed.sae.releases.embedded_release import HUB_NAME, LAYERS, embedded_model
from interp_embed.sae.releases.hub import from_hub, switched_off

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from interp_embed.sae.model.runner import Runner

__all__ = ["HookedModel", "load_hooked_model", "resolve_dtype"]

# Changes to the weights that leave the residual stream and what is added to it as they are.
_FOLDING = ("fold_ln", "fold_value_biases", "refactor_factored_attn_matrices")
# Options of TransformerLens that change nothing at or before a hook, or that are decided here.
_IRRELEVANT = (*_FOLDING, "center_unembed", "center_writing_weights", "default_prepend_bos",
               "default_padding_side", "n_devices", "move_to_device", "device", "dtype",
               "torch_dtype")  # fmt: skip
# Options that transformers' own from_pretrained takes, with the same meaning.
_SHARED = ("revision", "attn_implementation", "subfolder")
_ON_RESIDUAL = re.compile(r"hook_embed|blocks\.\d+\.hook_(resid_(pre|mid|post)|attn_out|mlp_out)")
_INSTEAD = "a folder as model="
# Models whose weights on the hub only TransformerLens can read.
_LENS_ONLY = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")


@dataclass(frozen=True, slots=True)
class HookedModel:
    """A language model, ready to be run to a hook.

    Attributes
    ----------
    model : Module
    tokenizer : PreTrainedTokenizerBase
    runner : Runner
    max_positions : int or None
        Longest sequence the model takes.
    identity : dict
        The identity of these weights: name, revision or hash, configuration, dtype.
    """

    model: Any
    tokenizer: Any
    runner: Runner
    max_positions: int | None
    identity: dict[str, Any]


def resolve_dtype(dtype: str, device: str, recorded: object = None) -> torch.dtype:
    """Return the dtype to run a model in.

    Parameters
    ----------
    dtype : str
        A name such as ``"float32"``, or ``"auto"``: the dtype in the SAE's metadata, else bfloat16
        on a GPU that supports it, else float32.
    device : str
    recorded : str or torch.dtype, optional
        The dtype in the SAE's metadata.
    """
    import torch

    name = dtype if dtype != "auto" else recorded
    if name is not None:
        found = name if isinstance(name, torch.dtype) else getattr(
            torch, str(name).removeprefix("torch."), None
        )  # fmt: skip
        if not isinstance(found, torch.dtype):
            raise ValueError(f"dtype must be 'auto' or the name of a torch dtype, got {name!r}")
        return found
    on_gpu = device.startswith("cuda") or device == "auto"
    if on_gpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


def load_hooked_model(
    metadata: Any,
    *,
    model: Any,
    tokenizer: Any,
    device: str,
    dtype: str,
    layers: int | None = None,
    quantize: bool = False,
) -> HookedModel:
    """Load the model of an SAE and find the hook in it.

    Parameters
    ----------
    metadata : SAEMetadata
        The SAE's; missing entries are None.
    model : str, path, Module or None
        In place of the model that the metadata name.
    tokenizer : str, path, PreTrainedTokenizerBase or None
        In place of the model's own.
    device : str
    dtype : str
    layers : int, optional
        Load only these decoder layers, and no head. By default everything is loaded, and the part
        after the hook is released.
    quantize : bool
        With ``layers``: load linear layers in 8 bits.
    """
    options = dict(metadata.model_from_pretrained_kwargs or {})
    hook_name = metadata.hook_name
    if not hook_name:
        raise ValueError("the SAE's metadata name no hook; cfg.json needs 'hook_name'")
    torch_dtype = resolve_dtype(dtype, device, options.get("dtype", options.get("torch_dtype")))
    if hasattr(model, "run_with_cache"):
        return _with_lens(metadata, model, tokenizer or model.tokenizer, {"model": "object"})
    name = str(metadata.model_name if model is None or _is_module(model) else model)
    lens_class = metadata.model_class_name or "HookedTransformer"
    if model is None and not _transformers_can_load(name, lens_class, options):
        with (
            from_hub(f"the language model {name!r}", name, instead=_INSTEAD) as cached,
            switched_off(cached),
        ):
            lens = _load_lens(lens_class, name, options, device, torch_dtype)
        return _with_lens(metadata, lens, tokenizer or lens.tokenizer, {"model": name})
    loaded, loaded_tokenizer, identity = _load_transformers(
        name, model, tokenizer, hook_name, options, device, torch_dtype, layers, quantize
    )
    try:
        if not _ON_RESIDUAL.fullmatch(hook_name) and any(options.get(o) for o in _FOLDING):
            raise HookNotFoundError(f"{hook_name!r} depends on how TransformerLens folds weights")
        runner = ModelRunner.at(
            loaded,
            hook_name,
            hf_hook_name=metadata.hf_hook_name,
            head=metadata.hook_head_index,
            center=bool(options.get("center_writing_weights"))
            and _ON_RESIDUAL.fullmatch(hook_name) is not None
            and _only_layer_norms(loaded),
        )
    except HookNotFoundError as error:
        identity |= _hashes(loaded, None)  # before TransformerLens takes the model apart
        lens = _wrap_lens(name, lens_class, loaded, loaded_tokenizer, options, torch_dtype, error)
        return _with_lens(metadata, lens, loaded_tokenizer, identity)
    if not _is_module(model):
        _discard_behind(loaded, runner.site.layer)
    # A folder's files are hashed where they are asked for; in 8 bits devices round differently.
    needs_hash = not quantize and not {"model_revision", "model_sha256"} & set(identity)
    return HookedModel(
        loaded,
        loaded_tokenizer,
        runner,
        _max_positions(loaded.config),
        identity | _hashes(loaded, runner.site.layer, weights=needs_hash),
    )


def _load_transformers(
    name: str,
    model: Any,
    tokenizer: Any,
    hook_name: str,
    options: Mapping[str, Any],
    device: str,
    dtype: torch.dtype,
    layers: int | None,
    quantize: bool,
) -> tuple[Any, Any, dict[str, Any]]:
    """Return the model, its tokenizer, and what is known of where it came from."""
    from transformers import AutoModelForCausalLM

    if _is_module(model):
        if tokenizer is None:
            raise ValueError("model= is a loaded model, so pass its tokenizer= too")
        return model.eval(), _tokenizer(tokenizer), {"model": type(model).__name__}
    device_map = "auto" if device == "auto" else None
    layer = re.search(r"blocks\.(\d+)\.", hook_name)
    if model is None and name == HUB_NAME and layer is not None and int(layer.group(1)) < LAYERS:
        source = embedded_model()
        loaded, own_tokenizer = source.load(dtype, device_map)
        identity: dict[str, Any] = {"model": source.name}
        if source.sha256 is not None:
            identity["model_sha256"] = source.sha256
    else:
        official = name if model is not None else _official_name(name)
        shared = {k: v for k, v in options.items() if k in _SHARED}
        is_folder = Path(official).is_dir()
        with _source("the language model", official) as cached:
            shared["local_files_only"] = cached
            resolved = None if layers is None else hub_commit(official, shared)
            if layers is None:
                loaded = AutoModelForCausalLM.from_pretrained(
                    official, dtype=dtype, device_map=device_map, **shared
                )
            else:
                if resolved is not None:
                    shared["revision"] = resolved
                loaded = load_trunk(
                    official, layers, dtype=dtype, device=device, quantize=quantize, options=shared
                )
        own_tokenizer = official if tokenizer is None else None
        identity = {"model": "folder" if is_folder else official}
        if resolved is not None:
            identity["model_revision"] = resolved
    commit = getattr(loaded.config, "_commit_hash", None)
    if commit is not None:
        identity["model_revision"] = str(commit)
    if device_map is None and layers is None:
        loaded = loaded.to(device)
    return (
        loaded.eval(),
        _tokenizer(tokenizer if tokenizer is not None else own_tokenizer),
        identity,
    )


def _tokenizer(tokenizer: Any) -> Any:
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    from transformers import AutoTokenizer

    with _source("the tokenizer", str(tokenizer), "a folder as tokenizer=") as cached:
        return AutoTokenizer.from_pretrained(tokenizer, local_files_only=cached)


def _source(
    what: str, name: str, instead: str = _INSTEAD
) -> contextlib.AbstractContextManager[bool]:
    """Load a name of the hub inside, or a folder; see `from_hub`."""
    if Path(name).is_dir():
        return contextlib.nullcontext(False)
    return from_hub(f"{what} {name!r}", name, instead=instead)


def _official_name(name: str) -> str:
    """Return the hub's name for a model that TransformerLens may call by an alias."""
    from transformer_lens.loading_from_pretrained import get_official_model_name

    try:
        return str(get_official_model_name(name))
    except ValueError:
        return name


def _transformers_can_load(name: str, lens_class: str, options: Mapping[str, Any]) -> bool:
    if lens_class == "AutoModelForCausalLM":
        return True
    unknown = set(options) - set(_IRRELEVANT) - set(_SHARED)
    return (
        lens_class == "HookedTransformer"
        and not unknown
        and not _official_name(name).startswith(_LENS_ONLY)
    )


def _load_lens(
    lens_class: str, name: str, options: Mapping[str, Any], device: str, dtype: torch.dtype
) -> Any:
    from sae_lens.load_model import load_model

    options = {k: v for k, v in options.items() if k != "torch_dtype"}
    if lens_class == "HookedTransformer":
        options["dtype"] = dtype
    with warnings.catch_warnings():
        # It is what SAELens itself loads, whatever TransformerLens plans to put in its place.
        warnings.simplefilter("ignore", DeprecationWarning)
        return load_model(
            lens_class,
            name,
            device=None if device == "auto" else device,
            model_from_pretrained_kwargs=options,
        )


def _wrap_lens(
    name: str,
    lens_class: str,
    model: Any,
    tokenizer: Any,
    options: Mapping[str, Any],
    dtype: torch.dtype,
    error: HookNotFoundError,
) -> Any:
    """Give a loaded model to TransformerLens, for a hook that has no module of its own."""
    if lens_class != "HookedTransformer":
        raise error
    device = str(model.get_input_embeddings().weight.device)
    if _official_name(name) != name or "/" not in name:
        extra = {"hf_model": model, "tokenizer": tokenizer}
        try:
            return _load_lens(lens_class, name, {**options, **extra}, device, dtype)
        except ValueError:
            pass  # not one of TransformerLens's own models
    if any(options.get(o) for o in (*_FOLDING, "center_writing_weights")):
        raise error
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        if not tokenizer.init_kwargs.get("name_or_path"):
            # TransformerLens loads the tokenizer again, from where it came from.
            tokenizer.save_pretrained(folder)
            tokenizer = _tokenizer(folder)
        return TransformerBridge.boot_transformers(
            name, hf_model=model, tokenizer=tokenizer, dtype=dtype, device=device
        )


def _with_lens(metadata: Any, model: Any, tokenizer: Any, identity: dict[str, Any]) -> HookedModel:
    hook_name = metadata.hook_name
    hooks = getattr(model, "hook_dict", {})
    if hook_name not in hooks:
        raise HookNotFoundError(f"{type(model).__name__} has no hook {hook_name!r}")
    if "model_sha256" not in identity and "model_revision" not in identity:
        identity["model_sha256"] = hash_tensors(model.state_dict())
    identity.setdefault("model_dtype", str(next(model.parameters()).dtype).removeprefix("torch."))
    return HookedModel(
        model.eval(),
        _tokenizer(tokenizer),
        LensRunner(model, hook_name, head=metadata.hook_head_index),
        getattr(model.cfg, "n_ctx", None) if hasattr(model, "cfg") else None,
        identity,
    )


def _hashes(model: Any, layer: int | None, *, weights: bool = True) -> dict[str, Any]:
    hashes: dict[str, Any] = {
        "model_config": hash_config(model.config),
        "model_dtype": str(model.dtype).removeprefix("torch."),
    }
    if weights:
        hashes["model_sha256"] = hash_tensors(dict(_used_weights(model, layer)))
    return hashes


def _used_weights(model: Any, layer: int | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights that what is hooked in ``layer`` can depend on."""
    path, stack = decoder_layers(model)
    last = len(stack) - 1 if layer is None else layer
    for name, tensor in model.state_dict().items():
        inside = re.match(re.escape(path) + r"\.(\d+)\.", name)
        if (inside is None or int(inside.group(1)) <= last) and not name.startswith("lm_head."):
            yield name, _from_disk(model, name) if tensor.is_meta else tensor


def _from_disk(model: Any, name: str) -> torch.Tensor:
    """Return a weight that accelerate keeps on the disk until it is run."""
    from accelerate.utils import align_module_device

    path, _, weight = name.rpartition(".")
    module = model.get_submodule(path)
    with align_module_device(module, "cpu"):
        loaded: torch.Tensor = getattr(module, weight).detach().clone()
    return loaded


def _discard_behind(model: Any, layer: int | None) -> None:
    """Free the layers behind the hooked one, which are never run."""
    if layer is None:
        return
    path, stack = decoder_layers(model)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, stack[: layer + 1])


def _only_layer_norms(model: Any) -> bool:
    """Return whether all that reads the residual stream takes its mean out first."""
    import torch

    _, stack = decoder_layers(model)
    return any(isinstance(m, torch.nn.LayerNorm) for m in stack.modules())


def _max_positions(config: Any) -> int | None:
    text = getattr(config, "text_config", None) or config
    limit = getattr(text, "max_position_embeddings", None)
    return None if limit is None else int(limit)


def _is_module(model: Any) -> bool:
    return model is not None and not isinstance(model, str | Path)
