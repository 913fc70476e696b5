"""CSV and TSV, read in two passes. The first pass finds the type of every column.

All files that are read together share the types. A column with numbers in the first million rows and
a word in the next row is text from the beginning.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from typing_extensions import override

from interp_embed.inputs.batches import FramePiece
from interp_embed.store.format.document_blocks import document_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from interp_embed.inputs.files import DocumentFile

__all__ = ["DelimitedReader"]

_FIRST_ROWS = 16
_MOST_ROWS = 2**13
_PIECE_CHARACTERS = 2**22


class DelimitedReader:
    """Reads files of separated values.

    Parameters
    ----------
    files
        All files that are read together.
    field
        The column that holds the text. Its cells are read as text, unchanged.
    """

    def __init__(self, files: Sequence[DocumentFile], field: Any) -> None:
        self._files = files
        self._field = field
        self._types: dict[str, str] | None = None

    def pieces(self, file: DocumentFile) -> Iterator[FramePiece]:
        """Yield the documents of one of the files."""
        names = _names(file)
        yield FramePiece(pd.DataFrame({name: pd.Series([], dtype=object) for name in names}))
        if self._types is None:
            self._types = self._found_types()
        types: dict[str, Any] = {n: self._types.get(n, "text") for n in names if n != self._field}
        dtypes = {name: str if kind == "text" else kind for name, kind in types.items()}
        converters = {self._field: str} if self._field in names else None
        for frame in _chunks(file, dtype=dtypes, converters=converters):
            yield FramePiece(frame)

    def _found_types(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for file in self._files:
            others = [name for name in _names(file) if name != self._field]
            if not others:
                continue
            try:
                for frame in _chunks(file, usecols=others, dtype_backend="numpy_nullable"):
                    for name in frame.columns:
                        kind = _kind(frame[name])
                        if kind is not None:
                            found[name] = _common(found.get(name, kind), kind)
            except ValueError as error:
                raise file.damaged(error) from error
        return found


def _names(file: DocumentFile) -> list[str]:
    with _Cells(file) as text:
        names = list(pd.read_csv(text, sep=_separator(file), nrows=0).columns)
    _check_header(file)
    return names


def _check_header(file: DocumentFile) -> None:
    """Refuse names that occur twice: pandas would rename the second ``a`` to ``a.1``."""
    as_they_are: dict[str, Any] = {"header": None, "nrows": 1, "dtype": str, "na_filter": False}
    with _Cells(file) as text:
        header = pd.read_csv(text, sep=_separator(file), index_col=False, **as_they_are)
    counts = Counter(header.iloc[0].tolist())
    if twice := sorted(name for name, count in counts.items() if count > 1 and name):
        raise ValueError(f"columns {twice} occur more than once; rename them")


class _Cells(io.TextIOWrapper):
    """Text without NUL characters: pandas would silently end a cell there."""

    def __init__(self, file: DocumentFile) -> None:
        super().__init__(file.open(), "utf-8-sig", newline="\n")
        self._lines = 0

    @override
    def read(self, size: int | None = -1, /) -> str:
        found = super().read(size)
        before, nul, _ = found.partition("\0")
        self._lines += before.count("\n")
        if nul:
            raise ValueError(f"line {self._lines + 1} has a NUL character; remove it")
        return found


def _separator(file: DocumentFile) -> str:
    return "," if file.format == "csv" else "\t"


def _chunks(file: DocumentFile, **options: Any) -> Iterator[pd.DataFrame]:
    """Yield the rows of a file, more at a time if they are short."""
    with (
        _Cells(file) as text,
        pd.read_csv(
            text, sep=_separator(file), iterator=True, low_memory=False, index_col=False, **options
        ) as reader,
    ):
        rows = _FIRST_ROWS
        while True:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", pd.errors.ParserWarning)
                    frame = reader.get_chunk(rows)
            except StopIteration:
                return
            except pd.errors.ParserWarning:
                raise ValueError("rows have more cells than the header") from None
            if not len(frame):
                return
            yield frame
            mean = max(1, int(document_sizes(frame).sum()) // len(frame))
            rows = int(np.clip(_PIECE_CHARACTERS // mean, 1, min(8 * rows, _MOST_ROWS)))


def _kind(series: pd.Series[Any]) -> str | None:
    """Return the dtype to read a column as; None if nothing is known about it."""
    if series.isna().all():
        return None
    dtype = str(series.dtype)
    return dtype if dtype in ("Int64", "UInt64", "Float64", "boolean") else "text"


def _common(a: str, b: str) -> str:
    if a == b:
        return a
    if {a, b} == {"Int64", "Float64"}:
        return "Float64"
    return "text"
