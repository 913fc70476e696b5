"""Deciding whether and how to show progress: at a terminal or in a notebook, not in a log file."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from contextvars import ContextVar
from typing import TYPE_CHECKING

from interp_embed.core.checks import check_one_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["chosen_log", "log_as", "logged_worker", "quiet_progress", "say", "show_progress"]

_LOGGER = logging.getLogger("interp_embed")
_LOGS = ("bar", "json", "none")
_log: ContextVar[str | None] = ContextVar("log", default=None)
_worker: ContextVar[str | None] = ContextVar("worker", default=None)


def chosen_log(log: str | None = None) -> str:
    """Return how to report progress: ``"bar"``, ``"json"`` or ``"none"``.

    Parameters
    ----------
    log
        The requested form. None means the form of `log_as`, or else a bar if somebody is watching.

    Raises
    ------
    ValueError
        If it is none of the three.
    """
    log = _log.get() if log is None else log
    if log is None:
        return "bar" if show_progress() else "none"
    check_one_of("log", log, _LOGS)
    return log


@contextlib.contextmanager
def log_as(log: str | None, worker: str | None = None) -> Iterator[None]:
    """Set the form of progress, and the worker's name, for encoding that happens inside.

    None leaves either unchanged.
    """
    before = _log.set(_log.get() if log is None else chosen_log(log))
    nobody = _worker.set(_worker.get() if worker is None else worker)
    try:
        yield
    finally:
        _worker.reset(nobody)
        _log.reset(before)


def logged_worker() -> str | None:
    """Return the worker whose progress is reported, if it is one of several."""
    return _worker.get()


def show_progress() -> bool:
    """Return whether somebody is likely to be watching."""
    shell = sys.modules.get("IPython")
    if shell is not None and (running := shell.get_ipython()) is not None:
        return type(running).__name__ == "ZMQInteractiveShell" or sys.stderr.isatty()
    return sys.stderr is not None and sys.stderr.isatty()


def say(line: str) -> None:
    """Log a line as a warning of the logger ``interp_embed``, unless `log_as` says "none".

    Use it for facts that a waiting person or a later reader of the log should know, for example that a
    server does not answer.
    """
    if _log.get() != "none":
        _LOGGER.warning(line)


@contextlib.contextmanager
def quiet_progress() -> Iterator[None]:
    """Hide the progress bars of transformers and of the hub if nobody is watching; restore them."""
    if show_progress():
        yield
        return
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
    )
    from transformers.utils import logging

    shown, hub_hidden = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    if not shown:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the environment has the last word for the hub's
        logging.disable_progress_bar()  # the hub's too
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.enable_progress_bar()
            if hub_hidden:
                disable_progress_bars()
