"""Loading the part of a language model that is run: its layers up to the hooked one, and no head.

The part after the hook is downloaded but not loaded, so it takes no memory. If a model is spread
over devices, they hold only the part that is needed.
"""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_embed.sae.quiet import quiet_bitsandbytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

__all__ = ["hub_commit", "load_trunk", "quantization_problem"]


def quantization_problem() -> str | None:
    """Return why models cannot be loaded in 8 bits here; None if they can."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return "it needs bitsandbytes: pip install 'interp_embed[quantize]'"
    return None


def hub_commit(source: str, options: Mapping[str, Any] | None = None) -> str | None:
    """Return the current commit of a model on the hub; None for a folder.

    Parameters
    ----------
    source : str
        A name on the hub, or a folder.
    options : mapping, optional
        ``revision``, ``subfolder`` and ``local_files_only``, if they are given.

    Raises
    ------
    OSError
        If the hub has no such model, or access to it requires a login.
    """
    if Path(source).is_dir():
        return None
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    named = ("revision", "subfolder", "local_files_only")
    where = {k: v for k, v in (options or {}).items() if k in named}
    found = extract_commit_hash(cached_file(source, "config.json", **where), None)
    return None if found is None else str(found)


def load_trunk(
    source: str,
    layers: int,
    *,
    dtype: torch.dtype,
    device: str,
    quantize: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Load the first layers of a transformers model.

    Parameters
    ----------
    source : str
        A name on the hub, or a folder.
    layers : int
        How many decoder layers to keep, from the first.
    dtype : torch.dtype
        Of the weights; with ``quantize``, of those that are not in 8 bits.
    device : str
        ``"auto"`` spreads the layers over all devices (accelerate's ``device_map``).
    quantize : bool
        Load linear layers in 8 bits (bitsandbytes, LLM.int8; Dettmers et al. 2022,
        https://arxiv.org/abs/2208.07339).
    options : mapping, optional
        More arguments of ``from_pretrained``.

    Returns
    -------
    PreTrainedModel
        Without a language model head.

    Raises
    ------
    OSError
        If the model cannot be found, or weights of it are missing.
    ValueError
        If it has fewer layers.
    """
    from transformers import AutoConfig, AutoModel

    settings = dict(options or {})
    config = AutoConfig.from_pretrained(source, **_without(settings, "attn_implementation"))
    text = config.get_text_config()
    if text.num_hidden_layers < layers:
        raise ValueError(
            f"the SAE reads the output of layer {layers - 1}, but {source} has "
            f"{text.num_hidden_layers} layers, numbered from 0"
        )
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = list(text.layer_types)[:layers]
    if quantize:
        settings["quantization_config"] = _eight_bits()
    with _no_load_report():
        model, report = AutoModel.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            device_map="auto" if device == "auto" else {"": device},
            output_loading_info=True,
            **settings,
        )
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would run them with random numbers
        raise OSError(
            f"{source} lacks {len(missing)} weights of its first {layers} layers, among them "
            f"{missing[0]}; the download may be incomplete"
        )
    return model


def _without(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


def _eight_bits() -> Any:
    from transformers import BitsAndBytesConfig

    with quiet_bitsandbytes():
        import bitsandbytes  # noqa: F401
    return BitsAndBytesConfig(load_in_8bit=True)


@contextlib.contextmanager
def _no_load_report() -> Iterator[None]:
    """Keep transformers from listing the layers behind the hook as unexpected."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
