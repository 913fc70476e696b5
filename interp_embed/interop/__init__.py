"""Import and export of other formats.

Owns the translation between what other tools write and plain arrays, frames and values. Knows
nothing of stores or datasets: those call this package, never the other way round.
"""

from __future__ import annotations

from interp_embed.interop.pickle import LegacyDataset, is_pickle, read_pickle, write_pickle

__all__ = ["LegacyDataset", "is_pickle", "read_pickle", "write_pickle"]
