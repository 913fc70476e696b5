"""A million documents: the store beside DuckDB, scipy, anndata and the original library's way.

Run ``python benchmarks/million.py``. Documents are resampled from real activations (corpus.py), and
written in float16. Each figure is measured in a process of its own, which also says how much memory it
held at most, and is the best of a few runs; the peers run on as many documents as they can hold, and
rates are compared. Prints a table and the targets, and writes JSON and a plot.

A million documents take about 20 GB of disk, and the peers of 100,000 another 10 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from common import machine, peak_memory, remove
from million_report import checks, plot, print_table, print_targets, targets

_HOUR = 3600
_ONE_MATRIX = 100_000  # documents of which a result fits in memory as a whole
_COLD_RUNS = 3

# What is measured in each group, on every corpus.
_OURS = {
    "write": ["write", "index"],
    "count": ["decode", "count most", "count few"],
    "level": ["max", "mean"],
    "statistics": ["index", "statistics", "statistics of a tenth"],
    "top": ["index", "top warm", "top warm, numbers only", "top cold rare", "top cold common"],
    "documents": ["documents"],
    "distributed": [
        *("count most", "count most, 2 processes"),
        *("count most per feature", "count most per feature, 2 processes"),
    ],
}
_FITTING = {"count": ["count most, one matrix"], "level": ["max, one matrix"]}
_TOP_RUNS = ("warm", "cold rare", "cold common")
# What peers do of it, on the corpora of --peers.
_PEERS = {
    "write": ["parquet write", "anndata write", "pickle write"],
    "count": [
        "parquet write",
        *(f"{p} count {t}" for p in ("duckdb", "scipy", "original") for t in ("most", "few")),
    ],
    "level": [
        *("parquet write", "duckdb max", "duckdb sum", "scipy max", "scipy sum"),
        *("original max", "original mean"),
    ],
    "statistics": [
        *("parquet write", "parquet document level", "duckdb frequencies"),
        *("duckdb frequencies of a tenth", "duckdb frequencies, document level"),
    ],
    "top": [
        *("parquet write", "parquet document level"),
        *(f"duckdb top {run}, unsorted" for run in _TOP_RUNS),
        *(f"duckdb top {run}, unsorted document level" for run in _TOP_RUNS),
    ],
    "documents": ["anndata write", "anndata documents"],
    "distributed": [],
}
# The Parquet file that a top 10 is fastest with, on the corpora of --sorted.
_SORTED = {
    "top": [
        *("parquet document level", "duckdb sort"),
        *(f"duckdb top {run}, sorted" for run in _TOP_RUNS),
    ]
}
_PEER_FILES = ("tokens.parquet", "level.parquet", "sorted.parquet", "anndata.zarr", "dataset.pkl")
_PEER_RECORDS = ("parquet", "level", "sort", "anndata")


def measure(arguments: argparse.Namespace) -> None:
    """Do one measurement in this process and print its figures as JSON."""
    import million_duckdb
    import million_peers
    import million_store
    from million_setting import Setting

    warnings.simplefilter("ignore")
    known = {**million_store.MEASURES, **million_duckdb.MEASURES, **million_peers.MEASURES}
    setting = Setting(
        arguments.documents[0],
        arguments.folder,
        arguments.repeat,
        arguments.threads,
        arguments.number,
    )
    found = known[arguments.measure](setting)
    print(json.dumps({"peak": peak_memory(), **found}))


def in_process(name: str, documents: int, arguments: argparse.Namespace, number: int) -> dict:
    """Do one measurement in a process of its own and return its figures, or its error."""
    values = {
        "--measure": name,
        "--documents": documents,
        "--folder": arguments.folder,
        "--repeat": arguments.repeat,
        "--threads": arguments.threads,
        "--number": number,
    }
    command = [sys.executable, __file__, *(str(x) for pair in values.items() for x in pair)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_HOUR, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {_HOUR} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"error": said[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def figures(name: str, documents: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a measurement; of cold runs, the median one."""
    runs = _COLD_RUNS if " cold " in name else 1
    found = [in_process(name, documents, arguments, number) for number in range(runs)]
    if errors := [run for run in found if "error" in run]:
        return errors[0]
    return sorted(found, key=lambda run: run["seconds"] if runs > 1 else 0)[runs // 2]


def names(documents: int, arguments: argparse.Namespace) -> list[str]:
    """Return what to measure on a corpus, in order, each once."""
    wanted = ["write", "index"]
    tables = [(_OURS, True), (_FITTING, documents <= _ONE_MATRIX)]
    tables += [(_PEERS, documents in arguments.peers), (_SORTED, documents in arguments.sorted)]
    for table, applies in tables:
        for group in arguments.only:
            wanted += table.get(group, []) if applies else []
    return list(dict.fromkeys(wanted))


def run(arguments: argparse.Namespace) -> dict[int, dict[str, Any]]:
    """Measure everything on every corpus."""
    results: dict[int, dict[str, Any]] = {}
    for documents in sorted({*arguments.documents, *arguments.peers, *arguments.sorted}):
        results[documents] = {}
        for name in names(documents, arguments):
            found = results[documents][name] = figures(name, documents, arguments)
            said = found.get("error") or ", ".join(
                f"{key} {value:.4g}" for key, value in found.items() if isinstance(value, float)
            )
            print(f"{documents:>9,}  {name:45} {said}", file=sys.stderr, flush=True)
        for file in _PEER_FILES:
            stem, ending = file.split(".")
            remove(arguments.folder / f"{stem}-{documents}.{ending}")
        for record in _PEER_RECORDS:
            remove(arguments.folder / f"{record}-{documents}.json")
        if not arguments.keep:
            remove(arguments.folder / f"store-{documents}.zarr")
            for record in ("write", "index"):
                remove(arguments.folder / f"{record}-{documents}.json")
    return results


def parsed() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--documents", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    add("--peers", type=int, nargs="*", default=[100_000], help="corpora that peers are run on")
    add("--sorted", type=int, nargs="*", help="corpora whose document level DuckDB sorts: --peers")
    add("--folder", type=Path, help="where to write; a temporary folder by default")
    add("--keep", action="store_true", help="leave the stores in --folder, and use those there")
    add("--only", default=",".join(_OURS), help="some of " + ",".join(_OURS))
    add("--repeat", type=int, default=2)
    add("--threads", type=int, default=os.cpu_count())
    add("--results", type=Path, default=Path(__file__).parent / "results")
    add("--measure", help=argparse.SUPPRESS)
    add("--number", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    if unknown := set(arguments.only) - set(_OURS):
        parser.error(f"--only {unknown.pop()}: choose among {','.join(_OURS)}")
    if arguments.keep and arguments.folder is None:
        parser.error("--keep needs a --folder to keep the stores in")
    arguments.sorted = arguments.peers if arguments.sorted is None else arguments.sorted
    return arguments


def main() -> None:
    """Measure, print and write."""
    arguments = parsed()
    if arguments.measure:
        measure(arguments)
        return
    if arguments.folder is None:
        with tempfile.TemporaryDirectory() as folder:
            arguments.folder = Path(folder)
            results = run(arguments)
    else:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        results = run(arguments)
    reached = targets(results)
    same = checks(results)
    print(f"{machine()}; {arguments.threads} threads; float16")
    print_table(results)
    print_targets(reached, same)
    arguments.results.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine(),
        "threads": arguments.threads,
        "results": results,
        "targets": reached,
        "same answers": same,
    }
    (arguments.results / "million.json").write_text(json.dumps(document, indent=1))
    plot(results, arguments.results / "million.png")


if __name__ == "__main__":
    main()
