"""A pass over a store needs the memory of a few blocks, whatever the size of the store."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest

from interp_embed import Dataset
from interp_embed.core.chunk import Chunk, TokenTable
from interp_embed.core.memory import available_memory, memory_budget
from interp_embed.errors import ResultTooLargeError
from interp_embed.store import StoreWriter, create_store
from interp_embed.testing import random_chunk, store_from_chunk

D_SAE, PER_TOKEN, TOKENS, DOCUMENTS, COPIES = 4096, 32, 64, 2048, 12


def large_chunk():
    """Return 4M nonzeros: each token has one feature in each of 32 ranges of 128."""
    rng = np.random.default_rng(0)
    n = DOCUMENTS * TOKENS
    feature = np.arange(PER_TOKEN) * 128 + rng.integers(0, 128, (n, PER_TOKEN))
    number = np.arange(n, dtype=np.uint32)
    return Chunk(
        d_sae=D_SAE,
        doc_id=np.arange(DOCUMENTS),
        status=np.zeros(DOCUMENTS, np.uint8),
        doc_ptr=np.arange(DOCUMENTS + 1) * TOKENS,
        token_ptr=np.arange(n + 1) * PER_TOKEN,
        feature=feature.astype(np.uint16).ravel(),
        activation=rng.random(n * PER_TOKEN, np.float32) + np.float32(0.01),
        tokens=TokenTable(number, number * 0, number * 0, np.zeros(n, np.bool_)),
    )


PASS = """
    import json, resource, sys
    from pathlib import Path
    import numpy as np
    from interp_embed import Dataset
    import interp_embed.kernels.token_reductions, interp_embed.kernels.statistics, interp_embed.kernels.document_level

    dataset = Dataset.load_from_file(sys.argv[1])
    for _ in dataset[:50].iter_latents("count", 0.5): pass  # compiled before the limit
    dataset[:50].feature_statistics(("document_frequency", "histogram"))
    status = Path("/proc/self/status").read_text()
    used = int(status.split("VmData:")[1].split()[0]) * 1024
    limit = used + int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        bytearray(int(sys.argv[2]) + 2**20)
    except MemoryError:
        refused = True
    total = np.zeros(dataset.d_sae)
    for _, matrix in dataset.iter_latents("count", 0.5, memory="48MiB"):
        total += matrix.sum(axis=0).A1 if hasattr(matrix.sum(axis=0), "A1") else matrix.sum(axis=0)
    found = dataset.feature_statistics(("document_frequency", "histogram"), memory="100MiB")
    print(json.dumps({
        "refused": refused,
        "count": total.tolist(),
        "documents": found["document_frequency"].values.tolist(),
        "histogram": int(found["histogram"].sum()),
    }))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA limits all memory on Linux only")
def test_a_pass_under_a_hard_limit_on_a_store_several_times_larger(quick_path):
    chunk = large_chunk()
    path, limit = quick_path / "a.zarr", 160 * 2**20
    store = create_store(
        path,
        pd.DataFrame({"text": ["x"] * (DOCUMENTS * COPIES)}),
        field="text",
        identifier="large0",
        documents_per_chunk=DOCUMENTS,
        d_sae=D_SAE,
    )
    with StoreWriter(store) as writer:
        for copy in range(COPIES):
            writer.write(chunk.with_doc_id(chunk.doc_id + copy * DOCUMENTS))
    assert COPIES * chunk.nnz * 8 > 2 * limit  # of a sparse matrix of the tokens alone
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PASS), str(path), str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert found["refused"]
    above = chunk.activation > 0.5
    count = np.bincount(chunk.feature[above], minlength=D_SAE)
    assert found["count"] == (COPIES * count).tolist()
    document = np.repeat(np.arange(DOCUMENTS), TOKENS * PER_TOKEN)
    pairs = np.unique(document * D_SAE + chunk.feature)
    frequency = np.bincount(pairs % D_SAE, minlength=D_SAE)
    assert found["documents"] == (COPIES * frequency).tolist()
    assert found["histogram"] == COPIES * chunk.nnz


def test_the_budget_of_a_call_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("INTERP_EMBED_MEMORY", "3G")
    assert available_memory() == 3 * 10**9
    with memory_budget("1M"), memory_budget(None):
        assert available_memory() == 10**6
    assert available_memory() == 3 * 10**9
    monkeypatch.setenv("INTERP_EMBED_MEMORY", "lots")
    with pytest.raises(ValueError, match="INTERP_EMBED_MEMORY"):
        available_memory()


def test_what_does_not_fit_is_refused_with_its_size_and_what_to_do(tmp_path):
    store_from_chunk(tmp_path / "a.zarr", random_chunk(0, 40, d_sae=1000))
    dataset = Dataset.load_from_file(tmp_path / "a.zarr")
    with pytest.raises(ResultTooLargeError, match=r"156\.2 KiB.*compress=True.*lazy=True"):
        dataset.latents("max", memory="100KiB")
    with pytest.raises(ResultTooLargeError, match=r"iter_latents"):
        dataset.latents("max", compress=True, memory="1K")
    assert dataset.latents("max", memory="200KiB").shape == (40, 1000)
