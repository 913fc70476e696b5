"""Files of documents: finding those that a path, URL or pattern means, their formats, opening them."""

from __future__ import annotations

import glob
import gzip
import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FORMATS", "DamagedFileError", "DocumentFile", "find_files"]

_BY_SUFFIX = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
FORMATS = {
    "csv": "CSV",
    "tsv": "TSV",
    "jsonl": "JSON Lines",
    "json": "JSON",
    "parquet": "Parquet",
}
"""Names of the formats, for people."""
_PARQUET, _GZIP = b"PAR1", b"\x1f\x8b"
_HEAD = 4096
_IF_FILES_ARE_TEXTS = (
    ". If each file is a document, pass a generator in Python: "
    "({'text': p.read_text(), 'path': str(p)} for p in sorted(Path(folder).glob('*.txt')))"
)
_MAGIC = frozenset("*?[")
_STORE = "zarr.json"


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """One file.

    Attributes
    ----------
    path : str
        A local path or a URL.
    format : {"csv", "tsv", "jsonl", "json", "parquet"}
        Detected from the first bytes, falling back to the suffix.
    compressed : bool
        Whether it is compressed with gzip.
    """

    path: str
    format: str
    compressed: bool

    def open(self) -> IO[bytes]:
        """Open it for reading, uncompressed."""
        raw: IO[bytes] = _open(self.path)
        return cast("IO[bytes]", _Unzipped(raw)) if self.compressed else raw

    def open_text(self) -> IO[str]:
        """Open it as text."""
        return io.TextIOWrapper(self.open(), "utf-8-sig", newline="\n")

    def damaged(self, error: Exception) -> ValueError:
        """Return an error that names the file, unless this one does."""
        if isinstance(error, DamagedFileError):
            return error
        said = self._not_utf8() if isinstance(error, UnicodeDecodeError) else str(error)
        return DamagedFileError(f"{self.path} cannot be read as {FORMATS[self.format]}: {said}")

    def _not_utf8(self) -> str:
        with self.open() as lines:
            for number, line in enumerate(lines, 1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    byte = line[error.start]
                    return f"line {number} is not UTF-8 (byte 0x{byte:02x}); save it as UTF-8"
        return "the text is not UTF-8; save it as UTF-8"


class DamagedFileError(ValueError):
    """An error whose message already names the file."""


class _Unzipped(gzip.GzipFile):
    """Also closes the underlying file."""

    def __init__(self, below: IO[bytes]) -> None:
        super().__init__(fileobj=below)
        self._below = below

    def close(self) -> None:
        super().close()
        self._below.close()


def find_files(path: str | os.PathLike[str]) -> list[DocumentFile]:
    """Return the files that a path, a URL, a folder or a pattern means, sorted by name.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If the format of a file is unknown.
    """
    text = os.fspath(path)
    found = list(_remote(text) if "://" in text else _local(text))
    return [_recognised(name) for name in found]


def _local(text: str) -> Iterator[str]:
    if not text:
        raise FileNotFoundError(
            2, "data must be a file, a folder or a pattern, got an empty path", ""
        )
    text = os.path.expanduser(text)  # noqa: PTH111  (keeps the path as it was given)
    if Path(text).is_dir():
        yield from _of_folder(text, [str(p) for p in sorted(Path(text).rglob("*")) if p.is_file()])
    elif Path(text).exists() or not _MAGIC & set(text):
        if not Path(text).exists():
            raise FileNotFoundError(2, "No such file or directory", text)
        yield text
    else:
        found = sorted(name for name in glob.glob(text, recursive=True) if Path(name).is_file())  # noqa: PTH207
        if not found:
            raise FileNotFoundError(2, "No file matches this pattern", text)
        yield from found


def _remote(url: str) -> Iterator[str]:
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    if _MAGIC & set(path) and not fs.exists(path):
        found = sorted(name for name in fs.glob(path) if fs.isfile(name))
        if not found:
            raise FileNotFoundError(2, "No file matches this pattern", url)
        yield from (fs.unstrip_protocol(name) for name in found)
    elif fs.isdir(path):
        yield from _of_folder(url, [fs.unstrip_protocol(name) for name in sorted(fs.find(path))])
    elif not fs.exists(path):
        raise FileNotFoundError(2, "No such file or directory", url)
    else:
        yield url


def _of_folder(folder: str, names: list[str]) -> list[str]:
    """Return the files in a folder that have a suffix of documents.

    Hidden files are left out. So are stores and everything in them, because a store may lie beside a
    corpus.
    """
    stores = {PurePosixPath(name).parent for name in names if PurePosixPath(name).name == _STORE}
    found = [
        name
        for name in names
        if _named_format(name)
        and not PurePosixPath(name).name.startswith((".", "_"))
        and not stores.intersection(PurePosixPath(name).parents)
    ]
    if not found:
        raise FileNotFoundError(
            2, f"No file in this folder ends in {', '.join(_BY_SUFFIX)}, or in one of them and .gz"
            f"{_IF_FILES_ARE_TEXTS}", folder,
        )  # fmt: skip
    return found


def _named_format(name: str) -> str | None:
    suffixes = [s.lower() for s in PurePosixPath(name).suffixes if s.lower() != ".gz"]
    return _BY_SUFFIX.get(suffixes[-1]) if suffixes else None


def _open(path: str) -> Any:
    if "://" not in path:
        return Path(path).open("rb")
    import fsspec

    return fsspec.open(path, "rb").open()


def _recognised(path: str) -> DocumentFile:
    with _open(path) as file:
        head = file.read(_HEAD)
    compressed = head.startswith(_GZIP)
    if compressed:
        try:
            with _Unzipped(_open(path)) as file:
                head = file.read(_HEAD)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} cannot be read as gzip: {error}") from error
    kind = _format_of(head, _named_format(path))
    if kind is None:
        raise ValueError(
            f"{path} has an unknown format. Pass a file that ends in "
            f"{', '.join(_BY_SUFFIX)}, or one of these followed by .gz{_IF_FILES_ARE_TEXTS}"
        )
    return DocumentFile(path, kind, compressed)


def _format_of(head: bytes, named: str | None) -> str | None:
    if head.startswith(_PARQUET):
        return "parquet"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if named in (None, "json", "jsonl") and start in (b"[", b"{"):
        return "json" if start == b"[" else "jsonl"
    return named
