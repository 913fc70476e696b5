"""Search with hypothesis until the time is over: ``python -m tests.support.fuzz 600``.

Each core runs the property tests over and over, each time with a seed of its own and ten times as many
examples as `make test`. The first failure ends the search, and is printed with the command that
repeats it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROFILE = "--hypothesis-profile=fuzz"


class Round:
    """One run of the property tests in a process."""

    def __init__(self, until: float, arguments: list[str], folder: str) -> None:
        self.seed = secrets.randbelow(2**32)
        self.output = Path(folder) / str(self.seed)
        seed = f"--hypothesis-seed={self.seed}"
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "hypothesis", PROFILE, seed]
        print(f"seed {self.seed}", flush=True)
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "FUZZ_UNTIL": str(until)},
            )

    def failure(self) -> str:
        """Return what a process that has ended found, or nothing."""
        said = self.output.read_text(errors="replace")
        if self.process.returncode == 0 or "the time is over" in said:
            return ""
        repeat = [
            f"{sys.executable} -m pytest '{test}' {PROFILE} --hypothesis-seed={self.seed}"
            for test in re.findall(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
        ]
        return "\n".join([said, "To see it again:", *(repeat or ["(see above)"])])


def search(seconds: float, arguments: list[str]) -> str:
    """Search on every core; return the first failure, or nothing when the time is over."""
    until = time.time() + seconds
    with tempfile.TemporaryDirectory() as folder:
        rounds = [Round(until, arguments, folder) for _ in range(os.cpu_count() or 1)]
        try:
            while rounds:
                time.sleep(0.5)
                for ended in [r for r in rounds if r.process.poll() is not None]:
                    if failure := ended.failure():
                        return failure
                    rounds.remove(ended)
                    if time.time() < until:
                        rounds.append(Round(until, arguments, folder))
        finally:
            for left in rounds:
                left.process.terminate()
            for left in rounds:
                left.process.wait()
    return ""


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(search(float(sys.argv[1]), sys.argv[2:]) or None)
