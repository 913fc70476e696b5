"""Arrow tables as data frames: numbers, times and strings by their type, all else as JSON holds it."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from typing_extensions import override

from interp_embed.inputs.batches import Piece, joined_frames, plain_where_whole
from interp_embed.inputs.records import typed
from interp_embed.store.format import document_blocks as blocks
from interp_embed.store.format.columns import column_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = [
    "ArrowPiece",
    "column_names_of",
    "pieces_of_table",
    "pieces_of_tables",
    "require_pyarrow",
    "rows_a_piece",
]

_PIECE_BYTES = 2**23
_PIECE_DOCUMENTS = 2**13


def require_pyarrow() -> None:
    """Raise ImportError, saying what to install, if there is no pyarrow."""
    try:
        import pyarrow as pa  # noqa: F401
    except ImportError:
        raise ImportError(
            "Parquet files and Arrow tables need pyarrow: pip install 'interp_embed[io]'"
        ) from None


def rows_a_piece(nbytes: int, n_rows: int) -> int:
    """Return the rows per piece for a table of ``n_rows`` rows that take ``nbytes``."""
    return int(np.clip(_PIECE_BYTES * n_rows // max(nbytes, 1), 1, _PIECE_DOCUMENTS))


def column_names_of(schema: pa.Schema) -> list[str]:
    """Return the columns of a schema, without those that pandas kept its index in.

    Raises
    ------
    ValueError
        If two columns have the same name.
    """
    stated = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
    index = {name for name in stated if isinstance(name, str)}
    names = [name for name in schema.names if name not in index]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(f"columns {twice} occur more than once; rename them")
    return names


def pieces_of_table(table: pa.Table | pa.RecordBatch) -> Iterator[ArrowPiece]:
    """Yield a table in pieces; nothing is copied."""
    table = table.select(column_names_of(table.schema))
    step = rows_a_piece(table.nbytes, table.num_rows)
    for start in range(0, max(1, table.num_rows), step):
        yield ArrowPiece(table.slice(start, step))


def pieces_of_tables(tables: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[ArrowPiece]:
    """Yield tables in pieces, one after the other."""
    for table in tables:
        yield from pieces_of_table(table)


class ArrowPiece(Piece):
    """Documents in an Arrow table."""

    def __init__(self, table: pa.Table | pa.RecordBatch) -> None:
        import pyarrow as pa

        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        self.table = _storable(table)

    @property
    @override
    def columns(self) -> list[Any]:
        return list(self.table.column_names)

    @override
    def __len__(self) -> int:
        return int(self.table.num_rows)

    @override
    def sizes(self) -> NDArray[np.int64]:
        total = np.zeros(len(self), np.int64)
        for column in self.table.columns:
            total += _sizes(column.combine_chunks())
        return total

    @override
    def part(self, start: int, stop: int) -> Self:
        piece = object.__new__(type(self))
        piece.table = self.table.slice(start, stop - start)
        return piece

    @classmethod
    @override
    def joined(cls, pieces: Sequence[Self]) -> pd.DataFrame:
        import pyarrow as pa

        tables = [piece.table for piece in pieces]
        try:
            return _frame(pa.concat_tables(tables, promote_options="permissive"))
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # types that have none in common
            return joined_frames([_frame(table) for table in tables])


def _frame(table: pa.Table) -> pd.DataFrame:
    import pyarrow as pa

    nullable = {
        pa.int8(): pd.Int8Dtype(), pa.int16(): pd.Int16Dtype(), pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(), pa.uint8(): pd.UInt8Dtype(), pa.uint16(): pd.UInt16Dtype(),
        pa.uint32(): pd.UInt32Dtype(), pa.uint64(): pd.UInt64Dtype(), pa.bool_(): pd.BooleanDtype(),
    }  # fmt: skip
    listed = {n: c for n, c in enumerate(table.columns) if not all(map(_is_exact, c.chunks))}
    direct = table.select([n for n in range(table.num_columns) if n not in listed])
    found = direct.unify_dictionaries().to_pandas(types_mapper=nullable.get, ignore_metadata=True)
    if listed:
        others = iter(found.items())
        series = [
            typed(listed[n].to_pylist()) if n in listed else next(others)[1]
            for n in range(table.num_columns)
        ]
        found = pd.DataFrame(dict(enumerate(series)))
        found.columns = column_names(table.column_names)
    return plain_where_whole(found)


def _is_exact(array: pa.Array) -> bool:
    """Return whether pandas keeps the values in lists and structures unchanged.

    If some numbers in a list are missing, pandas makes all of them floats.
    """
    import pyarrow as pa

    return not pa.types.is_nested(array.type) or _is_whole(array)


def _is_whole(array: pa.Array) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, t = array.type, pa.types
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return _is_whole(pc.list_flatten(array))
    if t.is_struct(kind):
        return all(map(_is_whole, array.flatten()))
    return not (array.null_count or t.is_nested(kind) or t.is_temporal(kind))


def _storable(table: pa.Table) -> pa.Table:
    """Return a table without types that a store does not keep."""
    import pyarrow as pa

    for number, field in enumerate(table.schema):
        column, wanted = table.column(number), _storable_type(field.type, inside=False)
        if pa.types.is_dictionary(field.type):
            value = getattr(wanted, "value_type", wanted)
            if wanted != field.type or any(chunk.dictionary.null_count for chunk in column.chunks):
                chunks = [c.dictionary.cast(value).take(c.indices) for c in column.chunks]
                table = table.set_column(number, field.name, pa.chunked_array(chunks, value))
        elif wanted != field.type:
            table = table.set_column(number, field.name, column.cast(wanted))
    return table


def _storable_type(kind: pa.DataType, *, inside: bool) -> pa.DataType:
    import pyarrow as pa

    t = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _storable_type(kind.storage_type, inside=inside)
    if t.is_dictionary(kind):
        value = _storable_type(kind.value_type, inside=inside)
        plain = t.is_string(value) or t.is_large_string(value) or t.is_integer(value)
        return kind if plain and not inside and value == kind.value_type else value
    if t.is_decimal(kind):
        return pa.float64()
    if t.is_string_view(kind) or kind == pa.time64("ns"):  # Python's times of day have no such
        return pa.large_string()
    if t.is_struct(kind):
        return pa.struct([f.with_type(_storable_type(f.type, inside=True)) for f in kind])
    if t.is_map(kind):
        key, item = (_storable_type(k, inside=True) for k in (kind.key_type, kind.item_type))
        return kind if (key, item) == (kind.key_type, kind.item_type) else pa.map_(key, item)
    if t.is_fixed_size_list(kind):
        item = kind.value_field.with_type(_storable_type(kind.value_type, inside=True))
        return pa.list_(item, kind.list_size)
    if t.is_list(kind) or t.is_large_list(kind):
        item = kind.value_field.with_type(_storable_type(kind.value_type, inside=True))
        return pa.list_(item) if t.is_list(kind) else pa.large_list(item)
    return kind


def _sizes(array: pa.Array) -> NDArray[np.int64]:
    """Return the characters of each value, as `interp_embed.store.format.document_blocks.value_size` counts them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, t = array.type, pa.types
    if t.is_dictionary(kind):
        return _sizes(array.dictionary_decode())
    if t.is_string(kind) or t.is_large_string(kind):
        lengths = pc.fill_null(pc.utf8_length(array), 0)
        return np.asarray(lengths.to_numpy(zero_copy_only=False), np.int64)
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        parents = np.asarray(pc.list_parent_indices(array).to_numpy(zero_copy_only=False))
        items = _sizes(pc.list_flatten(array)) + blocks.ITEM_CHARACTERS
        return np.bincount(parents, items, len(array)).astype(np.int64)
    if t.is_struct(kind):
        here = np.asarray(array.is_valid().to_numpy(zero_copy_only=False))
        entries = [_sizes(child) + blocks.ITEM_CHARACTERS for child in array.flatten()]
        return np.where(here, np.sum(entries, axis=0, dtype=np.int64), 0)
    if t.is_nested(kind):
        return np.array([blocks.value_size(value) for value in array.to_pylist()], np.int64)
    return np.zeros(len(array), np.int64)
