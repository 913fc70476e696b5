"""Every storage does what the store asks of it, and says truly whether it can arbitrate."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import traceback
import uuid
from pathlib import Path

import numpy as np
import pytest

from interp_embed.errors import DiskFullError, SingleWriterError
from interp_embed.store import Store, StoreWriter
from interp_embed.store.storage import FsspecStorage, LocalStorage, ObjectStorage, open_storage
from interp_embed.store.verify.verifier import verify
from interp_embed.testing import (
    assert_chunks_equal,
    random_chunk,
    read_everything,
    store_from_chunk,
)


@pytest.fixture(scope="module")
def s3():
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
    }
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT"],
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket="bucket")
    client.close()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        yield "s3://bucket"
    server.stop()


@pytest.fixture(params=["local", "memory", "fsspec", "s3"])
def storage(request, tmp_path):
    name = uuid.uuid4().hex
    if request.param == "local":
        return open_storage(tmp_path / "root")
    if request.param == "memory":
        return open_storage(f"memory://{name}")
    if request.param == "fsspec":
        return FsspecStorage(f"memory://{name}")
    return open_storage(f"{request.getfixturevalue('s3')}/{name}/prefix")


KEYS = ["zarr.json", "a/x", "a/b/c d%2Fe", "a/b/x", "ab/y"]


def test_what_is_put_can_be_got(storage):
    for number, key in enumerate(KEYS):
        [storage.put, storage.put_new][number % 2](key, key.encode())
    for key in KEYS:
        assert storage.get(key) == key.encode()
        assert storage.size(key) == len(key)
        assert storage.exists(key)
    storage.put("a/x", b"other")
    assert storage.get("a/x") == b"other"
    storage.put("empty", b"")
    assert storage.get("empty") == b""
    storage.sync(KEYS)


def test_listings_are_of_folders(storage):
    for key in KEYS:
        storage.put(key, b"12")
    assert dict(storage.list()) == dict.fromkeys(KEYS, 2)
    assert {k for k, _ in storage.list("a")} == {"a/x", "a/b/c d%2Fe", "a/b/x"}
    assert list(storage.list("nothing")) == []
    assert storage.folders("a") == {"b"}
    assert storage.folders("nothing") == set()


def test_ranges_end_where_the_object_ends(storage):
    storage.put("x", b"0123456789")
    assert storage.get_range("x", 0, 10) == b"0123456789"
    assert storage.get_range("x", 3, 4) == b"3456"
    assert storage.get_range("x", 8, 9) == b"89"
    assert storage.get_range("x", 10, 1) == b""
    assert storage.get_range("x", 99, 9) == b""
    assert storage.get_range("x", 3, 0) == b""


def test_what_is_missing_is_a_file_that_is_not_found(storage):
    for call in (storage.get, storage.size, lambda k: storage.get_range(k, 0, 3)):
        with pytest.raises(FileNotFoundError):
            call("missing")
    assert not storage.exists("missing")


def test_deleting_is_of_what_is_named_and_repeats_without_harm(storage):
    for key in KEYS:
        storage.put(key, b"x")
    for _ in range(2):
        storage.delete("zarr.json")
        storage.delete_folder("a")
    assert {k for k, _ in storage.list()} == {"ab/y"}


def test_a_key_is_created_once(storage):
    assert storage.put_if_absent("commits/1.json", b"first")
    assert not storage.put_if_absent("commits/1.json", b"second")
    assert storage.get("commits/1.json") == b"first"


def test_the_probe_says_who_arbitrates_and_leaves_nothing(storage):
    assert storage.arbitrates() == (not isinstance(storage, FsspecStorage))
    assert list(storage.list()) == []


def test_of_many_threads_one_creates_the_key(storage):
    if not storage.arbitrates():
        pytest.skip("says itself that it cannot")
    for round_ in range(5):
        barrier, won = threading.Barrier(8), []

        def race(number, key=f"key-{round_}", barrier=barrier, won=won):
            barrier.wait()
            if storage.put_if_absent(key, b"%d" % number):
                won.append(number)

        threads = [threading.Thread(target=race, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert storage.get(f"key-{round_}") == b"%d" % won[0]


RACE = """
import sys, time
from pathlib import Path
from interp_embed.store.storage import LocalStorage

