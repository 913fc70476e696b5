"""Files and names that survive a power cut: each way of writing, cut at every moment."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from interp_embed.core import files
from interp_embed.sae.releases import embedded_release
from interp_embed.testing import FileRecorder, crash_states, safe_state


@pytest.mark.parametrize("before", [None, b"the old content"])
def test_a_replaced_file_is_the_old_one_or_the_new_one(tmp_path, before):
    if before is not None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "f").write_bytes(before)
    with FileRecorder(tmp_path) as recorder:
        with files.replacing(tmp_path / "a" / "b" / "f") as file:
            file.write(b"the new ")
            file.write(b"content")
        recorder.mark("done")
    found = {
        (state.files.get("a/b/f"), state.marks)
        for state in crash_states(recorder.record, limit=1000)
    }
    new = b"the new content"
    assert found == {(before, ()), (new, ()), (new, ("done",))}


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "f").write_bytes(b"old")

    def fail():
        with files.replacing(tmp_path / "f") as file:
            file.write(b"half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"old")]
    with pytest.raises(FileExistsError), files.write_new(tmp_path / "f"):
        pass
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_file_in_a_folder_that_cannot_be_listed_is_written(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(files, "sync_folder", refuse)
    with files.replacing(tmp_path / "f") as file:
        file.write(b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"new")]


def test_new_folders_and_what_is_below_them_are_kept(tmp_path):
    with FileRecorder(tmp_path) as recorder:
        files.make_folder(tmp_path / "a" / "b")
        (tmp_path / "a" / "b" / "c").mkdir()
        (tmp_path / "a" / "b" / "c" / "f").write_bytes(b"1")
        lost = safe_state(recorder.record)
        files.sync_tree(tmp_path / "a" / "b")
    assert (set(lost.folders), dict(lost.files)) == ({"a", "a/b"}, {})
    kept = safe_state(recorder.record)
    assert (set(kept.folders), dict(kept.files)) == ({"a", "a/b", "a/b/c"}, {"a/b/c/f": b"1"})


def test_an_unpacked_model_has_its_name_only_when_all_of_it_is_kept(tmp_path, monkeypatch):
    class Loaded:
        model = SimpleNamespace(layers=[0] * 40)

        def __init__(self):
            self.config = SimpleNamespace(quantization_config=1)

        @classmethod
        def from_pretrained(cls, *_, **__):
            return cls()

        def save_pretrained(self, folder):
            os.makedirs(folder, exist_ok=True)  # noqa: PTH103
            for name in ("config.json", "model.safetensors"):
                (folder / name).write_bytes(b"all of it")

    fake = SimpleNamespace(AutoModelForCausalLM=Loaded, AutoTokenizer=Loaded)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(float32=None))
    with FileRecorder(tmp_path) as recorder:
        embedded_release._unpack(tmp_path / "m.gguf", tmp_path / "cache" / "model")
        recorder.mark("done")
    states = list(crash_states(recorder.record, limit=3000))
    assert len(states) > 20
    for state in states:
        found = {k: v for k, v in state.files.items() if k.startswith("cache/model/")}
        whole = dict.fromkeys(
            ("cache/model/config.json", "cache/model/model.safetensors"), b"all of it"
        )
        assert found == whole or (not found and not state.marks), state
