"""The same work done by scipy in memory, by anndata on Zarr, and as the original library does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from common import best, folder_size, peak_memory, remove, timed
from scipy.sparse import csr_matrix, vstack

if TYPE_CHECKING:
    from collections.abc import Callable

    from million_setting import Setting

_ORIGINAL_DOCUMENTS = 2000  # it is slow, and as fast with few as with many
_PICKLED_DOCUMENTS = 1200
_LONG_NNZ = 2**28  # with more than that, one run is enough


def _matrix(setting: Setting) -> csr_matrix:
    """Return the tokens of the corpus in memory, (tokens, d_sae)."""
    corpus = setting.corpus
    data, indices = np.empty(setting.nnz, np.float32), np.empty(setting.nnz, np.int32)
    lengths, at = [], 0
    for chunk in corpus.chunks():
        data[at : at + chunk.nnz] = chunk.activation
        indices[at : at + chunk.nnz] = chunk.feature
        lengths.append(np.diff(chunk.token_ptr))
        at += chunk.nnz
    pointer = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    width = corpus.base.d_sae
    pointer = pointer.astype(np.int32 if at < 2**31 else np.int64)
    return csr_matrix((data, indices, pointer), shape=(len(pointer) - 1, width))


def _scipy(threshold: Callable[[Setting], float] | None) -> Callable:
    """Count above a threshold, or sum, all documents at once by a product."""

    def measure(setting: Setting) -> dict[str, Any]:
        tokens = _matrix(setting)
        pointer = np.concatenate([[0], np.cumsum(setting.corpus.n_tokens)])
        ones = np.ones(tokens.shape[0], np.float32)
        of_document = csr_matrix(
            (ones, np.arange(tokens.shape[0]), pointer),
            shape=(setting.n_documents, tokens.shape[0]),
        )

        def run() -> csr_matrix:
            if threshold is None:
                return of_document @ tokens
            return of_document @ (tokens > threshold(setting)).astype(np.float32)

        return {"seconds": best(run, 1 if setting.nnz > _LONG_NNZ else setting.repeat)}

    return measure


def scipy_max(setting: Setting) -> dict[str, Any]:
    """Take the max of each document's rows: a product cannot."""
    rows = _rows(setting, _ORIGINAL_DOCUMENTS)
    seconds = best(lambda: vstack([row.max(axis=0) for row in rows], "csr"), setting.repeat)
    return {"seconds": seconds, "nnz": sum(row.nnz for row in rows)}


def _rows(setting: Setting, count: int) -> list[csr_matrix]:
    chunk = setting.corpus.chunk(0, min(count, setting.n_documents))
    return [chunk.csr(i) for i in range(chunk.n_documents)]


def _original(reduce: Callable[[csr_matrix, Setting], np.ndarray]) -> Callable:
    """Make one dense row a document, compress it, and stack the rows."""

    def measure(setting: Setting) -> dict[str, Any]:
        rows = _rows(setting, _ORIGINAL_DOCUMENTS)

        def run() -> csr_matrix:
            return vstack([csr_matrix(reduce(row, setting)) for row in rows], "csr")

        return {"seconds": best(run, setting.repeat), "nnz": sum(row.nnz for row in rows)}

    return measure


def _dense_count(threshold: Callable[[Setting], float]) -> Callable:
    def reduce(row: csr_matrix, setting: Setting) -> np.ndarray:
        above = row.data > threshold(setting)
        return np.bincount(row.indices[above], minlength=row.shape[1])

    return reduce


def pickle(setting: Setting) -> dict[str, Any]:
    """Write the original library's file: matrices, aggregates and token strings by document."""
    from interp_embed.interop.pickle import LegacyDataset, write_pickle

    rows = _rows(setting, _PICKLED_DOCUMENTS)
    legacy = LegacyDataset(
        dataset=pd.DataFrame({"text": setting.corpus.texts()[: len(rows)]}),
        rows=rows,
        aggregate_activations=[
            {"max": csr_matrix(r.max(axis=0)), "sum": csr_matrix(r.sum(axis=0))} for r in rows
        ],
        tokenized_documents=[["token"] * r.shape[0] for r in rows],
        field="text",
    )
    path = setting.path("dataset.pkl")
    seconds, _ = timed(write_pickle, path, legacy)
    found = {"seconds": seconds, "nnz": sum(r.nnz for r in rows), "bytes": folder_size(path)}
    remove(path)
    return found


def anndata_write(setting: Setting) -> dict[str, Any]:
    """Write the tokens as an AnnData object, with its defaults."""
    import anndata

    path = setting.path("anndata.zarr")

    def produce() -> dict[str, Any]:
        data = anndata.AnnData(X=_matrix(setting))
        seconds, _ = timed(data.write_zarr, path)
        return {"seconds": seconds, "bytes": folder_size(path), "peak": peak_memory()}

    return setting.remembered("anndata", produce)


def anndata_documents(setting: Setting) -> dict[str, Any]:
    """Read a thousand random documents from the file, as blocks of rows of a backed matrix."""
    import zarr
    from anndata.io import sparse_dataset

    pointer = np.concatenate([[0], np.cumsum(setting.corpus.n_tokens)])
    spans = [(int(pointer[i]), int(pointer[i + 1])) for i in setting.chosen]
    runs = []
    for _ in range(max(2, setting.repeat)):
        backed = sparse_dataset(zarr.open_group(setting.path("anndata.zarr"), mode="r")["X"])
        runs.append([timed(backed.__getitem__, slice(a, b))[0] for a, b in spans])
    fastest = min(runs, key=sum)
    return {"seconds": sum(fastest) / len(spans), "median": float(np.median(fastest))}


MEASURES: dict[str, Callable[[Setting], dict]] = {
    "pickle write": pickle,
    "anndata write": anndata_write,
    "anndata documents": anndata_documents,
    "scipy count most": _scipy(lambda s: s.most),
    "scipy count few": _scipy(lambda s: s.few),
    "scipy sum": _scipy(None),
    "scipy max": scipy_max,
    "original count most": _original(_dense_count(lambda s: s.most)),
    "original count few": _original(_dense_count(lambda s: s.few)),
    "original max": _original(lambda row, _: row.toarray().max(axis=0)),
    "original mean": _original(lambda row, _: row.toarray().mean(axis=0)),
}
