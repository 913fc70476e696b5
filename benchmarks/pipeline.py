"""What storing costs: the pipeline with an SAE that costs nothing, and with the embedded one.

Run ``python benchmarks/pipeline.py``. The first part has an SAE that gives known activations, so that
what is measured is all the rest: reading texts, handing over, pooling, compressing, writing, syncing,
reading back, committing. The second encodes documents of mixed length with the embedded SAE: alone,
with storing, and as the original library does (the whole model, padded to the longest document of a
batch of 8, dense activations made sparse on the host). All in one process, in turn; quote the ratios.
Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from common import folder_size, machine, remove
from scipy.sparse import csr_matrix

from interp_embed.data import load_demo
from interp_embed.encode import encode_store
from interp_embed.encode.portions import commit_size
from interp_embed.sae import LocalSAE
from interp_embed.store import StoreWriter, create_store
from interp_embed.testing.saes import ReplaySAE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interp_embed.core.chunk import Chunk
    from interp_embed.encode import EncodeReport
    from interp_embed.sae import BaseSAE
    from interp_embed.store import Store

RESULTS = Path(__file__).parent / "results" / "pipeline.json"
_BATCH = 8


def new_store(
    path: Path, texts: Sequence[str], sae: BaseSAE, per_commit: int, dtype: str = "float32"
) -> Store:
    """Create a store of documents, replacing what is there."""
    remove(path)
    return create_store(
        path,
        pd.DataFrame({"text": list(texts)}),
        field="text",
        identifier="bench",
        documents_per_chunk=per_commit,
        dtype=np.dtype(dtype),
        d_sae=sae.d_sae,
        fingerprint=sae.fingerprint(),
    )


def measure_overhead(
    where: Path, nnz: int, per_commit: int, dtype: str, repeat: int
) -> dict[str, Any]:
    """Write ``nnz`` nonzeros through the pipeline; and the same chunks with the writer alone."""
    from corpus import Corpus

    base = Corpus(per_commit).chunk(0, per_commit)
    n_documents = int(nnz / base.nnz * per_commit)
    sae = ReplaySAE(base)
    sae.load()
    texts = [str(i) for i in range(n_documents)]
    size = commit_size(per_commit, _BATCH)
    through, alone, reports = [], [], []
    path = where / "store.zarr"
    for _ in range(repeat):
        store = new_store(path, texts, sae, per_commit, dtype)
        begun = time.perf_counter()
        report = encode_store(store, sae, batch_size=_BATCH, finish=False)
        through.append(report.nnz / (time.perf_counter() - begun))
        reports.append(report)
        alone.append(
            _writer_alone(path, base, texts[: len(texts) // size * size], sae, size, dtype)
        )
    return {
        "dtype": dtype,
        "nonzeros": reports[0].nnz,
        "documents": n_documents,
        "commits": len(store.storage.folders("chunks")),
        "through the pipeline": max(through),
        "all runs": through,
        "writer alone": max(alone),
        "bytes": folder_size(path / "chunks") / sum(c.nnz for c in _fresh(store).ledger.commits),
    }


def _fresh(store: Store) -> Store:
    store.refresh()
    return store


def _writer_alone(
    path: Path, base: Chunk, texts: Sequence[str], sae: ReplaySAE, size: int, dtype: str
) -> float:
    """Return nonzeros a second of chunks that are there already, written one after another."""
    store = new_store(path, texts, sae, size, dtype)
    pieces = [(i, i + size) for i in range(0, len(texts), size)]
    chunks = [sae.encode_chunk(texts[a:b]).with_doc_id(np.arange(a, b)) for a, b in pieces]
    with StoreWriter(store) as writer:
        begun = time.perf_counter()
        for chunk in chunks:
            writer.write(chunk)
        seconds = time.perf_counter() - begun
    return sum(c.nnz for c in chunks) / seconds


def mixed_texts(n: int, seed: int = 0, longest: int = 12) -> list[str]:
    """Return texts of 1 to ``longest`` sentences, short ones more often."""
    generator = np.random.default_rng(seed)
    pool = load_demo()["text"].tolist()
    count = np.minimum(generator.geometric(0.25, n), longest)
    return [" ".join(pool[i] for i in generator.integers(0, len(pool), c)) for c in count]


def encode_alone(sae: BaseSAE, texts: Sequence[str], size: int) -> tuple[float, int]:
    """Return seconds and tokens of encoding and forgetting, commit by commit."""
    begun = time.perf_counter()
    tokens = sum(sae.encode_chunk(texts[i : i + size]).n_tokens for i in range(0, len(texts), size))
    return time.perf_counter() - begun, tokens


def encode_stored(
    where: Path, sae: BaseSAE, texts: Sequence[str], per_commit: int
) -> tuple[float, EncodeReport]:
    """Return seconds of encoding into a store that exists, merging included, and the report."""
    store = new_store(where / "store.zarr", texts, sae, per_commit)
    begun = time.perf_counter()
    report = encode_store(store, sae, batch_size=_BATCH)
    return time.perf_counter() - begun, report


def encode_as_original(
    model: Any, layer: Any, tokenizer: Any, sae: Any, texts: Sequence[str], limit: int
) -> tuple[float, int]:
    """Return seconds and tokens of the original library's way of encoding."""
    import torch

    device = next(model.parameters()).device
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else 0
    captured: list[Any] = []
    handle = layer.register_forward_hook(
        lambda _, __, out: captured.append(out[0] if isinstance(out, tuple) else out)
    )
    begun = time.perf_counter()
    tokens = 0
    matrices = []
    for first in range(0, len(texts), _BATCH):
        batch = list(texts[first : first + _BATCH])
        ids = [
            [bos, *row][:limit]
            for row in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        ]
        width = max(map(len, ids))
        padded = torch.tensor([row + [bos] * (width - len(row)) for row in ids], device=device)
        mask = torch.tensor(
            [[1] * len(row) + [0] * (width - len(row)) for row in ids], device=device
        )
        captured.clear()
        with torch.no_grad():
            model(input_ids=padded, attention_mask=mask)
            dense = sae.encode(captured[0].float()).cpu().numpy()
        matrices += [csr_matrix(d[: len(row)]) for d, row in zip(dense, ids, strict=True)]
        tokens += sum(map(len, ids))
    handle.remove()
    return time.perf_counter() - begun, tokens


