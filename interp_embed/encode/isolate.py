"""One bad document never takes others with it: batches that fail are tried again in halves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.chunk import Chunk
from interp_embed.sae.tokens import reason_not_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interp_embed.sae.base import BaseSAE

__all__ = ["encode_isolated"]

_FATAL = (KeyboardInterrupt, SystemExit, GeneratorExit)


def encode_isolated(
    sae: BaseSAE, doc_ids: Sequence[int], texts: Sequence[Any], batch_size: int
) -> Chunk:
    """Encode documents in batches of similar length, keeping every failure to its document.

    Parameters
    ----------
    sae
        A loaded SAE.
    doc_ids, texts
        Document numbers and texts; a text that is no string makes its document fail.
    batch_size
        Documents a batch.

    Returns
    -------
    Chunk
        The documents in the order given.
    """
    reasons = {i: r for i, t in enumerate(texts) if (r := reason_not_text(t)) is not None}
    # Neighbours in length waste least on padding.
    order = sorted((i for i in range(len(texts)) if i not in reasons), key=lambda i: len(texts[i]))
    parts: list[Chunk] = []
    positions: list[int] = []
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        for chunk, members in _halving(sae, batch, texts):
            parts.append(chunk)
            positions += members
    d_sae = next((c.d_sae for c in parts if c.d_sae), sae.d_sae or 0)
    if reasons:
        parts.append(Chunk.failed(d_sae, list(reasons), list(reasons.values())))
        positions += list(reasons)
    joined = Chunk.concatenate(parts).take(np.argsort(positions, kind="stable"))
    return joined.with_doc_id(np.asarray(doc_ids, np.int64))


def _halving(sae: BaseSAE, batch: list[int], texts: Sequence[str]) -> list[tuple[Chunk, list[int]]]:
    try:
        chunk = sae.encode_chunk([texts[i] for i in batch])
        if chunk.n_documents != len(batch):
            raise ValueError(
                f"the SAE returned {chunk.n_documents} documents for a batch of {len(batch)}"
            )
    except _FATAL:
        raise
    except Exception as error:  # noqa: BLE001  (whatever a model raises is this batch's failure)
        if len(batch) == 1:
            reason = f"{type(error).__name__}: {error}".strip()
            return [(Chunk.failed(sae.d_sae or 0, batch, [reason]), batch)]
        half = len(batch) // 2
        return _halving(sae, batch[:half], texts) + _halving(sae, batch[half:], texts)
    return [(chunk, batch)]
