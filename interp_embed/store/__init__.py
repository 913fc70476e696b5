"""The store: everything that knows the format on disk. It does not know about models."""

from interp_embed.store.store import MISSING, Store
from interp_embed.store.write.compaction import collect_garbage, compact, finish
from interp_embed.store.write.creation import create_store, is_store
from interp_embed.store.write.writer import StoreWriter

__all__ = [
    "MISSING",
    "Store",
    "StoreWriter",
    "collect_garbage",
    "compact",
    "create_store",
    "finish",
    "is_store",
]
