"""Datasets come from a store, from memory or from the original's pickle, and go back there."""

from interp_embed.saving.copying import save
from interp_embed.saving.joining import append, merge, require_whole
from interp_embed.saving.known import write_rows
from interp_embed.saving.opening import (
    DEFAULT_DEVICE,
    choose_device,
    is_done,
    keep_labels,
    load,
    plan_store,
    reopen,
)

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
