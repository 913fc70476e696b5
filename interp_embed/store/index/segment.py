"""One segment of the index: the document level of some documents, transposed, with its summary."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.chunk import feature_dtype
from interp_embed.core.threads import available_cpus, bounded_map
from interp_embed.errors import CorruptStoreError
from interp_embed.store.arrays.shard_reader import BlockCache
from interp_embed.store.format.layout import INDEX_TOP, index_arrays
from interp_embed.store.index.records import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from interp_embed.store.arrays.folder import Folder, FolderWriter
    from interp_embed.store.arrays.shard import ArraySpec
    from interp_embed.store.chunks import StoredChunk
    from interp_embed.store.storage import Storage

__all__ = ["Source", "Workspace", "write_segment", "write_summary"]

_BLOCK = 2**20
"""Entries that are read, copied or summarised at a time."""
_MERGED = 2**20
"""Top documents that are merged at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Documents ``start:stop``, whose entries are ``begin:end`` of a chunk's document level."""

    chunk: StoredChunk
    start: int
    stop: int
    begin: int
    end: int

    @property
    def part(self) -> Part:
        """What the index says of it."""
        return Part(self.start, self.stop, self.chunk.commit.folder.key)

    @property
    def n_entries(self) -> int:
        """Number of entries."""
        return self.end - self.begin

    def pointer(self) -> NDArray[np.int64]:
        """Return where each document's entries begin in the chunk, and where the last one's end."""
        first = self.chunk.commit.start
        pointer = self.chunk.array("pooled/doc_ptr").read(self.start - first, self.stop - first + 1)
        return pointer.astype(np.int64)

    def pieces(self, limit: int) -> Iterator[Source]:
        """Cut into pieces of at most ``limit`` entries, or of one document."""
        if self.n_entries <= limit:
            yield self
            return
        pointer = self.pointer()
        for low, high in _cuts(pointer, limit):
            begin, end = int(pointer[low]), int(pointer[high])
            yield Source(self.chunk, self.start + low, self.start + high, begin, end)


def _cuts(pointer: NDArray[np.int64], limit: int, most: int = 2**62) -> Iterator[tuple[int, int]]:
    """Cut rows into runs of at most ``limit`` entries and ``most`` rows; at least one row each."""
    low, n = 0, len(pointer) - 1
    while low < n:
        high = int(np.searchsorted(pointer, pointer[low] + limit, side="right")) - 1
        high = min(max(high, low + 1), low + most, n)
        yield low, high
        low = high


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Some documents of a source: their entries begin at ``bounds`` in the chunk."""

    chunk: StoredChunk
    first: int  # document
    bounds: NDArray[np.int64]
    entries: slice  # of the segment, in order of the documents

    def read(self, name: str, memory: Workspace) -> NDArray[Any]:
        array = self.chunk.array(f"pooled/{name}")
        out = memory.array(name, self.entries.stop - self.entries.start, array.dtype)
        array.read_into(out, int(self.bounds[0]))
        return out

    def own_sums(self, memory: Workspace) -> NDArray[np.float32]:
        """Return the sums that are stored, and the one element more that `fill_sums` looks at."""
        low = self.first - self.chunk.commit.start
        begin, end = self.chunk.span("pooled/sum_ptr", low, low + len(self.bounds) - 1)
        out = memory.array("sum", end - begin + 1, np.dtype(np.float32))
        self.chunk.array("pooled/sum").read_into(out[:-1], begin)
        return out


class Workspace:
    """Arrays that are reused, because new memory costs as much as the work done in it.

    Parameters
    ----------
    entries
        Number of entries of the largest segment or block.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._held: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, n: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the array of this name; its content is arbitrary."""
        size = n * dtype.itemsize
        if name not in self._held or len(self._held[name]) < size:
            self._held.pop(name, None)
            self._held[name] = np.empty(max(n, self._entries) * dtype.itemsize, np.uint8)
        return self._held[name][:size].view(dtype)

    def converted(self, name: str, values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return ``values``, or a copy of another dtype."""
        if values.dtype == dtype:
            return values
        out = self.array(name, len(values), dtype)
        out[:] = values
        return out


def _blocks(sources: Iterable[Source]) -> Iterator[_Block]:
    at = 0
    for source in sources:
        if not source.n_entries:
            continue
        pointer = source.pointer()
        for low, high in _cuts(pointer, _BLOCK):
            bounds = pointer[low : high + 1]
            size = int(bounds[-1] - bounds[0])
            if size:
                yield _Block(source.chunk, source.start + low, bounds, slice(at, at + size))
            at += size


