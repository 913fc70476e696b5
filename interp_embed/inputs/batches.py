"""Documents as they come: some data frames, some dictionaries, or some rows of Arrow tables."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from typing_extensions import override

from interp_embed.inputs.records import frame_of_records, typed
from interp_embed.store.format import document_blocks as blocks
from interp_embed.store.format.columns import column_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = [
    "FramePiece",
    "Piece",
    "RecordPiece",
    "StoredPiece",
    "cut",
    "joined_frames",
    "joined_pieces",
    "plain_where_whole",
]


class Piece(ABC):
    """Some documents, few enough to fit in memory easily."""

    @property
    @abstractmethod
    def columns(self) -> list[Any]:
        """Names of the columns."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sizes(self) -> NDArray[np.int64]:
        """Return the characters of each document, see `interp_embed.store.format.document_blocks`."""

    @abstractmethod
    def part(self, start: int, stop: int) -> Self:
        """Return some of the documents."""

    @classmethod
    @abstractmethod
    def joined(cls, pieces: Sequence[Self]) -> pd.DataFrame:
        """Return one or more pieces as one data frame."""


class FramePiece(Piece):
    """Documents in a data frame."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    @property
    @override
    def columns(self) -> list[Any]:
        return self.frame.columns.tolist()

    @override
    def __len__(self) -> int:
        return len(self.frame)

    @override
    def sizes(self) -> NDArray[np.int64]:
        return blocks.document_sizes(self.frame)

    @override
    def part(self, start: int, stop: int) -> Self:
        return type(self)(self.frame.iloc[start:stop])

    @classmethod
    @override
    def joined(cls, pieces: Sequence[Self]) -> pd.DataFrame:
        return joined_frames([piece.frame for piece in pieces])


class StoredPiece(FramePiece):
    """Documents in a data frame whose dtypes already fit all documents and must not change."""

    @classmethod
    @override
    def joined(cls, pieces: Sequence[Self]) -> pd.DataFrame:
        return pd.concat([piece.frame for piece in pieces], ignore_index=True)


class RecordPiece(Piece):
    """Documents in dictionaries."""

    def __init__(self, records: list[dict[Any, Any]]) -> None:
        self.records = records

    @property
    @override
    def columns(self) -> list[Any]:
        return list(dict.fromkeys(name for record in self.records for name in record))

    @override
    def __len__(self) -> int:
        return len(self.records)

    @override
    def sizes(self) -> NDArray[np.int64]:
        sizes = (sum(map(blocks.value_size, record.values())) for record in self.records)
        return np.fromiter(sizes, np.int64, len(self.records))

    @override
    def part(self, start: int, stop: int) -> Self:
        return type(self)(self.records[start:stop])

    @classmethod
    @override
    def joined(cls, pieces: Sequence[Self]) -> pd.DataFrame:
        return frame_of_records([record for piece in pieces for record in piece.records])


def cut(pieces: Iterable[Piece]) -> Iterator[pd.DataFrame]:
    """Yield blocks of documents. They do not depend on how the documents are spread over pieces.

    If there are no documents, this yields one empty block.
    """
    held: list[Piece] = []
    empty: list[Piece] = []
    documents = characters = 0
    whole = False
    for piece in pieces:
        if not len(piece):
            empty.append(piece)
            continue
        sizes, at = piece.sizes(), 0
        while at < len(piece):
            count = blocks.first_block(sizes[at:], documents, characters)
            if count:
                held.append(piece.part(at, at + count))
                documents += count
                characters += int(sizes[at : at + count].sum())
                at += count
            if at < len(piece) or documents >= blocks.BLOCK_DOCUMENTS:
                frame = joined_pieces(held)
                held, documents, characters, whole = [], 0, 0, True
                yield frame
                del frame  # before the next pieces are read
    if held or not whole:
        yield joined_pieces(held or empty)


def joined_pieces(pieces: Sequence[Piece]) -> pd.DataFrame:
    """Return one or more pieces as one data frame."""
    runs = [list(run) for _, run in itertools.groupby(pieces, type)]
    frames = [type(run[0]).joined(run) for run in runs]
    return frames[0] if len(frames) == 1 else joined_frames(frames)


def joined_frames(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return several frames as one. If a frame lacks a column, its values are missing there."""
    if len(frames) < 2:
        whole = frames[0].reset_index(drop=True) if frames else pd.DataFrame()
    else:
        names = dict.fromkeys(name for frame in frames for name in frame.columns)
        series = [
            _joined_series([f[name] if name in f.columns else _nothing(len(f)) for f in frames])
            for name in names
        ]
        whole = pd.DataFrame(dict(enumerate(series)))
        whole.columns = column_names(list(names))
    return plain_where_whole(whole)


def _nothing(n: int) -> pd.Series[Any]:
    return pd.Series([None] * n, dtype=object)


def _joined_series(parts: Sequence[pd.Series[Any]]) -> pd.Series[Any]:
    dtypes = {str(part.dtype) for part in parts}
    if len(dtypes) == 1 and not isinstance(parts[0].dtype, pd.CategoricalDtype):
        return pd.concat(parts, ignore_index=True)
    if all(isinstance(p.dtype, pd.CategoricalDtype) for p in parts):
        try:
            return pd.Series(pd.api.types.union_categoricals(list(parts)))
        except TypeError:  # of another dtype, or ordered in another way
            pass
    values = [
        None if absent else value
        for part in parts
        for value, absent in zip(part.tolist(), part.isna(), strict=True)
    ]
    return typed(values)


def plain_where_whole(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with plain dtypes for nullable numbers and booleans that have no gaps."""
    plain = {}
    for number, dtype in enumerate(frame.dtypes):
        base = getattr(dtype, "numpy_dtype", None)
        if isinstance(base, np.dtype) and not hasattr(dtype, "pyarrow_dtype"):
            series = frame.iloc[:, number]
            if base.kind == "f" or not series.isna().any():
                missing = np.nan if base.kind == "f" else 0  # which does not occur
                plain[number] = pd.Series(series.to_numpy(base, na_value=missing))
    if not plain:
        return frame
    columns = [plain.get(number, frame.iloc[:, number]) for number in range(frame.shape[1])]
    whole = pd.DataFrame(dict(enumerate(columns)))
    whole.columns = frame.columns
    return whole
