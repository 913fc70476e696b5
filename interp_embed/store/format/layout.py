"""Names, dtypes and codecs of format version 1."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from interp_embed.core.chunk import feature_dtype
from interp_embed.errors import UnsupportedFormatError
from interp_embed.store.arrays.shard import ArraySpec

__all__ = [
    "BINDING",
    "CHUNKS",
    "COMMITS",
    "DOCUMENTS",
    "FORMAT_VERSION",
    "INDEX",
    "INDEX_TOP",
    "LABELS",
    "MANIFEST",
    "MAX_CHUNK_NNZ",
    "PLAN",
    "PLANNING",
    "ROOT",
    "SAVING",
    "TARGET_CHUNK_NNZ",
    "check_version",
    "chunk_arrays",
    "index_arrays",
    "library_versions",
]

FORMAT_VERSION = 1
ROOT = "zarr.json"
BINDING = "binding.json"
SAVING = "saving.json"
"""The root of a store that is being saved, until it is whole."""
PLAN = "plan.json"
PLANNING = "planning"
MANIFEST = "manifest.json"
CHUNKS = "chunks"
COMMITS = "commits"
DOCUMENTS = "documents"
LABELS = "labels"
INDEX = "index"

TARGET_CHUNK_NNZ = 2**24
"""Compaction merges neighbours until a chunk holds at least this many nonzeros."""
MAX_CHUNK_NNZ = 2**25
"""Compaction stops merging before a chunk would hold more than this."""
INDEX_TOP = 100
"""Top documents of a feature that the index lists."""


def chunk_arrays(d_sae: int, dtype: np.dtype[Any], highest_count: int) -> dict[str, ArraySpec]:
    """Return the arrays of a chunk, by name.

    Parameters
    ----------
    d_sae
        Number of features.
    dtype
        Of the stored activations, float32 or float16.
    highest_count
        Highest number of tokens of one document with one feature: sets the dtype of the counts.
    """
    feature = feature_dtype(d_sae).name
    # What a pass reads is lz4: of an entry it takes 3 % more room than zstd, is decoded 1.7 times as
    # fast and encoded three times as fast. What is read for single documents is zstd.
    count = np.min_scalar_type(highest_count).name
    return {
        "feature": ArraySpec(feature, "delta-lz4", "nnz"),
        "activation": ArraySpec(dtype.name, "lz4", "nnz"),
        "token_ptr": ArraySpec("uint32", "delta", "token_ptr"),
        "doc_ptr": ArraySpec("uint32", "delta", "doc_ptr"),
        "doc_id": ArraySpec("int64", "delta", "doc"),
        "status": ArraySpec("uint8", "zstd", "doc"),
        "reason": ArraySpec("string", "text", "doc"),
        "token/id": ArraySpec("uint32", "zstd", "token"),
        "token/start": ArraySpec("uint32", "delta", "token"),
        "token/end": ArraySpec("uint32", "delta", "token"),
        "token/special": ArraySpec("bool", "zstd", "token"),
        "pooled/doc_ptr": ArraySpec("uint32", "delta", "doc_ptr"),
        "pooled/feature": ArraySpec(feature, "delta-lz4", "pooled_nnz"),
        "pooled/max": ArraySpec(dtype.name, "lz4", "pooled_nnz"),
        "pooled/sum_ptr": ArraySpec("uint32", "delta", "doc_ptr"),
        "pooled/sum": ArraySpec("float32", "lz4", "pooled_sum"),
        "pooled/count": ArraySpec(count, "lz4", "pooled_nnz"),
        "pooled/positive": ArraySpec(count, "lz4", "pooled_nnz"),
    }


def index_arrays(
    dtype: np.dtype[Any], count: np.dtype[Any], document: np.dtype[Any]
) -> dict[str, ArraySpec]:
    """Return the arrays of a segment of the index and of its summary, by name.

    Parameters
    ----------
    dtype
        Of the stored activations, float32 or float16.
    count
        Of the counts: the widest among the chunks that the segment covers.
    document
        Of document numbers.
    """
    frequency = ArraySpec("uint64", "zstd", "feature")
    return {
        "feature_ptr": ArraySpec("uint64", "delta", "feature_ptr"),
        "document": ArraySpec(document.name, "delta-lz4", "entry"),
        "max": ArraySpec(dtype.name, "lz4", "entry"),
        "count": ArraySpec(count.name, "lz4", "entry"),
        "positive": ArraySpec(count.name, "lz4", "entry"),
        "summary/document_frequency": frequency,
        "summary/token_frequency": frequency,
        "summary/nonzero_documents": frequency,
        "summary/nonzero_tokens": frequency,
        "summary/sum": ArraySpec("float64", "zstd", "feature"),
        "summary/max": ArraySpec("float32", "lz4", "feature"),
        "summary/top_ptr": ArraySpec("uint64", "delta", "top_ptr"),
        "summary/top_document": ArraySpec(document.name, "zstd", "top"),
        "summary/top_max": ArraySpec(dtype.name, "lz4", "top"),
    }


def check_version(found: Any, where: str) -> None:
    """Refuse a store whose format this release does not know.

    Raises
    ------
    UnsupportedFormatError
        If ``found`` is not a known format version.
    """
    if found == FORMAT_VERSION:
        return
    if isinstance(found, int) and found > FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"{where} has store format {found}, but this release of interp_embed reads only formats up "
            f"to {FORMAT_VERSION}. Upgrade interp_embed to open it"
        )
    raise UnsupportedFormatError(f"{where} has an unknown store format version: {found!r}")


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that shape what is written."""
    versions = {}
    for name in ("interp_embed", "zarr", "numcodecs", "numpy", "pandas"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # a source tree that was not installed
            continue
    return versions
