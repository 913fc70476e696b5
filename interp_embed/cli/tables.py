"""Reading documents from a file: CSV, TSV, JSON Lines, JSON or Parquet.

The text column comes as it is written: `NA` and `007` stay text.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["read_table"]

_BY_SUFFIX = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_NAMES = {
    "csv": "CSV",
    "tsv": "TSV",
    "jsonl": "JSON Lines",
    "json": "JSON",
    "parquet": "Parquet",
}
_PARQUET, _GZIP = b"PAR1", b"\x1f\x8b"


def read_table(path: str, field: str) -> pd.DataFrame:
    """Read documents, one a row.

    What the file is is told by its first bytes where they say it, and by its suffix where they do
    not. It may be compressed with gzip.

    Parameters
    ----------
    path
        The file.
    field
        Column that holds the text.

    Raises
    ------
    ValueError
        If the file is none of these, or damaged.
    """
    data = Path(path).read_bytes()
    suffixes = [s.lower() for s in Path(path).suffixes]
    if data.startswith(_GZIP):
        data = gzip.decompress(data)
        suffixes = [s for s in suffixes if s != ".gz"]
    kind = _kind(data, suffixes[-1] if suffixes else "")
    if kind is None:
        raise ValueError(
            f"{path}: cannot tell what this is. Expected a file that ends in "
            f"{', '.join(_BY_SUFFIX)}, or one of these followed by .gz"
        )
    try:
        return _read(data, kind, field)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as {_NAMES[kind]}: {error}") from error


def _kind(data: bytes, suffix: str) -> str | None:
    if data.startswith(_PARQUET):
        return "parquet"
    named = _BY_SUFFIX.get(suffix)
    start = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if named in (None, "json", "jsonl") and start in (b"[", b"{"):
        return "json" if start == b"[" else "jsonl"
    return named


def _read(data: bytes, kind: str, field: str) -> pd.DataFrame:
    if kind == "parquet":
        return pd.read_parquet(io.BytesIO(data))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} is not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8"
        ) from None
    if kind in ("csv", "tsv"):
        return pd.read_csv(
            io.StringIO(text), sep="," if kind == "csv" else "\t", converters={field: str}
        )
    return _frame(json.loads(text) if kind == "json" else _json_lines(text), field)


def _json_lines(text: str) -> list[Any]:
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:  # which counts lines within the line
            raise ValueError(f"line {number}: {error.msg} (column {error.colno})") from None
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return records


def _frame(records: Any, field: str) -> pd.DataFrame:
    if not isinstance(records, list):
        raise ValueError(f"expected a list of objects, got {type(records).__name__}")
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise ValueError(f"record {number} is no object but {type(record).__name__}")
    return pd.DataFrame(records) if records else pd.DataFrame({field: []}, dtype=object)
