"""The whole library on object stores: an S3 server on the loopback, throttled too; and full disks."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import uuid
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest

import interp_embed
from interp_embed import Dataset
from interp_embed.cli.run import run as run_cli
from interp_embed.errors import DiskFullError, SingleWriterError, StoreExistsError
from interp_embed.exchange import saving as copying
from interp_embed.store import Store, StoreWriter, is_store
from interp_embed.store.storage import FsspecStorage, LocalStorage, ObjectStorage, open_storage
from interp_embed.store.storage.remote import object_store
from interp_embed.store.verify.verifier import verify
from interp_embed.testing import FaultyStorage, InjectedError
from tests.support.fake_sae import WordSAE
from tests.support.s3_server import BUCKET, s3_server
from tests.support.waiting import PATIENCE


@pytest.fixture(scope="module")
def s3():
    pytest.importorskip("moto")
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        yield f"s3://{BUCKET}"


@pytest.fixture(params=["s3", "memory", "fsspec"])
def place(request):
    """A URL below which nothing is."""
    name = uuid.uuid4().hex
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{name}"
    # fsspec's own memory, under a name that obstore does not know
    return f"memory://{name}" if request.param == "memory" else f"simplecache::memory://{name}"


def made(path, data, **settings):
    return Dataset(data, WordSAE(), save_path=path, save_every_batch=1, batch_size=2, **settings)


def assert_same(found, expected):
    pd.testing.assert_frame_equal(found.pandas(), expected.pandas())
    assert found.status().tolist() == expected.status().tolist()
    for method, settings in (("max", {}), ("count", {"activated_threshold": 0.5})):
        a, b = (d.latents(method, **settings) for d in (found, expected))
        np.testing.assert_array_equal(a, b)


def test_the_life_of_a_dataset(s3, tmp_path, data, capsys):
    data[3]["text"] = "python FAIL language"
    near = made(tmp_path / "near", data)
    url = f"{s3}/{uuid.uuid4().hex}/life.zarr"
    dataset = made(url, data[:7])
    assert dataset.path == url
    dataset.append(data[7:])
    assert_same(dataset, near)
    found = Dataset.load_from_file(url)
    assert_same(found, near)
    found.build_index()
    assert Store(url).index().is_complete
    for feature in range(4):
        expected = near.top_documents_for_feature(feature)
        assert found.top_documents_for_feature(feature) == expected
    assert found.token_activations(3) == near.token_activations(3)
    assert found[2].tokenized_document == near[2].tokenized_document
    assert found.failures().equals(near.failures())
    assert repr(found[:2].feature_statistics()) == repr(near[:2].feature_statistics())
    import xarray as xr

    lazy = xr.open_dataset(url, engine="interp_embed")
    expected = near.to_xarray()["activations"].sum("token", skipna=True)
    np.testing.assert_array_equal(
        lazy["activations"].sum("token", skipna=True).compute().data.todense(),
        expected.compute().data.todense(),
    )
    # saved there, from there, and merged there
    copy = f"{s3}/{uuid.uuid4().hex}"
    found[::2].save_to_file(copy)
    assert_same(Dataset.load_from_file(copy), near[::2])
    with pytest.raises(StoreExistsError):
        found.save_to_file(copy)
    found.save_to_file(url)  # where it is: nothing to do
    found.save_to_file(tmp_path / "back")
    assert_same(Dataset.load_from_file(tmp_path / "back"), near)
    merged = interp_embed.merge([url, tmp_path / "near"], f"{copy}-merged")
    assert_same(merged, made(tmp_path / "twice", [*data, *data]))
    for path in (url, copy, f"{copy}-merged"):
        assert verify(path) == []
        assert run_cli(["verify", path]) == 0
    for command in (["info", url], ["top", url, "3"], ["index", url], ["compact", url]):
        assert run_cli(command) == 0
    assert "11 " in capsys.readouterr().out


def test_a_run_that_was_cut_off_is_continued(place, tmp_path, data):
    storage = open_storage(place)
    made(tmp_path / "whole", data)
    with pytest.raises(InjectedError):
        Dataset(
            data,
            WordSAE(),
            save_path=FaultyStorage(storage, 60),
            save_every_batch=1,
            batch_size=2,
        )
    if storage.exists("writer.json"):
        storage.delete("writer.json")
    dataset = made(place, data)
    assert_same(dataset, Dataset.load_from_file(tmp_path / "whole"))
    assert [p for p in verify(place) if p.severity == "error"] == []


def test_every_operation_on_any_storage(place, tmp_path, data):
    near = made(tmp_path / "near", data)
    near.save_to_file(place)
    found = Dataset.load_from_file(place)
    assert_same(found, near)
    found.build_index()
    assert found.top_documents_for_feature(2) == near.top_documents_for_feature(2)
    assert run_cli(["verify", place]) == 0
    assert run_cli(["compact", place]) == 0
    assert run_cli(["convert", place, str(tmp_path / "back")]) == 0
    assert_same(Dataset.load_from_file(tmp_path / "back"), near)


def test_a_save_that_is_cut_off_is_no_store_and_goes_on(place, tmp_path, data, monkeypatch):
    near = made(tmp_path / "near", data)
    real = open_storage(f"{place}-count")
    counted = FaultyStorage(real)
    with monkeypatch.context() as patch:
        patch.setattr(copying, "open_storage", lambda _: counted)
        near.save_to_file("there://")
    step = max(1, len(counted.calls) // 6)
    for fail_at in range(5, len(counted.calls), step):
        url = f"{place}-{fail_at}"
        storage = open_storage(url)
        broken = FaultyStorage(storage, fail_at)
        with monkeypatch.context() as patch:
            patch.setattr(copying, "open_storage", lambda _, broken=broken: broken)
            with pytest.raises(InjectedError):
                near.save_to_file("there://")
        if storage.exists("writer.json"):
            storage.delete("writer.json")
        if not is_store(url):
            if storage.exists("saving.json"):
                with pytest.raises(FileNotFoundError, match="was interrupted"):
                    Dataset.load_from_file(url)
                with pytest.raises(StoreExistsError):
                    made(url, data)  # another run is not mixed with it
            if storage.exists("plan.json"):
                with pytest.raises(StoreExistsError):
                    near[:3].save_to_file(url)
            near.save_to_file(url)
        assert_same(Dataset.load_from_file(url), near)
        assert [p for p in verify(url) if p.severity == "error"] == []


WORKER = """
import sys
from interp_embed import Dataset
import distributed
if __name__ == "__main__":
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster, distributed.Client(cluster):
        dataset = Dataset.load_from_file(sys.argv[1])
        print(float(dataset.latents("sum").sum()))
