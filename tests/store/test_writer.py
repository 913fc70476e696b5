"""Writing: what is committed is complete, what lost the race is gone, what differs is refused."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings

from interp_embed.core.chunk import Chunk, DocumentStatus
from interp_embed.errors import (
    CorruptStoreError,
    DiskFullError,
    FingerprintMismatchError,
    NotAStoreError,
    StoreExistsError,
    UnsupportedFormatError,
)
from interp_embed.store import MISSING, Store, StoreWriter, create_store, finish, is_store
from interp_embed.store.fingerprint import check_fingerprint
from interp_embed.store.format.layout import library_versions
from interp_embed.store.format.root import read_root, root_document
from interp_embed.store.ledger import commit_keys
from interp_embed.store.storage import open_storage
from interp_embed.store.storage.wrapped import WrappedStorage
from interp_embed.store.verify.verifier import verify
from interp_embed.testing import (
    FaultyStorage,
    InjectedError,
    LostResponseStorage,
    assert_chunks_equal,
    chunks,
    dense,
    oracle,
    random_chunk,
    read_everything,
    store_from_chunk,
    texts_of,
)
from tests.support.hypotheses import examples

FINGERPRINT = {"sae": {"release": "r", "weights": "12"}, "truncate": True}


def texts(n):
    return pd.DataFrame({"text": [f"document {i}" for i in range(n)]})


def create(where, frame, **options):
    given_ = {"field": "text", "identifier": "abc123", "documents_per_chunk": 4, "d_sae": 512}
    return create_store(where, frame, **{**given_, "fingerprint": FINGERPRINT, **options})


def folders(store):
    return set(store.storage.folders("chunks"))


def assert_right(store, chunk):
    """The store holds the chunk, and its document level is the oracle's."""
    assert_chunks_equal(read_everything(store), chunk)
    every = np.arange(store.n_documents)
    assert store.status(every).tolist() == chunk.status.tolist()
    assert store.n_tokens(every).tolist() == np.diff(chunk.doc_ptr).tolist()
    failed = np.flatnonzero(chunk.status == DocumentStatus.FAILED)
    assert store.failures(every) == {int(i): chunk.reasons[int(i)] for i in failed}
    documents = [m if m is not None else np.zeros((0, chunk.d_sae)) for m in dense(chunk)]
    for stored, positions, where in store.parts(every):
        assert positions.tolist() == list(range(stored.n_documents))
        level = stored.pooled(("max", "sum", "count", "positive"))
        mine = [documents[i] for i in where]
        right = {
            "max": oracle(mine, "max", d_sae=chunk.d_sae),
            "sum": oracle(mine, "sum", d_sae=chunk.d_sae),
            "count": np.stack([(m != 0).sum(axis=0) for m in mine]),
            "positive": oracle(mine, "count", d_sae=chunk.d_sae),
        }
        size = oracle([np.abs(m) for m in mine], "sum", d_sae=chunk.d_sae)
        for name, expected in right.items():
            found = np.zeros(expected.shape)
            rows = np.repeat(np.arange(len(mine)), np.diff(level["doc_ptr"].astype(np.int64)))
            found[rows, level["feature"]] = level[name]
            if name == "sum":
                assert (np.abs(found - expected) <= 1e-7 * np.abs(expected) + 1e-14 * size).all()
            else:
                np.testing.assert_array_equal(found, expected, err_msg=name)
        for position, index in zip(positions.tolist(), where.tolist(), strict=True):
            np.testing.assert_array_equal(stored.csr(position).toarray(), documents[index])
            table, start = stored.tokens(position), int(chunk.doc_ptr[index])
            assert table.id.tolist() == chunk.tokens.id[start : start + len(table)].tolist()


