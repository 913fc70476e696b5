"""Seeds of tests that do things at random moments: a few for every day, many for `make soak`."""

from __future__ import annotations

import pytest


def seeds(few: int, many: int) -> list[object]:
    """Return the seeds from 0 to ``many``; those from ``few`` on are marked ``soak``."""
    return [*range(few), *(pytest.param(n, marks=pytest.mark.soak) for n in range(few, many))]
