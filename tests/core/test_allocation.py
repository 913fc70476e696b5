"""When freed memory is returned to the system."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp_embed.core import allocation

if TYPE_CHECKING:
    import pytest


def test_a_long_pass_returns_memory_once_a_second_and_a_short_one_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, returned = 0.0, []
    monkeypatch.setattr(allocation.time, "monotonic", lambda: now)
    monkeypatch.setattr(allocation, "release_freed_memory", lambda: returned.append(now))
    for _ in allocation.releasing(range(3)):
        now += 0.3
    assert returned == []
    now, seen = 0.0, []
    for number in allocation.releasing(range(10)):
        seen.append(number)
        now += 0.3
    assert seen == list(range(10))
    assert [round(at, 1) for at in returned] == [1.2, 2.4]


def test_a_result_is_let_go_before_memory_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []

    class Block:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    held = []
    monkeypatch.setattr(allocation, "_SECONDS", -1.0)
    monkeypatch.setattr(allocation, "release_freed_memory", lambda: held.append(len(alive)))
    for block in allocation.releasing(Block() for _ in range(3)):
        assert isinstance(block, Block)
        del block
    assert held == [0, 0, 0]
