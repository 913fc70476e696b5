"""`interp-embed encode STORE`: one worker of several, or one process per GPU of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from tqdm.auto import tqdm

from interp_embed.cli.commands.plan import create_planned, run_finish
from interp_embed.cli.facts import open_store, thousands
from interp_embed.cli.interrupts import COMMITTED, says
from interp_embed.cli.saes import build_sae, quiet_loading, reached, sae_for
from interp_embed.core.progress import chosen_log, log_as
from interp_embed.core.threads import available_cpus
from interp_embed.encode.worker_shares import Worker, missing_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "Process",
    "processes_for",
    "run_encode_planned",
    "run_processes",
    "run_worker",
    "visible_gpus",
]


def run_encode_planned(
    source: str,
    store: str | None,
    *,
    sae: str | None,
    field: str,
    dtype: str,
    description: str,
    chunk_documents: int,
    batch_size: int,
    device: str,
    worker: str | None,
    gpus: str | None,
    processes: int | None,
) -> int:
    """Encode into a store, after writing its documents if they are given; return the exit code.

    Parameters
    ----------
    source, store
        A store and None; or the documents, and the path at which to create the store.
    sae
        As for ``--sae``; None for the one that the store names.
    worker, gpus, processes
        As for the options of these names.
    """
    path = source if store is None else store
    try:
        number = None if worker is None else Worker.parse(worker)
    except ValueError as error:
        raise typer.BadParameter(f"--worker: {error}") from None
    started = None
    if gpus is not None or processes is not None:
        started = processes_for(number, gpus=gpus, processes=processes, device=device)
    if store is not None and sae is not None:
        model = build_sae(sae, "cpu")
        with reached(model):
            create_planned(
                source,
                store,
                model,
                field=field,
                dtype=dtype,
                description=description,
                chunk_documents=chunk_documents,
            )
    if started is None:
        return run_worker(path, number, sae=sae, batch_size=batch_size, device=device)
    # Or say what is there instead, before anything is started.
    left = len(missing_chunks(open_store(path)))
    if len(started) > left > 0:
        print(f"{left} chunks are missing, so only {left} of {len(started)} processes are started")
    started = started[: max(1, left)]
    arguments = ["--batch-size", str(batch_size), *([] if sae is None else ["--sae", sae])]
    return run_processes(path, started, arguments, finish=number is None)


def run_worker(
    path: str, worker: Worker | None, *, sae: str | None, batch_size: int, device: str
) -> int:
    """Encode the missing documents of a store, alone or as one of several workers; return the code."""
    from interp_embed.encode import encode

    begun = time.monotonic()
    with says(COMMITTED), log_as(None, None if worker is None else str(worker)):
        store = open_store(path)
        model = sae_for(store, sae, device)
        quiet_loading()
        report = encode(store, model, worker=worker, batch_size=batch_size)
    left = len(missing_chunks(store)) if worker is not None else 0
    print(
        f"{store.storage.url}: {thousands(report.encoded)} documents encoded, "
        f"{thousands(report.n_tokens)} tokens, {thousands(report.failed)} failed "
        f"({time.monotonic() - begun:.1f} s)"
        + (f"; {thousands(left)} chunks are still missing" if left else "")
    )
    return int(left > 0)


@dataclass(frozen=True, slots=True)
class Process:
    """A process to start.

    Attributes
    ----------
    worker : Worker
    environment : mapping
        The differences from this process's environment.
    device : str
        For ``--device``.
    """

    worker: Worker
    environment: Mapping[str, str]
    device: str


def processes_for(
    worker: Worker | None, *, gpus: str | None, processes: int | None, device: str
) -> list[Process]:
    """Return the processes that ``--gpus`` or ``--processes`` ask for.

    Together they are one worker: with ``worker``, its share is divided among them. The processes of
    ``--processes`` run on the CPU unless ``device`` names another device.
    """
    whole = worker or Worker(0, 1)
    if gpus is not None:
        found = visible_gpus(gpus)
        return [
            Process(whole.part(i, len(found)), {"CUDA_VISIBLE_DEVICES": gpu}, "cuda:0")
            for i, gpu in enumerate(found)
        ]
    count = processes or 1
    # Left alone, each would start a thread for every core.
    threads = str(max(1, available_cpus() // count))
    limits = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}
    place = "cpu" if device == "auto" else device  # all of them would take the first GPU
    return [Process(whole.part(i, count), limits, place) for i in range(count)]


def visible_gpus(wanted: str) -> list[str]:
    """Return the value of ``CUDA_VISIBLE_DEVICES`` for each requested GPU.

    Parameters
    ----------
    wanted
        ``all``; a number of GPUs; or positions among those that this process sees, separated by commas.

    Raises
    ------
    ValueError
        If there are fewer GPUs, or the value is none of these.
    """
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    here = named[:count] if len([n for n in named if n]) >= count else [*map(str, range(count))]
    parts = [part.strip() for part in wanted.split(",")]
    if wanted == "all":
        positions = list(range(count))
    elif not all(part.isdecimal() for part in parts if part) or not any(parts):
        raise ValueError(
            f"--gpus must be 'all', a number of GPUs, or a list such as 0,2, got {wanted!r}"
        )
    elif len(parts) == 1:
        positions = list(range(int(wanted)))
    else:
        positions = [int(part) for part in parts if part]
    if not positions or max(positions) >= count or len(set(positions)) < len(positions):
        raise ValueError(
            f"--gpus {wanted}: this process sees {count} GPU{'s' * (count != 1)}"
            + ("" if count else ". To run processes on the CPU, use --processes N")
        )
    return [here[position] for position in positions]


def run_processes(
    path: str, started: Sequence[Process], arguments: Sequence[str], *, finish: bool
) -> int:
    """Run one process per worker, and return the worst of their exit codes.

    Parameters
    ----------
    path
        The store.
    started
        The processes to start.
    arguments
        Options that all of them get.
    finish
        Whether to finish the store once nothing is missing.
    """
    children: list[subprocess.Popen[str]] = []
    readers: list[threading.Thread] = []
    screen = _Screen([each.worker for each in started], chosen_log())
    with screen, _passed_on(children) as stopped:
        try:
            for each in started:
                command = [sys.executable, "-m", "interp_embed.cli", "encode", path]
                command += ["--worker", str(each.worker), "--device", each.device, *arguments]
                command += ["--log", screen.wanted]
                child = subprocess.Popen(
                    command,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **each.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # Ctrl-C comes from here, once
                )
                children.append(child)
                if stopped:  # since before it was there to be told
                    child.send_signal(stopped[-1])
                readers.append(threading.Thread(target=_show, args=(child, each.worker, screen)))
                readers[-1].start()
        except BaseException:
            for child in children:
                child.terminate()
            raise
        finally:
            codes = [_exit_code(child.wait()) for child in children]
            for reader in readers:
                reader.join()
    worst = max(codes)
    if finish and not stopped and not missing_chunks(open_store(path)):
        run_finish(path)
    return worst


def _exit_code(returned: int) -> int:
    return returned if returned >= 0 else 128 - returned


@contextlib.contextmanager
def _passed_on(children: Sequence[subprocess.Popen[str]]) -> Iterator[list[int]]:
    """Send the signals that end a process on to the children; give those that came."""
    came: list[int] = []

    def send(number: int, frame: Any) -> None:
        came.append(number)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: was for number, was in before.items() if was is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, send)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Screen:
    """What is shown of several processes: a bar for each, their lines of JSON, or their last words."""

    def __init__(self, workers: Sequence[Worker], log: str) -> None:
        self.wanted = "none" if log == "none" else "json"
        self._passes = log == "json"
        self._lock = threading.Lock()
        self._bars = {
            worker: tqdm(desc=f"worker {worker}", unit="doc", position=position)
            for position, worker in enumerate(workers if log == "bar" else ())
        }

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for bar in self._bars.values():
            bar.close()

    def show(self, worker: Worker, line: str) -> None:
        """Show a line that a worker printed."""
        record = None
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                record = json.loads(line)
        with self._lock:
            if not isinstance(record, dict) or "tokens_per_s" not in record:
                text = json.dumps({"worker": str(worker), "message": line})
                tqdm.write(text if self._passes else f"[{worker}] {line}", file=sys.stderr)
            elif self._passes:
                print(line, file=sys.stderr, flush=True)
            elif worker in self._bars:
                bar = self._bars[worker]
                bar.set_postfix_str(
                    f"{record['tokens']:,} tokens, {record['tokens_per_s']:,.0f}/s, "
                    f"{record['failed']} failed",
                    refresh=False,
                )
                bar.update(record["documents"] - bar.n)


def _show(child: subprocess.Popen[str], worker: Worker, screen: _Screen) -> None:
    """Show a child's lines as they come."""
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            if text := line.rstrip():
                screen.show(worker, text)
