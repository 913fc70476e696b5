"""Documents as an Arrow IPC stream, the quicker and smaller form of the wire format."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.chunk import Chunk, DocumentStatus, TokenTable
from interp_embed.sae.assemble import one_line
from interp_embed.sae.remote.arrow_size import unpacked_size
from interp_embed.sae.remote.checks import fail
from interp_embed.sae.remote.transport import LONGEST_ANSWER, BadAnswerError
from interp_embed.sae.remote.wire import (
    Header,
    finished,
    header_of,
    parse_header,
    parse_json,
    statuses,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["decode_arrow", "encode_arrow", "has_arrow"]

_KEY = b"interp_embed"


def has_arrow() -> bool:
    """Return whether this machine can read and write Arrow."""
    try:
        import pyarrow as pa  # noqa: F401
    except ImportError:
        return False
    return True


def encode_arrow(chunk: Chunk, sae: str) -> bytes:
    """Return documents as an Arrow IPC stream of one record batch, with one row per document."""
    import pyarrow as pa

    nonzeros = pa.StructArray.from_arrays(
        [
            pa.array(chunk.feature.astype(np.uint32)),
            pa.array(chunk.activation.astype(np.float32, copy=False)),
        ],
        fields=_nonzero_fields(),
    )
    lists = pa.LargeListArray.from_arrays(pa.array(chunk.token_ptr, pa.int64()), nonzeros)
    tokens = pa.StructArray.from_arrays(
        [
            pa.array(chunk.tokens.id),
            pa.array(chunk.tokens.start),
            pa.array(chunk.tokens.end),
            pa.array(chunk.tokens.special),
            lists,
        ],
        fields=_token_fields(),
    )
    schema = _schema().with_metadata(
        {_KEY: json.dumps(header_of(chunk, sae, reasons=True)).encode()}
    )
    batch = pa.record_batch(
        [
            pa.array(chunk.status == DocumentStatus.TRUNCATED),
            pa.LargeListArray.from_arrays(pa.array(chunk.doc_ptr, pa.int64()), tokens),
        ],
        schema=schema,
    )
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def decode_arrow(body: bytes, texts: Sequence[str]) -> tuple[Header, Chunk]:
    """Return the documents of an Arrow IPC stream.

    Parameters
    ----------
    body : bytes
    texts : sequence of str
        The texts of the request.

    Raises
    ------
    BadAnswerError
        If it is anything but well-formed answers to these texts.
    """
    try:
        header, chunk = _arrow_documents(body, texts)
    except BadAnswerError:
        raise
    except Exception as error:
        # Names that are no text, types that cannot be compared: there are too many ways to be broken.
        raise BadAnswerError(f"Arrow that cannot be read ({one_line(error)})") from error
    return header, finished(chunk, texts)


def _arrow_documents(body: bytes, texts: Sequence[str]) -> tuple[Header, Chunk]:
    """Return what `decode_arrow` does, before it is checked."""
    import pyarrow as pa

    try:
        stream = pa.ipc.open_stream(body)
        schema = stream.schema
        said = parse_json((schema.metadata or {}).get(_KEY, b""), "the schema's metadata")
        header, vocabulary, reasons = parse_header(said, len(texts))
        wanted = _schema()
        if sorted((f.name, _plain(f.type)) for f in schema) != sorted(
            (f.name, _plain(f.type)) for f in wanted
        ):
            fail(f"columns {_said(schema)}, expected {_said(wanted)}")
        if (size := unpacked_size(body)) > LONGEST_ANSWER:  # before any of it takes memory
            fail(f"Arrow that unpacks to {size:,} bytes, expected at most {LONGEST_ANSWER:,}")
        table = stream.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        fail(f"no Arrow stream that can be read ({' '.join(str(error).split())})")
    if table.num_rows != len(texts):
        fail(f"{table.num_rows} documents for {len(texts)} texts")
    columns = [table[name].combine_chunks() for name in ("truncated", "tokens")]
    truncated, documents = (c.chunk(0) if isinstance(c, pa.ChunkedArray) else c for c in columns)
    doc_ptr, tokens = _unlist(documents, "tokens")
    token_ptr, nonzeros = _unlist(_field(tokens, "nonzeros"), "tokens.nonzeros")
    chunk = Chunk(
        d_sae=header.d_sae,
        doc_id=np.arange(len(texts)),
        status=statuses(_values(truncated, "truncated"), reasons),
        doc_ptr=doc_ptr,
        token_ptr=token_ptr,
        feature=_values(_field(nonzeros, "feature"), "feature"),
        activation=_values(_field(nonzeros, "activation"), "activation"),
        tokens=TokenTable(
            *(_values(_field(tokens, n), f"tokens.{n}") for n in TokenTable.__slots__)
        ),
        reasons=reasons,
        vocabulary=vocabulary,
    )
    return header, chunk


def _nonzero_fields() -> list[Any]:
    import pyarrow as pa

    return [pa.field("feature", pa.uint32()), pa.field("activation", pa.float32())]


def _token_fields() -> list[Any]:
    import pyarrow as pa

    number = pa.uint32()
    return [
        pa.field("id", number),
        pa.field("start", number),
        pa.field("end", number),
        pa.field("special", pa.bool_()),
        pa.field("nonzeros", pa.large_list(pa.struct(_nonzero_fields()))),
    ]


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("truncated", pa.bool_()),
            pa.field("tokens", pa.large_list(pa.struct(_token_fields()))),
        ]
    )


def _plain(kind: Any) -> Any:
    """Return a type as nested tuples: lists of both sizes are the same, and so is nullability."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "list", _plain(kind.value_type)
    if pa.types.is_struct(kind):
        return "struct", tuple(sorted((f.name, _plain(f.type)) for f in kind))
    return str(kind)


def _said(schema: Any) -> str:
    return ", ".join(f"{f.name}: {f.type}" for f in schema)


def _field(array: Any, name: str) -> Any:
    """Return a child of a struct array, cut as the array is."""
    if array.null_count:
        fail(f"nulls around {name!r}")
    return (
        array.field(array.type.get_field_index(name))
        if not array.offset
        else array.flatten()[array.type.get_field_index(name)]
    )


def _unlist(array: Any, what: str) -> tuple[NDArray[np.int64], Any]:
    """Return a list array as a pointer that begins at 0, and the values that it points to."""
    if array.null_count:
        fail(f"nulls in {what!r}")
    offsets = np.asarray(array.offsets).astype(np.int64)
    if not len(offsets):
        offsets = np.zeros(1, np.int64)
    values = array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    return offsets - offsets[0], values


def _values(array: Any, what: str) -> NDArray[Any]:
    if array.null_count:
        fail(f"nulls in {what!r}")
    return array.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
