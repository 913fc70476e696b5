"""Cutting documents into the blocks that a store keeps, and describing a block.

Where a block ends depends on the documents alone, not on how they arrive: a data frame and a stream
of the same documents have the same blocks, so that they can be compared block by block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp_embed.store.format.document_hash import hash_frame
from interp_embed.store.format.schema import schema_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from interp_embed.store.format.columns import Column

__all__ = [
    "ITEM_CHARACTERS",
    "DocumentBlock",
    "cut_frame",
    "describe_block",
    "document_sizes",
    "first_block",
    "value_size",
]

BLOCK_DOCUMENTS = 2**16
"""Most documents of a block."""
BLOCK_CHARACTERS = 2**26
"""Most characters of a block, unless one document has more."""
ITEM_CHARACTERS = 8
"""What an item of a list or an entry of a dictionary counts beside its characters."""
_NUMBERS = {int, float, bool, type(None)}


@dataclass(frozen=True, slots=True, eq=False)
class DocumentBlock:
    """Documents that are stored together.

    Attributes
    ----------
    frame : DataFrame
        Their columns.
    schema : list of Column
        How each column is stored.
    hashes : dict of str to str
        See `interp_embed.store.format.document_hash.hash_frame`.
    """

    frame: pd.DataFrame
    schema: list[Column]
    hashes: Mapping[str, str]


def describe_block(frame: pd.DataFrame, field: Any, first: int = 0) -> DocumentBlock:
    """Return a block of documents with its schema and hashes.

    Parameters
    ----------
    frame
        The documents, one per row.
    field
        Column with the text.
    first
        Number of the first document, for errors.

    Raises
    ------
    TypeError, ValueError
        If a column cannot be stored.
    """
    return DocumentBlock(frame, schema_of(frame), hash_frame(frame, field, first))


def cut_frame(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the blocks of a data frame; of an empty one a block without documents."""
    sizes, start = document_sizes(frame), 0
    while start < len(frame) or start == 0:
        count = max(1, first_block(sizes[start : start + BLOCK_DOCUMENTS], 0, 0))
        yield frame.iloc[start : start + count]
        start += count


def first_block(sizes: NDArray[np.int64], documents: int, characters: int) -> int:
    """Return how many more documents a block takes that has some already.

    Parameters
    ----------
    sizes
        Of the documents to come.
    documents, characters
        What the block has.
    """
    room = max(0, BLOCK_DOCUMENTS - documents)
    fits = int(np.searchsorted(np.cumsum(sizes[:room]), BLOCK_CHARACTERS - characters, "right"))
    return max(fits, 1 if documents == 0 and len(sizes) else 0)


def document_sizes(frame: pd.DataFrame) -> NDArray[np.int64]:
    """Return the characters of each row of a frame: those of its strings, nested ones included."""
    total = np.zeros(len(frame), np.int64)
    for number in range(frame.shape[1]):
        total += _sizes(frame.iloc[:, number])
    return total


def _sizes(series: pd.Series[Any]) -> NDArray[np.int64]:
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        lengths = _sizes(pd.Series(dtype.categories))
        return np.append(lengths, 0)[series.cat.codes.to_numpy()]
    if not pd.api.types.is_object_dtype(dtype) and not pd.api.types.is_string_dtype(dtype):
        return np.zeros(len(series), np.int64)
    values = series.tolist()
    sizes = (len(v) if type(v) is str else value_size(v) for v in values)
    return np.fromiter(sizes, np.int64, len(values))


def value_size(value: Any) -> int:
    """Return about how many characters a value has."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, np.ndarray):
        if value.dtype != object:
            return ITEM_CHARACTERS * value.size
        value = value.tolist()
    if isinstance(value, dict):
        return sum(ITEM_CHARACTERS + value_size(v) for v in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        size = ITEM_CHARACTERS * len(value)
        return size if set(map(type, value)) <= _NUMBERS else size + sum(map(value_size, value))
    return 0
