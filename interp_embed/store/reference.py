"""A store that travels to another process: as where it is, opened there once, when it is asked for.

Not when it arrives: what cannot be opened is an error of the task that wanted to read, and no reason
why a scheduler or a worker could not take part.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from interp_embed.store.store import Store

__all__ = ["Reference", "opened"]


class Reference(NamedTuple):
    """Which store, and in which state.

    Attributes
    ----------
    url : str
        Where it is; credentials come from the environment of whoever opens it.
    identity : str
        `Store.identity`: what else may be at the place by now is not meant.
    state : str
        `Ledger.state` where the store was sent from. Where the ledger has moved on since, the store
        is read as it is now: documents are only ever added, and chunks merged.
    """

    url: str
    identity: str
    state: str


@lru_cache(maxsize=8)
def opened(reference: Reference) -> Store:
    """Return the store, opened once in this process for each state of its ledger.

    Raises
    ------
    CorruptStoreError
        If another store is there.
    """
    from interp_embed.store.store import Store

    store = Store(reference.url)
    store.require_identity(reference.identity)
    if store.ledger.state != reference.state:  # an older manifest, or chunks were merged meanwhile
        store.refresh(manifest=False)
    return store
