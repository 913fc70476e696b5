"""`interp-embed verify`, `compact`, `index` and `convert`."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np

from interp_embed import Dataset
from interp_embed.cli.facts import open_store, read_facts, thousands
from interp_embed.core.memory import format_bytes, parse_size
from interp_embed.core.progress import show_progress
from interp_embed.errors import CorruptStoreError, NotAStoreError, StoreExistsError

__all__ = ["run_compact", "run_convert", "run_index", "run_verify"]


def run_verify(path: str) -> bool:
    """Print the problems of a store; return True if nothing is damaged."""
    from interp_embed.store.format.layout import PLAN
    from interp_embed.store.format.root import read_root
    from interp_embed.store.storage import open_storage
    from interp_embed.store.verify.verifier import verify

    storage = open_storage(path)
    with contextlib.suppress(CorruptStoreError):  # what is damaged is for `verify` to say
        try:
            read_root(storage)
        except NotAStoreError:
            if not storage.exists(PLAN):
                raise
    problems = verify(path, progress=show_progress())
    for problem in problems:
        print(f"{problem.severity}: {problem.key}: {problem.what}")
    errors = sum(problem.severity == "error" for problem in problems)
    notes = len(problems) - errors
    verdict = f"{errors} error{'s' * (errors != 1)}" if errors else "nothing is damaged"
    print(f"{path}: {verdict}" + (f", {notes} note{'s' * (notes != 1)}" if notes else ""))
    return errors == 0


def run_compact(path: str) -> None:
    """Merge small chunks and print what changed."""
    from interp_embed.store import StoreWriter, compact, finish

    store = open_store(path)
    before = read_facts(store)
    with StoreWriter(store) as writer:
        if not finish(writer, progress=show_progress()):
            compact(writer, progress=show_progress())
    store.refresh()
    after = read_facts(store)
    print(
        f"{after.path}: {thousands(before.chunks)} chunks before, {thousands(after.chunks)} now; "
        f"{format_bytes(before.total_bytes)} before, {format_bytes(after.total_bytes)} now"
    )
    if after.missing:
        print(f"  {thousands(after.missing)} documents are not encoded yet")


def run_index(path: str, *, rebuild: bool, memory: str) -> None:
    """Index a store by feature and print the size and the time."""
    from interp_embed.store.write.indexing import build_index

    room = parse_size(memory, "--memory")
    store = open_store(path)
    there = store.index()
    begin = time.perf_counter()
    index = build_index(store, memory=room, rebuild=rebuild, progress=show_progress())
    seconds = time.perf_counter() - begin
    segments = len(index.segments)
    print(
        f"{path}: {thousands(index.n_entries)} entries of {thousands(index.documents_covered)} "
        f"documents in {segments} segment{'s' * (segments != 1)}; {format_bytes(index.nbytes)}, "
        f"{seconds:.1f} s"
    )
    if there is not None and there.commit.key == index.commit.key and not rebuild:
        print("  the existing index was kept without reading it; --rebuild builds a new one")
    if missing := store.n_documents - index.documents_covered:
        print(f"  {thousands(missing)} documents are not encoded yet")


def run_convert(old: str, new: str, *, dtype: str | None, overwrite: bool) -> None:
    """Write the data at ``old`` to ``new`` in the format that the name ``new`` implies.

    Raises
    ------
    StoreExistsError
        If there is something at ``new``.
    """
    if "://" not in new and Path(new).exists() and not overwrite:
        raise StoreExistsError(f"{new} already exists. Give another path, or --overwrite")
    dataset = Dataset.load_from_file(old)
    stored = dataset.selection.store.dtype
    dataset.save_to_file(new, dtype=np.dtype(dtype) if dtype else stored)
    missing = len(dataset) - len(dataset.filter_na_rows())
    print(
        f"{new}: {thousands(len(dataset))} documents, {thousands(dataset.token_count)} tokens"
        + (f", {thousands(missing)} documents without activations" if missing else "")
    )
