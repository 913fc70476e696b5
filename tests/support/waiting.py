"""Waiting for what is bound to happen, on however slow a machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

PATIENCE = 300.0
"""Seconds after which something will never happen: half of what a test may take."""


def wait_until(
    happens: Callable[[], object], child: subprocess.Popen[str] | None = None, pause: float = 0.005
) -> None:
    """Wait until ``happens()``; fail if ``child`` ends before, or never comes that far."""
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert child is None or child.poll() is None, child.communicate()
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(pause)
