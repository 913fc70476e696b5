"""`interp-embed plan` and `interp-embed finish`: the steps before and after many workers."""

from __future__ import annotations

import contextlib
import shlex
from typing import TYPE_CHECKING

import numpy as np

from interp_embed.cli.facts import open_store, thousands
from interp_embed.cli.input_documents import open_documents
from interp_embed.cli.interrupts import resumable
from interp_embed.cli.saes import build_sae
from interp_embed.encode.recorded_sae import recorded_sae
from interp_embed.encode.worker_shares import chunk_ranges, missing_chunks
from interp_embed.exchange.opening import plan_store
from interp_embed.sae import LocalSAE
from interp_embed.store.fingerprint import fingerprint_differences

if TYPE_CHECKING:
    from interp_embed.sae import BaseSAE
    from interp_embed.store import Store

__all__ = ["create_planned", "run_finish", "run_plan"]


def create_planned(
    source: str,
    store: str,
    sae: BaseSAE,
    *,
    field: str,
    dtype: str,
    description: str,
    chunk_documents: int,
) -> Store:
    """Create the store with the documents of ``source``; open it if that was done before."""
    with resumable():
        return plan_store(
            open_documents(source, field),
            store,
            sae,
            field=field,
            description=description,
            documents_per_chunk=chunk_documents,
            dtype=np.dtype(dtype),
        )


def run_plan(
    source: str,
    store: str,
    *,
    field: str,
    sae: str,
    dtype: str,
    description: str,
    chunk_documents: int,
) -> None:
    """Write the documents of a file into a store without encoding, and print what to do next."""
    model = build_sae(sae, "cpu")
    if isinstance(model, LocalSAE):
        with contextlib.suppress(ImportError):  # without SAELens the workers have to say it
            if (problem := model.problem()) is not None:
                raise ValueError(problem)
    planned = create_planned(
        source,
        store,
        model,
        field=field,
        dtype=dtype,
        description=description,
        chunk_documents=chunk_documents,
    )
    step = planned.plan.documents_per_chunk
    chunks = -(-planned.n_documents // step)
    missing = missing_chunks(planned)
    print(f"{planned.storage.url}")
    print(
        f"  {thousands(planned.n_documents)} documents in {thousands(chunks)} chunks of {step}; "
        + (f"{thousands(len(missing))} to encode" if missing else "all of them are encoded")
    )
    place = shlex.quote(store)
    if missing:
        given = "" if _is_rebuilt(planned, model) else f" --sae {shlex.quote(sae)}"
        print("Next, run this on each of n workers (i from 0 to n - 1):")
        print(f"  interp-embed encode {place} --worker i/n{given}")
        print("When all of them are done, run:")
    print(f"  interp-embed finish {place}")


def _is_rebuilt(store: Store, sae: BaseSAE) -> bool:
    """Return whether the SAE that workers build from the store's record is this one."""
    try:
        rebuilt = recorded_sae(store, "cpu").fingerprint()
    except Exception:  # noqa: BLE001  (a class of a user's may raise anything)
        return False
    return not fingerprint_differences(sae.fingerprint(), rebuilt)


def run_finish(path: str) -> bool:
    """Merge, index and seal a complete store; if chunks are missing, list them and return False."""
    from interp_embed.encode import finish_store

    store = open_store(path)
    step = store.plan.documents_per_chunk
    chunks = -(-store.n_documents // step)
    if missing := missing_chunks(store):
        print(
            f"{store.storage.url}: {thousands(len(missing))} of {thousands(chunks)} chunks are "
            "missing; nothing was done"
        )
        print(f"  missing: {chunk_ranges(missing)}")
        print(f"  chunk i begins at document {step} * i. To encode the missing chunks, run:")
        print(f"  interp-embed encode {shlex.quote(path)} --worker 0/1")
        return False
    with resumable():
        finish_store(store)
    failures = store.failures(np.arange(store.n_documents))
    print(
        f"{store.storage.url}: complete, {thousands(store.n_documents - len(failures))} of "
        f"{thousands(store.n_documents)} documents encoded, {thousands(store.n_tokens_total)} tokens, "
        f"{thousands(len(store.ledger.live))} chunks"
    )
    if failures:
        print(f"  {thousands(len(failures))} failed, for example document {next(iter(failures))}:")
        print(f"    {next(iter(failures.values()))}")
        print(f"  to try them again: interp-embed encode {shlex.quote(path)}")
    return True
