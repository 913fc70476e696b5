"""A store that travels to another process: as where it is, opened there once."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp_embed.store.reader import Store

__all__ = ["opened"]


@lru_cache(maxsize=8)
def opened(url: str, state: str) -> Store:
    """Return the store at ``url``, opened once in this process for each state of its ledger.

    Parameters
    ----------
    url
        Where it is; credentials come from this process's environment.
    state
        `Ledger.state` where the store was sent from. Where the ledger has moved on since, the store
        is read as it is now: documents are only ever added, and chunks merged.
    """
    from interp_embed.store.reader import Store

    store = Store(url)
    if store.ledger.state != state:  # the manifest is older, or chunks were merged meanwhile
        store.refresh(manifest=False)
    return store
