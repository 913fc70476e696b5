"""Documents streamed from a Parquet file: memory against their number, and going on after a kill.

Run ``python benchmarks/stream.py``, or with ``--documents 10000 100000`` for less. Each number of
documents is streamed, written and encoded in a process of its own; the SAE gives known activations
(16 tokens with 8 features each, on average), so that the time is that of all the rest. Memory is said
for three stretches: until the documents are written, until they are encoded, and until the chunks are
merged and indexed, which takes up to 2^25 nonzeros, and then up to 512 MiB, at a time. Of the largest
number two more runs are killed, one half way through writing documents and one half way through
encoding; what is measured is how long the same call takes to come to where the other one was.
Prints a table, writes JSON and a plot.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import folder_size, machine, peak_memory, remove

if TYPE_CHECKING:
    from collections.abc import Callable

    from interp_embed.testing.saes import ReplaySAE

RESULTS = Path(__file__).parent / "results"
_BATCH, _BATCHES = 64, 64
_WORDS = 90
_ROW_GROUP = 50_000


def write_corpus(path: Path, n_documents: int) -> None:
    """Write documents of about 560 characters and a few columns, a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), (20_000, 12))
    lengths = rng.integers(2, 9, 20_000)
    words = np.array(["".join(w[:n]) for w, n in zip(letters, lengths, strict=True)], object)
    writer = None
    for start in range(0, n_documents, _ROW_GROUP):
        numbers = range(start, min(start + _ROW_GROUP, n_documents))
        chosen = words[rng.integers(0, len(words), (len(numbers), _WORDS))]
        table = pa.table({
            "text": [f"{i} {' '.join(row)}" for i, row in zip(numbers, chosen, strict=True)],
            "year": pa.array(rng.integers(1990, 2026, len(numbers)), mask=rng.random(len(numbers)) < 0.1),
            "score": rng.random(len(numbers)),
            "source": pa.array(rng.choice(["web", "books", "code"], len(numbers))),
            "tags": [[f"t{i % 7}", f"t{i % 11}"] for i in numbers],
        })  # fmt: skip
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def replay() -> ReplaySAE:
    """Return an SAE that costs nothing."""
    from interp_embed.testing import random_chunk
    from interp_embed.testing.saes import ReplaySAE

    chunk = random_chunk(
        0, 5000, d_sae=4096, mean_tokens=16, active=8, negative=False, failures=False
    )
    return ReplaySAE(chunk.take(np.flatnonzero(np.diff(chunk.doc_ptr) > 1)))


