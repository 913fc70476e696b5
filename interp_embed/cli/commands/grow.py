"""`interp-embed append` and `merge`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from interp_embed import Dataset, merge
from interp_embed.cli.facts import open_store, thousands
from interp_embed.cli.input_documents import open_documents
from interp_embed.cli.interrupts import says
from interp_embed.cli.saes import quiet_loading, reached, sae_for

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["run_append", "run_merge"]


def run_append(source: str, path: str, *, sae: str | None, batch_size: int, device: str) -> None:
    """Add the documents of a file to a store, and encode them."""
    store = open_store(path)
    documents = open_documents(source, store.field)
    model = sae_for(store, sae, device)
    quiet_loading()
    begun = time.monotonic()
    dataset = Dataset.load_from_file(path)
    dataset.sae = model
    before = len(dataset)
    committed = says(
        "everything committed is safe. If the documents were added, run 'interp-embed encode' with "
        "the store alone to encode the rest; otherwise run the same command again to resume"
    )
    with committed, reached(model):
        dataset.append(documents, batch_size=batch_size)
    added = dataset[np.arange(before, len(dataset))]
    failed = len(added.failures())
    print(
        f"{dataset.path}: {thousands(len(added))} documents added, {thousands(len(dataset))} now; "
        f"{thousands(added.token_count)} tokens, {thousands(failed)} failed "
        f"({time.monotonic() - begun:.1f} s)"
    )


def run_merge(path: str, stores: Sequence[str]) -> None:
    """Join stores into a new one."""
    merged = merge(list(stores), path)
    missing = len(merged) - len(merged.filter_na_rows())
    print(
        f"{merged.path}: {thousands(len(merged))} documents of {thousands(len(stores))} stores, "
        f"{thousands(merged.token_count)} tokens"
        + (f", {thousands(missing)} documents without activations" if missing else "")
    )
