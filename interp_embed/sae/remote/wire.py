"""The wire format, version 1: documents with their tokens and activations, as Arrow or as JSON.

Both sides use this module. What is read is checked like a file that may be damaged; see
``docs/http.md`` for the description that other implementations go by.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.chunk import Chunk, DocumentStatus, TokenTable, feature_dtype
from interp_embed.sae.assemble import one_line
from interp_embed.sae.remote.arrow_size import unpacked_size
from interp_embed.sae.remote.checks import bits, check_chunk, decimals, fail, numbers
from interp_embed.sae.remote.transport import LONGEST_ANSWER, BadAnswerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "ARROW",
    "JSON",
    "PROTOCOL",
    "Header",
    "decode_arrow",
    "decode_json",
    "encode_arrow",
    "encode_json",
    "has_arrow",
    "parse_json",
    "strings",
]

PROTOCOL = 1
ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"
_KEY = b"interp_embed"
_MOST_FEATURES = 2**31


@dataclass(frozen=True, slots=True)
class Header:
    """What stands in front of the documents.

    Attributes
    ----------
    sae : str
        Names the SAE and its settings: a digest of its fingerprint.
    d_sae : int
        Number of features; 0 where no token was encoded and it is not known.
    """

    sae: str
    d_sae: int


def has_arrow() -> bool:
    """Return whether this machine can read and write Arrow."""
    try:
        import pyarrow as pa  # noqa: F401
    except ImportError:
        return False
    return True


def encode_arrow(chunk: Chunk, sae: str) -> bytes:
    """Return documents as an Arrow IPC stream of one record batch, a row a document."""
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
    schema = _schema().with_metadata({_KEY: json.dumps(_header(chunk, sae, reasons=True)).encode()})
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
        What was asked for.

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
    return header, _finished(chunk, texts)


def _arrow_documents(body: bytes, texts: Sequence[str]) -> tuple[Header, Chunk]:
    """Return what `decode_arrow` does, before it is checked."""
    import pyarrow as pa

    try:
        stream = pa.ipc.open_stream(body)
        schema = stream.schema
        said = parse_json((schema.metadata or {}).get(_KEY, b""), "the schema's metadata")
        header, vocabulary, reasons = _parse_header(said, len(texts))
        wanted = _schema()
        if sorted((f.name, _plain(f.type)) for f in schema) != sorted(
            (f.name, _plain(f.type)) for f in wanted
        ):
            fail(f"columns {_said(schema)}, expected {_said(wanted)}")
        if (size := unpacked_size(body)) > LONGEST_ANSWER:  # before any of it takes memory
            fail(f"Arrow that unpacks to {size:,} bytes, at most {LONGEST_ANSWER:,} are taken")
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
        status=_status(_values(truncated, "truncated"), reasons),
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


def encode_json(chunk: Chunk, sae: str) -> bytes:
    """Return documents as JSON; activations come back as the same float32."""
    documents: list[dict[str, Any]] = []
    bounds, pointer = chunk.doc_ptr.tolist(), chunk.token_ptr.tolist()
    feature = chunk.feature.tolist()
    activation = chunk.activation.astype(np.float32, copy=False).tolist()
    for position, (first, last) in enumerate(pairwise(bounds)):
        if chunk.status[position] == DocumentStatus.FAILED:
            documents.append({"reason": chunk.reasons.get(position, "no reason was given")})
            continue
        spans = list(zip(pointer[first:last], pointer[first + 1 : last + 1], strict=True))
        documents.append(
            {
                "truncated": bool(chunk.status[position] == DocumentStatus.TRUNCATED),
                **{n: getattr(chunk.tokens, n)[first:last].tolist() for n in TokenTable.__slots__},
                "feature": [feature[a:b] for a, b in spans],
                "activation": [activation[a:b] for a, b in spans],
            }
        )
    return json.dumps({**_header(chunk, sae, reasons=False), "documents": documents}).encode()


def decode_json(body: bytes, texts: Sequence[str]) -> tuple[Header, Chunk]:
    """Return the documents of a JSON answer; as `decode_arrow`."""
    said = parse_json(body, "the answer")
    documents = said.get("documents")
    if not isinstance(documents, list) or not all(isinstance(d, dict) for d in documents):
        fail("no list of objects under 'documents'")
    if len(documents) != len(texts):
        fail(f"{len(documents)} documents for {len(texts)} texts")
    reasons = {str(i): d["reason"] for i, d in enumerate(documents) if "reason" in d}
    header, vocabulary, failed = _parse_header({**said, "reasons": reasons}, len(texts))
    tables: list[TokenTable] = []
    nnz: list[int] = []
    features: list[NDArray[np.uint32]] = []
    activations: list[NDArray[np.float32]] = []
    truncated = np.zeros(len(texts), np.bool_)
    for position, document in enumerate(documents):
        where = f"document {position}"
        if position in failed:
            tables.append(TokenTable.empty())
            continue
        cut = document.get("truncated", False)
        if not isinstance(cut, bool):
            fail(f"{where}: 'truncated' is {cut!r:.40}, expected true or false")
        truncated[position] = cut
        ids, start, end = (
            numbers(document.get(n), f"{where}: {n!r}") for n in TokenTable.__slots__[:3]
        )
        table = TokenTable(ids, start, end, bits(document.get("special"), f"{where}: 'special'"))
        found, values = (
            _lists(document.get(n), f"{where}: {n!r}") for n in ("feature", "activation")
        )
        sizes = {len(table.start), len(table.end), len(table.special), len(found), len(values)}
        if sizes != {len(table)}:
            fail(f"{where}: its lists have different lengths: {sorted(sizes | {len(table)})}")
        for token, (f, v) in enumerate(zip(found, values, strict=True)):
            if len(f) != len(v):
                fail(f"{where}: token {token} has {len(f)} features and {len(v)} activations")
        tables.append(table)
        nnz += map(len, found)
        features.append(numbers([n for f in found for n in f], f"{where}: 'feature'"))
        activations.append(decimals([n for v in values for n in v], f"{where}: 'activation'"))
    chunk = Chunk(
        d_sae=header.d_sae,
        doc_id=np.arange(len(texts)),
        status=_status(truncated, failed),
        doc_ptr=_pointer([len(t) for t in tables]),
        token_ptr=_pointer(nnz),
        feature=np.concatenate([np.empty(0, np.uint32), *features]),
        activation=np.concatenate([np.empty(0, np.float32), *activations]),
        tokens=TokenTable.concatenate(tables),
        reasons=failed,
        vocabulary=vocabulary,
    )
    return header, _finished(chunk, texts)


def parse_json(body: bytes | str, what: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises
    ------
    BadAnswerError
        If it is none, or holds NaN or infinity, for which JSON has no numbers.
    """

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a number of JSON")

    try:
        found = json.loads(body, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        begins = body[:40] if isinstance(body, bytes) else body[:40].encode()
        fail(f"{what} is not JSON ({error}); it begins {begins!r}")
    if not isinstance(found, dict):
        fail(f"{what} is a JSON {type(found).__name__}, expected an object")
    return found


def _header(chunk: Chunk, sae: str, *, reasons: bool) -> dict[str, Any]:
    said: dict[str, Any] = {
        "protocol": PROTOCOL,
        "sae": sae,
        "d_sae": chunk.d_sae,
        "vocabulary": {str(k): v for k, v in chunk.vocabulary.items()},
    }
    if reasons:
        said["reasons"] = {str(k): v for k, v in chunk.reasons.items()}
    return said


def _parse_header(
    said: Mapping[str, Any], n_documents: int
) -> tuple[Header, dict[int, str], dict[int, str]]:
    """Return the header, the vocabulary, and the reasons by position."""
    if said.get("protocol") != PROTOCOL:
        fail(f"'protocol' is {said.get('protocol')!r:.40}, expected {PROTOCOL}")
    sae, width = said.get("sae"), said.get("d_sae")
    if not isinstance(sae, str):
        fail(f"'sae' is {sae!r:.40}, expected a string")
    if isinstance(width, bool) or not isinstance(width, int) or not 0 <= width <= _MOST_FEATURES:
        fail(f"'d_sae' is {width!r:.40}, expected a number of features")
    vocabulary = strings(said.get("vocabulary", {}), "vocabulary", 2**32)
    reasons = strings(said.get("reasons", {}), "reasons", n_documents)
    return Header(sae, width), vocabulary, reasons


def strings(found: Any, name: str, most: int) -> dict[int, str]:
    """Return an object whose keys are numbers below ``most`` and whose values are strings."""
    if not isinstance(found, dict):
        fail(f"{name!r} is {found!r:.40}, expected an object")
    for key, value in found.items():
        if not (key.isascii() and key.isdigit() and len(key) < 12 and int(key) < most):
            fail(f"{name!r} has the key {key!r:.40}, expected a number below {most}")
        if not isinstance(value, str):
            fail(f"{name!r} has {value!r:.40} under {key}, expected a string")
    return {int(key): value for key, value in found.items()}


def _status(truncated: NDArray[np.bool_], reasons: Mapping[int, str]) -> NDArray[np.uint8]:
    status = np.where(truncated, DocumentStatus.TRUNCATED, DocumentStatus.OK).astype(np.uint8)
    status[list(reasons)] = DocumentStatus.FAILED
    return status


def _finished(chunk: Chunk, texts: Sequence[str]) -> Chunk:
    """Return the chunk, checked, with feature ids as small as its width allows."""
    check_chunk(chunk, texts)
    return replace(chunk, feature=chunk.feature.astype(feature_dtype(chunk.d_sae)))


def _lists(found: Any, what: str) -> list[list[Any]]:
    if not isinstance(found, list) or not all(isinstance(row, list) for row in found):
        fail(f"{what} is not a list of one list a token")
    return found


def _pointer(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).astype(np.int64)


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
