"""What the figures of the million-document benchmark say: table, targets, plot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

Results = dict[int, dict[str, Any]]

_PASSES = ("count most", "count few", "max", "mean", "statistics", "statistics of a tenth")
_MEMORY = 1.5e9
_GROWTH = 1.15
_PROCESSES = "count most, 2 processes"


def _done(results: Results, documents: int, name: str) -> dict[str, Any] | None:
    found = results[documents].get(name)
    return None if found is None or "error" in found else found


def _sizes(results: Results, *measures: str) -> list[int]:
    """Return the corpora on which all of some measurements were made, smallest first."""
    return [n for n in sorted(results) if all(_done(results, n, m) for m in measures)]


def _cost(results: Results, documents: int, name: str, part: str) -> float:
    """Return seconds; a nonzero, where a peer ran on some of the documents only."""
    found = results[documents][name]
    whole = results[documents]["write"]["nnz"]
    return float(found[part]) * (whole / found["nnz"] if "nnz" in found else 1)


def _ratio(
    results: Results,
    text: str,
    ours: str,
    peer: str,
    at_least: float,
    part: str = "seconds",
    *,
    largest: bool = False,
) -> dict[str, Any]:
    """Return how many times faster one measurement is than another.

    On the largest corpus that both were made on; with ``largest``, each on its largest.
    """
    own, other = _sizes(results, ours), _sizes(results, peer)
    if not largest:
        own = other = _sizes(results, ours, peer)
    if not own or not other:
        return _target(text, None, at_least, "x", "")
    slow = _cost(results, other[-1], peer, part)
    fast = _cost(results, own[-1], ours, part)
    where = f"{own[-1]:,}" + (f" / {other[-1]:,}" if own[-1] != other[-1] else "")
    return _target(text, slow / fast, at_least, "x", where)


def _target(
    text: str,
    value: float | None,
    limit: float,
    unit: str,
    documents: str,
    *,
    at_most: bool = False,
) -> dict[str, Any]:
    reached = None if value is None else value <= limit if at_most else value >= limit
    return {
        "target": text,
        "value": value,
        "limit": limit,
        "limit is": "at most" if at_most else "at least",
        "unit": unit,
        "documents": documents,
        "reached": reached,
    }


def _at_most(text: str, found: tuple[float, str] | None, limit: float, unit: str) -> dict[str, Any]:
    value, where = found or (None, "")
    return _target(text, value, limit, unit, where, at_most=True)


def _figure(results: Results, name: str, part: str, scale: float = 1.0) -> tuple[float, str] | None:
    sizes = _sizes(results, name)
    return (scale * results[sizes[-1]][name][part], f"{sizes[-1]:,}") if sizes else None


def _peak(results: Results, documents: int) -> dict[str, float]:
    found = {name: _done(results, documents, name) for name in (*_PASSES, _PROCESSES)}
    return {k: max(v["peak"], v.get("worker peak", 0)) for k, v in found.items() if v}


def _memory(results: Results) -> list[dict[str, Any]]:
    sizes = [n for n in sorted(results) if _peak(results, n)]
    highest = growth = None
    if sizes:
        highest = max(_peak(results, sizes[-1]).values()) / 1e9, f"{sizes[-1]:,}"
    if len(sizes) > 1:
        before, after = _peak(results, sizes[-2]), _peak(results, sizes[-1])
        ratios = [after[k] / before[k] for k in before.keys() & after.keys()]
        growth = max(ratios), f"{sizes[-1]:,} / {sizes[-2]:,}"
    return [
        _at_most("memory of any pass", highest, _MEMORY / 1e9, "GB"),
        _at_most("memory of a pass, to the next smaller corpus", growth, _GROWTH, "x"),
    ]


def targets(results: Results) -> list[dict[str, Any]]:
    """Return each target with what was measured, and whether it was reached.

    ``reached`` is None where it was not measured.
    """
    found = [
        _ratio(results, "count of most, to DuckDB", "count most", "duckdb count most", 8),
        _ratio(results, "count of most, to the original", "count most", "original count most", 5),
        _ratio(results, "count of most, to the bare decode", "count most", "decode", 0.6),
        _ratio(results, "count of few, to DuckDB", "count few", "duckdb count few", 3),
        _ratio(results, "max to CSR, to DuckDB", "max", "duckdb max", 15),
        _ratio(results, "max to one CSR matrix, to DuckDB", "max, one matrix", "duckdb max", 15),
        _ratio(results, "document frequencies, to DuckDB", "statistics", "duckdb frequencies", 50),
    ]
    for kind in ("rare", "common"):
        text, peer = f"top 10 warm, {kind}", "duckdb top warm"
        found += [
            _ratio(
                results, f"{text}, to sorted", "top warm", f"{peer}, sorted", 1, kind, largest=True
            ),
            _ratio(
                results,
                f"{text}, numbers only, to sorted",
                "top warm, numbers only",
                f"{peer}, sorted",
                1,
                kind,
                largest=True,
            ),
            _ratio(results, f"{text}, to unsorted", "top warm", f"{peer}, unsorted", 20, kind),
            _at_most(text, _figure(results, "top warm", kind, 1e3), 20, "ms"),
            _ratio(
                results,
                f"top 10 cold, {kind}, to sorted",
                f"top cold {kind}",
                f"duckdb top cold {kind}, sorted",
                1,
                largest=True,
            ),
        ]
    found += [
        _ratio(results, "index, to DuckDB's sort", "index", "duckdb sort", 5),
        _ratio(results, "random document, to anndata", "documents", "anndata documents", 3),
        *_memory(results),
    ]
    for name in ("count most per feature", "count most"):
        both = _sizes(results, name, f"{name}, 2 processes")
        slower = None
        if both:
            threads, processes = (
                results[both[-1]][m]["seconds"] for m in (name, f"{name}, 2 processes")
            )
            slower = processes / threads, f"{both[-1]:,}"
        found.append(_at_most(f"{name}, 2 processes to threads", slower, 1.3, "x"))
    sizes = _sizes(results, "index")
    held = None
    if sizes:
        made = results[sizes[-1]]
        held = made["index"]["bytes"] / made["write"]["nnz"], f"{sizes[-1]:,}"
    found.append(_at_most("bytes a nonzero, index included", held, 6, "B"))
    return found


def checks(results: Results) -> dict[str, bool]:
    """Return whether the store and its peers gave the same answers, by question and corpus."""
    found: dict[str, bool] = {}
    for n in results:
        for ours, peer, part in (
            ("count most", "duckdb count most", "entries"),
            ("count few", "duckdb count few", "entries"),
            ("max", "duckdb max", "entries"),
            ("statistics", "duckdb frequencies", "total"),
            ("statistics of a tenth", "duckdb frequencies of a tenth", "total"),
            ("top warm", "duckdb top warm, sorted", "values"),
            ("top warm, numbers only", "duckdb top warm, sorted", "values"),
            ("top warm", "duckdb top warm, unsorted", "values"),
        ):
            a, b = _done(results, n, ours), _done(results, n, peer)
            if a and b:
                found[f"{ours} as {peer}, {n:,}"] = a[part] == b[part]
    return found


def print_table(results: Results) -> None:
    """Print every figure."""
    for documents, made in results.items():
        nnz = made["write"].get("nnz", 0)
        print(f"\n{documents:,} documents, {nnz:,} nonzeros")
        print(f"{'':45}{'time':>12}{'M nonzeros/s':>14}{'memory MB':>11}{'bytes/nnz':>11}")
        for name, found in made.items():
            if "error" in found:
                print(f"{name:45}{found['error'][:80]}")
                continue
            size = found.get("nnz", nnz)
            for part in ("seconds", "finished", "row", "rare", "common"):
                if part in found:
                    print(_line(name, part, found, size))


def _line(name: str, part: str, found: dict[str, Any], nnz: int) -> str:
    seconds = found[part]
    short = "documents" in name or " cold " in name or part not in ("seconds", "finished")
    label = name if part == "seconds" else f"{name}, {part}"
    if found.get("reused"):
        label += " (kept from an earlier run)"
    time = f"{seconds * 1e3:9.2f} ms" if short or seconds < 0.1 else f"{seconds:9.2f} s "
    line = f"{label:45}{time:>12}"
    line += f"{'':14}" if short else f"{nnz / seconds / 1e6:14.1f}"
    line += f"{max(found['peak'], found.get('worker peak', 0)) / 1e6:11.0f}"
    return line + (f"{found['bytes'] / nnz:11.2f}" if "bytes" in found else "")


def print_targets(found: list[dict[str, Any]], same: dict[str, bool]) -> None:
    """Print the targets, and where answers differ."""
    print(f"\n{'target':48}{'measured':>12}{'wanted':>20}  reached")
    words = {True: "yes", False: "NO", None: "not measured"}
    for t in found:
        value = "" if t["value"] is None else f"{t['value']:.2f} {t['unit']}"
        wanted = f"{t['limit is']} {t['limit']:g} {t['unit']}"
        print(f"{t['target']:48}{value:>12}{wanted:>20}  {words[t['reached']]:14}{t['documents']}")
    print(f"\nsame answers as the peers: {sum(same.values())} of {len(same)}")
    for question, agrees in same.items():
        if not agrees:
            print(f"DIFFERS: {question}")


def plot(results: Results, path: Path) -> None:
    """Draw time and peak memory against the size of the corpus."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    drawn = ("write", "index", "decode", "count most", "count few", "max", "mean", "statistics")
    for name in drawn:
        sizes = _sizes(results, name)
        if not sizes:
            continue
        (line,) = left.plot(sizes, [results[n][name]["seconds"] for n in sizes], "o-", label=name)
        peaks = [results[n][name]["peak"] / 1e9 for n in sizes]
        right.plot(sizes, peaks, "o-", color=line.get_color(), label=name)
    for name, marker in (("duckdb count most", "x"), ("duckdb max", "+")):
        sizes = _sizes(results, name)
        if sizes:
            seconds = [results[n][name]["seconds"] for n in sizes]
            left.plot(sizes, seconds, marker, color="black", label=name)
            peaks = [results[n][name]["peak"] / 1e9 for n in sizes]
            right.plot(sizes, peaks, marker, color="black", label=name)
    sizes = _sizes(results, "write")
    held = [8 * results[n]["write"]["nnz"] / 1e9 for n in sizes]
    right.plot(sizes, held, ":", color="gray", label="nonzeros in memory")
    right.axhline(_MEMORY / 1e9, color="gray", linewidth=0.8)
    for axis, label in ((left, "seconds"), (right, "most memory held, GB")):
        axis.set(xscale="log", yscale="log", xlabel="documents", ylabel=label)
        axis.grid(alpha=0.3)
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
