"""Ctrl-C that is never lost, and SIGTERM that works like it.

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
    from types import FrameType

__all__ = ["TerminatedError", "kept_interrupts"]


class TerminatedError(KeyboardInterrupt):
    """The process was sent SIGTERM, as batch systems do before they kill it."""

    signal = signal.SIGTERM


@contextmanager
def kept_interrupts() -> Iterator[Callable[[], None]]:
    """Make SIGTERM raise like SIGINT; yield a function that raises an interrupt that was swallowed.

    Only the main thread handles signals, so elsewhere this does nothing. A handler that the user
    installed stays in charge: the one for SIGINT is called, and the error that it raises is kept; one
    for SIGTERM is not replaced, nor is a signal that is ignored. The previous handlers are restored
    afterwards, unless other code has installed others meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    with _handlers() as raised:
        earlier = len(raised)

        def check() -> None:
            if len(raised) > earlier:
                raise raised[-1]

        yield check


_outer: list[list[BaseException]] = []
"""What the handlers that are installed now have raised; of the main thread alone."""


@contextmanager
def _handlers() -> Iterator[list[BaseException]]:
    """Give the list of what handlers raise, with those of an outer call where there is one."""
    if _outer:
        yield _outer[-1]
        return
    raised: list[BaseException] = []
    before: dict[signal.Signals, Any] = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    }
    on_interrupt = before[signal.SIGINT]

    def interrupt(number: int, frame: FrameType | None) -> None:
        try:
            on_interrupt(number, frame)
        except BaseException as stop:
            raised.append(stop)
            raise

    def terminate(number: int, frame: FrameType | None) -> None:
        raised.append(TerminatedError())
        raise raised[-1]

    wanted: dict[signal.Signals, Callable[[int, FrameType | None], None]] = {}
    if callable(on_interrupt):
        wanted[signal.SIGINT] = interrupt
    if before[signal.SIGTERM] is signal.SIG_DFL:
        wanted[signal.SIGTERM] = terminate
    _outer.append(raised)
    try:
        for number, handler in wanted.items():
            signal.signal(number, handler)
        yield raised
    finally:
        _outer.clear()
        for number, handler in wanted.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, before[number])
