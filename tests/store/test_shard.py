"""Shards are plain Zarr, come back as they were written, and notice every damaged byte."""

from __future__ import annotations

import contextlib
import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_embed.errors import CorruptStoreError
from interp_embed.store.arrays.shard import ArraySpec
from interp_embed.store.arrays.shard_reader import BlockCache, ShardedArray
from interp_embed.store.arrays.shard_writer import ArrayWriter
from interp_embed.store.storage import open_storage
from tests.support.hypotheses import examples

INTEGERS = ["uint8", "int8", "uint16", "uint32", "int32", "uint64", "int64"]
SPECS = [
    *(ArraySpec(dtype, "delta", "n") for dtype in INTEGERS),
    *(ArraySpec(dtype, "delta-lz4", "n") for dtype in ("uint16", "uint32")),
    *(ArraySpec(dtype, "zstd", "n") for dtype in [*INTEGERS, "bool", "float16", "float64"]),
    *(ArraySpec(dtype, "lz4", "n") for dtype in ("float32", "uint16")),
    ArraySpec("string", "text", "n"),
]


def values_of(spec, length, seed=0):
    rng = np.random.default_rng(seed)
    if spec.dtype == "string":
        words = np.array(["", "a", "ü 🙂", "x" * 300, "\0"], object)
        return words[rng.integers(0, len(words), length)]
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        return rng.random(length) < 0.5
    if dtype.kind == "f":
        return rng.standard_normal(length).astype(dtype)
    bounds = np.iinfo(dtype)
    return rng.integers(bounds.min, bounds.max, length, dtype, endpoint=True)


def write(storage, values, spec, inner, cache=None, executor=None, step=None):
    storage.delete("a/c/0")
    writer = ArrayWriter(lambda: storage.create("a/c/0"), spec, inner=inner, executor=executor)
    for begin in range(0, len(values), step or max(1, len(values))):
        writer.append(values[begin : begin + (step or len(values))])
    writer.finish()
    storage.put("a/zarr.json", json.dumps(writer.metadata).encode())
    return ShardedArray(storage, "a", writer.metadata, writer.size, cache)


@pytest.fixture
def storage(tmp_path):
    return open_storage(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return open_storage(tmp_path_factory.mktemp("arrays"))


def zarr_array(storage, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Nn]umcodecs.*")
        return zarr.open_array(store=storage.zarr_store(), path="a", mode="r", **options)


@settings(max_examples=examples(120))
@given(
    st.sampled_from(SPECS), st.integers(0, 90), st.integers(1, 100), st.integers(0, 99), st.data()
)
def test_any_array_comes_back(shared, spec, length, inner, seed, data):
    values = values_of(spec, length, seed)
    array = write(shared, values, spec, inner, BlockCache())
    assert len(array) == length
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    for _ in range(2):  # from the disk, then from the cache
        found = array.read(start, stop)
        np.testing.assert_array_equal(found, values[start:stop])
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(array.read_all(), values)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.dtype}-{s.encoding}")
def test_a_part_of_many_inner_chunks_is_read(storage, spec):
    values = values_of(spec, 100)
    array = write(storage, values, spec, 5, BlockCache())
    for start, stop in [(0, 60), (3, 97), (40, 100), (10, 49)]:
        np.testing.assert_array_equal(array.read(start, stop), values[start:stop])


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.dtype}-{s.encoding}")
@pytest.mark.parametrize(("length", "inner"), [(0, 10), (1, 10), (10, 10), (47, 10), (47, 1000)])
def test_plain_zarr_reads_it_and_what_zarr_writes_is_read(storage, spec, length, inner):
    values = values_of(spec, length)
    array = write(storage, values, spec, inner)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Nn]umcodecs.*")
        np.testing.assert_array_equal(np.asarray(zarr_array(storage)[:]), values)
        # The same metadata, filled by zarr: its bytes need not be the same, its values must.
        other = zarr.open_array(store=storage.zarr_store(read_only=False), path="a", mode="r+")
        if length:
            storage.delete("a/c/0")
            other[:] = values.astype(np.dtypes.StringDType()) if spec.dtype == "string" else values
    assert other.metadata.dimension_names == ("n",)
    if length and storage.exists("a/c/0"):  # zarr leaves out what holds only fill values
        size = storage.size("a/c/0")
        again = ShardedArray(storage, "a", spec.metadata(length, inner), size)
        try:
            np.testing.assert_array_equal(again.read_all(), values)
        except CorruptStoreError as error:
            assert "lacks an inner chunk" in str(error)  # noqa: PT017 - a whole one of fill values
    assert len(array) == length


