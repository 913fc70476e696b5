"""What names a store in another process; see `interp_embed.store.snapshot.Snapshots.__reduce__`."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Reference"]


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
