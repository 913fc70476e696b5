"""Of overlapping commits the right one counts, for every document."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp_embed.errors import CorruptStoreError, UnsupportedFormatError
from interp_embed.store.arrays.folder import ArrayEntry, Folder
from interp_embed.store.format.sealed import seal, unseal
from interp_embed.store.ledger import (
    Commit,
    Ledger,
    Plan,
    PlannedBlock,
    read_commits,
    read_manifest,
    read_plan,
    write_manifest,
)
from interp_embed.store.storage import open_storage

N = 20


def commit(start, stop, generation=0, attempt="a"):
    return Commit(
        start=start, stop=stop, generation=generation, d_sae=8, n_tokens=5, n_special=1, nnz=9,
        pooled_nnz=4, n_failed=0, n_truncated=0, has_negative=False, encoder="e",
        vocabulary={"7": "<s>"},
        folder=Folder(
            key=f"chunks/{start}-{stop}-{generation}-{attempt}",
            arrays={"feature": ArrayEntry("uint16", "delta", "nnz", 9, 4, 77)},
            objects={"zarr.json": (3, "00")},
        ),
    )  # fmt: skip


@st.composite
def commits(draw):
    ranges = draw(
        st.lists(
            st.tuples(st.integers(0, N - 1), st.integers(1, N), st.integers(0, 3)),
            max_size=8,
            unique=True,
        )
    )
    return [commit(a, min(N, a + n), g) for a, n, g in ranges if min(N, a + n) > a]


def winners(found):
    """The plainest reading of the rule."""
    out = []
    for document in range(N):
        holders = [c for c in found if c.start <= document < c.stop]
        rank = lambda c: (c.generation, c.start - c.stop, c.folder.key)  # noqa: E731
        out.append(max(holders, key=rank) if holders else None)
    return out


@given(commits())
def test_every_document_is_read_from_the_commit_of_highest_rank(found):
    unique = list({c.key: c for c in found}.values())
    ledger = Ledger(unique, N)
    expected = winners(unique)
    located = ledger.locate(np.arange(-2, N + 2))
    assert located[:2].tolist() == located[-2:].tolist() == [-1, -1]
    for document, interval in enumerate(located[2:-2].tolist()):
        if expected[document] is None:
            assert interval == -1
        else:
            assert ledger.intervals[interval].commit is expected[document]
    missing = [d for a, b in ledger.missing for d in range(a, b)]
    assert missing == [d for d in range(N) if expected[d] is None]
    live = list(dict.fromkeys(c.key for c in expected if c is not None))
    assert [c.key for c in ledger.live] == live
    assert {c.key for c in ledger.superseded} == {c.key for c in unique} - set(live)
    assert all(c.generation < ledger.next_generation for c in unique)
    for before, after in zip(ledger.intervals[:-1], ledger.intervals[1:], strict=True):
        assert before.stop <= after.start
        assert before.commit is not after.commit or before.stop < after.start


def test_a_store_without_commits_misses_everything():
    ledger = Ledger([], 5)
    assert ledger.missing == ((0, 5),)
    assert ledger.next_generation == 0
    assert ledger.locate(np.arange(3)).tolist() == [-1, -1, -1]
    assert Ledger([], 0).missing == ()


@given(st.integers(1, 7), st.integers(0, 20), st.integers(0, 20))
def test_pieces_end_at_the_plans_boundaries(step, start, length):
    plan = Plan(40, step, [], [], {})
    pieces = plan.pieces(start, start + length + 1)
    assert [d for a, b in pieces for d in range(a, b)] == list(range(start, start + length + 1))
    assert all(a < b for a, b in pieces)
    assert all(b % step == 0 for _, b in pieces[:-1])
    assert all(a // step == (b - 1) // step for a, b in pieces)


def test_commits_come_back_as_they_were_written(tmp_path):
    storage = open_storage(tmp_path)
    written = [commit(0, 5), commit(5, 9, 2)]
    assert [c.publish(storage) for c in written] == [True, True]
    (tmp_path / "commits/.tmp-1").write_bytes(b"half a commit")
    found = sorted(read_commits(storage), key=lambda c: c.start)
    assert [c.to_json() for c in found] == [c.to_json() for c in written]
    assert found[0].folder.arrays["feature"].size == 77


def test_one_range_and_generation_is_committed_once(tmp_path):
    storage = open_storage(tmp_path)
    assert commit(0, 5, attempt="a").publish(storage)
    assert not commit(0, 5, attempt="b").publish(storage)
    assert commit(0, 5, 1, attempt="b").publish(storage)
    assert [c.folder.key[-1] for c in Ledger(read_commits(storage), 5).live] == ["b"]


def test_a_damaged_commit_is_an_error_and_a_damaged_manifest_is_not(tmp_path):
    storage = open_storage(tmp_path)
    commit(0, 5).publish(storage)
    write_manifest(storage, read_commits(storage))
    assert [c.to_json(objects=False) for c in read_manifest(storage)] == [
        commit(0, 5).to_json(objects=False)
    ]
    storage.put("manifest.json", b"{")
    assert read_manifest(storage) is None
    storage.put(commit(0, 5).key, b'{"checksum": "0"}')
    with pytest.raises(CorruptStoreError, match="does not match its checksum"):
        read_commits(storage)


def test_a_plan_comes_back_and_a_newer_one_is_refused(tmp_path):
    storage = open_storage(tmp_path)
    assert read_plan(storage) is None
    folder = commit(0, 9).folder
    blocks = [
        PlannedBlock(0, 5, folder, None, {"text": "0"}),
        PlannedBlock(5, 9, folder, [{"name": "text"}], {"text": "1"}),
    ]
    plan = Plan(9, 4, [{"name": "text"}], blocks, {"text": "2"})
    storage.put("plan.json", seal({"format_version": 1, **plan.to_json()}))
    assert read_plan(storage).to_json() == plan.to_json()
    storage.put("plan.json", seal({"format_version": 2, "anything": 1}))
    with pytest.raises(UnsupportedFormatError, match="Upgrade interp_embed to open it"):
        read_plan(storage)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text().filter(lambda k: k != "checksum"), json_values, max_size=4))
def test_a_sealed_document_opens_to_itself(document):
    assert unseal(seal(document), "here") == document


def test_keys_of_any_type_are_sealed_as_json_has_them():
    assert unseal(seal({"labels": {10: "a", 9: ("b",)}}), "") == {"labels": {"10": "a", "9": ["b"]}}


@given(st.data())
def test_a_sealed_document_with_one_byte_changed_never_opens_to_another(data):
    document = {"a": [1, 2.5e300, "ü"], "b": {"c": None}}
    sealed = bytearray(seal(document))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert unseal(bytes(sealed), "here") == document
    except CorruptStoreError as error:
        assert str(error).startswith("here is damaged")  # noqa: PT017
