"""The forms in which data may be passed, and how each is read."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from interp_embed.inputs.arrow_tables import pieces_of_tables, require_pyarrow, rows_a_piece
from interp_embed.inputs.batches import FramePiece, Piece, cut, joined_pieces
from interp_embed.inputs.files import find_files
from interp_embed.inputs.frames import (
    MissingFieldError,
    as_frame,
    check_record,
    no_documents,
    without_odd_texts,
)
from interp_embed.inputs.readers import pieces_of_files, pieces_of_records
from interp_embed.inputs.records import with_plain_values
from interp_embed.store.format.document_blocks import cut_frame

__all__ = ["Documents", "as_documents"]

_EXPECTED = (
    "data must be a DataFrame, a list of dictionaries, a path, URL or pattern of Parquet, CSV, TSV, "
    "JSON Lines or JSON files, an Arrow table, reader or dataset, a Hugging Face dataset, or an "
    "iterable of dictionaries, or a function that returns one"
)


class Documents:
    """Documents that can be read block by block.

    Parameters
    ----------
    pieces
        Called once per reading; returns the documents in pieces.
    field
        Name of the column that holds the text.
    length
        Number of documents, if it is known without reading them.
    frame
        All documents, if they are in memory as a data frame.
    known
        Whether the first piece has all columns, even if it has no documents.

    Raises
    ------
    ValueError
        If the first documents have no column ``field``.
    """

    def __init__(
        self,
        pieces: Callable[[], Iterator[Piece]],
        field: Any,
        *,
        length: int | None = None,
        frame: pd.DataFrame | None = None,
        known: bool = False,
    ) -> None:
        self.field = field
        self.length = length
        self._pieces = pieces
        self._frame = frame
        self._begun: Iterator[Piece] | None = None
        if frame is not None:
            return
        # What is wrong with the first documents is said at once; they are kept for the reading.
        begun = pieces()
        first = list(itertools.islice(begun, 1))
        while first and not len(first[-1]) and not known:
            following = list(itertools.islice(begun, 1))
            if not following:
                break
            first += following
        self._begun = itertools.chain(iter(first), begun)
        names = [name for piece in first for name in piece.columns]
        if field not in names and (names or any(map(len, first))):
            raise MissingFieldError(field, list(dict.fromkeys(names)))

    @property
    def in_memory(self) -> bool:
        """Whether all documents are in memory as a data frame."""
        return self._frame is not None

    def blocks(self) -> Iterator[pd.DataFrame]:
        """Yield the documents in one or more blocks; see `interp_embed.store.format.document_blocks`.

        Texts that cannot be stored (bytes, objects) become None, so that only these documents fail.
        """
        streamed = self._frame is None
        frames = cut(self._read()) if self._frame is None else cut_frame(self._frame)
        for frame in frames:
            if frame.shape == (0, 0):
                frame = no_documents(self.field)
            if streamed:
                frame = with_plain_values(frame, self.field)
            yield without_odd_texts(frame, self.field)
            del frame

    def frame(self) -> pd.DataFrame:
        """Return all documents in memory, with index 0 to n - 1."""
        if self._frame is None:
            self._frame = with_plain_values(joined_pieces(list(self._read())), self.field)
            if self.field not in self._frame.columns:
                self._frame = no_documents(self.field)
        return self._frame

    def _read(self) -> Iterator[Piece]:
        begun, self._begun = self._begun, None
        return self._pieces() if begun is None else begun


def as_documents(data: Any, field: Any) -> Documents:
    """Return the data that a caller passed as documents that can be read.

    Only the beginning is read. Data that can be read only once (a generator, a reader of record
    batches) can be read only once here, too.

    Parameters
    ----------
    data
        A data frame or list of dictionaries; paths, URLs or patterns of files; an Arrow table,
        reader or dataset, or any object with ``__arrow_c_stream__``; a Hugging Face dataset; an
        iterable of dictionaries, or a function that returns one.
    field
        Name of the column that holds the text.

    Raises
    ------
    TypeError
        If ``data`` is none of these.
    FileNotFoundError
        If a file is missing, or a pattern matches none.
    ValueError
        If the documents have no column ``field``, or the format of a file is unknown.
    """
    if isinstance(data, Documents):
        return data
    if isinstance(data, pd.DataFrame):
        return _of_frame(as_frame(data, field), field)
    if isinstance(data, str | os.PathLike) or _are_paths(data):
        return _of_files([data] if isinstance(data, str | os.PathLike) else data, field)
    if (kind := _hugging_face(data)) is not None:
        return _of_hugging_face(data, kind, field)
    if isinstance(data, bytes | dict) or data is None:
        raise TypeError(f"{_EXPECTED}; got {type(data).__name__}")
    if (found := _of_arrow(data, field)) is not None:
        return found
    if isinstance(data, Sequence):
        return _of_frame(as_frame(data, field), field)
    if callable(data):
        return Documents(lambda: pieces_of_records(_checked(data(), field)), field)
    if isinstance(data, Iterable):
        return Documents(lambda: pieces_of_records(_checked(data, field)), field)
    raise TypeError(f"{_EXPECTED}; got {type(data).__name__}")


def _of_frame(frame: pd.DataFrame, field: Any) -> Documents:
    return Documents(lambda: iter([FramePiece(frame)]), field, length=len(frame), frame=frame)


def _are_paths(data: Any) -> bool:
    if not isinstance(data, list | tuple) or not data:
        return False
    return all(isinstance(each, str | os.PathLike) for each in data)


def _of_files(paths: Sequence[str | os.PathLike[str]], field: Any) -> Documents:
    try:
        files = [file for path in paths for file in find_files(path)]
    except FileNotFoundError as error:
        if len(paths) > 1 and all(isinstance(path, str) for path in paths):
            error.add_note(f"For texts pass [{{{field!r}: text}} for text in texts]")
        raise
    except OSError as error:
        if len(str(error.filename)) > 255:  # a text, rather
            error.add_note(f"For texts pass [{{{field!r}: text}} for text in texts]")
        raise
    return Documents(lambda: pieces_of_files(files, field), field, known=True)


def _checked(data: Any, field: Any) -> Iterator[dict[Any, Any]]:
    try:
        iterator = iter(data)
    except TypeError:
        raise TypeError(f"{_EXPECTED}; got {type(data).__name__}") from None
    for number, record in enumerate(iterator):
        check_record(record, f"data[{number}]", field)
        yield record


def _of_arrow(data: Any, field: Any) -> Documents | None:
    """Return the documents of an Arrow object; None if ``data`` is not one."""
    if (
        not hasattr(data, "__arrow_c_stream__")
        and type(data).__module__.partition(".")[0] != "pyarrow"
    ):
        return None
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.dataset as ds

    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        table = data
        return Documents(lambda: pieces_of_tables([table]), field, length=len(table), known=True)
    if isinstance(data, ds.Dataset):
        # One fragment and one batch ahead: by default it reads far more than a block.
        def batches() -> Iterator[Any]:
            yield data.schema.empty_table()
            yield from data.to_batches(batch_size=1024, batch_readahead=1, fragment_readahead=1)

        return Documents(lambda: pieces_of_tables(batches()), field, known=True)
    if hasattr(data, "__arrow_c_stream__"):
        reader = pa.RecordBatchReader.from_stream(data)
        start = [reader.schema.empty_table()]
        return Documents(
            lambda: pieces_of_tables(itertools.chain(start, reader)), field, known=True
        )
    return None


def _hugging_face(data: Any) -> str | None:
    """Return the name of the class in Hugging Face's ``datasets``, without importing that package."""
    names = ("Dataset", "IterableDataset", "DatasetDict", "IterableDatasetDict")
    for base in type(data).__mro__:
        if base.__module__.partition(".")[0] == "datasets" and base.__name__ in names:
            return base.__name__
    return None


def _of_hugging_face(data: Any, kind: str, field: Any) -> Documents:
    if kind.endswith("Dict"):
        raise TypeError(
            f"data must be one split of the {kind} with {list(data)}; pass one, such as data['train']"
        )
    if kind == "IterableDataset":
        data = data.with_format(None)  # of dictionaries, whatever it gives otherwise
        return Documents(lambda: pieces_of_records(_checked(data, field)), field)

    def tables() -> Iterator[Any]:
        formatted = data.with_format("arrow")
        yield formatted.features.arrow_schema.empty_table()
        yield from formatted.iter(batch_size=rows_a_piece(data.data.nbytes, len(data.data)))

    return Documents(lambda: pieces_of_tables(tables()), field, length=len(data), known=True)
