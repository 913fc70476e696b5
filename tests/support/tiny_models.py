"""Tiny language models, tokenizers and SAEs, built on the spot, and SAELens's own run of them."""

from __future__ import annotations

import json
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import sae_lens

BOS = "<|endoftext|>"
CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Sparse autoencoders decompose activations into features.",
    "A token is a piece of a word, and a word is a piece of a text.",
    "assistant user system message\nHello there, how are you today?",
    "1234567890 !?.,;:()[]{}",
]
TEXTS = [
    "The fox jumps.",
    "a",
    "Sparse features, and more features: 42!",
    "Hello 👋🏽 wörld — 你好 é",
    "  leading and trailing  \n",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "\t",
    "dog",
    "of a text and a word of a piece",
    "fox\n\nfox",
    "Is it? It is.",
    "x y z",
    "tokens tokens tokens tokens",
    "No.",
    "there there",
    "lazy lazy lazy dog dog fox",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
)


@cache
def _backend() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BOS, "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())


def tiny_tokenizer(**settings: Any) -> Any:
    """Return a byte-level BPE tokenizer of 400 entries with BOS = EOS = ``<|endoftext|>``."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    settings = {"bos_token": BOS, "eos_token": BOS, "pad_token": BOS} | settings
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()),
        **{k: v for k, v in settings.items() if v is not None},
    )


def tiny_model(family: str, seed: int = 0) -> Any:
    """Return a random model of 4 layers, d_model 32 and 4 heads, in float32."""
    import torch
    import transformers as t

    common = {
        "vocab_size": 400,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    gqa = common | {"num_key_value_heads": 2, "head_dim": 8}
    torch.manual_seed(seed)
    config: Any
    match family:
        case "gpt2":
            config = t.GPT2Config(vocab_size=400, n_embd=32, n_layer=4, n_head=4, n_positions=64)
        case "llama":
            config = t.LlamaConfig(**gqa)
        case "mistral":
            config = t.MistralConfig(**gqa, sliding_window=None)
        case "qwen2":
            config = t.Qwen2Config(**{k: v for k, v in gqa.items() if k != "head_dim"})
        case "qwen3":
            config = t.Qwen3Config(**gqa)
        case "gemma2":
            config = t.Gemma2Config(**gqa, query_pre_attn_scalar=8, sliding_window=32)
        case "neox":
            config = t.GPTNeoXConfig(**common)
        case _:
            raise ValueError(family)
    model = t.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large and off-centre enough that a wrong norm, bias or position shows.
            scale = 0.3 if parameter.ndim > 1 else 0.2
            parameter.add_(torch.randn_like(parameter) * scale + (0.05 if "bias" in name else 0))
    return model


@cache
def _tokenizer_folder() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    tiny_tokenizer().save_pretrained(folder.name)
    return folder


def lens_tokenizer() -> Any:
    """Return the tiny tokenizer as one loaded from a folder; TransformerLens loads it again."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_tokenizer_folder().name)


@cache
def _lens_config(family: str) -> dict[str, Any]:
    from transformer_lens.loading_from_pretrained import convert_hf_model_config

    with tempfile.TemporaryDirectory() as folder:
        tiny_model(family).config.save_pretrained(folder)
        path = Path(folder) / "config.json"
        config = json.loads(path.read_text())
        config["architectures"] = [type(tiny_model(family)).__name__]
        config.setdefault("n_ctx", 64)
        path.write_text(json.dumps(config))
        return dict(convert_hf_model_config(folder))


def lens_model(model: Any, family: str, **processing: bool) -> Any:
    """Return the model as SAELens runs it: a HookedSAETransformer of the same weights."""
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions as convert

    converter = {
        "gpt2": convert.convert_gpt2_weights,
        "llama": convert.convert_llama_weights,
        "mistral": convert.convert_mistral_weights,
        "qwen2": convert.convert_qwen2_weights,
        "qwen3": convert.convert_qwen3_weights,
        "neox": convert.convert_neox_weights,
    }[family]
    config = HookedTransformerConfig.from_dict(
        {**_lens_config(family), "model_name": "tiny", "device": "cpu"}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        lens = HookedSAETransformer(config, tokenizer=lens_tokenizer())
    flags = dict.fromkeys(
        ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False
    )
    lens.load_and_process_state_dict(
        {k: v.clone() for k, v in converter(model, config).items()},
        **(flags | processing),
    )
    return lens.eval()


def random_sae(
    architecture: str,
    hook_name: str,
    *,
    d_in: int = 32,
    d_sae: int = 64,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    **config: Any,
) -> Any:
    """Return an SAE of SAELens with random weights everywhere."""
    import torch

    transcoder = {"d_out": d_in, "apply_b_dec_to_input": False}
    defaults: dict[str, dict[str, Any]] = {
        "topk": {"k": 7},
        "abstopk": {"k": 7},
        "transcoder": transcoder,
        "skip_transcoder": transcoder,
        "jumprelu_transcoder": transcoder,
        "jumprelu_skip_transcoder": transcoder,
        "temporal": {"n_heads": 4, "bottleneck_factor": 8, "kval_topk": 7},
        "matching_pursuit": {"max_iterations": 5},
    }
    described = {
        "model_name": "tiny",
        "hook_name": hook_name,
        "prepend_bos": True,
        "context_size": 64,
    } | (metadata or {})
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty")
        sae = sae_lens.SAE.from_dict(
            {
                "architecture": architecture,
                "d_in": d_in,
                "d_sae": d_sae,
                "metadata": described,
                **defaults.get(architecture, {}),
                **config,
            }
        )
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name == "threshold":
                parameter.uniform_(0.0, 0.5)
            elif "attn_layers" in name:
                parameter.add_(torch.randn_like(parameter) * 0.01)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        if architecture == "matching_pursuit":
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    return sae.eval()


def saelens_run(lens: Any, sae: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """Return each text's feature activations as SAELens computes them, one text at a time."""
    import torch

    hook = sae.cfg.metadata.hook_name
    results = []
    for text in texts:
        tokens = lens.to_tokens(text, prepend_bos=bool(sae.cfg.metadata.prepend_bos))
        with torch.no_grad():
            if sae.cfg.architecture() == "matching_pursuit":  # has no hook on its activations
                _, cache = lens.run_with_cache(tokens)
                results.append(sae.encode(cache[hook])[0].numpy())
            else:
                _, cache = lens.run_with_cache_with_saes(tokens, saes=[sae])
                results.append(cache[f"{hook}.hook_sae_acts_post"][0].numpy())
    return results


def dense(matrix: Any) -> np.ndarray:
    """Return a sparse matrix as float64."""
    return np.asarray(matrix.todense(), dtype=np.float64)


def assert_close(actual: np.ndarray, expected: np.ndarray, relative: float = 1e-4) -> None:
    """Check that two matrices differ by at most ``relative`` of the largest value."""
    assert actual.shape == expected.shape
    scale = max(float(np.abs(expected).max(initial=0)), 1e-6)
    assert np.abs(actual - expected).max(initial=0) <= relative * scale


def hidden_states(model: Any, ids: Sequence[int], layer: int) -> torch.Tensor:
    """Return transformers' own hidden states before ``layer``, of one sequence."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states[layer][0]
