"""A tiny Llama with a chat template and SAEs in Goodfire's own format, made on the spot."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.support.tiny_models import tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

BOS, HEADER, END_HEADER, EOT = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
SYSTEM = "\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
# As Llama 3.1's: BOS and a system message in front, contents stripped, each with an end.
TEMPLATE = (
    "{{- bos_token }}{{- '" + HEADER + "system" + END_HEADER + "' }}"
    "{{- '" + SYSTEM.replace("\n", "\\n") + EOT + "' }}"
    "{%- for m in messages %}{{- '" + HEADER + "' + m['role'] + '" + END_HEADER + "\\n\\n' }}"
    "{{- m['content'] | trim + '" + EOT + "' }}{%- endfor %}"
)


def rendered(text: str, role: str = "assistant") -> str:
    """Return what the template makes of a document, written without the template."""
    return (
        f"{BOS}{HEADER}system{END_HEADER}{SYSTEM}{EOT}"
        f"{HEADER}{role}{END_HEADER}\n\n{text.strip()}{EOT}"
    )


def llama_tokenizer(**settings: Any) -> Any:
    """Return the tiny tokenizer with Llama's special tokens and a template like Llama's."""
    tokenizer = tiny_tokenizer(
        bos_token=BOS, eos_token=EOT, pad_token=None, chat_template=TEMPLATE, **settings
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [HEADER, END_HEADER]})
    return tokenizer


def llama_folder(folder: Path, layers: int = 4, seed: int = 0) -> Path:
    """Save a random float32 Llama of width 32, in several files as large models are."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=420,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=256,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.2))
    model.save_pretrained(folder, max_shard_size="150KB")
    llama_tokenizer().save_pretrained(folder)
    return folder


def goodfire_weights(path: Path, *, d_in: int = 32, d_sae: int = 64, seed: int = 0) -> Path:
    """Save a random SAE as Goodfire does: the state dict of two linear layers, in bfloat16."""
    import torch

    torch.manual_seed(seed)
    encoder = torch.nn.Linear(d_in, d_sae)
    decoder = torch.nn.Linear(d_sae, d_in)
    module = torch.nn.ModuleDict({"encoder_linear": encoder, "decoder_linear": decoder})
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(module.bfloat16().state_dict(), path)
    return path


def direct(folder: Path, weights: Path, layer: int, text: str) -> tuple[list[int], np.ndarray]:
    """Return ids and activations of a rendered text: plain transformers and a float64 matrix."""
    import torch

    tokenizer, model = _loaded(folder)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        found = model(torch.tensor([ids]), output_hidden_states=True)
    hidden = found.hidden_states[layer + 1][0].double().numpy()
    state = torch.load(weights, weights_only=True)
    matrix = state["encoder_linear.weight"].double().numpy()
    bias = state["encoder_linear.bias"].double().numpy()
    return ids, np.maximum(hidden @ matrix.T + bias, 0)


@cache
def _loaded(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(folder), model.eval()