@settings(max_examples=examples(15), suppress_health_check=list(HealthCheck))
@given(chunks())
def test_whatever_is_written_is_read(tmp_path_factory, chunk):
    path = tmp_path_factory.mktemp("s")
    for finished in (False, True):
        where = path / f"{finished}"
        store = store_from_chunk(where, chunk, documents_per_chunk=2, finished=finished)
        assert_right(store, chunk)
        assert [p for p in verify(where) if p.severity == "error"] == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_larger_documents_are_read_as_they_were_written(tmp_path, dtype):
    chunk = random_chunk(1, 40, d_sae=3000, mean_tokens=60, active=30, dtype=dtype)
    store = store_from_chunk(tmp_path / "s", chunk, documents_per_chunk=16, finished=False)
    assert_right(store, chunk)
    pick = np.array([39, 0, 17, 17, 3])
    found = read_everything(store).take(pick)
    assert_chunks_equal(store.chunk(pick), found)


def test_float32_is_rounded_to_a_float16_store(tmp_path):
    chunk = random_chunk(2, 12)
    tiny = replace(chunk, activation=chunk.activation.copy())
    tiny.activation[::5] = 1e-12
    store = store_from_chunk(tmp_path / "s", tiny, dtype="float16", finished=False)
    assert_right(store, tiny.as_dtype(np.dtype(np.float16)))


def test_every_attempt_has_a_name_of_its_own(tmp_path):
    store = create(tmp_path / "s", texts(4))
    with StoreWriter(store) as writer:
        for generation in range(3):
            writer.write(random_chunk(0, 4), generation=generation)
    assert len(folders(store)) == 3
    assert Store(tmp_path / "s").ledger.live[0].generation == 2


def test_the_second_writer_of_a_range_loses_and_leaves_nothing(tmp_path):
    store = create(tmp_path / "s", texts(4))
    first, second = random_chunk(0, 4), random_chunk(1, 4)
    with StoreWriter(store) as a, StoreWriter(Store(tmp_path / "s")) as b:
        assert a.write(first) is not None
        assert b.write(second) is None
    assert len(folders(store)) == 1
    assert_right(Store(tmp_path / "s"), first)


