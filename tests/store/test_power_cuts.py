"""A power cut at any moment: what was reported as done stays, and the same call again completes it."""

from __future__ import annotations

import random
import shutil
import uuid
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

import interp_embed
from interp_embed import Dataset
from interp_embed.errors import StoreExistsError
from interp_embed.store import compaction, labels_journal
from interp_embed.store.storage import open_storage
from interp_embed.store.verify import verify
from interp_embed.testing.file_record import FileRecorder
from interp_embed.testing.power_cuts import crash_states

from .power_cut_cases import CASES, MORE, RECORDS, WideSAE, assert_holds, assert_whole, made

QUICK = 4
"""States at each moment."""
SOAK = 400


@pytest.fixture
def orderly(monkeypatch):
    """Give each run the same names and one order, so that it gives the same states."""
    numbers = random.Random(0)
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=numbers.getrandbits(128), version=4))

    def submit(self, run, /, *arguments, **options):
        future = Future()
        try:
            future.set_result(run(*arguments, **options))
        except BaseException as error:
            future.set_exception(error)
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Index every store, and pack a few labels."""
    monkeypatch.setattr(compaction, "_INDEXED_ENTRIES", 1)
    monkeypatch.setattr(labels_journal, "_PACK_AFTER", 3)


def recorded(case, root):
    """Run a case; return the record."""
    root.mkdir()
    case.prepare(root)
    with FileRecorder(root) as recorder:
        case.run(root, recorder.mark)
    return recorder.record


def survives(case, folder, limit):
    """Check every state that a crash can leave; return how many there were."""
    record = recorded(case, folder / "recorded")
    count = 0
    for count, state in enumerate(crash_states(record, limit=limit), 1):  # noqa: B007
        root = folder / f"{count}"
        state.write_to(root)
        try:
            case.check(root, state.marks)
            case.again(root)
        except BaseException as error:
            error.add_note(f"state {count}: {state}")
            raise
    return count


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case).__name__.lower())
def test_what_was_reported_as_done_survives_and_the_same_call_completes_it(
    quick_path, orderly, case
):
    assert survives(case, quick_path, QUICK) > 20


# What the cases above come upon in one state of many, by itself


@pytest.fixture
def announced(tmp_path):
    """Two stores, and what a merge of them leaves that is cut off when all but one thing is done."""
    made(tmp_path / "a", RECORDS)
    made(tmp_path / "b", MORE)
    interp_embed.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "s")
    shutil.copy(tmp_path / "s" / "zarr.json", tmp_path / "s" / "saving.json")
    return tmp_path


def test_a_merge_that_was_cut_off_when_the_store_was_there_can_be_run_again(announced):
    merged = interp_embed.merge([announced / "a", announced / "b"], announced / "s")
    assert_holds(merged._store, [*RECORDS, *MORE])
    assert verify(announced / "s") == []
    with pytest.raises(StoreExistsError, match="there is a store at"):
        interp_embed.merge([announced / "a", announced / "b"], announced / "s")


def test_another_merge_does_not_take_a_store_that_was_cut_off_for_its_own(announced):
    before = {p: p.read_bytes() for p in (announced / "s").rglob("*") if p.is_file()}
    saes = {"scale": 2.0}
    Dataset([*RECORDS, *MORE], WideSAE(**saes), save_path=announced / "c")
    for stores in (["b", "a"], ["a"], ["c"]):
        with pytest.raises(StoreExistsError, match="there is a store at"):
            interp_embed.merge([announced / name for name in stores], announced / "s")
    assert before == {p: p.read_bytes() for p in (announced / "s").rglob("*") if p.is_file()}


def test_a_far_save_that_was_cut_off_when_the_store_was_there_can_be_run_again(tmp_path):
    url = f"memory://{uuid.uuid4().hex}/s"
    dataset = made(tmp_path / "a", RECORDS)
    dataset.save_to_file(url)
    far = open_storage(url)
    far.put("saving.json", far.get("zarr.json"))
    with pytest.raises(StoreExistsError, match="other documents|differs"):
        dataset[:2].save_to_file(url)
    dataset.save_to_file(url)
    assert not far.exists("saving.json")
    assert_whole(far, RECORDS)
    with pytest.raises(StoreExistsError, match="there is a store at"):
        dataset.save_to_file(url)