def write_segment(
    folder: FolderWriter,
    sources: Sequence[Source],
    d_sae: int,
    dtype: np.dtype[Any],
    document: np.dtype[Any],
    workspace: Workspace,
    executor: Executor,
    advance: Callable[[int], object],
) -> None:
    """Write the transpose of some documents' entries, and its summary.

    Parameters
    ----------
    folder
        Where to.
    sources
        The documents, ascending.
    d_sae
        Number of features.
    dtype, document
        Of the stored activations and of document numbers.
    workspace
        Holds the segment.
    executor
        Threads that read, copy and compress.
    advance
        Called with the number of entries done since the last call.
    """
    from interp_embed.kernels.document_level import fill_sums
    from interp_embed.kernels.transpose import feature_ranges, scatter

    workers = available_cpus()
    used = [source.chunk.commit for source in sources if source.n_entries]
    signed = any(commit.has_negative for commit in used)
    counts = [np.dtype(c.folder.arrays["pooled/count"].dtype) for c in used]
    count_dtype = np.result_type(np.uint8, *counts)
    blocks = list(_blocks(sources))
    n = blocks[-1].entries.stop if blocks else 0
    feature = workspace.array("feature", n, feature_dtype(d_sae))
    total = _read_features(blocks, feature, d_sae, executor, workers)
    pointer = np.concatenate([[0], np.cumsum(total)])
    cursor, sums = pointer[:-1].copy(), np.zeros(d_sae, np.float64)
    # numba has no float16 on a CPU: its bits are copied as they are.
    bits = np.dtype(np.uint16 if dtype.itemsize == 2 else np.float32)
    fields = [("document", document), ("max", bits), ("count", count_dtype)]
    records = workspace.array(
        "records", n, np.dtype([*fields, *([("positive", count_dtype)] if signed else [])])
    )

    idle: list[Workspace] = []
    float32 = np.dtype(np.float32)

    def load(block: _Block) -> tuple[_Block, list[Any], Workspace]:
        try:
            memory = idle.pop()
        except IndexError:
            memory = Workspace(_BLOCK)
        value = block.read("max", memory)
        count = memory.converted("counts", block.read("count", memory), count_dtype)
        positive = count
        if block.chunk.commit.has_negative:
            positive = memory.converted("positives", block.read("positive", memory), count_dtype)
        summand = memory.array("summand", len(value), float32)
        fill_sums(
            count, memory.converted("single", value, float32), block.own_sums(memory), summand
        )
        loaded = [value.view(bits), count, positive if signed else None, summand]
        return block, loaded, memory

    shares = feature_ranges(total, workers)
    for block, loaded, memory in bounded_map(executor, load, blocks, ahead=workers):
        bounds = block.bounds - block.bounds[0]
        entry = feature[block.entries], bounds, block.first

        def copy(edges: NDArray[np.int64], of: tuple[Any, ...] = (*entry, *loaded)) -> None:
            scatter(*of[:3], edges, *of[3:], cursor, records, sums)

        for _ in executor.map(copy, shares):
            pass
        idle.append(memory)
        advance(len(loaded[0]))
    specs = index_arrays(dtype, count_dtype, document)
    # The largest first: the disk syncs them while the summary is made.
    columns = {name: records[name] for name in records.dtype.names or ()}
    columns["max"] = columns["max"].view(dtype)
    for name, values in columns.items():
        folder.add(name, specs[name], values)
    folder.add("feature_ptr", specs["feature_ptr"], pointer)
    _write_own_summary(folder, specs, pointer, columns, sums, executor, workers)


def _read_features(
    blocks: Sequence[_Block],
    feature: NDArray[Any],
    d_sae: int,
    executor: Executor,
    workers: int,
) -> NDArray[np.int64]:
    """Read the feature of every entry, and return how many entries each feature has."""
    from interp_embed.kernels.transpose import add_counts

    total = np.zeros(d_sae, np.int64)

    def load(block: _Block) -> NDArray[Any]:
        out = feature[block.entries]
        array = block.chunk.array("pooled/feature")
        array.read_into(out, int(block.bounds[0]))
        if int(out.max()) >= d_sae:
            raise CorruptStoreError(
                f"{array.key} in {array.storage.url} is damaged: it has feature {int(out.max())} of "
                f"{d_sae}. Run 'interp-embed verify' on the store"
            )
        return out

    for found in bounded_map(executor, load, blocks, ahead=2 * workers):
        add_counts(found, total)
    return total


def _write_own_summary(
    folder: FolderWriter,
    specs: dict[str, ArraySpec],
    pointer: NDArray[np.int64],
    columns: dict[str, NDArray[Any]],
    sums: NDArray[np.float64],
    executor: Executor,
    workers: int,
) -> None:
    from interp_embed.kernels.transpose import summarize

    signed = "positive" in columns

    def run(features: tuple[int, int]) -> dict[str, NDArray[Any]]:
        low, high = features
        here = slice(int(pointer[low]), int(pointer[high]))
        of = {name: np.ascontiguousarray(values[here]) for name, values in columns.items()}
        return summarize(
            pointer[low : high + 1] - pointer[low],
            of["document"],
            of["max"].astype(np.float32, copy=False),
            of["count"],
            of["positive" if signed else "count"],
            INDEX_TOP,
        )

    ranges = _cuts(pointer, _BLOCK, 2**16)
    _write_summary(
        folder, specs, np.diff(pointer), sums, bounded_map(executor, run, ranges, workers), signed
    )


