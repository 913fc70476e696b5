"""Datasets come from a store, from memory or from the original's pickle, and go back there."""

from interp_embed.exchange.joining import append, merge, require_whole
from interp_embed.exchange.opening import (
    DEFAULT_DEVICE,
    choose_device,
    is_done,
    keep_labels,
    load,
    plan_store,
    reopen,
)
from interp_embed.exchange.rows import write_rows
from interp_embed.exchange.saving import save

__all__ = [
    "DEFAULT_DEVICE",
    "append",
    "choose_device",
    "is_done",
    "keep_labels",
    "load",
    "merge",
    "plan_store",
    "reopen",
    "require_whole",
    "save",
    "write_rows",
]