root, number = Path(sys.argv[1]), sys.argv[2]
storage = LocalStorage(root / "keys")
(root / f"ready-{number}").touch()
while not (root / "go").exists():
    time.sleep(0.001)
for key in range(200):
    if storage.put_if_absent(f"k/{key}", number.encode() * 1000):
        print(key)
"""


def test_of_many_processes_one_creates_the_key(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, tmp_path, str(number)], stdout=subprocess.PIPE, text=True
        )
        for number in range(8)
    ]
    while len(list(tmp_path.glob("ready-*"))) < 8:
        assert all(p.poll() is None for p in processes)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    won = [[int(key) for key in p.communicate()[0].split()] for p in processes]
    assert [p.returncode for p in processes] == [0] * 8
    assert sorted(key for keys in won for key in keys) == list(range(200))
    for number, keys in enumerate(won):
        for key in keys:
            assert (tmp_path / f"keys/k/{key}").read_text() == str(number) * 1000
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_store_can_be_written_read_verified_and_read_by_zarr(storage):
    import zarr

    chunk = random_chunk(0, 9, d_sae=50, mean_tokens=4)
    if isinstance(storage, FsspecStorage):
        store_from_chunk(storage, chunk)
    else:
        store_from_chunk(storage.url, chunk)
        storage = open_storage(storage.url)
    store = Store(storage)
    assert_chunks_equal(read_everything(store), chunk)
    assert verify(storage) == []
    group = zarr.open_group(store=storage.zarr_store(), mode="r")
    folder = store.ledger.live[0].folder.key
    assert group[f"{folder}/activation"][:].tolist() == chunk.activation.tolist()
    assert group.attrs["format_version"] == 1


def test_a_truncated_object_is_an_error_on_every_storage(storage):
    from interp_embed.errors import CorruptStoreError

    store = store_from_chunk(storage, random_chunk(0, 9, d_sae=50, mean_tokens=4))
    key = f"{store.ledger.live[0].folder.key}/activation/c/0"
    data = storage.get(key)
    for size in (0, 3, len(data) - 1):
        storage.put(key, data[:size])
        with pytest.raises(CorruptStoreError, match="is damaged: bytes"):
            read_everything(Store(storage))
    storage.delete(key)
    with pytest.raises(CorruptStoreError, match="is missing"):
        read_everything(Store(storage))


def test_a_storage_that_cannot_arbitrate_has_one_writer():
    storage = FsspecStorage(f"memory://{uuid.uuid4().hex}")
    store = store_from_chunk(storage, random_chunk(0, 3), finished=False)
    with StoreWriter(store):
        with pytest.raises(
            SingleWriterError, match=f"process {os.getpid()} on .* is writing to it"
        ):
            StoreWriter(store)
        assert storage.exists("writer.json")
    assert not storage.exists("writer.json")
    with pytest.raises(ValueError, match="has 512 features, this SAE has 9"):
        StoreWriter(store, d_sae=9)
    assert not storage.exists("writer.json"), "a refused writer holds no lock"


def test_locations_of_all_kinds_open(tmp_path):
    assert isinstance(open_storage(tmp_path), LocalStorage)
    assert isinstance(open_storage(str(tmp_path)), LocalStorage)
    assert open_storage(f"file://{tmp_path}").url == str(tmp_path)
    assert open_storage("~/x").url == os.path.expanduser("~/x")  # noqa: PTH111
    assert isinstance(open_storage("memory://one"), ObjectStorage)
    assert open_storage("memory://one/").store is open_storage("memory://one").store
    storage = open_storage(tmp_path)
    assert open_storage(storage) is storage
    for wrong in ("", b"bytes"):
        with pytest.raises(ValueError, match="location must be a path or a URL"):
            open_storage(wrong)
    assert repr(storage) == f"LocalStorage('{tmp_path}')"
    assert open_storage(open_storage("memory://").url).store is open_storage("memory:///").store
    assert open_storage("S3://bucket/x/").url == "s3://bucket/x"


def test_what_is_no_location_is_refused_in_words(monkeypatch):
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ValueError, match=r"two slashes into one. Pass the URL as a string: 's3://b/x'"
    ):
        open_storage(Path("s3://b/x"))
    for url in ("s3://key:hidden@bucket/x", "simplecache::ftp://me:hidden@host/x"):
        with pytest.raises(ValueError, match="has a password in it") as caught:
            open_storage(url)
        assert "hidden" not in str(caught.value)
    for url in ("s3://", "s3://bucket/a//b", "az://container/x"):
        with pytest.raises(ValueError, match=f"'{url}' cannot be opened: ") as caught:
            open_storage(url)
        assert "Debug" not in str(caught.value)


@pytest.mark.parametrize("odd", ["a#b", "a?b", "a%20b", "a b", "100%", "ä"])
def test_every_character_of_a_url_counts(s3, odd):
    place = f"{s3}/{uuid.uuid4().hex}"
    open_storage(f"{place}/{odd}/x").put("key", b"1")
    assert [key for key, _ in open_storage(place).list()] == [f"{odd}/x/key"]
    other = FsspecStorage("memory://")
    other.put(f"{odd}/key", b"1")
    assert other.get(f"{odd}/key") == b"1"


def test_an_answer_to_the_probe_may_be_lost(tmp_path):
    class Lost(LocalStorage):
        calls = 0

        def put_if_absent(self, key, data):
            self.calls += 1
            return super().put_if_absent(key, data) and self.calls > 1

    class Careless(LocalStorage):
        def put_if_absent(self, key, data):
            self.put(key, data)
            return True

    assert Lost(tmp_path).arbitrates()
    assert not Careless(tmp_path).arbitrates()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_listed_is_no_empty_folder(tmp_path, monkeypatch):
    near, other = LocalStorage(tmp_path), FsspecStorage(f"memory://{uuid.uuid4().hex}")

    def refuse(*_, **__):
        raise OSError(24, "Too many open files")

    for storage in (near, other):
        storage.put("commits/1.json", b"1")
    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(type(other.fs), "ls", refuse)
    for storage in (near, other):
        with pytest.raises(OSError, match="Too many open files"):
            list(storage.list("commits"))


def test_keys_in_a_servers_answer_are_not_repeated():
    from obstore.exceptions import GenericError, PermissionDeniedError

    storage = open_storage("s3://bucket/x")
    answer = (
        "Generic S3 error: 400: <Error><Code>{}</Code><Message>It is too old</Message>"
        "<AWSAccessKeyId>hidden</AWSAccessKeyId><Token-0>hidden</Token-0></Error>"
    )
    for kind, code in ((GenericError, "ExpiredToken"), (PermissionDeniedError, "AccessDenied")):
        expected = pytest.raises(PermissionError, match=f"{code}: It is too old. Credentials")
        with expected as caught, storage._plainly("reading a"):
            raise kind(answer.format(code))
        assert "hidden" not in "".join(traceback.format_exception(caught.value))
    expected = pytest.raises(OSError, match="The environment has no credentials")
    with expected, storage._plainly("reading a"):
        raise GenericError("error performing PUT http://169.254.169.254/latest/api/token")


def test_folders_at_the_top_have_their_names(storage):
    storage.put("abc/x", b"1")
    assert storage.folders("") == {"abc"}


def test_a_server_that_knows_no_ranges_is_read_from(monkeypatch):
    storage = FsspecStorage(f"memory://{uuid.uuid4().hex}")
    storage.put("x", b"0123456789")
    monkeypatch.setattr(type(storage.fs), "cat_file", lambda *_, **__: b"0123456789")
    assert storage.get_range("x", 3, 4) == b"3456"
    out = np.zeros(5, np.uint8)
    assert storage.get_range_into("x", 8, out) == 2
    assert out.tolist() == [*b"89", 0, 0, 0]


def test_a_file_system_without_hard_links_is_refused_in_words(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="needs a file system with hard links"):
        LocalStorage(tmp_path).put_if_absent("a", b"")
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_a_name_is_no_room(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    storage = LocalStorage(tmp_path)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(DiskFullError, match="1 bytes of a could not be written"):
        storage.put_if_absent("a", b"1")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(DiskFullError, match="1 bytes of a could not be written"):
        storage.put("a", b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_was_made_though_its_answer_was_lost_counts(tmp_path, monkeypatch):
    real = os.link

    def twice(source, target):
        real(source, target)
        real(source, target)  # as NFS repeats it

    storage = LocalStorage(tmp_path)
    monkeypatch.setattr(os, "link", twice)
    assert storage.put_if_absent("a", b"1")
    assert not storage.put_if_absent("a", b"2")
    assert storage.get("a") == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["put", "put_if_absent"])
def test_what_another_process_clears_away_is_written_again(tmp_path, monkeypatch, name):
    cleared = []

    def clearing(call):
        def run(aside, path):
            if not cleared:
                cleared.append(1)
                os.unlink(aside)  # noqa: PTH108
            return call(aside, path)

        return run

    storage = LocalStorage(tmp_path)
    monkeypatch.setattr(os, "link", clearing(os.link))
    monkeypatch.setattr(Path, "replace", clearing(Path.replace))
    getattr(storage, name)("a", b"1")
    assert cleared
    assert storage.get("a") == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_stands_in_the_way_is_told_as_it_is(tmp_path):
    storage = LocalStorage(tmp_path)
    (tmp_path / "commits").touch()
    for write in (storage.put, storage.put_if_absent):
        with pytest.raises((FileExistsError, NotADirectoryError), match="commits"):
            write("commits/1.json", b"1")


SYNC = """
import multiprocessing, pickle, sys, threading
from interp_embed.store.storage import LocalStorage

