"""Ctrl-C that is never lost.

Python raises `KeyboardInterrupt` wherever the main thread happens to be, and where that is a callback
or a destructor the exception is printed and dropped. A run of hours must not go on after that.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["kept_interrupts"]


@contextmanager
def kept_interrupts() -> Iterator[Callable[[], None]]:
    """Give a function that raises `KeyboardInterrupt` if one was swallowed since the context began.

    Outside of the main thread, or where SIGINT is ignored, it does nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: None
        return
    interrupted = False

    def remember(number: int, frame: Any) -> None:
        nonlocal interrupted
        interrupted = True
        before(number, frame)

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, remember)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
