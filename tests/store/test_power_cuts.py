"""A power cut at any moment: what was reported as done stays, and the same call again completes it."""

from __future__ import annotations

import random
import uuid
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from interp_embed.store import compaction, labels_journal
from interp_embed.testing.file_record import FileRecorder
from interp_embed.testing.power_cuts import crash_states

from .power_cut_cases import CASES

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
