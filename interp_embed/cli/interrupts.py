"""What a command says when it is interrupted."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from interp_embed.encode.interrupts import kept_interrupts

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["COMMITTED", "resumable", "says"]

COMMITTED = "what was committed is safe. The same command again goes on from there"
_WRITTEN = "what was written is safe. The same command again goes on from there"


@contextmanager
def says(note: str) -> Iterator[None]:
    """Have an interrupt inside say how to go on, in place of what the library says of it."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.__notes__ = [note]
        raise


@contextmanager
def resumable() -> Iterator[None]:
    """Have SIGTERM end what is inside as Ctrl-C does, and both say how to go on.

    Not for encoding, which minds its signals by itself.
    """
    with says(_WRITTEN), kept_interrupts():
        yield