def test_of_racing_writers_one_wins_each_range(tmp_path):
    store = create(tmp_path / "s", texts(12))
    versions = [random_chunk(seed, 12, mean_tokens=5) for seed in range(4)]
    commits, barrier = [], threading.Barrier(4)

    def run(chunk):
        with StoreWriter(Store(tmp_path / "s")) as writer:
            barrier.wait()
            parts = [chunk.take(np.arange(start, start + 4)) for start in (0, 4, 8)]
            commits.extend(c for c in map(writer.write, parts) if c is not None)

    threads = [threading.Thread(target=run, args=(v,)) for v in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(c.start for c in commits) == [0, 4, 8]
    assert folders(store) == {c.folder.key.removeprefix("chunks/") for c in commits}
    assert [p for p in verify(tmp_path / "s") if p.severity == "error"] == []


@pytest.mark.parametrize("answer", ["raise", "false"])
@pytest.mark.parametrize("prefix", ["commits/", "plan.json", "zarr.json"])
def test_an_answer_that_is_lost_loses_no_data(tmp_path, answer, prefix):
    chunk = random_chunk(0, 8)
    storage = LostResponseStorage(open_storage(tmp_path / "s"), prefix, answer)

    def run():
        store = Store(storage) if (tmp_path / "s/plan.json").exists() else create(storage, texts(8))
        with StoreWriter(store, FINGERPRINT) as writer:
            for start, stop in Store(storage).ledger.missing:
                for a, b in store.plan.pieces(start, stop):
                    writer.write(chunk.take(np.arange(a, b)))

    try:
        run()
    except InjectedError:
        assert answer == "raise"
        run()
    store = Store(tmp_path / "s")
    assert_right(store, chunk)
    assert [p for p in verify(tmp_path / "s") if p.severity == "error"] == []
    assert len(store.ledger.commits) == len(folders(store)) == 2


def test_a_write_that_fails_leaves_no_folder(tmp_path):
    inner = open_storage(tmp_path / "s")
    create(inner, texts(4))
    for fail_at in range(200):
        storage = FaultyStorage(inner, dead=False)
        with StoreWriter(Store(storage)) as writer:
            storage.fail_at = len(storage.calls) + fail_at
            try:
                writer.write(random_chunk(0, 4))
            except InjectedError:
                if storage.calls[storage.fail_at][0] != "put_if_absent":
                    assert len(folders(Store(inner))) == len(commit_keys(inner))
            else:
                break
        inner.delete_folder("chunks")
        inner.delete_folder("commits")
        storage.put("chunks/zarr.json", b"")
    assert fail_at > 40
    assert_right(Store(inner), random_chunk(0, 4))


def test_the_first_error_is_told_where_cleaning_up_fails_as_well(tmp_path):
    class Full(WrappedStorage):
        full = False

        def put_new(self, key, data):
            if self.full:
                raise DiskFullError(28, "no room")
            super().put_new(key, data)

        def delete_folder(self, prefix):
            raise PermissionError(f"{prefix} may not be deleted")

    chunk = random_chunk(0, 3)
    storage = Full(open_storage(tmp_path / "s"))
    store = store_from_chunk(storage, chunk, finished=False)
    storage.full = True
    with StoreWriter(store) as writer, pytest.raises(DiskFullError, match="no room"):
        writer.write(chunk, generation=1)


def test_a_listing_that_lags_behind_loses_no_commit(tmp_path):
    class Lagging(WrappedStorage):
        def list(self, prefix=""):
            found = list(super().list(prefix))
            yield from found[:1] if prefix.startswith("chunks/") else found

    chunk = random_chunk(0, 9)
    store_from_chunk(Lagging(open_storage(tmp_path / "s")), chunk, finished=False)
    assert_chunks_equal(read_everything(Store(tmp_path / "s")), chunk)


def test_a_disk_that_loses_data_is_noticed_before_the_commit(tmp_path):
    class Lossy(FaultyStorage):
        def put_new(self, key, data):
            super().put_new(key, data[:-1] if key.endswith("activation/c/0") else data)

    storage = Lossy(open_storage(tmp_path / "s"))
    store = create(storage, texts(4))
    with (
        StoreWriter(store) as writer,
        pytest.raises(CorruptStoreError, match="reads back different"),
    ):
        writer.write(random_chunk(0, 4))
    assert Store(storage).ledger.commits == []
    assert not folders(store)


# What is refused


@pytest.mark.parametrize(("value", "why"), [(1e5, "beyond the range"), (np.inf, "not finite")])
def test_what_float16_cannot_hold_is_an_error(tmp_path, value, why):
    chunk = random_chunk(0, 8, failures=False)
    document = int(np.argmax(np.diff(chunk.doc_ptr)))
    chunk.activation[chunk.token_ptr[chunk.doc_ptr[document]]] = value
    store = create(tmp_path / "s", texts(8), dtype=np.dtype(np.float16))
    with (
        StoreWriter(store) as writer,
        pytest.raises(OverflowError, match=rf"document {document}: .*{why}"),
    ):
        writer.write(chunk)
    assert not folders(store)


def test_chunks_that_do_not_fit_the_store_are_refused(tmp_path):
    store = create(tmp_path / "s", texts(9))
    with StoreWriter(store) as writer:
        with pytest.raises(ValueError, match="must be consecutive"):
            writer.write(random_chunk(0, 4).take([0, 2]))
        with pytest.raises(ValueError, match=r"the store.s 512 features, got 9"):
            writer.write(random_chunk(0, 4, d_sae=9))


def test_the_number_of_features_is_bound_by_the_first_that_is_encoded(tmp_path):
    store = create(tmp_path / "s", texts(8), d_sae=None)
    assert store.d_sae is None
    lost = Chunk.failed(0, [0, 1], ["a", "b"])
    with StoreWriter(store, {"sae": {"weights": "12", "more": 1}}) as writer:
        writer.write(lost)
        assert Store(tmp_path / "s").d_sae is None
        writer.write(random_chunk(0, 8, d_sae=70_000).take(np.arange(2, 8)))
    found = Store(tmp_path / "s")
    assert found.d_sae == 70_000
    assert found.attributes["fingerprint"]["sae"] == {"release": "r", "weights": "12", "more": 1}
    assert [p for p in verify(tmp_path / "s") if p.severity == "error"] == []
    with StoreWriter(found) as writer:
        assert finish(writer)
    merged = Store(tmp_path / "s")
    assert len(merged.ledger.live) == 1
    assert_right(
        merged, Chunk.concatenate([lost, random_chunk(0, 8, d_sae=70_000).take(np.arange(2, 8))])
    )
    assert [p for p in verify(tmp_path / "s") if p.severity == "error"] == []


def test_a_failed_document_without_a_reason_is_stored(tmp_path):
    chunk = replace(random_chunk(0, 4, failures=False).with_failures({1: "?"}), reasons={})
    store = create(tmp_path / "s", texts(4))
    with StoreWriter(store) as writer:
        writer.write(chunk)
    assert Store(tmp_path / "s").failures(np.arange(4)) == {1: ""}


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"sae": {"release": "other"}}, "sae.release: stored 'r', given 'other'"),
        ({"truncate": False}, "truncate: stored True, given False"),
        ({"dtype": "float16"}, "dtype: stored 'float32', given 'float16'"),
    ],
)
def test_what_a_store_was_made_with_must_match_and_the_difference_is_named(tmp_path, changed, part):
    store = create(tmp_path / "s", texts(4))
    with pytest.raises(FingerprintMismatchError, match=part):
        StoreWriter(store, changed)
    check_fingerprint(store, {**FINGERPRINT, "unknown": 1})


