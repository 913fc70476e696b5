"""Retries: how often, after which pauses, and what is raised or returned in the end."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("tenacity")

from interp_embed.net.retries import Backoff, retrying


@pytest.fixture
def slept(monkeypatch):
    """The pauses; none takes time."""
    found = []

    async def sleep(seconds):
        found.append(seconds)

    monkeypatch.setattr("interp_embed.net.retries.asyncio.sleep", sleep)
    return found


def run(outcomes, wait, backoff, before_pause=lambda *_: None):
    left = list(outcomes)

    async def attempt():
        outcome = left.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return asyncio.run(retrying(attempt, wait, backoff, before_pause)), left


def errors_only(outcome, growing):
    return growing if isinstance(outcome, OSError) else None


def test_pauses_double_up_to_the_longest_and_a_value_ends_them(slept):
    told = []
    outcomes = [OSError(str(n)) for n in range(5)] + ["done", "never"]
    found, left = run(
        outcomes, errors_only, Backoff(9, 1.0, 5.0, 0.0), lambda *pause: told.append(pause)
    )
    assert (found, left) == ("done", ["never"])
    assert slept == [1, 2, 4, 5, 5]
    assert [str(outcome) for outcome, _, _ in told] == ["0", "1", "2", "3", "4"]
    assert [seconds for _, seconds, _ in told] == slept
    assert [left for _, _, left in told] == [37, 36, 34, 30, 25]  # 1 + 2 + 4 + 5 * 6 at first, ...


def test_the_last_error_is_raised_and_the_last_value_returned(slept):
    backoff = Backoff(2, 1.0, 5.0, 0.0)
    with pytest.raises(OSError, match="third"):
        run([OSError("first"), OSError("second"), OSError("third")], errors_only, backoff)
    again = run(["a", "b", "c", "d"], lambda outcome, growing: 7.0, backoff)
    assert again == ("c", ["d"])
    assert slept == [1, 2, 7, 7]


def test_what_is_not_worth_it_is_not_repeated(slept):
    with pytest.raises(ValueError, match="no"):
        run([ValueError("no"), "never"], errors_only, Backoff(9, 1.0, 5.0, 0.0))
    with pytest.raises(KeyboardInterrupt):  # whatever is said of it
        run([KeyboardInterrupt(), "never"], lambda outcome, growing: 1.0, Backoff(9, 1.0, 5.0, 0.0))
    assert slept == []


def test_a_pause_is_spread_but_never_by_more_than_itself(slept):
    backoff = Backoff(200, 1.0, 1.0, 0.5)
    run([OSError()] * 100 + ["done"], errors_only, backoff)
    assert all(1 <= seconds <= 1.5 for seconds in slept)
    assert max(slept) - min(slept) > 0.1
    slept.clear()
    run([OSError()] * 100 + ["done"], lambda o, g: errors_only(o, 0.01), backoff)
    assert all(0.01 <= seconds <= 0.02 for seconds in slept)


def test_many_retries_do_not_overflow():
    assert Backoff(10**4, 0.5, 60.0, 0.0).left(0) == pytest.approx(60 * (10**4 - 7) + 63.5)
    assert Backoff(2000, 0.0, 60.0, 0.0).left(1999) == 0
