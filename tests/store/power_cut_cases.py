"""Operations on stores and files beside them, each with what no crash may take from it.

A case prepares a folder, runs the operation in it while what is reported as done is marked, looks at
a folder that a crash left, and runs the operation again there.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest

import interp_embed
from interp_embed import Dataset
from interp_embed.encode import encode, finish_store
from interp_embed.errors import NotAStoreError, StoreExistsError
from interp_embed.exchange import opening as saving
from interp_embed.exchange.label_files import read_labels
from interp_embed.interop.pickle import read_pickle
from interp_embed.labels.record import FeatureLabel
from interp_embed.store import Store, StoreWriter
from interp_embed.store.labels.collection import LabelStore
from interp_embed.store.verify.verifier import verify
from interp_embed.testing import assert_chunks_equal, read_everything

# The one place to adapt where the helpers of the tests move.
from tests.support.fake_sae import FAIL, WideSAE

RECORDS = [
    {"text": "the cat sat on", "n": 1},
    {"text": None, "n": 2},
    {"text": "loyal pets", "n": 3},
]
MORE = [{"text": "a NEW one", "n": 4}, {"text": "the end", "n": 5}]
LABELS = [
    FeatureLabel(feature, f"says {feature}", created=f"2026-01-0{feature + 1}T00:00:00+00:00")
    for feature in range(5)
]


def errors(path):
    """What is wrong with a store, apart from what dead processes left over."""
    return {p.key: p.what for p in verify(path) if p.severity == "error"}


@functools.cache
def encoded(*texts):
    """What documents come to in a run that nothing disturbs."""
    with tempfile.TemporaryDirectory() as folder:
        made(Path(folder, "s"), [{"text": text} for text in texts])
        return read_everything(Store(Path(folder, "s")))


def opened(path, marks):
    """Open a store; None where there is none yet, which is said, and nothing was marked as done."""
    try:
        return Dataset.load_from_file(path).selection.store
    except NotAStoreError as error:
        said = str(error)
    assert not marks, said
    assert "no store at" in said or "creation of the store" in said
    return None


def made(path, records):
    return Dataset(records, WideSAE(), save_path=path, save_every_batch=1, batch_size=2)


def assert_holds(store, records, *, documents=None):
    """Compare a store's documents, and the activations that it has, with an undisturbed run's.

    ``documents`` are those that it must have activations of; by default all.
    """
    pd.testing.assert_frame_equal(store.frame(), pd.DataFrame(records))
    here = np.array([d for d in range(len(records)) if store.locate(d) is not None], np.int64)
    assert set(range(len(records)) if documents is None else documents) <= set(here.tolist())
    if len(here):
        found, wanted = store.chunk(here), encoded(*(r["text"] for r in records)).take(here)
        assert_chunks_equal(found, wanted.with_doc_id(found.doc_id))


def assert_whole(path, records):
    """Open a finished store, and find nothing wrong and nothing left over once it was tidied up."""
    assert errors(path) == {}
    assert_holds(Store(path), records)
    finish_store(Store(path))
    assert verify(path) == []
    assert_holds(Store(path), records)


@contextlib.contextmanager
def marking(mark):
    """Mark the documents of every commit that is reported as made."""
    real = StoreWriter.write

    def write(self, chunk, **options):
        commit = real(self, chunk, **options)
        if commit is not None:
            ok = np.flatnonzero(chunk.status != 2)
            mark(frozenset((chunk.doc_id[0] + ok).tolist()))
        return commit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "write", write)
        yield


class Case:
    """Documents that are encoded in a store ``s``, and what to do with it."""

    def stores(self, root):
        """Where there may be stores, to be verified."""
        return [root / "s"]

    def prepare(self, root):
        """Make what is there before."""

    def run(self, root, mark):
        """Do what is recorded."""
        raise NotImplementedError

    def check(self, root, marks):
        """Raise AssertionError if the crash took what was marked, or left what cannot be opened."""
        raise NotImplementedError

    def again(self, root):
        """Run the same call again; there is to be nothing wrong in the end."""
        raise NotImplementedError


class Create(Case):
    """Planning, with labels that are given."""

    labels = MappingProxyType({0: "zeroth"})

    def run(self, root, mark):
        saving.plan_store(
            RECORDS, root / "s", WideSAE(), field="text", documents_per_chunk=2,
            feature_labels=self.labels,
        )  # fmt: skip
        mark("planned")

    def check(self, root, marks):
        if (store := opened(root / "s", marks)) is not None:
            assert_holds(store, RECORDS, documents=())
            assert store.labels.first() == self.labels

    def again(self, root):
        Dataset(
            RECORDS, WideSAE(), save_path=root / "s", save_every_batch=1, batch_size=2,
            feature_labels=self.labels,
        )  # fmt: skip
        assert Store(root / "s").labels.first() == self.labels
        assert_whole(root / "s", RECORDS)


class Encode(Case):
    """Committing chunks, one after the other, and no more."""

    def prepare(self, root):
        saving.plan_store(RECORDS, root / "s", WideSAE(), field="text", documents_per_chunk=2)

    def run(self, root, mark):
        with marking(mark):
            encode(root / "s", WideSAE(), worker="0/1")

    def check(self, root, marks):
        store = Store(root / "s")
        assert_holds(store, RECORDS, documents=frozenset().union(*marks))

    def again(self, root):
        encode(root / "s", WideSAE())
        assert_whole(root / "s", RECORDS)


class Finish(Case):
    """Merging chunks, clearing up, indexing, and the manifest."""

    def prepare(self, root):
        Encode().prepare(root)
        encode(root / "s", WideSAE(), worker="0/1")

    def run(self, root, mark):
        finish_store(Store(root / "s"))
        mark("finished")

    def check(self, root, marks):
        store = Store(root / "s")
        assert_holds(store, RECORDS)
        if marks:
            assert len(store.ledger.live) == 1
            assert store.index() is not None

    def again(self, root):
        encode(root / "s", WideSAE())  # there is nothing to encode
        assert_whole(root / "s", RECORDS)
        assert Store(root / "s").index() is not None


class Retry(Case):
    """Encoding once more what failed, in a store that has a manifest."""

    records = ({"text": "cats"}, {"text": f"a {FAIL}"}, {"text": "the end"})

    def prepare(self, root):
        made(root / "s", list(self.records))

    def run(self, root, mark):
        with marking(mark):
            encode(root / "s", self._mended())
        mark(frozenset())

    def check(self, root, marks):
        store = Store(root / "s")
        assert store.is_complete
        status = [store.status(np.arange(3))[d] for d in frozenset().union(*marks)]
        assert 2 not in status, "a document that was encoded counts as failed"

    def again(self, root):
        encode(root / "s", self._mended())
        assert len(Store(root / "s").failures(np.arange(3))) == 0
        finish_store(Store(root / "s"))
        assert verify(root / "s") == []

    def _mended(self):
        sae = WideSAE()
        sae.mended = True
        return sae


class Append(Case):
    """Adding documents to a store that is finished and indexed, and encoding them."""

    def prepare(self, root):
        made(root / "s", RECORDS)

    def run(self, root, mark):
        dataset = Dataset.load_from_file(root / "s")
        dataset.sae = WideSAE()
        with marking(mark):
            dataset.append(MORE, batch_size=1)
        mark(frozenset({3, 4}))

    def check(self, root, marks):
        store = Store(root / "s")
        added = MORE if store.n_documents > len(RECORDS) or marks else []
        done = frozenset(range(len(RECORDS))).union(*marks)
        assert_holds(store, [*RECORDS, *added], documents=done)

    def again(self, root):
        dataset = Dataset.load_from_file(root / "s")
        dataset.sae = WideSAE()
        if len(dataset) == len(RECORDS):
            dataset.append(MORE)
        else:
            encode(root / "s", WideSAE())
        assert_whole(root / "s", [*RECORDS, *MORE])


class Merge(Case):
    """Joining two stores, one of them with an index and labels."""

    def stores(self, root):
        return [root / "a", root / "b", root / "s"]

    def prepare(self, root):
        made(root / "a", RECORDS).add_labels(LABELS[:2])
        made(root / "b", MORE)

    def run(self, root, mark):
        interp_embed.merge([root / "a", root / "b"], root / "s")
        mark("merged")

    def check(self, root, marks):
        for name, records in (("a", RECORDS), ("b", MORE)):
            assert_holds(Store(root / name), records)
        if (store := opened(root / "s", marks)) is not None:
            self._assert_right(store)

    def _assert_right(self, store):
        assert_holds(store, [*RECORDS, *MORE])
        assert len(store.labels.added()) == 2

    def again(self, root):
        if opened(root / "s", ()) is None or (root / "s" / "saving.json").exists():
            interp_embed.merge([root / "a", root / "b"], root / "s")
        else:  # it is complete
            with pytest.raises(StoreExistsError, match="there is already a store at"):
                interp_embed.merge([root / "a", root / "b"], root / "s")
        self._assert_right(Store(root / "s"))
        assert not (root / "s" / "saving.json").exists()
        assert_whole(root / "s", [*RECORDS, *MORE])
        for name in ("a", "b"):
            assert errors(root / name) == {}


class Replace(Case):
    """Saving a dataset over another one."""

    def prepare(self, root):
        made(root / "s", RECORDS)
        made(root / "other", MORE)

    def run(self, root, mark):
        Dataset.load_from_file(root / "other").save_to_file(root / "s")
        mark("saved")

    def check(self, root, marks):
        found = Dataset.load_from_file(root / "s")
        assert_holds(found.selection.store, MORE if marks or len(found) == 2 else RECORDS)

    def again(self, root):
        self.run(root, lambda _: None)
        assert_whole(root / "s", MORE)
        assert sorted(p.name for p in root.iterdir()) == ["other", "s"], (
            "something is left beside it"
        )


class Save(Case):
    """Saving a dataset where there is nothing yet, not even the folder."""

    def stores(self, root):
        return [root / "new" / "deep" / "s"]

    def prepare(self, root):
        made(root / "other", MORE)

    def run(self, root, mark):
        dataset = Dataset.load_from_file(root / "other")
        dataset.save_to_file(root / "new" / "deep" / "s")
        mark("saved")

    def check(self, root, marks):
        if (store := opened(root / "new" / "deep" / "s", marks)) is not None:
            assert_holds(store, MORE)

    def again(self, root):
        self.run(root, lambda _: None)
        assert_whole(root / "new" / "deep" / "s", MORE)
        assert [p.name for p in (root / "new" / "deep").iterdir()] == ["s"]


class Labels(Case):
    """Adding labels one by one, which packs some of them, and then several at once."""

    def prepare(self, root):
        made(root / "s", RECORDS)

    def run(self, root, mark):
        labels = LabelStore(Store(root / "s").storage)
        for label in LABELS[:3]:
            labels.add([label])
            mark([label])
        labels.add(LABELS[3:])
        mark(LABELS[3:])
        labels.pack()

    def check(self, root, marks):
        found = {label.key for label in Store(root / "s").labels.added()}
        assert found >= {label.key for labels in marks for label in labels}
        assert found <= {label.key for label in LABELS}

    def again(self, root):
        self.run(root, lambda _: None)
        assert {x.key for x in Store(root / "s").labels.added()} == {x.key for x in LABELS}
        assert_whole(root / "s", RECORDS)


class Index(Case):
    """Indexing a store by feature, anew."""

    def prepare(self, root):
        made(root / "s", RECORDS)

    def run(self, root, mark):
        Dataset.load_from_file(root / "s").build_index(rebuild=True)
        mark("indexed")

    def check(self, root, marks):
        store = Store(root / "s")
        assert_holds(store, RECORDS)
        if marks:
            assert store.index() is not None

    def again(self, root):
        Dataset.load_from_file(root / "s").build_index()
        assert Store(root / "s").index().documents_covered == len(RECORDS)
        assert_whole(root / "s", RECORDS)


class File(Case):
    """Writing a file in a new folder, and then another one in its place."""

    name = ""

    def stores(self, root):
        return []

    def prepare(self, root):
        made(root / "s", RECORDS).add_labels(LABELS[:2])

    def run(self, root, mark):
        for number in (1, 2):
            self.write(Dataset.load_from_file(root / "s"), root / "new" / "out" / self.name, number)
            mark(number)

    def check(self, root, marks):
        path = root / "new" / "out" / self.name
        if not path.exists():
            assert not marks
            return
        number = self.read(path)
        assert number in (1, 2)
        assert number >= max(marks, default=1)

    def again(self, root):
        self.run(root, lambda _: None)
        path = root / "new" / "out" / self.name
        assert self.read(path) == 2

    def write(self, dataset, path, number):
        """Write a file of that number."""
        raise NotImplementedError

    def read(self, path):
        """Return the number of the file, after reading all of it."""
        raise NotImplementedError


class LabelsAsJson(File):
    name = "labels.json"

    def write(self, dataset, path, number):
        dataset.export_labels(path)
        if number == 1:
            dataset.add_labels(LABELS[2:3])

    def read(self, path):
        known = {label.key for label in LABELS}
        return len([label for label in read_labels(str(path)) if label.key in known]) - 1


class LabelsAsCsv(LabelsAsJson):
    name = "labels.csv"


class Pickle(File):
    name = "d.pkl"

    def write(self, dataset, path, number):
        dataset[:number].save_to_file(path)

    def read(self, path):
        found = read_pickle(path)
        assert found.dataset.to_dict("records") == RECORDS[: len(found.rows)]
        return len(found.rows)


CASES = [
    Create(), Encode(), Finish(), Retry(), Append(), Merge(), Replace(), Save(), Labels(), Index(),
    LabelsAsJson(), LabelsAsCsv(), Pickle(),
]  # fmt: skip
