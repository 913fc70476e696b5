"""The contents of a store and the room they take, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.chunk import DocumentStatus
from interp_embed.errors import NotAStoreError
from interp_embed.store import MISSING, Store

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["StoreFacts", "open_store", "read_facts", "thousands"]

PARTS = ("token level", "tokens", "document level", "documents", "index", "everything else")


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """The facts that `interp-embed info` prints.

    Attributes
    ----------
    path : str
    documents, encoded, truncated, failed, missing : int
        ``truncated`` are among the encoded.
    tokens, special_tokens, nonzeros, document_nonzeros : int
        ``document_nonzeros`` are the entries of the document level.
    d_sae : int or None
    dtype : str
        Of the stored activations.
    chunks : int
    bytes : dict of str to int
        Bytes on disk: of the ``token level`` (features, activations and both pointers), the
        ``tokens`` (ids, spans, flags), the ``document level``, the ``documents`` (their columns, the
        text included), the ``index`` and ``everything else`` (metadata, ledger, statuses).
    indexed : int
        Documents that the index covers.
    sae : dict
        The metadata from which the SAE can be rebuilt.
    model : str
        The language model, if the fingerprint names it.
    served : dict
        What the server of an `HttpSAE` reported about its SAE, if it was asked.
    field : object
        The column with the text.
    columns : list
    description, id, created : str
    format_version : int
    """

    path: str
    documents: int
    encoded: int
    truncated: int
    failed: int
    missing: int
    tokens: int
    special_tokens: int
    nonzeros: int
    document_nonzeros: int
    d_sae: int | None
    dtype: str
    chunks: int
    bytes: Mapping[str, int]
    indexed: int
    sae: Mapping[str, Any]
    model: str
    served: Mapping[str, Any]
    field: Any
    columns: list[Any] = field(default_factory=list)
    description: str = ""
    id: str = ""
    created: str = ""
    format_version: int = 1

    @property
    def total_bytes(self) -> int:
        """Bytes on disk of the whole store."""
        return sum(self.bytes.values())

    @property
    def token_level_bytes_per_nonzero(self) -> float | None:
        """Bytes on disk of the token level per nonzero of that level."""
        return self.bytes["token level"] / self.nonzeros if self.nonzeros else None

    @property
    def bytes_per_nonzero(self) -> float | None:
        """Bytes on disk of the whole store per nonzero of the token level."""
        return self.total_bytes / self.nonzeros if self.nonzeros else None


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a store; if a pickle is given, say how to convert it."""
    from interp_embed.interop import is_pickle

    if "://" not in str(path) and is_pickle(path):
        raise ValueError(f"{path} is a pickle. First run: interp-embed convert {path} NEW.zarr")
    if "://" not in str(path) and Path(path).is_file():
        raise NotAStoreError(
            f"{path} is a file, but a store is a folder. If it holds documents, give the store after it"
        )
    return Store(path)


def read_facts(store: Store) -> StoreFacts:
    """Collect what a store records about itself, and add up the sizes of its objects."""
    status = store.status(np.arange(store.n_documents))
    live = store.ledger.live
    attributes = store.attributes
    served = _served(attributes["fingerprint"])
    failed = int((status == DocumentStatus.FAILED).sum())
    missing = int((status == MISSING).sum())
    return StoreFacts(
        path=store.storage.url,
        documents=store.n_documents,
        encoded=store.n_documents - failed - missing,
        truncated=int((status == DocumentStatus.TRUNCATED).sum()),
        failed=failed,
        missing=missing,
        tokens=store.n_tokens_total,
        special_tokens=sum(c.n_special for c in live),
        nonzeros=sum(c.nnz for c in live),
        document_nonzeros=sum(c.pooled_nnz for c in live),
        d_sae=store.d_sae,
        dtype=store.dtype.name,
        chunks=len(live),
        bytes=_sizes(store),
        indexed=0 if (index := store.index()) is None else index.documents_covered,
        sae=attributes["sae"],
        model=str((served or attributes["fingerprint"]).get("model") or ""),
        served=served,
        field=store.field,
        columns=[column.name for column in store.schema],
        description=attributes["description"],
        id=attributes["id"],
        created=attributes["created"],
        format_version=attributes["format_version"],
    )


def _served(fingerprint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fingerprint of the SAE behind a server, or behind the last of several."""
    served: Mapping[str, Any] = {}
    while isinstance(inner := fingerprint.get("server"), dict):
        served = fingerprint = inner
    return served


def _sizes(store: Store) -> dict[str, int]:
    sizes = dict.fromkeys(PARTS, 0)
    for key, size in store.storage.list():
        sizes[_part(key)] += size
    return sizes


def _part(key: str) -> str:
    """Return which part of the store a shard belongs to; metadata are everything else."""
    folder, _, rest = key.partition("/")
    array = rest.partition("/")[2].removesuffix("/c/0")
    if not key.endswith("/c/0"):
        return "everything else"
    if folder in ("documents", "index"):
        return folder
    if array in ("feature", "activation", "token_ptr", "doc_ptr"):
        return "token level"
    return {"token": "tokens", "pooled": "document level"}.get(
        array.partition("/")[0], "everything else"
    )


def thousands(number: int) -> str:
    """Return a whole number with commas."""
    return f"{number:,}"
