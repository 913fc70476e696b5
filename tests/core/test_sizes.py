"""A size means the same here as in dask."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from dask.utils import parse_bytes

from interp_embed.core.memory import available_memory, memory_budget, parse_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("8G", 8 * 10**9),
        ("8GB", 8 * 10**9),
        ("8GiB", 8 * 2**30),
        ("8Gi", 8 * 2**30),
        ("1.5k", 1500),
        (" 2 GiB ", 2**31),
        ("3mb", 3 * 10**6),
        ("1T", 10**12),
        ("1e6", 10**6),
        ("5", 5),
        (5, 5),
        (1.5e9, 1_500_000_000),
        (np.int64(5), 5),
    ],
)
def test_a_size_is_what_dask_makes_of_it(size: Any, expected: int) -> None:
    assert parse_size(size) == parse_bytes(str(size)) == expected


@pytest.mark.parametrize(
    "wrong",
    ["", "much", "G", "-1", "0", "0.5", "1X", "8 Gi B s", "1e999", "nan", True, None, b"8G", [8],
     float("nan"), float("inf"), 0, -1],
)  # fmt: skip
def test_what_is_no_size_is_refused_with_its_value(wrong: Any) -> None:
    message = (
        "--memory must be a size such as 8G (8e9 bytes) or 8GiB, or a number of bytes, got "
        f"{wrong!r}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_size(wrong, "--memory")


def test_an_argument_and_the_environment_mean_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ("3G", "3GiB", "3_000"):
        monkeypatch.setenv("INTERP_EMBED_MEMORY", size)
        found = available_memory()
        monkeypatch.setenv("INTERP_EMBED_MEMORY", "1")
        with memory_budget(size):
            assert available_memory() == found > 1
