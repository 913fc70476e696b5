"""One 1-D Zarr v3 array in one sharded object: encoded in memory, read by ranges.

The bytes and the metadata are plain Zarr (``sharding_indexed`` with a checksum on every inner chunk
and on the index); any Zarr reader opens them. They are produced and read here, rather than through a
generic array class, for three reasons: the whole object is known before it is written, so its hash
can be committed; a damaged or missing object is an error instead of fill values; and reading a
document costs two small reads and one inner chunk, with no event loop in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import google_crc32c
import numcodecs
import numpy as np

from interp_embed.errors import CorruptStoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CRC_BYTES", "INDEX_ENTRY", "INNER_ELEMENTS", "ArraySpec", "InnerCodec", "crc"]

INNER_ELEMENTS = 2**16
"""Elements of an inner chunk: the smallest piece that a reader decodes."""

Encoding = Literal["delta", "delta-lz4", "zstd", "lz4", "text"]
CRC_BYTES = 4
INDEX_ENTRY = 16
_CRC32C = {"name": "crc32c"}
_DELTA = "numcodecs.delta"


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """How an array is stored.

    Attributes
    ----------
    dtype : str
        A numpy dtype name, or ``"string"``.
    encoding : {"delta", "delta-lz4", "zstd", "lz4", "text"}
        ``delta`` and ``delta-lz4`` for sorted or slowly varying integers (differences,
        bit-shuffled), ``zstd`` and ``lz4`` bit-shuffled, ``text`` for strings. lz4 is for what
        passes read; see `interp_embed.store.format.layout`.
    dimension : str
        Name of the array's one dimension.
    """

    dtype: str
    encoding: Encoding
    dimension: str

    def metadata(self, length: int, inner: int) -> dict[str, Any]:
        """Return the ``zarr.json`` of an array of ``length`` elements."""
        inner = max(1, min(inner, length))
        shard = max(1, -(-length // inner)) * inner
        text = self.dtype == "string"
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [length],
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "" if text else (False if self.dtype == "bool" else _zero(self.dtype)),
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [inner],
                        "codecs": self._codecs(inner),
                        "index_codecs": [
                            {"name": "bytes", "configuration": {"endian": "little"}},
                            _CRC32C,
                        ],
                        "index_location": "end",
                    },
                }
            ],
            "dimension_names": [self.dimension],
            "attributes": {},
        }

    def _codecs(self, inner: int) -> list[dict[str, Any]]:
        if self.encoding == "text":
            return [
                {"name": "vlen-utf8"},
                {"name": "zstd", "configuration": {"level": 3, "checksum": False}},
                _CRC32C,
            ]
        dtype = np.dtype(self.dtype).newbyteorder("<")
        as_bytes: dict[str, Any] = {"name": "bytes"}
        if dtype.itemsize > 1:
            as_bytes["configuration"] = {"endian": "little"}
        blosc = {
            "typesize": dtype.itemsize,
            "cname": "lz4" if self.encoding in ("lz4", "delta-lz4") else "zstd",
            "clevel": 1,
            "shuffle": "bitshuffle",
            # One block an inner chunk: smaller and up to 1.6 times faster to decode than the
            # block size that Blosc would choose.
            "blocksize": inner * dtype.itemsize,
        }
        codecs = [as_bytes, {"name": "blosc", "configuration": blosc}, _CRC32C]
        if self.encoding in ("delta", "delta-lz4"):
            codecs.insert(0, {"name": _DELTA, "configuration": {"dtype": dtype.str}})
        return codecs


def _zero(dtype: str) -> int | float:
    return 0.0 if np.dtype(dtype).kind == "f" else 0


def crc(data: bytes | NDArray[np.uint8]) -> bytes:
    """Return the CRC32C of some bytes as it is stored behind them."""
    return int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


class InnerCodec:
    """The inner chunk's codecs of an array, read from its metadata."""

    def __init__(self, metadata: dict[str, Any], where: str) -> None:
        configuration = metadata["codecs"][0]["configuration"]
        names = [c["name"] for c in configuration["codecs"]]
        by_name = {c["name"]: c.get("configuration", {}) for c in configuration["codecs"]}
        self.inner = int(configuration["chunk_shape"][0])
        self.delta = names[0] == _DELTA
        self.text = names[0] == "vlen-utf8"
        if names[-1] != "crc32c" or not {"blosc", "zstd"} & set(names):
            raise CorruptStoreError(f"{where} uses codecs {names}, which this format does not have")
        if "blosc" in by_name:
            blosc = by_name["blosc"]
            self.compressor: Any = numcodecs.Blosc(
                cname=blosc["cname"],
                clevel=blosc["clevel"],
                shuffle=numcodecs.Blosc.BITSHUFFLE,
                blocksize=blosc["blocksize"],
                typesize=blosc["typesize"],
            )
        else:
            self.compressor = numcodecs.Zstd(level=by_name["zstd"]["level"])
        self.dtype: np.dtype[Any] = (
            np.dtype(object) if self.text else np.dtype(metadata["data_type"]).newbyteorder("<")
        )

    def encode(self, values: NDArray[Any]) -> bytes:
        """Return an inner chunk of these elements, padded to its length, checksum included."""
        if len(values) < self.inner:  # an inner chunk at the end is padded with the fill value
            padding = np.full(self.inner - len(values), "" if self.text else 0, self.dtype)
            values = np.concatenate([values, padding])
        if self.text:
            raw = numcodecs.VLenUTF8().encode(values)
        elif self.delta:
            raw = np.empty_like(values)
            raw[:1] = values[:1]
            np.subtract(values[1:], values[:-1], out=raw[1:])
        else:
            raw = np.ascontiguousarray(values)
        compressed = bytes(self.compressor.encode(raw))
        checksum: int = google_crc32c.value(compressed)
        return compressed + checksum.to_bytes(CRC_BYTES, "little")

    def decode(
        self, data: bytes | NDArray[np.uint8], out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Return the elements of an inner chunk, padding included; in ``out`` where it fits."""
        compressed = data[:-CRC_BYTES]
        if crc(compressed) != bytes(data[-CRC_BYTES:]):
            raise ValueError("checksum mismatch")
        if self.text:
            raw = self.compressor.decode(compressed)
            return np.asarray(numcodecs.VLenUTF8().decode(raw), dtype=object)
        if out is None or len(out) != self.inner or out.dtype != self.dtype:
            out = np.empty(self.inner, self.dtype)
        self.compressor.decode(compressed, out=out)
        if self.delta:
            np.cumsum(out, dtype=self.dtype, out=out)
        return out
