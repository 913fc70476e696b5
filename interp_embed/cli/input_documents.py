"""The documents of a command's INPUT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp_embed.inputs import MissingFieldError, as_documents

if TYPE_CHECKING:
    from interp_embed.inputs import Documents

__all__ = ["open_documents"]


def open_documents(source: str, field: str) -> Documents:
    """Open a file, a URL or a pattern; only its beginning is read.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a table, or has no column ``field``.
    """
    try:
        return as_documents(source, field)
    except MissingFieldError as error:
        raise ValueError(
            f"{source} has no column {field!r}; its columns are {error.columns}. Name the column with "
            "the text with --field"
        ) from None
