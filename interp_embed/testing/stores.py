"""Stores of given documents, and whether two sets of documents are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp_embed.core.chunk import DocumentStatus
from interp_embed.store import Store, StoreWriter, create_store, finish

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from interp_embed.core.chunk import Chunk
    from interp_embed.store.storage import Storage

__all__ = ["assert_chunks_equal", "read_everything", "store_from_chunk", "texts_of"]


def texts_of(chunk: Chunk) -> list[str | None]:
    """Return texts that the spans of the chunk's tokens partition; None for failed documents."""
    texts: list[str | None] = []
    for position in range(chunk.n_documents):
        where = slice(int(chunk.doc_ptr[position]), int(chunk.doc_ptr[position + 1]))
        length = int(chunk.tokens.end[where].max(initial=0))
        letters = "abc🙂e "
        text = (letters * (length // len(letters) + 1))[:length]
        failed = chunk.status[position] == DocumentStatus.FAILED
        truncated = chunk.status[position] == DocumentStatus.TRUNCATED
        texts.append(None if failed else text + (" and so on" if truncated else ""))
    return texts


def store_from_chunk(
    path: str | os.PathLike[str] | Storage,
    chunk: Chunk,
    frame: pd.DataFrame | None = None,
    *,
    documents_per_chunk: int = 4,
    dtype: np.dtype[Any] | str | None = None,
    feature_labels: Mapping[int, str] | None = None,
    field: Any = "text",
    finished: bool = True,
) -> Store:
    """Write documents to a new store and open it.

    Parameters
    ----------
    path
        Path at which to create it.
    chunk
        The documents, numbered from 0.
    frame
        Their columns; by default one column of texts that fit the tokens.
    documents_per_chunk
        Documents that are committed together.
    dtype
        Dtype of the stored activations; by default that of the chunk.
    feature_labels
        Stored with the activations.
    field
        Column with the text.
    finished
        Whether to merge the small chunks and write the manifest.
    """
    store = create_store(
        path,
        pd.DataFrame({field: texts_of(chunk)}, dtype=object) if frame is None else frame,
        field=field,
        identifier="test00",
        description="made by a test",
        documents_per_chunk=documents_per_chunk,
        dtype=np.dtype(dtype or chunk.activation.dtype),
        d_sae=chunk.d_sae,
        fingerprint={"sae": {"release": "random"}},
        feature_labels=feature_labels,
    )
    with StoreWriter(store) as writer:
        for start, stop in store.plan.pieces(0, chunk.n_documents) if chunk.n_documents else []:
            writer.write(chunk.take(np.arange(start, stop)))
        if finished:
            finish(writer)
    return Store(store.storage)


def read_everything(store: Store) -> Chunk:
    """Return all encoded documents of a store in memory."""
    return store.chunk(np.arange(store.n_documents))


def assert_chunks_equal(found: Chunk, expected: Chunk) -> None:
    """Compare two chunks array by array, dtypes of the data included.

    Raises
    ------
    AssertionError
        If an array differs. The message names it.
    """
    assert found.d_sae == expected.d_sae
    for name in ("doc_id", "status", "doc_ptr", "token_ptr", "feature", "activation"):
        a, b = getattr(found, name), getattr(expected, name)
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert name.endswith("_ptr") or a.dtype == b.dtype, f"{name}: {a.dtype}, not {b.dtype}"
    for name in type(found.tokens).__slots__:
        a, b = getattr(found.tokens, name), getattr(expected.tokens, name)
        np.testing.assert_array_equal(a, b, err_msg=f"tokens.{name}")
    assert dict(found.reasons) == dict(expected.reasons)
    named = set(found.vocabulary) & set(expected.vocabulary)
    assert {k: found.vocabulary[k] for k in named} == {k: expected.vocabulary[k] for k in named}
