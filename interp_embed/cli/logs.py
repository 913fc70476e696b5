"""The library's log, shown to the user of a command."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["shown_log"]


class _Lines(logging.Handler):
    """Writes lines to stderr, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm.auto import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except OSError:  # whoever read stderr has gone
            self.handleError(record)


@contextlib.contextmanager
def shown_log() -> Iterator[None]:
    """Show the library's log messages inside, from level INFO up."""
    logger, handler = logging.getLogger("interp_embed"), _Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
