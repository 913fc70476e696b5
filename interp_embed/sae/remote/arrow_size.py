"""How many bytes an Arrow stream takes once it is read, found out without unpacking any of it.

Zeros compress a thousandfold and more, so a small answer may be more than this machine has memory for,
and pyarrow has no limit to set. Each compressed buffer begins with its own size; where the buffers are
is in the message's metadata, a flatbuffer of a few fields (Message.fbs of the Arrow format).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from interp_embed.sae.remote.checks import fail

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["unpacked_size"]

# Numbers of the fields of the tables Message and RecordBatch.
_HEADER, _BUFFERS, _COMPRESSION = 2, 2, 3


def unpacked_size(body: bytes) -> int:
    """Return the bytes of all buffers of a stream's record batches, as they say themselves.

    Raises
    ------
    BadAnswerError
        If it is no stream of a schema and record batches.
    """
    import pyarrow as pa

    total = 0
    try:
        for message in pa.ipc.MessageReader.open_stream(body):
            if message.type == "schema":
                continue
            if message.type != "record batch":
                fail(f"Arrow with a message of the kind {message.type!r}")
            total += sum(_sizes(bytes(message.metadata), message.body))
    except struct.error as error:
        fail(f"Arrow whose metadata are damaged ({error})")
    return total


def _sizes(metadata: bytes, body: Any) -> Iterator[int]:
    batch = _table(metadata, _field(metadata, _table(metadata, 0), _HEADER))
    buffers = _field(metadata, batch, _BUFFERS)
    if not buffers:
        return
    packed = bool(_field(metadata, batch, _COMPRESSION))
    first = buffers + _unpack("<I", metadata, buffers)
    for number in range(_unpack("<I", metadata, first)):
        offset = _unpack("<q", metadata, first + 4 + 16 * number)
        length = _unpack("<q", metadata, first + 12 + 16 * number)
        # -1: a buffer that was left as it is.
        unpacked = _unpack("<q", body, offset) if packed and length else -1
        if length < 0 or unpacked < -1:
            fail("Arrow whose metadata are damaged (a buffer of less than no bytes)")
        yield length if unpacked == -1 else unpacked


def _table(data: bytes, at: int) -> int:
    """Return the place of the table that a reference points to."""
    return at + _unpack("<I", data, at)


def _field(data: bytes, table: int, number: int) -> int:
    """Return the place of a table's field; 0 where it has none."""
    entries = table - _unpack("<i", data, table)
    if 4 + 2 * number >= _unpack("<H", data, entries):
        return 0
    offset = _unpack("<H", data, entries + 4 + 2 * number)
    return table + offset if offset else 0


def _unpack(kind: str, data: Any, at: int) -> int:
    if at < 0:  # struct would count from the end
        raise struct.error("an offset below 0")
    value: int = struct.unpack_from(kind, data, at)[0]
    return value
