"""The store beside what people use instead: anndata on Zarr, Parquet, the one-file pickle.

Run ``python benchmarks/store.py``. Every figure is the best of several runs in one process, all
formats one after another on the same activations and disk; quote the ratios. The result is printed as
a table and written as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from common import best, folder_size, machine, remove, token_matrix
from real_activations import resampled
from scipy.sparse import csr_matrix

from interp_embed.core.chunk import trusted_csr
from interp_embed.interop.pickle import LegacyDataset, write_pickle
from interp_embed.store import Store, StoreWriter, create_store

if TYPE_CHECKING:
    from interp_embed.core.chunk import Chunk

_RANDOM_DOCUMENTS = 200


def measure_ours(chunk: Chunk, where: Path, dtype: str, repeat: int) -> dict[str, float]:
    """Write, read whole, and read random documents of a store."""
    path = where / f"store-{dtype}.zarr"
    frame = pd.DataFrame({"number": np.arange(chunk.n_documents), "text": ""})

    def prepare() -> None:
        remove(path)
        store = create_store(
            path,
            frame,
            field="text",
            identifier="bench",
            documents_per_chunk=chunk.n_documents,
            dtype=np.dtype(dtype),
            d_sae=chunk.d_sae,
        )
        state["writer"] = StoreWriter(store)
        state["chunk"] = replace(chunk)  # what a chunk remembers of its content is worked out anew

    state: dict[str, Any] = {}
    write = best(lambda: state["writer"].write(state["chunk"]), repeat, prepare)
    state["writer"].close()
    commit = Store(path).ledger.live[0]
    sizes = {name: entry.size for name, entry in commit.folder.arrays.items()}
    token_level = sum(sizes[n] for n in ("feature", "activation", "token_ptr", "doc_ptr"))

    def read_csr() -> csr_matrix:
        stored = Store(path).locate(0)
        assert stored is not None
        return trusted_csr(
            stored[0].array("activation").read_all(executor, np.float32),
            stored[0].array("feature").read_all(executor, np.int32),
            stored[0].array("token_ptr").read_all(executor, np.int32),
            (chunk.n_tokens, chunk.d_sae),
        )

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        read = best(read_csr, repeat)
    store = Store(path)
    wanted = np.random.default_rng(1).integers(0, chunk.n_documents, _RANDOM_DOCUMENTS)

    def read_documents() -> None:
        for document in wanted:
            found = store.locate(int(document))
            assert found is not None
            found[0].csr(found[1])

    def forget() -> None:
        nonlocal store
        store = Store(path)

    one = best(read_documents, repeat, forget) / len(wanted)
    return {
        "write": chunk.nnz / write,
        "read": chunk.nnz / read,
        "document": one,
        "bytes": folder_size(path) / chunk.nnz,
        "token level bytes": token_level / chunk.nnz,
    }


def measure_anndata(chunk: Chunk, where: Path, dtype: str, repeat: int) -> dict[str, float]:
    """The same tokens as an AnnData object, written and read with its defaults (no document level)."""
    import anndata
    import zarr
    from anndata.io import sparse_dataset

    path = where / "anndata.zarr"
    data = anndata.AnnData(X=token_matrix(chunk))
    wrote = best(lambda: data.write_zarr(path), repeat, lambda: remove(path))
    read = best(lambda: anndata.read_zarr(path), repeat)
    backed = sparse_dataset(zarr.open_group(path, mode="r")["X"])
    wanted = np.random.default_rng(1).integers(0, chunk.n_documents, _RANDOM_DOCUMENTS)

    def read_documents() -> None:
        for document in wanted:
            first, last = chunk.doc_ptr[document : document + 2]
            backed[int(first) : int(last)]

    one = best(read_documents, repeat) / len(wanted)
    return {
        "write": chunk.nnz / wrote,
        "read": chunk.nnz / read,
        "document": one,
        "bytes": folder_size(path) / chunk.nnz,
    }


def measure_parquet(chunk: Chunk, where: Path, dtype: str, repeat: int) -> dict[str, float]:
    """The same nonzeros as rows (document, token, feature, activation) of a zstd Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = where / "nonzeros.parquet"
    token = np.repeat(np.arange(chunk.n_tokens, dtype=np.int32), np.diff(chunk.token_ptr))
    document = np.repeat(np.arange(chunk.n_documents, dtype=np.int32), np.diff(chunk.doc_ptr))
    table = pa.table(
        {
            "document": document[token],
            "token": token,
            "feature": chunk.feature,
            "activation": chunk.activation.astype(dtype),
        }
    )

    def write() -> None:
        pq.write_table(table, path, compression="zstd")

    wrote = best(write, repeat)
    read = best(lambda: pq.read_table(path), repeat)
    return {
        "write": chunk.nnz / wrote,
        "read": chunk.nnz / read,
        "bytes": path.stat().st_size / chunk.nnz,
    }


