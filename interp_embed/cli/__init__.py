"""The command line: `interp-embed`.

Owns the arguments, what is printed, and exit codes: 0 for done, 1 for an error, 2 for a command that
cannot be understood, 130 after Ctrl-C. Nothing imports it. What a command needs is imported when the
command runs, so that ``interp-embed --help`` answers at once.
"""

from __future__ import annotations

import sys

from interp_embed.cli.run import run

__all__ = ["main", "run"]


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))
