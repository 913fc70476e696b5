"""References to a store for other processes; see `interp_embed.store.snapshot.Snapshots.__reduce__`."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Reference"]


class Reference(NamedTuple):
    """Which store, and in which state.

    Attributes
    ----------
    url : str
        Where it is. Credentials come from the environment of the process that opens it.
    identity : str
        `Store.identity`, so that another store at the same place is not taken for this one.
    state : str
        `Ledger.state` in the process that sent the store. If the ledger has changed since, the store
        is read as it is now: documents are only ever added, and chunks merged.
    """

    url: str
    identity: str
    state: str
