"""What lazy arrays need of xarray and dask beyond their public names does what they need."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import sparse
import xarray as xr
from dask.array.utils import meta_from_array
from xarray.backends import BackendArray

from interp_embed.lazy.densify import densify
from interp_embed.lazy.xarray_internals import ExplicitlyIndexed, held, read_when_indexed


class CountedArray(BackendArray):
    """Ten numbers, and how often some of them were read."""

    def __init__(self):
        self.shape = (10,)
        self.dtype = np.dtype(np.int64)
        self.reads = []

    def __getitem__(self, key):
        (index,) = key.tuple
        found = np.arange(10)[index]
        self.reads.append(np.size(found))
        return found


def test_what_a_variable_holds_is_not_read_by_looking():
    array = CountedArray()
    variable = xr.Variable(("doc",), read_when_indexed(array))
    assert isinstance(held(variable), ExplicitlyIndexed)
    assert densify(variable) is variable
    assert densify(xr.Dataset({"x": variable}))["x"].shape == (10,)
    assert array.reads == []


def test_what_is_indexed_is_read_and_what_was_read_whole_is_kept():
    array = CountedArray()
    variable = xr.Variable(("doc",), read_when_indexed(array))
    np.testing.assert_array_equal(variable[2:5].values, [2, 3, 4])
    assert array.reads == [3]
    for _ in range(2):
        np.testing.assert_array_equal(variable.values, np.arange(10))
    assert array.reads == [3, 10]


def test_assigning_leaves_what_is_read_from_alone():
    array = CountedArray()
    variable = xr.Variable(("doc",), read_when_indexed(array))
    variable[0] = 7
    np.testing.assert_array_equal(variable.values, [7, *range(1, 10)])
    again = xr.Variable(("doc",), read_when_indexed(array))
    np.testing.assert_array_equal(again.values, np.arange(10))


def test_arrays_in_memory_and_lazy_ones_are_held_as_they_are():
    block = sparse.COO.from_numpy(np.eye(3))
    for array in (block, da.from_array(block, asarray=False), np.eye(3)):
        assert held(xr.Variable(("doc", "feature"), array)) is array


def test_the_kind_of_blocks_is_known_before_they_are_computed():
    lazy = da.from_array(sparse.COO.from_numpy(np.eye(3)), asarray=False)
    assert isinstance(meta_from_array(lazy), sparse.COO)
    assert isinstance(meta_from_array(da.ones((2, 2))), np.ndarray)
    assert isinstance(meta_from_array(lazy.map_blocks(lambda b: b * 2)), sparse.COO)


def test_distributed_sends_blocks_without_their_fill_value():
    """The reason for `interp_embed.lazy.transfer`, which is to be deleted when this test fails."""
    pytest.importorskip("distributed")
    from distributed.protocol import sparse as theirs

    block = sparse.COO(np.zeros((1, 0), np.int64), np.zeros(0), shape=(3,), fill_value=2.5)
    arrived = theirs.deserialize_sparse(*theirs.serialize_sparse(block))
    assert arrived.fill_value == 0


def test_a_block_is_sent_with_its_fill_value():
    pytest.importorskip("distributed")
    from distributed.protocol import deserialize, serialize

    from interp_embed.lazy.transfer import register

    register()
    for fill_value in (0.0, 2.5, np.nan):
        block = sparse.COO(
            np.array([[1]]), np.array([4.0]), shape=(3,), fill_value=np.float64(fill_value)
        )
        arrived = deserialize(*serialize(block))
        np.testing.assert_array_equal(arrived.todense(), [fill_value, 4.0, fill_value])
        np.testing.assert_equal(arrived.fill_value, fill_value)
