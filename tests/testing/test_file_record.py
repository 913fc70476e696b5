"""The recorder misses nothing that is done to files, and the model of a crash gives every state."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from interp_embed.testing import FileRecorder, crash_states, safe_state
from interp_embed.testing.file_record import TreeState


def contents(root):
    """All files and folders, read without the recorder's own code."""
    return {
        p.relative_to(root).as_posix(): p.read_bytes() if p.is_file() else None
        for p in root.rglob("*")
    }


def write_in_every_way(root):
    (root / "bytes").write_bytes(b"12")
    (root / "text").write_text("häh\n", encoding="utf-8")
    with (root / "text").open("a", encoding="utf-8") as file:
        file.write("more")
    with (root / "old").open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b"yz")
        file.seek(1)
        file.write(b"Q")
        file.truncate()
    with (root / "raw").open("wb", buffering=0) as file:
        file.write(memoryview(b"abc"))
    descriptor = os.open(root / "low", os.O_CREAT | os.O_RDWR)
    os.write(descriptor, b"abcdef")
    os.pwrite(descriptor, b"X", 1)
    os.fsync(descriptor)
    os.ftruncate(descriptor, 4)
    os.close(descriptor)
    os.truncate(root / "low", 3)
    os.makedirs(root / "sub" / "deep")  # noqa: PTH103
    os.link(root / "low", root / "sub" / "link")
    shutil.copyfile(root / "raw", root / "sub" / "deep" / "copy")
    shutil.copytree(root / "sub", root / "twice")
    os.rename(root / "sub" / "deep", root / "moved")  # noqa: PTH104
    shutil.rmtree(root / "sub")
    (root / "raw").replace(root / "bytes")
    (root / "gone").unlink()
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda i: (root / f"t{i}").write_bytes(bytes([i]) * 9999), range(20)))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "old").write_bytes(b"xx")
    (tmp_path / "r" / "gone").write_bytes(b"")
    return tmp_path / "r"


def test_a_replayed_record_is_the_folder_byte_by_byte(root, tmp_path):
    shutil.copytree(root, tmp_path / "same")
    write_in_every_way(tmp_path / "same")
    with FileRecorder(root) as recorder:
        write_in_every_way(root)
        (tmp_path / "elsewhere").write_bytes(b"1")
    assert contents(root) == contents(tmp_path / "same")
    files, folders = recorder.record.replayed().tree()
    assert {**files, **dict.fromkeys(folders)} == contents(root)
    assert not any("elsewhere" in str(o) for o in recorder.record.operations)
    assert open.__module__ == "io"
    assert contents(root)["twice/link"] == b"aXc"


def test_a_state_in_which_nothing_is_lost_is_the_folder(root, tmp_path):
    with FileRecorder(root) as recorder:
        write_in_every_way(root)
    whole = [s for s in crash_states(recorder.record, limit=2) if not s.lost]
    whole[-1].write_to(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(root)


def test_what_writes_past_the_recorder_is_noticed(root):
    def beside():
        subprocess.run([sys.executable, "-c", f"open({str(root / 'x')!r}, 'w')"], check=True)

    def below():
        np.memmap(root / "old", np.uint8, "r+")[0] = 7

    for write in (beside, below):
        with pytest.raises(AssertionError, match=r"past the recorder: (x|old)"), FileRecorder(root):
            write()
    with FileRecorder(root), pytest.raises(ValueError, match="across the border"):
        os.rename(root / "old", root.parent / "out")  # noqa: PTH104
    (root / "link").symlink_to(root / "old")
    with pytest.raises(ValueError, match="symbolic link"), FileRecorder(root):
        pass


def test_an_error_ends_the_recording(root):
    real = os.rename, os.open, open
    with pytest.raises(KeyError), FileRecorder(root):
        raise KeyError
    assert (os.rename, os.open, open) == real


def states(root, *steps):
    """What is in the folder in each state, after what is done in turn."""
    with FileRecorder(root) as recorder:
        for step in steps:
            step()
    found = [
        {**s.files, **dict.fromkeys(s.folders)} for s in crash_states(recorder.record, limit=10**4)
    ]
    assert len(found) == len({frozenset(each.items()) for each in found})
    return found, safe_state(recorder.record)


def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "e").mkdir()
    return tmp_path / "e"


def test_neither_content_nor_name_is_safe_before_it_is_synced(empty):
    found, safe = states(empty, lambda: (empty / "a").write_bytes(b"1234"))
    assert len(found) == 5
    for each in ({}, {"a": b""}, {"a": b"12"}, {"a": b"\0\0\0\0"}, {"a": b"1234"}):
        assert each in found
    assert safe.files == {}


def test_a_synced_file_may_have_no_name_and_a_synced_name_no_content(empty):
    write = lambda: (empty / "a").write_bytes(b"1234")  # noqa: E731
    _, safe = states(empty, write, lambda: sync(empty / "a"))
    assert safe.files == {}
    (empty / "a").unlink()
    _, safe = states(empty, write, lambda: sync(empty))
    assert safe.files == {"a": b""}
    (empty / "a").unlink()
    _, safe = states(empty, write, lambda: sync(empty), lambda: sync(empty / "a"))
    assert safe.files == {"a": b"1234"}


def test_each_change_of_a_name_may_be_lost_whatever_became_of_the_others(empty):
    for name in "ab":
        (empty / name).write_bytes(name.encode())
    found, _ = states(
        empty,
        lambda: (empty / "a").unlink(),
        lambda: os.link(empty / "b", empty / "c"),
        lambda: (empty / "d").mkdir(),
    )
    assert len(found) == 8
    assert {"b": b"b", "c": b"b"} in found
    assert {"a": b"a", "b": b"b", "d": None} in found


def test_a_renaming_is_there_as_a_whole_or_not_at_all(empty):
    (empty / "a").write_bytes(b"new")
    (empty / "b").write_bytes(b"old")
    found, _ = states(empty, lambda: (empty / "a").replace(empty / "b"))
    assert sorted(map(str, found)) == sorted(map(str, [{"b": b"new"}, {"a": b"new", "b": b"old"}]))


def test_a_folder_that_is_lost_takes_with_it_what_was_synced_in_it(empty):
    def write():
        (empty / "d").mkdir()
        (empty / "d" / "a").write_bytes(b"1")
        sync(empty / "d" / "a")
        sync(empty / "d")

    _, safe = states(empty, write)
    assert (dict(safe.files), set(safe.folders)) == ({}, set())
    shutil.rmtree(empty / "d")
    _, safe = states(empty, write, lambda: sync(empty))
    assert dict(safe.files) == {"d/a": b"1"}


def test_marks_come_with_the_states_after_them_and_a_sample_is_the_same_each_time(empty):
    with FileRecorder(empty) as recorder:
        for number in range(12):
            (empty / f"{number}").write_bytes(b"1")
            if number == 5:
                recorder.mark("half")
    found = list(crash_states(recorder.record, limit=50))
    assert 40 < len(found) <= 100
    assert {s.marks for s in found} == {(), ("half",)}
    again = list(crash_states(recorder.record, limit=50))
    assert [(s.files, s.lost) for s in found] == [(s.files, s.lost) for s in again]
    other = list(crash_states(recorder.record, limit=50, seed=1))
    assert [s.files for s in found] != [s.files for s in other]


def test_hard_links_are_read_as_one_file(root):
    os.link(root / "old", root / "other")
    state, numbers = TreeState.of(root)
    assert len(state.contents) == 2
    assert len(numbers) == 3
