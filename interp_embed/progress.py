"""When to show progress: to a person at a terminal or in a notebook, not in a log file."""

from __future__ import annotations

import contextlib
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["quiet_progress", "show_progress"]


def show_progress() -> bool:
    """Return whether somebody is likely to be watching."""
    shell = sys.modules.get("IPython")
    if shell is not None and (running := shell.get_ipython()) is not None:
        return type(running).__name__ == "ZMQInteractiveShell" or sys.stderr.isatty()
    return sys.stderr is not None and sys.stderr.isatty()


@contextlib.contextmanager
def quiet_progress() -> Iterator[None]:
    """Hide the progress bars of transformers and of the hub where nobody watches; restore them."""
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
