"""How many examples hypothesis tries, and by what chance.

`make test` tries the same examples on every machine and in every run. `make fuzz` (the profile ``fuzz``)
tries ten times as many, other ones each time, and says with which seed they come again.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_USUAL = 100


def register_profiles() -> None:
    """Register ``test`` and ``fuzz``, and load the former.

    A slow machine is no failure in either: there is no deadline, and drawing may take its time.
    """
    patient = settings(
        deadline=None,
        database=None,
        max_examples=_USUAL,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.register_profile("test", patient, derandomize=True)
    settings.register_profile("fuzz", patient, max_examples=10 * _USUAL, print_blob=True)
    settings.load_profile("test")


def examples(usual: int) -> int:
    """Return how many examples a test tries that tries ``usual`` ones in `make test`."""
    return usual * settings.default.max_examples // _USUAL
