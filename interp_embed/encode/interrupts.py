"""Ctrl-C that is never lost, and SIGTERM that is like it.

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

__all__ = ["TerminatedError", "kept_interrupts"]


class TerminatedError(KeyboardInterrupt):
    """The process was sent SIGTERM, as batch systems do before they kill it."""

    signal = signal.SIGTERM


@contextmanager
def kept_interrupts() -> Iterator[Callable[[], None]]:
    """Have SIGTERM raise like SIGINT; give a function that raises what was swallowed of either.

    Outside of the main thread it does nothing; a signal that is ignored, or a SIGTERM that somebody
    else handles, stays as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    arrived: list[KeyboardInterrupt] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    on_interrupt = before[signal.SIGINT]

    def interrupt(number: int, frame: Any) -> None:
        arrived.append(KeyboardInterrupt())
        if callable(on_interrupt):
            on_interrupt(number, frame)

    def terminate(number: int, frame: Any) -> None:
        arrived.append(TerminatedError())
        raise arrived[-1]

    def check() -> None:
        if arrived:
            raise arrived[-1]

    changed = []
    if callable(on_interrupt):
        signal.signal(signal.SIGINT, interrupt)
        changed.append(signal.SIGINT)
    if before[signal.SIGTERM] is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminate)
        changed.append(signal.SIGTERM)
    try:
        yield check
    finally:
        for number in changed:
            signal.signal(number, before[number])
