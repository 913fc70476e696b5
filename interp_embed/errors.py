"""The errors a caller may want to catch by name.

Each subclasses the builtin that a caller who has never heard of this library would expect, so that
``except ValueError`` and ``except OSError`` do what they say. Messages state what was wrong, which
value, where, and what to do about it.
"""

from __future__ import annotations

__all__ = [
    "CorruptIndexError",
    "CorruptStoreError",
    "DiskFullError",
    "FingerprintMismatchError",
    "NotAStoreError",
    "ResultTooLargeError",
    "SAENotLoadedError",
    "SAEUnavailableError",
    "SingleWriterError",
    "StoreExistsError",
    "UnsafePickleError",
    "UnsupportedFormatError",
]


class NotAStoreError(FileNotFoundError):
    """Nothing at the given path can be read as a store."""


class StoreExistsError(FileExistsError):
    """The path for a new store is taken by something that must not be overwritten."""


class UnsupportedFormatError(ValueError):
    """The store was written in a format version that this release does not know."""


class CorruptStoreError(OSError):
    """Bytes on disk are not the bytes that were committed."""


class CorruptIndexError(CorruptStoreError):
    """The index of a store is damaged. The data that it was built from may be intact."""


class FingerprintMismatchError(ValueError):
    """A run was resumed with another SAE, other documents or other settings."""


class SingleWriterError(PermissionError):
    """A second writer was opened on a storage that cannot arbitrate between two."""


class ResultTooLargeError(MemoryError):
    """A result would not fit in memory. It is refused before any work begins."""


class DiskFullError(OSError):
    """There is no room on the disk for new data. Everything committed before is safe."""


class SAENotLoadedError(RuntimeError):
    """An SAE was asked to encode before its models were loaded."""


class SAEUnavailableError(ConnectionError):
    """The encoding service cannot be used at all. The run ends, and no document is marked failed."""


class UnsafePickleError(ValueError):
    """A pickle asked for something other than arrays, frames and plain values."""