"""


def test_workers_of_a_cluster_read_it_too(s3, tmp_path, data):
    near = made(tmp_path / "near", data)
    url = f"{s3}/{uuid.uuid4().hex}"
    near.save_to_file(url)
    (tmp_path / "run.py").write_text(WORKER)
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py", url],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(float(near.latents("sum").sum()))


# A server that throttles


class Throttled:
    """A server in front of another that refuses each new request, as S3 does when it is busy.

    Or one that takes no notice of the conditions of requests, or knows none: ``conditions``.
    """

    def __init__(self, target, refusals=0, conditions="kept"):
        import http.client
        from urllib.parse import urlsplit

        host = urlsplit(target).netloc
        self.seen: Counter[tuple[str, str, str]] = Counter()
        self.refused = 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                key = (self.command, self.path, self.headers.get("Range") or "")
                with lock:
                    outer.seen[key] += 1
                    busy = outer.seen[key] <= refusals
                    outer.refused += busy
                if busy:
                    text = (
                        b"<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>"
                    )
                    self.send_response(503)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(text)
                    return
                headers = dict(self.headers)
                names = [name for name in headers if name.lower() == "if-none-match"]
                if names and conditions == "unknown":
                    text = b"<Error><Code>NotImplemented</Code><Message>No</Message></Error>"
                    self.send_response(501)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                    return
                if conditions == "ignored":
                    for name in names:
                        del headers[name]
                connection = http.client.HTTPConnection(host)
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                content = response.read()
                self.send_response(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                length = response.getheader("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)
                connection.close()

            def log_message(self, *_):
                """Say nothing."""

        for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.answer)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def test_a_server_that_is_busy_is_asked_again(s3, tmp_path, data, monkeypatch):
    throttled = Throttled(os.environ["AWS_ENDPOINT_URL"], refusals=2)
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", throttled.url)
        url = f"{s3}/{uuid.uuid4().hex}"
        storage = open_storage(url)
        storage.put("x", b"123")
        assert storage.put_if_absent("y", b"4")
        assert not storage.put_if_absent("y", b"5")
        assert storage.get("x") == b"123"
        assert storage.get_range("x", 1, 1) == b"2"
        assert dict(storage.list()) == {"x": 3, "y": 1}
        storage.delete_several(["x", "y"])
        assert dict(storage.list()) == {}
        assert throttled.refused >= 2 * 6
        dataset = made(f"{url}/store", data[:3])
        assert_same(Dataset.load_from_file(f"{url}/store"), dataset)
        assert throttled.refused > 40
    finally:
        throttled.close()


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr("interp_embed.store.storage.remote._RETRIES", {"max_retries": 1})


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("conditions", ["ignored", "unknown"])
def test_a_server_without_conditions_has_one_writer(s3, data, monkeypatch, conditions):
    server = Throttled(os.environ["AWS_ENDPOINT_URL"], conditions=conditions)
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        url = f"{s3}/{uuid.uuid4().hex}"
        assert not open_storage(url).arbitrates()
        assert list(open_storage(url).list()) == []
        dataset = made(url, data[:3])
        first, second = Store(url), Store(url)
        with StoreWriter(first):
            with pytest.raises(SingleWriterError, match="cannot arbitrate between two writers"):
                StoreWriter(second)
            assert not first.storage.put_if_absent("zarr.json", b"")
        assert not first.storage.exists("writer.json")
        assert_same(Dataset.load_from_file(url), dataset)
    finally:
        server.close()


@pytest.mark.usefixtures("_impatient")
def test_what_cannot_be_reached_is_an_error_in_words(s3, monkeypatch):
    place = f"{s3}-that-is-not-there/x"
    storage = open_storage(place)
    for call in (
        lambda: storage.put("key", b""),
        lambda: storage.put_if_absent("key", b""),
        lambda: storage.get("key"),
        lambda: list(storage.list()),
        lambda: Dataset.load_from_file(place),
    ):
        with pytest.raises(
            OSError, match=rf"in {place} failed: NoSuchBucket: The specif"
        ) as caught:
            call()
        assert not isinstance(caught.value, FileNotFoundError)
    with pytest.raises(FileNotFoundError, match=rf"reading key in {s3}/x failed: NoSuchKey: The"):
        open_storage(f"{s3}/x").get("key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"reading zarr.json in s3://.* failed"):
        Dataset.load_from_file(f"{s3}/x")
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStorage, "size", lambda *_: pytest.fail("asked once more"))
        with pytest.raises(OSError, match=r"reading key in .* failed"):
            open_storage(s3).get_range("key", 0, 3)
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(OSError, match=r"To allow an endpoint without TLS, set AWS_ALLOW_HTTP=true"):
        open_storage(s3).get("key")


SILENT = """
import os, signal, socket, threading, time
from interp_embed.store.storage import open_storage