def _write_summary(
    folder: FolderWriter,
    specs: dict[str, ArraySpec],
    entries: NDArray[np.int64],
    sums: NDArray[np.float64],
    blocks: Iterable[dict[str, NDArray[Any]]],
    signed: bool,
) -> None:
    """Write a summary from what is known of the features, some features at a time."""
    names = ["document_frequency", "token_frequency", "max"] + ["nonzero_tokens"] * signed
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in [*names, "top"]}
    for block in blocks:
        for name, found in parts.items():
            found.append(block[name])
        for name in ("top_document", "top_max"):
            spec = specs[f"summary/{name}"]
            folder.append(f"summary/{name}", spec, block[name].astype(spec.dtype, copy=False))
    whole = {name: np.concatenate(found) for name, found in parts.items()}
    whole["top_ptr"] = np.concatenate([[0], np.cumsum(whole.pop("top"))])
    whole["sum"] = sums
    if signed:
        whole["nonzero_documents"] = entries
    for name, values in whole.items():
        folder.add(f"summary/{name}", specs[f"summary/{name}"], values)


def write_summary(
    folder: FolderWriter, storage: Storage, segments: Sequence[Folder], dtype: np.dtype[Any]
) -> None:
    """Write the combined summary of several segments.

    Parameters
    ----------
    folder
        Where to.
    storage, segments
        The segments, in order of the documents.
    dtype
        Of the stored activations.
    """
    signed = any("summary/nonzero_tokens" in segment.arrays for segment in segments)
    document = np.dtype(segments[0].arrays["document"].dtype)
    specs = index_arrays(dtype, np.dtype(np.uint8), document)

    def read(segment: Folder, name: str) -> NDArray[Any]:
        return segment.open(storage, name).read_all()

    entries = [np.diff(read(s, "feature_ptr").astype(np.int64)) for s in segments]
    added: dict[str, NDArray[Any]] = {}
    for name in ("document_frequency", "token_frequency", "nonzero_tokens", "sum"):
        plain = "token_frequency" if name == "nonzero_tokens" else name
        parts = [
            read(s, f"summary/{name if f'summary/{name}' in s.arrays else plain}") for s in segments
        ]
        added[name] = sum(parts[1:], start=parts[0].copy())
    highest = np.full(len(entries[0]), -np.inf, np.float32)
    for segment, held in zip(segments, entries, strict=True):
        np.maximum(highest, read(segment, "summary/max"), out=highest, where=held > 0)
    added["max"] = np.where(np.isneginf(highest), np.float32(0), highest)
    total = added.pop("sum")
    tops = _merged_tops(storage, segments, len(total))

    def blocks() -> Iterator[dict[str, NDArray[Any]]]:
        for low, high, top in tops:
            yield {**{name: values[low:high] for name, values in added.items()}, **top}

    _write_summary(folder, specs, np.sum(entries, axis=0), total, blocks(), signed)


def _merged_tops(
    storage: Storage, segments: Sequence[Folder], d_sae: int
) -> Iterator[tuple[int, int, dict[str, NDArray[Any]]]]:
    """Yield ranges of features, with their top documents among those of all segments."""
    names = ("top_ptr", "top_document", "top_max")
    cache = BlockCache()
    arrays = [{n: s.open(storage, f"summary/{n}", cache) for n in names} for s in segments]
    step = max(1, _MERGED // (INDEX_TOP * len(segments)))
    for low, high in itertools.pairwise([*range(0, d_sae, step), d_sae]):
        feature, document, value = [], [], []
        for of in arrays:
            pointer = of["top_ptr"].read(low, high + 1).astype(np.int64)
            here = int(pointer[0]), int(pointer[-1])
            feature.append(np.repeat(np.arange(high - low), np.diff(pointer)))
            document.append(of["top_document"].read(*here))
            value.append(of["top_max"].read(*here))
        features = np.concatenate(feature)
        documents, values = np.concatenate(document), np.concatenate(value)
        order = np.lexsort([documents, -values.astype(np.float32), features])
        held = np.bincount(features, minlength=high - low)
        place = np.arange(len(order)) - np.repeat(np.cumsum(held) - held, held)
        kept = order[place < INDEX_TOP]
        yield (
            low,
            high,
            {
                "top": np.minimum(held, INDEX_TOP),
                "top_document": documents[kept],
                "top_max": values[kept],
            },
        )
