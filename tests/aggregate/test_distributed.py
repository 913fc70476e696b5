"""The same calls on a dask cluster of processes: the same bits, whoever dies on the way."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal

import dask
import distributed
import numpy as np
import pytest
import xarray as xr

from interp_embed import Dataset
from interp_embed.aggregate import blocks, scheduler
from interp_embed.aggregate.matrices import aggregate_sparse
from interp_embed.aggregate.reductions import REDUCTIONS
from interp_embed.errors import NotAStoreError
from interp_embed.testing import random_chunk, store_from_chunk
from tests.support.waiting import PATIENCE

METHODS = [("max", 0), ("mean", 0), ("sum", 0), ("binarize", 0.5), ("count", 0), ("count", 0.7),
           ("nnz", 0), ("var", 0)]  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    settings = {"distributed.worker.daemon": False, "distributed.comm.timeouts.connect": "60s"}
    with dask.config.set(settings):
        found = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        )
        yield found
        found.close()


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as found:
        yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed") / "a.zarr"
    store_from_chunk(folder, random_chunk(4, 300, d_sae=120), documents_per_chunk=20)
    return folder


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "_LEAST", 1)
    monkeypatch.setattr(blocks, "_MOST", 200)


def same(a, b):
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("method", "threshold"), METHODS)
def test_a_cluster_gives_the_same_bits_as_threads(path, cluster, method, threshold):
    dataset = Dataset.load_from_file(path)
    views = [dataset, dataset[::-3], dataset[[5, 5, 250, 0]]]
    here = [v.latents(method, compress=True, activated_threshold=threshold) for v in views]
    dense = [v.latents(method, activated_threshold=threshold) for v in views]
    pids = set()
    with distributed.Client(cluster) as client:
        assert scheduler.active_client() is client
        for view, local, array in zip(views, here, dense, strict=True):
            same(view.latents(method, compress=True, activated_threshold=threshold), local)
            np.testing.assert_array_equal(
                view.latents(method, activated_threshold=threshold), array
            )
        pids = set(scheduler.run_tasks(_pid, range(8)))
    assert os.getpid() not in pids
    assert scheduler.active_client() is None


def _pid(_):
    return os.getpid()


@pytest.mark.usefixtures("small_blocks")
def test_statistics_and_blocks_are_the_same_on_a_cluster(path, cluster):
    dataset = Dataset.load_from_file(path)
    names = ("document_frequency", "token_frequency", "mean", "max", "histogram")
    here = dataset.feature_statistics(names, quantiles=[0.5])
    blocks_here = list(dataset[::-1].iter_latents("count", 0.5))
    with distributed.Client(cluster):
        there = dataset.feature_statistics(names, quantiles=[0.5])
        blocks_there = list(dataset[::-1].iter_latents("count", 0.5))
    xr.testing.assert_identical(here, there)
    for (a, x), (b, y) in zip(blocks_here, blocks_there, strict=True):
        np.testing.assert_array_equal(a, b)
        same(x, y)


def test_a_store_travels_as_where_it_is(path, client):
    dataset = Dataset.load_from_file(path)
    task = blocks.Block(dataset.selection.store, range(300), REDUCTIONS["max"], 0.0)
    assert len(distributed.protocol.pickle.dumps(task)) < 2000


def test_what_is_computed_from_lazy_arrays_keeps_its_fill_value_between_workers(path, cluster):
    found = Dataset.load_from_file(path).to_xarray()
    encoded = found.sel(doc=found["status"] < 2)
    highest = encoded["max"]

    def answers():
        for lazy in (
            *(highest.sum(), highest.max(), highest.mean(), (highest != 0).sum(), highest == 0),
            *((~encoded["token_mask"]).sum("token"), highest - 3),
        ):
            data = lazy.compute().data
            yield data.todense() if hasattr(data, "todense") else data

    with dask.config.set({"array.chunk-size": "20 kB"}):
        encoded = Dataset.load_from_file(path).to_xarray().sel(doc=found["status"] < 2)
        highest = encoded["max"]
        assert len(highest.chunks[0]) > 4
        with dask.config.set(scheduler="synchronous"):
            here = list(answers())
        with distributed.Client(cluster):
            there = list(answers())
    assert here[0] > 0
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5)


@pytest.mark.parametrize("where", ["gone", "memory"])
def test_a_store_that_workers_cannot_open_is_an_error(path, tmp_path, client, where):
    place = "memory://only-here.zarr"
    if where == "gone":
        place = tmp_path / "a.zarr"
        shutil.copytree(path, place)
    else:
        store_from_chunk(place, random_chunk(4, 30, d_sae=120), documents_per_chunk=20)
    dataset = Dataset.load_from_file(place)
    if where == "gone":
        place.rename(tmp_path / "b.zarr")
    with pytest.raises(NotAStoreError, match="there is no store"):
        dataset.latents("max")
    assert client.submit(_pid, 0).result(timeout=PATIENCE) != os.getpid()


def test_a_task_uses_the_threads_of_its_worker(path, client):
    assert client.submit(scheduler.worker_count, pure=False).result() == 1


def test_inside_a_task_of_a_worker_the_work_is_done_there(path, client):
    def inside(where):
        return Dataset.load_from_file(where).latents("max")

    found = client.submit(inside, str(path)).result(timeout=PATIENCE)
    np.testing.assert_array_equal(found, Dataset.load_from_file(path).latents("max"))


DEATH = "DEATH_OF_A_WORKER"
done_here = 0


def _dying_once(block):
    """Reduce a block; the first process that has done two is killed at its third."""
    global done_here
    if done_here == 2:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(os.environ[DEATH], os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
    done_here += 1
    return blocks.reduce_block(block)


@pytest.mark.usefixtures("small_blocks")
def test_killing_a_worker_in_the_middle_changes_nothing(path, monkeypatch, tmp_path):
    dataset = Dataset.load_from_file(path)
    store, documents = dataset.selection.store, np.arange(300)
    here = aggregate_sparse(store, documents, REDUCTIONS["var"], 0.0)
    monkeypatch.setattr("interp_embed.aggregate.matrices.reduce_block", _dying_once)
    monkeypatch.setenv(DEATH, str(tmp_path / "died"))
    with (
        dask.config.set({"distributed.worker.daemon": False}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as own,
        distributed.Client(own) as client,
    ):
        client.wait_for_workers(2)
        there = aggregate_sparse(store, documents, REDUCTIONS["var"], 0.0)
    assert (tmp_path / "died").exists()
    same(here, there)
