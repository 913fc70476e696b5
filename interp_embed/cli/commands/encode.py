"""`interp-embed encode`."""

from __future__ import annotations

import time

import numpy as np

from interp_embed import Dataset
from interp_embed.cli.facts import thousands
from interp_embed.cli.input_documents import open_documents
from interp_embed.cli.interrupts import COMMITTED, says
from interp_embed.cli.saes import build_sae, quiet_loading
from interp_embed.store import is_store
from interp_embed.store.write.creation import check_place

__all__ = ["run_encode"]

_REASONS_SHOWN = 3


def run_encode(
    source: str,
    store: str,
    *,
    field: str,
    sae: str,
    batch_size: int,
    save_every: int,
    dtype: str,
    device: str,
    description: str,
) -> None:
    """Encode the documents of a file into a store, or those that the store lacks.

    Raises
    ------
    RuntimeError
        If no document could be encoded.
    """
    documents = open_documents(source, field)
    model = build_sae(sae, device)
    quiet_loading()
    if not is_store(check_place(store)):
        model.load()  # first, so that an SAE that cannot be had leaves no store behind
    begun = time.monotonic()
    with says(COMMITTED):
        dataset = Dataset(
            documents,
            model,
            dataset_description=description,
            field=field,
            save_path=store,
            save_every_batch=save_every,
            batch_size=batch_size,
            dtype=np.dtype(dtype),
        )
    failures = dataset.failures()
    encoded = len(dataset) - len(failures)
    print(f"{dataset.path}")
    print(
        f"  {thousands(encoded)} of {thousands(len(dataset))} documents encoded, "
        f"{thousands(dataset.token_count)} tokens ({time.monotonic() - begun:.1f} s)"
    )
    if len(failures):
        print(f"  {thousands(len(failures))} failed:")
        for document, reason in failures.head(_REASONS_SHOWN).itertuples(index=False):
            print(f"    document {document}: {reason}")
        if len(failures) > _REASONS_SHOWN:
            print("    ... (all of them: Dataset.load_from_file(path).failures())")
    if len(failures) == len(dataset) > 0:
        raise RuntimeError("no document could be encoded; the reasons are above")
