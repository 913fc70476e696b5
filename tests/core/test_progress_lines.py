"""What the library has to say is logged, and printed by nobody but the command line."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING

from interp_embed.cli.logs import shown_log
from interp_embed.core.progress import log_as, say

if TYPE_CHECKING:
    import pytest


def test_a_line_is_a_warning_of_the_librarys_logger(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    say("a server does not answer, 100 %s of it")
    with log_as("none"):
        say("unheard")
    assert caplog.record_tuples == [
        ("interp_embed", logging.WARNING, "a server does not answer, 100 %s of it")
    ]
    assert capfd.readouterr() == ("", "")


def test_the_command_line_shows_lines_while_a_command_runs(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("interp_embed")
    before = logger.level, list(logger.handlers)
    with shown_log():
        say("one")
        logging.getLogger("interp_embed.serve").info("two")
        logging.getLogger("interp_embed.serve").debug("three")
    assert capfd.readouterr() == ("", "one\ntwo\n")
    assert (logger.level, list(logger.handlers)) == before


def test_without_any_handler_a_line_is_on_stderr_once() -> None:
    code = "from interp_embed.core.progress import say; say('nobody answers')"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (child.stdout, child.stderr) == ("", "nobody answers\n")
