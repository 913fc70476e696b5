"""Readers of files. Each format is read in pieces of bounded size."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

from interp_embed.inputs.arrow_tables import (
    ArrowPiece,
    column_names_of,
    require_pyarrow,
    rows_a_piece,
)
from interp_embed.inputs.batches import RecordPiece
from interp_embed.inputs.read_delimited import DelimitedReader
from interp_embed.inputs.read_json_array import json_items
from interp_embed.store.format.document_blocks import value_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from interp_embed.inputs.batches import Piece
    from interp_embed.inputs.files import DocumentFile

__all__ = ["pieces_of_files", "pieces_of_records"]

_PIECE_RECORDS = 2**12
_PIECE_CHARACTERS = 2**22
_BUFFER = 2**20


def pieces_of_files(files: Sequence[DocumentFile], field: Any) -> Iterator[Piece]:
    """Yield the documents of files, one after the other.

    Raises
    ------
    ValueError
        If a file is damaged. The message names the file and the place.
    """
    delimited = DelimitedReader([f for f in files if f.format in ("csv", "tsv")], field)
    for file in files:
        try:
            if file.format == "parquet":
                yield from _parquet(file)
            elif file.format in ("csv", "tsv"):
                yield from delimited.pieces(file)
            else:
                yield from pieces_of_records(_records(file))
        except (ValueError, EOFError, zlib.error) as error:
            damaged = file.damaged(error)
            raise damaged from (None if damaged is error else error)
        except OSError as error:
            if error.errno is not None:
                raise
            raise file.damaged(error) from error  # of gzip, or of Parquet


def _parquet(file: DocumentFile) -> Iterator[Piece]:
    require_pyarrow()
    import pyarrow.parquet as pq

    # Without reading row groups ahead: one may be as large as a file.
    reader = {"buffer_size": _BUFFER, "pre_buffer": False}
    with file.open() as handle, pq.ParquetFile(handle, **reader) as parquet:
        names = column_names_of(parquet.schema_arrow)
        yield ArrowPiece(parquet.schema_arrow.empty_table().select(names))
        for number in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(number)
            rows = rows_a_piece(group.total_byte_size, group.num_rows)
            for batch in parquet.iter_batches(rows, row_groups=[number], columns=names):
                yield ArrowPiece(batch)


def _records(file: DocumentFile) -> Iterator[dict[Any, Any]]:
    with file.open_text() as text:
        if file.format == "json":
            for number, record in enumerate(json_items(text), 1):
                yield _checked(record, f"record {number}")
            return
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:  # which counts lines within the line
                raise ValueError(f"line {number}: {error.msg} (column {error.colno})") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from None
            yield _checked(record, f"line {number}")


def _checked(record: Any, where: str) -> dict[Any, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{where} must be a JSON object, got {type(record).__name__}")
    return record


def pieces_of_records(records: Iterable[dict[Any, Any]]) -> Iterator[Piece]:
    """Yield dictionaries in pieces."""
    held: list[dict[Any, Any]] = []
    characters = 0
    for number, record in enumerate(records, 1):
        held.append(record)
        try:
            characters += sum(map(value_size, record.values()))
        except RecursionError:
            raise ValueError(f"record {number} is nested too deeply") from None
        if len(held) >= _PIECE_RECORDS or characters >= _PIECE_CHARACTERS:
            yield RecordPiece(held)
            held, characters = [], 0
    if held:
        yield RecordPiece(held)
