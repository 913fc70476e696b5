"""The pipeline on a GPU: models of GPT-2 small's size and of 1B parameters, with random weights.

Run ``python benchmarks/gpu.py`` on a machine with CUDA. For each model the same documents of mixed
length are encoded alone, with storing, and as the original library does (see `pipeline`). What a random model
computes means nothing; how long it takes is that of a trained one. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from common import machine
from pipeline import (
    encode_alone,
    encode_as_original,
    encode_stored,
    in_words,
    mixed_texts,
    summary,
)

from interp_embed.data import load_demo
from interp_embed.encode.portions import commit_size
from interp_embed.sae import LocalSAE
from interp_embed.sae.quiet import quiet_saelens

RESULTS = Path(__file__).parent / "results" / "gpu.json"
_VOCABULARY = 4096
_CONTEXT = 512


def gpt2_small() -> tuple[Any, str, int, int]:
    """Return a random model of GPT-2 small's size, a hook, the layer before it, and an SAE's width."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config()), "blocks.8.hook_resid_pre", 7, 24_576


def llama_1b() -> tuple[Any, str, int, int]:
    """Return a random model of Llama 3.2 1B's size, and the same of it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config), "blocks.9.hook_resid_post", 9, 65_536


MODELS = {"GPT-2 small": gpt2_small, "Llama 3.2 1B": llama_1b}


def small_tokenizer() -> Any:
    """Return a byte-level tokenizer trained on the demo's texts: no hub is needed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(load_demo()["text"].tolist(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end
    )


def random_sae(folder: Path, hook: str, d_in: int, d_sae: int, k: int) -> None:
    """Write a TopK SAE with random weights in SAELens's format."""
    with warnings.catch_warnings(), quiet_saelens():
        warnings.simplefilter("ignore")
        from sae_lens import SAE

        sae = SAE.from_dict(
            {
                "architecture": "topk",
                "d_in": d_in,
                "d_sae": d_sae,
                "k": k,
                "metadata": {
                    "model_name": "random",
                    "hook_name": hook,
                    "prepend_bos": True,
                    "context_size": _CONTEXT,
                },
            }
        )
    import torch

    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter) * d_in**-0.5)
    sae.save_model(folder)


def measure(
    name: str, where: Path, device: str, n_documents: int, per_commit: int, rounds: int
) -> dict[str, Any]:
    """Encode the same documents alone, with storing, and in the original's way, in turn."""
    import torch

    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    model, hook, layer, d_sae = MODELS[name]()
    model = model.to(device=device, dtype=dtype).eval()
    tokenizer = small_tokenizer()
    random_sae(where / "sae", hook, model.config.hidden_size, d_sae, 32)
    sae = LocalSAE(release=where / "sae", model=model, tokenizer=tokenizer, device=device)
    sae.load()
    texts = mixed_texts(n_documents, longest=24)
    size = commit_size(per_commit, 8)
    encode_alone(sae, texts[: 2 * size], size)
    dense = sae.sae  # SAELens's own, which the original library runs
    stack = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    some = texts[: max(16, n_documents // 10)]
    rates: dict[str, list[float]] = {
        kind: [] for kind in ("alone", "stored", "stored, merged", "original")
    }
    shares = []
    for _ in range(rounds):
        seconds, tokens = encode_alone(sae, texts, size)
        rates["alone"].append(tokens / seconds)
        merged, report = encode_stored(where, sae, texts, per_commit)
        rates["stored"].append(report.n_tokens / report.seconds)
        rates["stored, merged"].append(report.n_tokens / merged)
        shares.append(report.device_seconds / report.seconds)
        seconds, tokens = encode_as_original(model, stack[layer], tokenizer, dense, some, _CONTEXT)
        rates["original"].append(tokens / seconds)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "d_sae": d_sae,
        "documents": n_documents,
        "tokens": report.n_tokens,
        **summary(rates, shares),
        "peak memory": torch.cuda.max_memory_allocated() if device.startswith("cuda") else None,
    }


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--per-commit", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--folder", help="where to write the stores")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(
            "benchmarks/gpu.py needs a GPU, and torch sees none here (--device cpu tries the script)"
        )
    found: dict[str, Any] = {"machine": machine(), "models": {}}
    if options.device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(options.device)
    print(found.get("gpu", found["machine"]))
    for name in options.models:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            row = measure(
                name,
                Path(folder),
                options.device,
                options.documents,
                options.per_commit,
                options.rounds,
            )
        found["models"][name] = row
        print(f"{name}, {row['tokens']:,} tokens, " + in_words(row))
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