def test_a_store_of_a_newer_format_is_refused_in_one_sentence(tmp_path):
    storage = create(tmp_path / "s", texts(4)).storage
    storage.put("zarr.json", root_document({**read_root(storage), "format_version": 2}))
    with pytest.raises(UnsupportedFormatError) as error:
        Store(tmp_path / "s")
    assert str(error.value) == (
        f"{tmp_path / 's'} has store format 2, but this release of interp_embed reads only formats "
        "up to 1. Upgrade interp_embed to open it"
    )
    storage.put("zarr.json", root_document({**read_root_like(), "format_version": "one"}))
    with pytest.raises(UnsupportedFormatError, match="an unknown store format version: 'one'"):
        is_store(tmp_path / "s")


def read_root_like():
    return {"id": "x", "dtype": "float32"}


def test_attributes_with_keys_of_any_type_can_be_read_back(tmp_path):
    create(tmp_path / "s", texts(1), sae={"layers": {10: "b", 9: "a"}})
    assert Store(tmp_path / "s").attributes["sae"] == {"layers": {"10": "b", "9": "a"}}
    assert library_versions().keys() >= {"zarr", "numpy", "pandas"}


# Where a store may be created


def test_a_store_is_not_created_over_other_things(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreExistsError, match="is a file; a store is a folder"):
        create(tmp_path / "file", texts(1))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("mine")
    with pytest.raises(StoreExistsError, match=r"other contents \(for example 'notes.txt'\)"):
        create(tmp_path / "folder", texts(1))
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["notes.txt"]
    assert not is_store(tmp_path / "folder")
    with pytest.raises(NotAStoreError, match=r"it has no zarr\.json"):
        Store(tmp_path / "folder")


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_store_is_not_created_over_another_zarr_hierarchy(tmp_path, where):
    location = tmp_path / "z" if where == "local" else f"memory://{uuid.uuid4().hex}"
    open_storage(location).put(
        "zarr.json", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
    )
    assert not is_store(location)
    with pytest.raises(StoreExistsError, match="not one that interp_embed wrote"):
        create(location, texts(1))


