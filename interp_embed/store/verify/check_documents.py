"""What the format promises of a plan's blocks of documents, checked with plain Python and numpy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["PlannedBlock", "check_columns", "check_documents"]

_STORED = ("plain", "masked", "time", "codes", "string", "escaped", "date", "json")
_TEXTS = ("string", "escaped", "date", "json")


class PlannedBlock(NamedTuple):
    """What a plan says of a block."""

    start: int
    stop: int
    folder: dict[str, Any]
    columns: list[dict[str, Any]] | None
    hashes: dict[str, str]


def check_columns(
    whole: Sequence[Mapping[str, Any]], blocks: Sequence[PlannedBlock]
) -> Iterator[tuple[str, str]]:
    """Yield where, and what is wrong with the schemas of a plan and its blocks."""
    names = [column["name"] for column in whole]
    if len({json.dumps(name) for name in names}) < len(names):
        yield "", "names a column twice"
    own = [block for block in blocks if block.columns is not None]
    found = {json.dumps(c["name"]) for block in own for c in block.columns or ()}
    lacking = found - set(map(json.dumps, names))
    for name in sorted(lacking):
        yield "", f"has no column {name}, which a block has"
    for column in whole:
        if column["kind"] not in (*_STORED, "null", "mixed"):
            yield "", f"has a column {column['name']!r} of kind {column['kind']!r}"
        if len(own) == len(blocks) and blocks and json.dumps(column["name"]) not in found:
            yield "", f"has a column {column['name']!r}, which no block has"
        if column["kind"] == "mixed" and len(own) < len(blocks):
            yield (
                "",
                f"has a column {column['name']!r} of no one kind, and blocks that do not say theirs",
            )
    for block in own:
        for column in block.columns or ():
            if column["kind"] not in (*_STORED, "null"):
                yield (
                    f" of documents {block.start}:{block.stop}",
                    f"has kind {column['kind']!r} for a column {column['name']!r}",
                )


def check_documents(
    arrays: Mapping[str, NDArray[Any]],
    columns: Sequence[Mapping[str, Any]],
    block: PlannedBlock,
    named: set[str],
) -> Iterator[tuple[str, str]]:
    """Yield the name of an array, or nothing for the folder, and what is wrong with it."""
    stored = [c for c in columns if c["kind"] in _STORED]
    names = {f"row/{c['key']}" for c in stored}
    names |= {f"null/{c['key']}" for c in stored if c["nullable"]}
    for odd in sorted(names ^ named)[:1]:
        yield "", f"its arrays are not those of the columns: {odd}"
    length = block.stop - block.start
    for name, values in arrays.items():
        if len(values) != length:
            yield name, f"has {len(values)} elements for {length} documents"
    for column in stored:
        name = f"row/{column['key']}"
        if name in arrays and (what := _wrong(arrays[name], column)):
            yield name, what


def _wrong(values: NDArray[Any], column: Mapping[str, Any]) -> str:
    """Return what is wrong with the values of a column, for its kind."""
    kind = column["kind"]
    if (kind in _TEXTS) != (values.dtype.kind in "OTU"):
        return f"is {values.dtype}, though the column is of kind {kind}"
    if kind == "codes":
        count = len(column["categories"] or ())
        if len(values) and not -1 <= values.min() <= values.max() < count:
            return f"holds codes beyond its {count} categories"
    if kind == "plain" and values.dtype != np.dtype(column["dtype"]):
        return f"is {values.dtype}, the plan says {column['dtype']}"
    if kind == "time" and values.dtype != np.int64:
        return f"is {values.dtype}, though the column is of times"
    if kind == "json":
        for number, value in enumerate(values):
            try:
                json.loads(value)
            except ValueError:
                return f"holds what is no JSON, in row {number}"
    return ""
