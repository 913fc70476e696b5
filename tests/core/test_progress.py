"""Work that takes a while says so to a person, and to nobody else."""

from __future__ import annotations

import time

import pytest

from interp_embed.aggregate import scheduler


def slowly(number):
    time.sleep(0.12)  # longer than tqdm's shortest time between two lines
    return number


@pytest.mark.parametrize("workers", [1, 3])
def test_long_work_shows_progress_to_somebody_who_is_there(monkeypatch, capsys, workers):
    monkeypatch.setattr(scheduler, "_QUIET_SECONDS", 0)

    def run(description):
        found = scheduler.run_tasks(
            slowly, [3, 1, 2], workers=workers, description=description, total=6, size=int
        )
        assert list(found) == [3, 1, 2]
        return capsys.readouterr().err

    monkeypatch.setattr(scheduler, "show_progress", lambda: True)
    shown = run("counting")
    assert "counting" in shown
    assert "/6.00" in shown
    assert "doc/s" in shown or "s/doc" in shown
    assert run("") == ""
    monkeypatch.setattr(scheduler, "show_progress", lambda: False)
    assert run("counting") == ""


def test_short_work_shows_none(monkeypatch, capsys):
    monkeypatch.setattr(scheduler, "show_progress", lambda: True)
    assert list(scheduler.run_tasks(abs, [-1, -2], description="counting", total=2)) == [1, 2]
    assert capsys.readouterr().err.strip() == ""
    assert scheduler._QUIET_SECONDS == 2