@pytest.mark.parametrize("where", ["local", "memory"])
def test_commits_without_a_store_are_not_taken_over(tmp_path, where):
    location = tmp_path / "z" if where == "local" else f"memory://{uuid.uuid4().hex}"
    open_storage(location).put("commits/000000000000-000000000001-000000.json", b"{}")
    with pytest.raises(StoreExistsError, match="with other contents"):
        create(location, texts(1))


def test_an_empty_folder_is_a_fine_place(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/.tmp-probe").write_text("left")
    assert create(tmp_path / "s", texts(1)).n_documents == 1


def test_creating_twice_gives_the_same_store_and_of_other_documents_is_refused(tmp_path):
    first = create(tmp_path / "s", texts(4))
    again = create(tmp_path / "s", texts(4))
    assert again.plan.to_json() == first.plan.to_json()
    with pytest.raises(StoreExistsError, match="the texts of documents 0 to 3"):
        create(tmp_path / "s", texts(5))
    with pytest.raises(StoreExistsError, match="it differs in dtype"):
        create(tmp_path / "s", texts(4), dtype=np.dtype(np.float16))
    with pytest.raises(ValueError, match="dtype must be float16 or float32"):
        create(tmp_path / "t", texts(4), dtype=np.dtype(np.int8))


def test_creation_that_was_interrupted_anywhere_can_be_repeated(tmp_path):
    fail_at = 0
    while True:
        where = tmp_path / f"{fail_at}"
        storage = FaultyStorage(open_storage(where), fail_at)
        try:
            create(storage, texts(4), feature_labels={1: "a"})
        except InjectedError:
            fail_at += 1
        else:
            break
        store = create(where, texts(4), feature_labels={1: "a"})
        assert store.frame()["text"].tolist() == texts(4)["text"].tolist()
        assert store.feature_labels() == {1: "a"}
        assert [p for p in verify(where) if p.severity == "error"] == []
    assert fail_at > 10


def test_an_interrupted_creation_says_how_to_go_on(tmp_path):
    create(tmp_path / "s", texts(1))
    (tmp_path / "s/plan.json").unlink()
    assert is_store(tmp_path / "s")
    with pytest.raises(
        NotAStoreError,
        match=r"0 documents are in it.*Pass the data again, with this path as save_path",
    ):
        Store(tmp_path / "s")


def test_racing_creators_get_one_store(tmp_path):
    barrier, stores = threading.Barrier(4), []

    def run():
        barrier.wait()
        stores.append(create(tmp_path / "s", texts(50)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({s.plan.blocks[0][2].key for s in stores}) == 1
    assert len(stores) == 4
    assert verify(tmp_path / "s")[0].key == "commits"
    assert len(open_storage(tmp_path / "s").folders("documents")) == 1


def test_documents_of_any_kind_of_text_column_can_be_created(tmp_path):
    values = ["a", None, "bcd"]
    for number, dtype in enumerate([object, "string", "category"]):
        frame = pd.DataFrame({"text": pd.Series(values, dtype=dtype)})
        assert create(tmp_path / f"{number}", frame).frame()["text"].dtype == frame["text"].dtype
    frame = pd.DataFrame([["a", 1.5]])
    assert create(tmp_path / "numbers", frame, field=frame.columns[0]).field == 0


def test_what_no_commit_holds_is_missing(tmp_path):
    chunk = random_chunk(0, 12)
    store = create(tmp_path / "s", pd.DataFrame({"text": texts_of(chunk)}))
    with StoreWriter(store) as writer:
        writer.write(chunk.take(np.arange(4, 8)))
        assert not finish(writer)
    found = Store(tmp_path / "s")
    assert found.ledger.missing == ((0, 4), (8, 12))
    assert (found.status(np.arange(12)) == MISSING).tolist() == [True] * 4 + [False] * 4 + [
        True
    ] * 4
    assert found.locate(0) is None
    with pytest.raises(KeyError, match="document 9 is not encoded"):
        found.document(9)
    assert_chunks_equal(read_everything(found), chunk.take(np.arange(4, 8)))
