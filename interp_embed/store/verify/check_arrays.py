"""What the format promises of a chunk's arrays, checked with plain Zarr and numpy alone."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["Arrays", "check_chunk", "decode", "metadata_differs"]

Arrays = dict[str, "NDArray[Any]"]

_OK, _TRUNCATED, _FAILED = 0, 1, 2
_BLOCK = 2**20  # nonzeros that are pooled at a time
_ENCODINGS = {
    "delta": ["numcodecs.delta", "bytes", "blosc", "crc32c"],
    "delta-lz4": ["numcodecs.delta", "bytes", "blosc", "crc32c"],
    "zstd": ["bytes", "blosc", "crc32c"],
    "lz4": ["bytes", "blosc", "crc32c"],
    "text": ["vlen-utf8", "zstd", "crc32c"],
}


def metadata_differs(metadata: Mapping[str, Any], entry: Mapping[str, Any]) -> str | None:
    """Return how an array's ``zarr.json`` differs from what a commit says of the array."""
    sharding = metadata["codecs"][0]["configuration"]
    codecs = {c["name"]: c.get("configuration", {}) for c in sharding["codecs"]}
    length = entry["length"]
    inner = max(1, min(entry["inner"], length))
    found = {
        "shape": metadata["shape"],
        "dtype": metadata["data_type"],
        "dimension": metadata["dimension_names"],
        "shard": metadata["chunk_grid"]["configuration"]["chunk_shape"],
        "inner chunk": sharding["chunk_shape"],
        "codecs": list(codecs),
        "compressor": codecs.get("blosc", {}).get("cname", "zstd"),
    }
    expected = {
        "shape": [length],
        "dtype": entry["dtype"],
        "dimension": [entry["dimension"]],
        "shard": [max(1, -(-length // inner)) * inner],
        "inner chunk": [inner],
        "codecs": _ENCODINGS[entry["encoding"]],
        "compressor": "lz4" if entry["encoding"] in ("lz4", "delta-lz4") else "zstd",
    }
    for name, value in expected.items():
        if found[name] != value:
            return f"has {name} {found[name]!r}"
    return None


def decode(name: str, objects: Mapping[str, bytes]) -> NDArray[Any]:
    """Decode an array with plain Zarr, from the bytes that were hashed."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    buffer = default_buffer_prototype().buffer
    store = MemoryStore({key: buffer.from_bytes(data) for key, data in objects.items()})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Nn]umcodecs.*")  # not in the Zarr spec
        array = zarr.open_array(store=store, path=name, mode="r")
        return np.asarray(array[:])


def check_chunk(
    arrays: Arrays, commit: Mapping[str, Any], dtype: str | None, named: set[str]
) -> Iterator[tuple[str, str]]:
    """Yield the name of an array and what is wrong with it, for every promise of the format.

    A check is left out where one of its arrays is damaged, which is reported already.
    """
    lengths = {
        "feature": commit["nnz"],
        "activation": commit["nnz"],
        "token_ptr": commit["n_tokens"] + 1,
        "doc_ptr": commit["stop"] - commit["start"] + 1,
        "doc_id": commit["stop"] - commit["start"],
        "status": commit["stop"] - commit["start"],
        "token/id": commit["n_tokens"],
        "token/start": commit["n_tokens"],
        "token/end": commit["n_tokens"],
        "token/special": commit["n_tokens"],
        "pooled/doc_ptr": commit["stop"] - commit["start"] + 1,
        "pooled/sum_ptr": commit["stop"] - commit["start"] + 1,
        "pooled/feature": commit["pooled_nnz"],
        "pooled/max": commit["pooled_nnz"],
        "pooled/count": commit["pooled_nnz"],
    }
    if commit["has_negative"]:
        lengths["pooled/positive"] = commit["pooled_nnz"]
    if commit["n_failed"]:
        lengths["reason"] = commit["stop"] - commit["start"]
    for name in sorted((set(lengths) | {"pooled/sum"}) - named):
        yield name, "is missing: the commit does not name it"
    sound = dict(arrays)
    for name in sorted(set(lengths) & set(arrays)):
        if len(arrays[name]) != lengths[name]:
            yield name, f"has {len(arrays[name])} elements, the commit says {lengths[name]}"
            del sound[name]
    for check in (_check_documents, _check_tokens, _check_activations, _check_pooled):
        yield from check(sound, commit, dtype)


def _check_documents(
    a: Arrays, commit: Mapping[str, Any], _dtype: str | None
) -> Iterator[tuple[str, str]]:
    first, last = (commit[name] - commit.get("shift", 0) for name in ("start", "stop"))
    if "doc_id" in a and (a["doc_id"] != np.arange(first, last)).any():
        yield "doc_id", f"does not count from {first} to {last}"
    if "status" in a:
        status = a["status"]
        if not np.isin(status, (_OK, _TRUNCATED, _FAILED)).all():
            yield "status", f"holds statuses that do not exist: {np.unique(status).tolist()}"
        for name, value in (("n_failed", _FAILED), ("n_truncated", _TRUNCATED)):
            if (count := int((status == value).sum())) != commit[name]:
                yield "status", f"has {count} documents of {name}, the commit says {commit[name]}"
    for pointer, size in (("doc_ptr", "n_tokens"), ("pooled/doc_ptr", "pooled_nnz")):
        if pointer in a:
            yield from _check_pointer(a, pointer, commit[size])
            if "status" in a and (_lengths(a[pointer])[a["status"] == _FAILED]).any():
                yield pointer, "gives tokens or features to a document that failed"


def _check_pointer(a: Arrays, name: str, end: int) -> Iterator[tuple[str, str]]:
    """Check a pointer; take one that cannot be followed out of ``a``, for no check to follow it."""
    pointer = a[name].astype(np.int64)
    if pointer[0] != 0 or pointer[-1] != end or (np.diff(pointer) < 0).any():
        yield name, f"does not rise from 0 to {end}"
        del a[name]


def _check_tokens(
    a: Arrays, commit: Mapping[str, Any], _dtype: str | None
) -> Iterator[tuple[str, str]]:
    if not {"token/start", "token/end", "token/special"} <= set(a):
        return
    start, end = a["token/start"].astype(np.int64), a["token/end"].astype(np.int64)
    special = a["token/special"]
    if int(special.sum()) != commit["n_special"]:
        yield "token/special", f"marks {int(special.sum())} tokens, not {commit['n_special']}"
    if (start[special] != 0).any() or (end[special] != 0).any():
        yield "token/start", "gives text to a special token"
    if "doc_ptr" not in a:
        return
    document = np.repeat(np.arange(len(a["doc_ptr"]) - 1), _lengths(a["doc_ptr"]))
    start, end, document = start[~special], end[~special], document[~special]
    before = np.concatenate([[0], end[:-1]])[: len(end)]
    before[np.diff(document, prepend=-1) > 0] = 0
    wrong = np.flatnonzero((start != before) | (end < start))
    if len(wrong):
        number = commit["start"] + int(document[wrong[0]])
        yield "token/start", f"its spans do not partition the text of document {number}"


def _check_activations(
    a: Arrays, commit: Mapping[str, Any], dtype: str | None
) -> Iterator[tuple[str, str]]:
    if "token_ptr" in a:
        yield from _check_pointer(a, "token_ptr", commit["nnz"])
    if "activation" in a:
        values = a["activation"]
        if dtype is not None and values.dtype != dtype:
            yield "activation", f"is {values.dtype}, zarr.json says {dtype}"
        if not np.isfinite(values).all() or not values.all():
            yield "activation", "holds values that are zero or not finite"
        if bool((values < 0).any()) != commit["has_negative"]:
            yield "activation", f"contradicts has_negative = {commit['has_negative']}"
    if "feature" in a:
        features = a["feature"]
        if len(features) and int(features.max()) >= commit["d_sae"]:
            yield "feature", f"holds feature {int(features.max())} of {commit['d_sae']}"
        if features.dtype != ("uint16" if commit["d_sae"] <= 2**16 else "uint32"):
            yield "feature", f"is {features.dtype} for {commit['d_sae']} features"
        if "token_ptr" in a and not _ascending_in_rows(features, a["token_ptr"]):
            yield "feature", "is not ascending and unique within each token"


def _ascending_in_rows(features: NDArray[Any], pointer: NDArray[Any]) -> bool:
    rising = features[1:] > features[:-1]
    inside = pointer[(pointer > 0) & (pointer < len(features))].astype(np.int64)
    rising[inside - 1] = True  # from the last entry of a row to the first of another
    return bool(rising.all())


def _check_pooled(
    a: Arrays, commit: Mapping[str, Any], dtype: str | None
) -> Iterator[tuple[str, str]]:
    needed = {"pooled/doc_ptr", "pooled/feature"}
    if not needed <= set(a):
        return
    if not _ascending_in_rows(a["pooled/feature"], a["pooled/doc_ptr"]):
        yield "pooled/feature", "is not ascending and unique within each document"
    if dtype is not None and "pooled/max" in a and a["pooled/max"].dtype != dtype:
        yield "pooled/max", f"is {a['pooled/max'].dtype}, zarr.json says {dtype}"
    if {"pooled/sum", "pooled/max", "pooled/count"} <= set(a):
        own = (a["pooled/count"] > 1) | (a["pooled/max"] <= 0)
        if int(own.sum()) != len(a["pooled/sum"]):
            yield "pooled/sum", f"has {len(a['pooled/sum'])} elements for {int(own.sum())} entries"
        else:
            yield from _check_sum_pointer(a, own)
            total = a["pooled/max"].astype(np.float32)
            total[own] = a["pooled/sum"]
            a = {**a, "whole_sum": total}
    if not {"doc_ptr", "token_ptr", "feature", "activation"} <= set(a):
        return
    reported: set[str] = set()
    for first, last in _document_blocks(a["doc_ptr"], a["token_ptr"]):
        for name, number in _compare_block(a, first, last):
            if name not in reported:
                reported.add(name)
                yield (
                    f"pooled/{name}",
                    f"is not what the tokens of document {commit['start'] + number} give",
                )


def _check_sum_pointer(a: Arrays, own: NDArray[np.bool_]) -> Iterator[tuple[str, str]]:
    if "pooled/sum_ptr" in a:
        before = np.concatenate([[0], np.cumsum(own)])
        if not np.array_equal(before[a["pooled/doc_ptr"]], a["pooled/sum_ptr"]):
            yield "pooled/sum_ptr", "does not point to the sums of each document"


def _document_blocks(doc_ptr: NDArray[Any], token_ptr: NDArray[Any]) -> Iterator[tuple[int, int]]:
    bounds = token_ptr.astype(np.int64)[doc_ptr.astype(np.int64)]
    first, n = 0, len(bounds) - 1
    while first < n:
        last = int(np.searchsorted(bounds, bounds[first] + _BLOCK, side="right")) - 1
        last = min(max(last, first + 1), n)
        yield first, last
        first = last


def _compare_block(a: Arrays, first: int, last: int) -> Iterator[tuple[str, int]]:
    """Pool documents ``first:last`` by sorting, and yield what differs and for which document."""
    doc_ptr = a["doc_ptr"][first : last + 1].astype(np.int64)
    token_ptr = a["token_ptr"][doc_ptr[0] : doc_ptr[-1] + 1].astype(np.int64)
    entries = slice(int(token_ptr[0]), int(token_ptr[-1]))
    n_tokens = _lengths(doc_ptr)
    document = np.repeat(np.repeat(np.arange(last - first), n_tokens), _lengths(token_ptr))
    values = a["activation"][entries].astype(np.float64)
    pair = document * 2**32 + a["feature"][entries].astype(np.int64)
    order = np.argsort(pair, kind="stable")
    pair, values = pair[order], values[order]
    starts = np.flatnonzero(np.diff(pair, prepend=-1))
    pair = pair[starts]
    where = slice(int(a["pooled/doc_ptr"][first]), int(a["pooled/doc_ptr"][last]))
    stored_document = np.repeat(
        np.arange(last - first), _lengths(a["pooled/doc_ptr"][first : last + 1])
    )
    stored_pair = stored_document * 2**32 + a["pooled/feature"][where].astype(np.int64)
    if not np.array_equal(pair, stored_pair):
        odd = np.setxor1d(pair, stored_pair)
        yield "feature", first + int(odd[0] >> 32) if len(odd) else first
        return
    if len(pair) == 0:
        return
    count = np.diff(np.append(starts, len(values)))
    highest = np.maximum.reduceat(values, starts)
    absent = count < n_tokens[pair >> 32]  # a token without the feature counts as 0
    highest = np.where(absent, np.maximum(highest, 0), highest)
    total, size = np.add.reduceat(values, starts), np.add.reduceat(np.abs(values), starts)
    positive = np.add.reduceat((values > 0).astype(np.int64), starts)
    exact: Sequence[tuple[str, NDArray[Any]]] = (
        ("max", highest), ("count", count), ("positive", positive),
    )  # fmt: skip
    for name, expected in exact:
        if f"pooled/{name}" in a:
            wrong = np.flatnonzero(a[f"pooled/{name}"][where] != expected)
            if len(wrong):
                yield name, first + int(pair[wrong[0]] >> 32)
    if "whole_sum" in a:
        # Rounded once to float32, after additions in float64 in any order.
        allowed = 2.0**-23 * np.abs(total) + 2.0**-50 * count * size
        with np.errstate(over="ignore"):
            beyond = np.isinf(total.astype(np.float32)) & np.isinf(a["whole_sum"][where])
        wrong = np.flatnonzero(~(beyond | (np.abs(a["whole_sum"][where] - total) <= allowed)))
        if len(wrong):
            yield "sum", first + int(pair[wrong[0]] >> 32)


def _lengths(pointer: NDArray[Any]) -> NDArray[np.int64]:
    wide = pointer.astype(np.int64)
    return wide[1:] - wide[:-1]
