"""A process that has everything imported and forks one child for each line it is sent.

A line of JSON on standard input starts a child that encodes into a store, or runs the command line;
its process id is printed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from fake_sae import FAIL, LOG, WordSAE

from interp_embed import Dataset
from interp_embed.cli import run
from interp_embed.store.write import compaction

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
        return self._send({"store": str(path), "log": str(log)})

    def start_cli(self, arguments, log, **environment):
        """Have a child run a command, and return its process id.

        What it prints goes to a file beside ``log``, and its exit code follows in another.
        """
        task = {"cli": [str(a) for a in arguments], "log": str(log), "environment": environment}
        return self._send(task)

    def _send(self, task):
        self.process.stdin.write(f"{json.dumps(task)}\n")
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


def do(task, log):
    """Do what a child is asked for."""
    os.environ.update({LOG: log, **task.get("environment", {})})
    in_small_steps()
    if "store" in task:
        encode(task["store"], 0.002)
        return 0
    compaction._INDEXED_ENTRIES = 1
    number = os.getpid()
    with Path(f"{log}.out-{number}").open("w") as out, redirect_stdout(out), redirect_stderr(out):
        code = run(task["cli"])
    Path(f"{log}.code-{number}").write_text(str(code))
    return code


def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children leave no zombies
    os.fsync = lambda descriptor: None  # only a power cut could tell
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = do(task, task["log"])
            except BaseException:
                Path(f"{task['log']}.error").write_text(traceback.format_exc())
                raise
            finally:
                os._exit(code)
        print(child, flush=True)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as warm:  # imports and compiles what children need
        encode(f"{warm}/s", 0.0).latents()
        with redirect_stdout(sys.stderr):
            assert run(["encode", f"{warm}/s", "--log", "none"]) == 0
            assert run(["finish", f"{warm}/s"]) == 0
    print("ready", flush=True)
    main()
