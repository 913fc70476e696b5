"""A process that has everything imported and forks one child for each line it is sent.

``STORE LOG`` on standard input starts a child that encodes into STORE; its process id is printed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from fake_sae import FAIL, LOG, WordSAE

from interp_embed import Dataset
from interp_embed.store import compaction

N_DOCUMENTS = 48


def documents():
    """Forty-eight documents, each beginning with its own name; one fails and one has no words."""
    texts = [f"doc{i:03d} " + " ".join(f"w{(i * j) % 23}" for j in range(i % 7)) for i in range(48)]
    texts[11] += f" {FAIL}"
    texts[30] = ""
    return [{"text": text, "number": i} for i, text in enumerate(texts)]


def encode(path, slow):
    """Encode in chunks of two documents."""
    return Dataset(
        documents(), WordSAE(slow=slow), save_path=path, batch_size=2, save_every_batch=1
    )


def in_small_steps():
    """Merge into several chunks in several steps, so that there is something to interrupt."""
    compaction.compact.__kwdefaults__.update(target=90, limit=120)


class Server:
    """The process, from the outside."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self, path, log):
        """Have a child encode into ``path``, and return its process id."""
        self.process.stdin.write(f"{path}\t{log}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        self.process.stdout.close()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(pids, seconds=60):
    """Wait until the processes have ended."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.005)


def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children leave no zombies
    os.fsync = lambda descriptor: None  # only a power cut could tell
    for line in sys.stdin:
        path, log = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ[LOG] = log
                in_small_steps()
                encode(path, 0.002)
                code = 0
            except BaseException:
                Path(f"{log}.error").write_text(traceback.format_exc())
                raise
            finally:
                os._exit(code)
        print(child, flush=True)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as warm:  # imports and compiles what children need
        encode(f"{warm}/s", 0.0).latents()
    print("ready", flush=True)
    main()
