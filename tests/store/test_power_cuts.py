"""A power cut at any moment: what was reported as done stays, and the same call again completes it."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import uuid
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

import interp_embed
from interp_embed import Dataset
from interp_embed.errors import StoreExistsError
from interp_embed.store.labels import journal as labels_journal
from interp_embed.store.storage import open_storage
from interp_embed.store.verify.verifier import verify
from interp_embed.store.write import compaction
from interp_embed.testing import FileRecorder, crash_states, safe_state
from interp_embed.testing.file_record import FileRecord

from .power_cut_cases import (
    CASES,
    MORE,
    RECORDS,
    Append,
    Create,
    Encode,
    Finish,
    Index,
    Merge,
    Retry,
    WideSAE,
    assert_holds,
    assert_whole,
    errors,
    made,
    opened,
)

QUICK = {"limit": 3, "thorough": 2}
SOAK = {"limit": 64, "thorough": 60}
"""States at each moment; and from how many of all states a case is run again."""


NAMING = re.compile(r"(.*)/(commits/|index/[^/]*\.json|plan|planning/)[^/]*")
"""What names folders."""
STORED = ("chunks", "documents", "index")


@pytest.fixture
def orderly(monkeypatch):
    """Give each run the same names and one order, so that it gives the same states."""
    numbers = random.Random(0)
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=numbers.getrandbits(128), version=4))

    def submit(self, run, /, *arguments, **options):
        future = Future()
        try:
            future.set_result(run(*arguments, **options))
        except Exception as error:  # noqa: BLE001 - as the future of a thread would have it
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


def survives(case, folder, limit, thorough):
    """Check every state that a crash can leave; verify some, and run the case again; return how many."""
    record = recorded(case, folder / "recorded")
    states = list(crash_states(record, limit=limit))
    stride = len(states) / min(thorough, len(states))
    again = {int((number + 0.5) * stride) for number in range(min(thorough, len(states)))}
    for number, state in enumerate(states):
        root = folder / f"{number}"
        state.write_to(root)
        try:
            case.check(root, state.marks)
            if number in again:
                assert all(errors(path) == {} for path in case.stores(root) if opened(path, ()))
                case.again(root)
        except BaseException as error:
            error.add_note(f"state {number} of {len(states)}: {state}")
            raise
        shutil.rmtree(root)
    return len(states)


def name(case):
    return type(case).__name__.lower()


@pytest.mark.parametrize("case", CASES, ids=name)
def test_what_was_reported_as_done_survives_and_the_same_call_completes_it(
    quick_path, orderly, case
):
    assert survives(case, quick_path, **QUICK) > 10


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("case", CASES, ids=name)
def test_many_more_states_survive(quick_path, orderly, case, capsys):
    count = survives(case, quick_path, **SOAK)
    with capsys.disabled():
        print(f" {name(case)}: {count:,} states", end="")


# A process that is killed, another one that goes on, and then a power cut


def kills(record):
    """After how many operations a process is killed: a name is given, and its folder is not synced.

    Of several names of one kind in a folder it is the last, which no later one makes durable.
    """
    found = {}
    for number, operation in enumerate(record.operations, 1):
        named = operation.target or operation.path
        naming = operation.kind == "link" and NAMING.fullmatch(named)
        if naming or (operation.kind == "mkdir" and named.count("/") < 2):
            found[operation.kind, named.rpartition("/")[0]] = number
    return sorted(found.values())


@pytest.mark.parametrize("case", [Create(), Encode(), Finish(), Merge(), Index()], ids=name)
def test_what_a_killed_process_left_is_kept_once_another_one_relies_on_it(
    quick_path, orderly, case
):
    record = recorded(case, quick_path / "recorded")
    points = kills(record)
    for done in points:
        before = FileRecord(record.before, record.operations[:done])
        root, cut = quick_path / f"{done}", quick_path / f"{done}-cut"
        before.replayed().write_to(root)
        with FileRecorder(root) as recorder:
            case.run(root, recorder.mark)
        whole = before.followed_by(recorder.record)
        state = safe_state(whole)
        state.write_to(cut)
        try:
            case.check(cut, [*state.marks])
        except BaseException as error:
            error.add_note(f"killed at {record.operations[done - 1]}; {state}")
            raise
    assert points


# The order of things


def names_in(data):
    """The folders that a JSON object names, each with the objects in it."""
    found = {}

    def walk(value):
        if isinstance(value, dict):
            if {"key", "objects"} <= value.keys():
                found[value["key"]] = value["objects"]
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(json.loads(data))
    return found


@pytest.mark.parametrize("case", [Create(), Finish(), Append(), Merge(), Index()], ids=name)
def test_what_is_named_is_on_the_disk_and_what_is_deleted_is_not_named_there(quick_path, case):
    """With all threads, whatever order they bring about."""
    record = recorded(case, quick_path / "r")
    content = record.replayed().contents
    named = deleted = 0
    for number, operation in enumerate(record.operations):
        if operation.kind == "link" and NAMING.fullmatch(operation.target):
            store = NAMING.fullmatch(operation.target)[1]
            safe = safe_state(record, number).files
            for key, objects in names_in(content[operation.node]).items():
                for relative, (size, sha256) in objects.items():
                    data = safe[f"{store}/{key}/{relative}"]
                    assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha256)
                    named += 1
        elif operation.kind == "unlink" and operation.path.split("/")[1] in STORED:
            store, *parts, _ = operation.path.split("/")
            if len(parts) < 2:  # what names folders
                continue
            for path, data in safe_state(record, number).files.items():
                if path.startswith(f"{store}/") and NAMING.fullmatch(path):
                    assert "/".join(parts[:2]) not in names_in(data), f"{operation} {path}"
            deleted += 1
    assert named > 10
    assert (deleted > 0) == isinstance(case, (Finish, Append, Index))


def test_a_commit_is_on_the_disk_when_it_is_reported(quick_path):
    record = recorded(Encode(), quick_path / "r")
    marks = [i for i, operation in enumerate(record.operations) if operation.kind == "mark"]
    assert len(marks) == 2
    for count, number in enumerate(marks, 1):
        commits = [p for p in safe_state(record, number).files if p.startswith("s/commits/")]
        assert len(commits) == count


def test_a_manifest_that_does_not_hold_any_more_is_gone_before_something_is_committed(quick_path):
    record = recorded(Retry(), quick_path / "r")
    first = next(i for i, o in enumerate(record.operations) if o.target.startswith("s/commits/"))
    assert "s/manifest.json" in safe_state(record, 0).files
    assert "s/manifest.json" not in safe_state(record, first).files


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
    assert_holds(merged.selection.store, [*RECORDS, *MORE])
    assert verify(announced / "s") == []
    with pytest.raises(StoreExistsError, match="there is already a store at"):
        interp_embed.merge([announced / "a", announced / "b"], announced / "s")


def test_another_merge_does_not_take_a_store_that_was_cut_off_for_its_own(announced):
    before = {p: p.read_bytes() for p in (announced / "s").rglob("*") if p.is_file()}
    Dataset([*RECORDS, *MORE], WideSAE(scale=2.0), save_path=announced / "c")
    for names in (["b", "a"], ["a"], ["c"]):
        with pytest.raises(StoreExistsError, match="there is already a store at"):
            interp_embed.merge([announced / name for name in names], announced / "s")
    assert before == {p: p.read_bytes() for p in (announced / "s").rglob("*") if p.is_file()}


def test_a_far_save_that_was_cut_off_when_the_store_was_there_can_be_run_again(tmp_path):
    url = f"memory://{uuid.uuid4().hex}/s"
    dataset = made(tmp_path / "a", RECORDS)
    dataset.save_to_file(url)
    far = open_storage(url)
    far.put("saving.json", far.get("zarr.json"))
    with pytest.raises(StoreExistsError, match="documents"):
        dataset[:2].save_to_file(url)
    dataset.save_to_file(url)
    assert not far.exists("saving.json")
    assert_whole(far, RECORDS)
    with pytest.raises(StoreExistsError, match="there is already a store at"):
        dataset.save_to_file(url)
