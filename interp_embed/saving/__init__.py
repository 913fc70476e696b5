"""Datasets come from a store, from memory or from the original's pickle, and go back there."""

from interp_embed.saving.copying import save
from interp_embed.saving.known import write_rows
from interp_embed.saving.opening import (
    DEFAULT_DEVICE,
    choose_device,
    is_done,
    keep_labels,
    load,
    open_or_create,
    reopen,
)

__all__ = [
    "DEFAULT_DEVICE",
    "choose_device",
    "is_done",
    "keep_labels",
    "load",
    "open_or_create",
    "reopen",
    "save",
    "write_rows",
]
