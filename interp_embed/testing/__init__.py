"""What tests of this library, and of code that builds on it, are made of.

Random documents, one dense float64 oracle, stores of given documents, an SAE without a model, and
storages that fail on demand, are slow, or count what is asked of them; a recorder of what is done to
files, and what a power cut could leave of it; and a server that answers as a language model would.
hypothesis is imported by `interp_embed.testing.strategies` alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from interp_embed.testing.faults import (
    FaultyStorage,
    InjectedError,
    LostResponseStorage,
    TornStorage,
)
from interp_embed.testing.file_record import FileRecorder
from interp_embed.testing.oracle import dense, oracle
from interp_embed.testing.power_cuts import CrashState, crash_states, safe_state
from interp_embed.testing.saes import ReplaySAE
from interp_embed.testing.slow import CountingStorage, SlowStorage
from interp_embed.testing.stores import (
    assert_chunks_equal,
    read_everything,
    store_from_chunk,
    texts_of,
)

if TYPE_CHECKING:
    from interp_embed.testing.llm_server import LLMServer, Reply, samples_of
    from interp_embed.testing.strategies import chunks, frames, random_chunk

__all__ = [
    "CountingStorage",
    "CrashState",
    "FaultyStorage",
    "FileRecorder",
    "InjectedError",
    "LLMServer",
    "LostResponseStorage",
    "ReplaySAE",
    "Reply",
    "SlowStorage",
    "TornStorage",
    "assert_chunks_equal",
    "chunks",
    "crash_states",
    "dense",
    "frames",
    "oracle",
    "random_chunk",
    "read_everything",
    "safe_state",
    "samples_of",
    "store_from_chunk",
    "texts_of",
]

_LATER = {
    **dict.fromkeys(("chunks", "frames", "random_chunk"), "strategies"),
    **dict.fromkeys(("LLMServer", "Reply", "samples_of"), "llm_server"),
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