def measure_embedded(where: Path, n_documents: int, per_commit: int, rounds: int) -> dict[str, Any]:
    """Encode the same documents alone, with storing, and in the original's way, in turn."""
    import torch
    from transformers import AutoModelForCausalLM

    from interp_embed.sae.quiet import quiet_saelens
    from interp_embed.sae.releases.embedded_release import (
        GGUF_FILE,
        embedded_model,
        embedded_sae_folder,
    )

    with quiet_saelens():
        from sae_lens import SAE

    gguf = embedded_model().gguf
    if gguf is None:
        raise SystemExit("the embedded SAE's model must be installed, see docs/reference/saes.md")
    texts = mixed_texts(n_documents)
    sae = LocalSAE.embedded(device="cpu")
    sae.load()
    whole = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=GGUF_FILE, dtype=torch.float32
    ).eval()
    dense = SAE.load_from_disk(embedded_sae_folder(), device="cpu", dtype="float32").eval()
    limit = int(sae.fingerprint()["max_tokens"])
    size = commit_size(per_commit, _BATCH)
    encode_alone(sae, texts[:40], size)  # warm
    rates: dict[str, list[float]] = {
        kind: [] for kind in ("alone", "stored", "stored, merged", "original")
    }
    shares = []
    for number in range(rounds):
        kinds = ["alone", "stored", "original"]
        for kind in kinds[number % 3 :] + kinds[: number % 3]:
            if kind == "alone":
                seconds, tokens = encode_alone(sae, texts, size)
            elif kind == "original":
                seconds, tokens = encode_as_original(
                    whole, whole.model.layers[9], sae.tokenizer, dense, texts, limit
                )
            else:
                merged, done = encode_stored(where, sae, texts, per_commit)
                seconds, tokens = done.seconds, done.n_tokens
                rates["stored, merged"].append(tokens / merged)
                shares.append(done.device_seconds / seconds)
            rates[kind].append(tokens / seconds)
    return {"documents": n_documents, "tokens": tokens, **summary(rates, shares)}


def summary(rates: dict[str, list[float]], shares: list[float]) -> dict[str, Any]:
    """Return the best rates, their ratios, and the medians of the ratios within a round."""
    found = {kind: max(values) for kind, values in rates.items()}

    def within(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True))

    return {
        "tokens/s": found,
        "all runs": rates,
        "device share": statistics.median(shares),
        "stored / alone": found["stored"] / found["alone"],
        "stored / alone, median of rounds": within("stored", "alone"),
        "stored and merged / alone": found["stored, merged"] / found["alone"],
        "stored / original": found["stored"] / found["original"],
        "stored / original, median of rounds": within("stored", "original"),
    }


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="overhead,embedded")
    parser.add_argument("--nonzeros", type=float, default=2.0e8)
    parser.add_argument("--per-commit", type=int, default=10_000)
    parser.add_argument("--documents", type=int, default=192)
    parser.add_argument("--embedded-per-commit", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", help="where to write the stores")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    found["machine"] = machine()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        where = Path(folder)
        if "overhead" in options.parts:
            found["overhead"] = [
                measure_overhead(
                    where, int(options.nonzeros), options.per_commit, dtype, options.repeat
                )
                for dtype in ("float32", "float16")
            ]
        if "embedded" in options.parts:
            found["embedded"] = measure_embedded(
                where, options.documents, options.embedded_per_commit, options.rounds
            )
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    report(found)


def report(found: dict[str, Any]) -> None:
    """Print what was measured."""
    print(found["machine"])
    for row in found.get("overhead", []):
        print(
            f"{row['dtype']}: {row['through the pipeline'] / 1e6:.1f} M nonzeros/s through the "
            f"pipeline, {row['writer alone'] / 1e6:.1f} with the writer alone "
            f"({row['nonzeros'] / 1e6:.0f} M in {row['commits']} commits, "
            f"{row['bytes']:.2f} bytes each)"
        )
    if row := found.get("embedded"):
        print(f"embedded SAE, {row['tokens']:,} tokens, " + in_words(row))


def in_words(row: dict[str, Any]) -> str:
    """Return rates and ratios of encoding as a line."""
    rates = row["tokens/s"]
    return (
        f"tokens/s: {rates['alone']:,.0f} alone, {rates['stored']:,.0f} with storing "
        f"({row['stored / alone']:.1%}; median of rounds "
        f"{row['stored / alone, median of rounds']:.1%}), {rates['stored, merged']:,.0f} with "
        f"merging, too ({row['stored and merged / alone']:.1%}); device busy "
        f"{row['device share']:.1%}; the original's way {rates['original']:,.0f} "
        f"({row['stored / original']:.2f} times as fast; median of rounds "
        f"{row['stored / original, median of rounds']:.2f})"
    )


if __name__ == "__main__":
    main()