def test_threads_encode_and_decode_the_same(storage):
    values = np.arange(1000, dtype=np.uint32)
    spec = ArraySpec("uint32", "delta", "n")
    with ThreadPoolExecutor(4) as executor:
        write(storage, values, spec, 7)
        alone = storage.get("a/c/0")
        array = write(storage, values, spec, 7, executor=executor, step=10)
        assert storage.get("a/c/0") == alone
        np.testing.assert_array_equal(array.read_all(executor), values)


@pytest.mark.parametrize("spec", [SPECS[2], SPECS[-2], SPECS[-1]], ids=lambda s: s.encoding)
@pytest.mark.parametrize("inner", [16, 1000])
def test_every_damaged_byte_of_a_shard_is_noticed(storage, spec, inner):
    values = values_of(spec, 50)
    array = write(storage, values, spec, inner)
    original = storage.get("a/c/0")
    metadata = spec.metadata(50, inner)
    for position in range(len(original)):
        damaged = bytearray(original)
        damaged[position] ^= 1 << position % 8
        storage.put("a/c/0", bytes(damaged))
        with pytest.raises(CorruptStoreError, match=r"a/c/0 in .* is damaged"):
            ShardedArray(storage, "a", metadata, array.size).read_all()
        part = ShardedArray(storage, "a", metadata, array.size)
        with contextlib.suppress(CorruptStoreError):  # a part may lie elsewhere: then it is right
            np.testing.assert_array_equal(part.read(0, 5), values[:5])
    for cut in range(len(original)):
        storage.put("a/c/0", original[:cut])
        part = ShardedArray(storage, "a", metadata, array.size)
        with pytest.raises(CorruptStoreError, match="are missing"):
            part.read(49, 50)
        with pytest.raises(CorruptStoreError, match="are missing"):
            part.read_all()


def test_a_shard_that_is_gone_is_no_fill_value(storage):
    array = write(storage, np.ones(5, np.float32), ArraySpec("float32", "lz4", "n"), 2)
    storage.delete("a/c/0")
    with pytest.raises(FileNotFoundError):
        array.read_all()
    with pytest.raises(FileNotFoundError):
        array.read(0, 1)


def test_elements_outside_of_the_array_are_an_error(storage):
    array = write(storage, np.ones(5, np.float32), ArraySpec("float32", "lz4", "n"), 2)
    for start, stop in ((-1, 2), (0, 6), (3, 2)):
        with pytest.raises(IndexError, match="outside the 5 elements of a"):
            array.read(start, stop)


def test_unknown_codecs_are_refused(storage):
    array = write(storage, np.ones(5, np.float32), ArraySpec("float32", "lz4", "n"), 2)
    metadata = ArraySpec("float32", "lz4", "n").metadata(5, 2)
    metadata["codecs"][0]["configuration"]["codecs"].pop()
    with pytest.raises(CorruptStoreError, match="which this format does not have"):
        ShardedArray(storage, "a", metadata, array.size).read_all()


def test_the_cache_drops_what_was_used_longest_ago():
    cache = BlockCache(limit=100)
    blocks = {i: np.zeros(40, np.uint8) for i in range(3)}
    cache.put(("a", 0), blocks[0])
    cache.put(("a", 1), blocks[1])
    assert cache.get(("a", 0)) is blocks[0]
    cache.put(("a", 2), blocks[2])
    assert cache.get(("a", 1)) is None
    assert cache.get(("a", 0)) is blocks[0]
    assert cache.get(("a", 2)) is blocks[2]
    cache.put(("b", 0), np.zeros(101, np.uint8))
    assert cache.get(("b", 0)) is None


def test_cached_blocks_cannot_be_written_to(storage):
    for spec in (ArraySpec("uint32", "delta", "n"), ArraySpec("string", "text", "n")):
        values = values_of(spec, 20)
        array = write(storage, values, spec, 5, BlockCache())
        found = array.read(0, 20)
        if found.flags.writeable:  # a copy
            found[:] = found[::-1].copy()
        np.testing.assert_array_equal(array.read(0, 20), values)
        one = array.read(2, 3)
        assert not one.flags.writeable


def test_threads_share_a_cache(storage):
    values = np.arange(5000, dtype=np.uint32)
    cache = BlockCache(limit=2000)  # a few blocks: they come and go
    array = write(storage, values, ArraySpec("uint32", "delta", "n"), 64, cache)

    def read(seed):
        rng = np.random.default_rng(seed)
        for start in rng.integers(0, 4900, 100).tolist():
            np.testing.assert_array_equal(array.read(start, start + 99), values[start : start + 99])

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(read, range(8)))
    assert cache.held == sum(b.nbytes for b in cache._blocks.values()) <= cache.limit
