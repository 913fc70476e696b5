"""The command line: `interp-embed`.

Owns the arguments, what is printed, and exit codes: 0 for done, 1 for an error, 2 for a command that
cannot be understood, 130 after Ctrl-C and 143 after SIGTERM. Nothing imports it. A command's imports
happen when the command runs, so that ``interp-embed --help`` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys

from interp_embed.cli.run import run

__all__ = ["main", "run"]


def main() -> None:
    """Run the command line and leave with its exit code."""
    code = run(sys.argv[1:])
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        # Threads that wait for a disk would be waited for.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
