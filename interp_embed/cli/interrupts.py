"""The messages of a command that is interrupted."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from interp_embed.encode.interrupts import kept_interrupts

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["COMMITTED", "resumable", "says"]

COMMITTED = "everything committed is safe. Run the same command again to resume"
_WRITTEN = "everything written is safe. Run the same command again to resume"


@contextmanager
def says(note: str) -> Iterator[None]:
    """Have an interrupt inside say how to resume, in place of the library's own message."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.__notes__ = [note]
        raise


@contextmanager
def resumable() -> Iterator[None]:
    """Have SIGTERM end what is inside as Ctrl-C does, and both say how to resume.

    Not for encoding, which handles its signals by itself.
    """
    with says(_WRITTEN), kept_interrupts():
        yield