server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen(9)
os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.getsockname()[1]}"
storage = open_storage("s3://bucket/x")
signal.signal(signal.SIGINT, signal.default_int_handler)
for call in (lambda: storage.get("key"), lambda: list(storage.list()), lambda: storage.put("key", b"")):
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    try:
        call()
    except KeyboardInterrupt:
        print(time.monotonic() - begin < 5, flush=True)
os._exit(0)
"""


@pytest.mark.usefixtures("s3")
def test_ctrl_c_ends_a_request_to_a_server_that_says_nothing():
    done = subprocess.run(
        [sys.executable, "-c", SILENT], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stdout.split() == ["True"] * 3


def test_what_another_process_wrote_is_seen_through_fsspec(s3):
    place = f"{s3}/{uuid.uuid4().hex}"
    mine, other = FsspecStorage(place), open_storage(place)
    other.put("commits/1.json", b"1")
    other.put("lock", b"1")
    assert dict(mine.list()) == {"commits/1.json": 1, "lock": 1}
    assert mine.exists("lock")
    assert not mine.exists("key")
    other.put("commits/2.json", b"1")
    other.put("key", b"other")
    other.delete("lock")
    assert not mine.exists("lock")
    assert not mine.put_if_absent("key", b"mine")
    assert other.get("key") == b"other"
    assert {key for key, _ in mine.list("commits")} == {"commits/1.json", "commits/2.json"}
    assert mine.get_range("key", 9, 3) == b""


def test_settings_of_connections_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_TIMEOUT", "7s")
    monkeypatch.setenv("GOOGLE_CONNECT_TIMEOUT", "3s")
    options = object_store("s3://bucket/x").client_options
    assert options["allow_http"] == "true"
    assert options["timeout"] == "7s"
    assert object_store("gs://bucket/x").client_options["connect_timeout"] == "3s"
    assert open_storage("s3://bucket/x").remote
    assert not open_storage("memory://x").remote
    assert not FsspecStorage("memory://x").remote


# Full disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def long_texts(n):
    rng = np.random.default_rng(0)
    return [{"text": " ".join(map(str, rng.integers(0, 10**9, 400)))} for _ in range(n)]


def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(small_disk, tmp_path):
    data = long_texts(60)
    ballast = small_disk / "ballast"
    ballast.write_bytes(os.urandom(6_900_000))
    path = small_disk / "s"
    with pytest.raises(DiskFullError, match=r"bytes of .* could not be written to the store at"):
        made(path, data)
    ballast.unlink()
    if not is_store(path):
        pytest.fail("the documents should have found room")
    held = Store(path).ledger.n_held
    assert 0 < held < 60
    assert not list(path.rglob(".tmp-*"))
    resumed = Dataset.load_from_file(path, resume=True)
    assert_same(resumed, made(tmp_path / "whole", data))
    assert verify(path) == []


def test_a_limit_of_the_system_is_said_as_well(tmp_path):
    storage = LocalStorage(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        for write in (storage.put, storage.put_new, storage.put_if_absent):
            with pytest.raises(DiskFullError, match=r"20,000 bytes of a/b could not be written"):
                write("a/b", b"x" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [key for key, _ in storage.list() if "tmp" in key] == []