def syncing():
    return {t.ident for t in threading.enumerate() if t.name.startswith("interp-embed-sync")}

def sync(storage, keys):
    storage.sync(keys)
    assert syncing()

storage = LocalStorage(sys.argv[1])
keys = [f"{n}/x" for n in range(40)]
for key in keys:
    storage.put_new(key, b"1")
assert not syncing()
storage.sync(keys)
first = syncing()
assert 1 <= len(first) <= 16
storage.sync(keys)
assert first <= syncing() and len(syncing()) <= 16
process = multiprocessing.get_context("fork").Process(
    target=sync, args=(pickle.loads(pickle.dumps(storage)), keys)
)
process.start()
process.join(60)
sys.exit(process.exitcode)
"""


def test_syncing_starts_its_threads_once_and_outlives_a_fork(tmp_path):
    subprocess.run([sys.executable, "-c", SYNC, tmp_path], check=True, timeout=120)


def test_what_cannot_be_synced_is_an_error_once_all_else_was_tried(tmp_path, monkeypatch):
    storage = LocalStorage(tmp_path)
    keys = [f"{n}/x" for n in range(40)]
    for key in keys:
        storage.put_new(key, b"1")
    running, lock, real = [], threading.Lock(), os.fsync

    def slow(descriptor):
        with lock:
            running.append(1)
            number = len(running)
        time.sleep(0.01)
        with lock:
            running.append(-1)
        if number == 5:
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    with pytest.raises(OSError, match="Input/output error"):
        storage.sync(keys)
    assert sum(running) == 0


def test_a_failed_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    storage = LocalStorage(tmp_path)
    storage.put("a", b"old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        storage.put("a", b"new")
    assert storage.get("a") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_random_ranges_are_what_slices_are(storage):
    data = np.random.default_rng(0).bytes(500)
    storage.put("x", data)
    for start, length in np.random.default_rng(1).integers(0, 520, (30, 2)).tolist():
        assert storage.get_range("x", start, length) == data[start : start + length]