def measure_pickle(chunk: Chunk, where: Path, dtype: str, repeat: int) -> dict[str, float]:
    """The original library's file: per-document matrices, aggregates and token strings."""
    path = where / "dataset.pkl"
    rows = [chunk.csr(i) for i in range(chunk.n_documents)]
    legacy = LegacyDataset(
        dataset=pd.DataFrame({"text": [""] * chunk.n_documents}),
        rows=rows,
        aggregate_activations=[
            {"max": csr_matrix(r.max(axis=0)), "sum": csr_matrix(r.sum(axis=0))} for r in rows
        ],
        tokenized_documents=[["token"] * r.shape[0] for r in rows],
        field="text",
    )
    wrote = best(lambda: write_pickle(path, legacy), 1)
    return {"write": chunk.nnz / wrote, "bytes": path.stat().st_size / chunk.nnz}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nnz", type=int, default=2**25)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/store.json"))
    parser.add_argument("--folder", type=Path, default=None, help="where to write (a disk)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    chunk = resampled(arguments.nnz)
    small = resampled(min(arguments.nnz, 2**22))
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        where = Path(folder)
        for name, run, dtype, data in (
            ("store float32", measure_ours, "float32", chunk),
            ("store float16", measure_ours, "float16", chunk),
            ("anndata on zarr", measure_anndata, "float32", chunk),
            ("parquet", measure_parquet, "float32", chunk),
            ("parquet float16", measure_parquet, "float16", chunk),
            ("pickle", measure_pickle, "float32", small),
        ):
            results[name] = run(data, where, dtype, arguments.repeat)
            for left in where.iterdir():
                remove(left)
    tokens = chunk.n_tokens / chunk.n_documents
    print(
        f"{chunk.nnz:,} nonzeros, {chunk.n_documents:,} documents of {tokens:.0f} tokens; {machine()}"
    )
    print(
        f"{'':18}{'write M/s':>10}{'read M/s':>10}{'document ms':>13}{'bytes/nnz':>11}{'tokens':>8}"
    )
    for name, row in results.items():
        print(
            f"{name:18}{row['write'] / 1e6:10.1f}"
            + (f"{row['read'] / 1e6:10.1f}" if "read" in row else f"{'':10}")
            + (f"{row['document'] * 1e3:13.3f}" if "document" in row else f"{'':13}")
            + f"{row['bytes']:11.2f}"
            + (f"{row['token level bytes']:8.2f}" if "token level bytes" in row else "")
        )
    ours, peer = results["store float32"], results["anndata on zarr"]
    ratios = {
        "write / anndata": ours["write"] / peer["write"],
        "write / parquet": ours["write"] / results["parquet"]["write"],
        "read / anndata": ours["read"] / peer["read"],
        "document: anndata / store": peer["document"] / ours["document"],
    }
    for name, ratio in ratios.items():
        print(f"{name:28}{ratio:8.2f} x")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(
        json.dumps({"machine": machine(), "results": results, "ratios": ratios}, indent=1)
    )


if __name__ == "__main__":
    main()
