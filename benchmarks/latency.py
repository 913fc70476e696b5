"""What a storage far away costs: requests and time, at a given latency and without any.

Run ``python benchmarks/latency.py --folder /some/disk``. The store is a local one behind a storage that
lets each request take a given time, any number of them at once. Every figure is the best of several
runs, each with the store opened anew. The result is printed as a table and written as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from common import machine
from corpus import Corpus

from interp_embed import Dataset
from interp_embed.selection.selection import Selection
from interp_embed.store import Store, StoreWriter, create_store, finish, is_store
from interp_embed.store.storage import LocalStorage
from interp_embed.store.write.indexing import build_index
from interp_embed.testing import SlowStorage

if TYPE_CHECKING:
    from collections.abc import Callable


def make_store(path: Path, n_documents: int) -> None:
    """Write the corpus, unless it is there."""
    if is_store(path) and Store(path).is_complete:
        return
    corpus = Corpus(n_documents)
    step = corpus.documents_per_chunk
    store = create_store(
        path,
        pd.DataFrame({"number": np.arange(n_documents), "text": corpus.texts()}),
        field="text",
        identifier="latency",
        documents_per_chunk=step,
        d_sae=corpus.base.d_sae,
    )
    with StoreWriter(store) as writer:
        for chunk in corpus.chunks():
            writer.write(chunk)
        finish(writer)
    build_index(store)


def opened(path: Path, latency: float | None) -> tuple[Dataset, SlowStorage | None]:
    """Open the store, behind a slow storage or, with a latency of None, as it is."""
    if latency is None:
        return Dataset.load_from_file(path), None
    storage = SlowStorage(LocalStorage(path), latency)
    return Dataset.from_selection(Selection.whole(Store(storage))), storage


def questions(threshold: float) -> dict[str, Callable[[Dataset], Any]]:
    """Return what is asked, by name."""

    def blocks(method: str, **settings: Any) -> Callable[[Dataset], Any]:
        def run(dataset: Dataset) -> None:
            for _ in dataset.iter_latents(method, **settings):
                pass

        return run

    return {
        "one document": lambda dataset: dataset[len(dataset) // 2],
        "top 10 of a feature": lambda dataset: dataset.top_documents_for_feature(7),
        "max of all documents": blocks("max"),
        f"count above {threshold:g}": blocks("count", activated_threshold=threshold),
        "feature statistics above it": lambda dataset: dataset.feature_statistics(
            ["document_frequency", "token_frequency"], activated_threshold=threshold
        ),
    }


def measure(path: Path, latency: float | None, threshold: float, repeat: int) -> dict[str, Any]:
    """Return seconds and requests of each question."""
    found: dict[str, Any] = {}
    for _ in range(repeat):
        begin = time.perf_counter()
        dataset, storage = opened(path, latency)
        record(found, "open", time.perf_counter() - begin, storage)
    for name, ask in questions(threshold).items():
        for _ in range(repeat):
            dataset, storage = opened(path, latency)
            if storage is not None:
                storage.reset()
            begin = time.perf_counter()
            ask(dataset)
            record(found, name, time.perf_counter() - begin, storage)
    return found


def record(found: dict[str, Any], name: str, seconds: float, storage: SlowStorage | None) -> None:
    """Keep the best of a few runs."""
    if name in found and found[name]["seconds"] <= seconds:
        return
    found[name] = {"seconds": seconds}
    if storage is not None:
        found[name] |= {
            "requests": storage.n_requests,
            "bytes": storage.bytes_read,
            "at once": storage.most_in_flight,
        }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the store goes")
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds a request")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "latency.json"
    )
    arguments = parser.parse_args()
    path = arguments.folder / f"latency-{arguments.documents}.zarr"
    path.parent.mkdir(parents=True, exist_ok=True)
    make_store(path, arguments.documents)
    store = Store(path)
    nnz = sum(c.nnz for c in store.ledger.live)
    threshold = Corpus(8).threshold(0.1)
    measure(path, None, threshold, 1)  # loads compiled code, and the files into memory
    local = measure(path, None, threshold, arguments.repeat)
    none = measure(path, 0.0, threshold, arguments.repeat)
    slow = measure(path, arguments.latency, threshold, arguments.repeat)
    print(
        f"{machine()}; {store.n_documents:,} documents, {nnz:,} nonzeros, {len(store.ledger.live)} chunks"
    )
    at = f"at {arguments.latency * 1000:.0f} ms"
    print(
        f"{'':30}{'requests':>9}{'MB':>8}{'at once':>8}{'local':>9}{'at 0 ms':>9}{at:>9}{'ratio':>7}"
    )
    for name, far in slow.items():
        near = none[name]["seconds"]
        print(
            f"{name:30}{far['requests']:9}{far['bytes'] / 1e6:8.1f}{far['at once']:8}"
            f"{local[name]['seconds']:9.3f}{near:9.3f}{far['seconds']:9.3f}{far['seconds'] / near:7.2f}"
        )
    result = {
        "machine": machine(),
        "documents": store.n_documents,
        "nonzeros": nnz,
        "latency": arguments.latency,
        "local": local,
        "no latency": none,
        "slow": slow,
    }
    arguments.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
