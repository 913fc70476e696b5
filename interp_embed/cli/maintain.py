"""`interp-embed verify`, `compact` and `convert`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from interp_embed import Dataset
from interp_embed.aggregate.memory import format_bytes
from interp_embed.cli.facts import open_store, read_facts, thousands
from interp_embed.errors import StoreExistsError
from interp_embed.progress import show_progress

__all__ = ["run_compact", "run_convert", "run_verify"]


def run_verify(path: str) -> bool:
    """Print what is wrong with a store; return whether nothing is damaged."""
    from interp_embed.store.verify import verify

    problems = verify(path, progress=show_progress())
    for problem in problems:
        print(f"{problem.severity}: {problem.key}: {problem.what}")
    errors = sum(problem.severity == "error" for problem in problems)
    notes = len(problems) - errors
    verdict = f"{errors} error{'s' * (errors != 1)}" if errors else "nothing is damaged"
    print(f"{path}: {verdict}" + (f", {notes} note{'s' * (notes != 1)}" if notes else ""))
    return errors == 0


def run_compact(path: str) -> None:
    """Merge small chunks and print what that changed."""
    from interp_embed.store import StoreWriter, compact, finish

    store = open_store(path)
    before = read_facts(store)
    with StoreWriter(store) as writer:
        if not finish(writer, progress=show_progress()):
            compact(writer, progress=show_progress())
    store.refresh()
    after = read_facts(store)
    print(
        f"{after.path}: {thousands(before.chunks)} chunks, now {thousands(after.chunks)}; "
        f"{format_bytes(before.total_bytes)}, now {format_bytes(after.total_bytes)}"
    )
    if after.missing:
        print(f"  {thousands(after.missing)} documents are not encoded yet")


def run_convert(old: str, new: str, *, dtype: str | None, overwrite: bool) -> None:
    """Write what is at ``old`` to ``new`` in the format that ``new`` is named for.

    Raises
    ------
    StoreExistsError
        If there is something at ``new``.
    """
    if "://" not in new and Path(new).exists() and not overwrite:
        raise StoreExistsError(f"{new} exists. Give another path, or --overwrite")
    dataset = Dataset.load_from_file(old)
    stored = dataset._store.dtype
    dataset.save_to_file(new, dtype=np.dtype(dtype) if dtype else stored)
    missing = len(dataset) - len(dataset.filter_na_rows())
    print(
        f"{new}: {thousands(len(dataset))} documents, {thousands(dataset.token_count)} tokens"
        + (f", {thousands(missing)} documents without activations" if missing else "")
    )
