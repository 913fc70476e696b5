"""Sparse blocks on their way between the processes of a dask cluster.

distributed sends a `sparse.COO` without its fill value, which is 0 for the blocks that are read but not
for all that is computed from them: the sum of a whole array is nothing but a fill value. Here a block
is sent whole, in a form that a process without this registration reads too, and which registers it
there, so that it is in place before that process sends anything on.

The registration replaces that of distributed for `sparse.COO` in the whole process. It cannot be one for
a class of our own: what sparse computes from blocks is a plain `sparse.COO`, whatever class the blocks
have, and those results are what distributed would send wrongly. It is narrow in other ways: it happens
when a lazy array of a store is read, and not on import; only in a process that has imported distributed;
and for code that knows nothing of it a block arrives as it did before, with its fill value. It can go
when distributed sends fill values itself, which `tests/test_lazy_internals.py` notices.
"""

from __future__ import annotations

import sys
from typing import Any

import sparse

__all__ = ["register"]

_registered = False


def register() -> None:
    """Send sparse blocks with their fill value from now on, if this process is part of a cluster."""
    global _registered
    if _registered or "distributed" not in sys.modules:
        return
    from distributed.protocol import sparse as _theirs  # noqa: F401  (before ours, which replaces it)
    from distributed.protocol.serialize import dask_serialize

    dask_serialize.register(sparse.COO)(_serialize)
    _registered = True


class _Sent:
    """A block that is rebuilt by this module, wherever it arrives."""

    def __init__(self, block: sparse.COO) -> None:
        self.block = block

    def __reduce__(self) -> tuple[Any, ...]:
        block = self.block
        return _received, (block.coords, block.data, block.shape, block.fill_value)


def _received(coords: Any, data: Any, shape: tuple[int, ...], fill_value: Any) -> sparse.COO:
    register()
    return sparse.COO(
        coords, data, shape=shape, fill_value=fill_value, has_duplicates=False, sorted=True
    )


def _serialize(block: sparse.COO) -> tuple[dict[str, Any], list[Any]]:
    """Return what distributed's own reader makes ``COO(coords, data, shape=shape)`` of.

    The coordinates are a whole array there, of which `sparse.COO` makes a copy without copying.
    """
    from distributed.protocol.serialize import serialize

    header, frames = serialize(_Sent(block), serializers=("pickle",))
    nothing, no_frames = serialize(None, serializers=("pickle",))
    return {
        "coords-header": header,
        "data-header": nothing,
        "shape": None,
        "nframes": [len(frames), len(no_frames)],
    }, [*frames, *no_frames]
