"""Tools for tests of this library, and of code that builds on it.

They are random documents, a dense float64 oracle, stores of given documents, an SAE without a model,
storages that fail on demand, are slow, or count their requests, a recorder of changes to files, the
states that a power cut could leave, and a server that answers like a language model. Only
`interp_embed.testing.strategies` imports hypothesis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp_embed.testing.faults import (
        FaultyStorage,
        InjectedError,
        LostResponseStorage,
        TornStorage,
    )
    from interp_embed.testing.file_record import FileRecorder
    from interp_embed.testing.llm_server import LLMServer, Reply, samples_of
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

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "faults": ["FaultyStorage", "InjectedError", "LostResponseStorage", "TornStorage"],
        "file_record": ["FileRecorder"],
        "llm_server": ["LLMServer", "Reply", "samples_of"],
        "oracle": ["dense", "oracle"],
        "power_cuts": ["CrashState", "crash_states", "safe_state"],
        "saes": ["ReplaySAE"],
        "slow": ["CountingStorage", "SlowStorage"],
        "stores": ["assert_chunks_equal", "read_everything", "store_from_chunk", "texts_of"],
        "strategies": ["chunks", "frames", "random_chunk"],
    },
)
