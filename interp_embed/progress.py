"""When to show progress: to a person at a terminal or in a notebook, not in a log file."""

from __future__ import annotations

import sys

__all__ = ["show_progress"]


def show_progress() -> bool:
    """Return whether somebody is likely to be watching."""
    shell = sys.modules.get("IPython")
    if shell is not None and (running := shell.get_ipython()) is not None:
        return type(running).__name__ == "ZMQInteractiveShell" or sys.stderr.isatty()
    return sys.stderr is not None and sys.stderr.isatty()