class Clock:
    """Says when the first document is written, encoded and so on, and ends the process at one."""

    def __init__(self, until: str) -> None:
        self.until = until
        self.begun, self.begun_cpu = time.perf_counter(), time.process_time()
        self.seen: dict[str, float] = {}
        self.memory: dict[str, int] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Note the first call of a function."""

        def noted(*arguments: Any, **options: Any) -> Any:
            self.seen.setdefault(name, time.perf_counter() - self.begun)
            self.memory.setdefault(name, peak_memory())
            if name == self.until:
                cpu = time.process_time() - self.begun_cpu
                print(json.dumps({"seconds": self.seen[name], "cpu": cpu}), flush=True)
                os._exit(0)
            return function(*arguments, **options)

        return noted


def run(source: str, store: str, until: str = "") -> None:
    """Stream, write and encode in this process; print what it took."""
    from interp_embed import Dataset
    from interp_embed.encode import pipeline
    from interp_embed.store.write import compaction, creation
    from interp_embed.testing.saes import ReplaySAE

    sae = replay()
    imported = peak_memory()
    clock = Clock(until)
    creation._write_block = clock.around("first written", creation._write_block)
    pipeline.encode_store = clock.around("planned", pipeline.encode_store)
    compaction.finish = clock.around("encoded", compaction.finish)
    ReplaySAE.encode_chunk = clock.around("first encoded", ReplaySAE.encode_chunk)
    import interp_embed.encode

    interp_embed.encode.encode_store = pipeline.encode_store
    dataset = Dataset(source, sae, save_path=store, batch_size=_BATCH, save_every_batch=_BATCHES)
    total = time.perf_counter() - clock.begun
    found = {
        "documents": len(dataset),
        "peak memory": peak_memory(),
        "memory before": imported,
        "seconds": total,
        **{f"seconds until {name}": at for name, at in clock.seen.items()},
        **{f"memory until {name}": held for name, held in clock.memory.items()},
        "nonzeros": sum(c.nnz for c in dataset.selection.store.ledger.live),
    }
    print(json.dumps(found))


def child(source: Path, store: Path, until: str = "") -> subprocess.Popen[str]:
    """Start `run` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, "--run", str(source), str(store), until],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "INTERP_EMBED_PROGRESS": "0"},
    )


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a child, and return what it measured."""
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run ended with {process.returncode}")
    return dict(json.loads(out.splitlines()[-1]))


def killed_at(source: Path, store: Path, pattern: str, count: int) -> int:
    """Kill a run once there are so many objects of a pattern; return how many there are."""
    remove(store)
    process = child(source, store)
    while process.poll() is None and len(list(store.glob(pattern))) < count:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    return len(list(store.glob(pattern)))


def measure_restart(source: Path, store: Path, n_documents: int) -> dict[str, Any]:
    """Kill runs half way, and let the same call come to where they were."""
    from interp_embed import Dataset
    from interp_embed.store.format import document_blocks as blocks

    half = max(1, -(-n_documents // blocks.BLOCK_DOCUMENTS) // 2)
    written = killed_at(source, store, "planning/0*.json", half)
    again = finished(child(source, store, "first written"))
    found = {
        "killed while writing, with blocks written": written,
        "seconds until it writes on": again["seconds"],
        "processor seconds until it writes on": again["cpu"],
    }
    commits = n_documents // (_BATCH * _BATCHES)
    committed = killed_at(source, store, "commits/0*.json", max(1, commits // 2))
    begun = time.perf_counter()
    Dataset.load_from_file(store)
    opened = time.perf_counter() - begun
    again = finished(child(source, store, "first encoded"))
    return {
        **found,
        "killed while encoding, with commits": committed,
        "seconds until it encodes on, given the data again": again["seconds"],
        "processor seconds until it encodes on": again["cpu"],
        "seconds to open it without the data": opened,
    }


def main() -> None:
    """Measure, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="for the files; by default a temporary one")
    parser.add_argument("--output", type=Path, default=RESULTS / "stream.json")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(*options.run)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, rows = Path(name), []
        for n_documents in options.documents:
            source, store = folder / f"{n_documents}.parquet", folder / "store.zarr"
            write_corpus(source, n_documents)
            remove(store)
            row = finished(child(source, store))
            rows.append({**row, "input": source.stat().st_size, "store": folder_size(store)})
            print_row(rows[-1], header=len(rows) == 1)
        restart = measure_restart(source, store, n_documents)
    for said, value in restart.items():
        print(f"{said}: {value:.2f}" if isinstance(value, float) else f"{said}: {value}")
    results = {"machine": machine(), "runs": rows, "restart": restart}
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    plot(rows, options.output.with_suffix(".png"))


def print_row(row: dict[str, Any], *, header: bool) -> None:
    """Print a line of the table."""
    if header:
        print(
            f"{'documents':>10} {'input':>9} {'before':>9} {'written':>17} {'encoded':>17} "
            f"{'finished':>17}"
        )
    stretches = [
        (row["memory until planned"], row["seconds until planned"]),
        (row["memory until encoded"], row["seconds until encoded"]),
        (row["peak memory"], row["seconds"]),
    ]
    print(
        f"{row['documents']:>10,} {row['input'] / 2**20:>5.0f} MiB {row['memory before'] / 2**20:>5.0f} MiB "
        + " ".join(f"{held / 2**20:>5.0f} MiB {at:>5.1f} s" for held, at in stretches),
        flush=True,
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw peak memory against the number of documents."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    documents = [row["documents"] for row in rows]
    for name, label in (
        ("peak memory", "until merged and indexed"),
        ("memory until encoded", "until encoded"),
        ("memory until planned", "until the documents are written"),
        ("memory before", "before the run"),
    ):
        axis.plot(documents, [row[name] / 2**20 for row in rows], "o-", label=label)
    axis.plot(
        documents, [r["input"] / 2**20 for r in rows], "s--", color="gray", label="the Parquet file"
    )
    axis.set(xscale="log", xlabel="documents", ylabel="most memory held, MiB", ylim=(0, None))
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
