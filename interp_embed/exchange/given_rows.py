"""Writing rows with known activations as chunks of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from interp_embed.core.chunk import Chunk, TokenTable
from interp_embed.store import Store, StoreWriter, finish

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interp_embed.sae.base import BaseSAE
    from interp_embed.selection.row import DatasetRow

__all__ = ["write_rows"]


def write_rows(
    store: Store,
    sae: BaseSAE | None,
    rows: Sequence[DatasetRow | None],
    failed: Mapping[int, str] | None = None,
) -> None:
    """Commit known activations. Documents that the store already holds do not change.

    ``failed`` gives the reason why a document without a row cannot have one.
    """
    reasons = failed or {}
    known = [row for row in rows if row is not None]
    if not known and not reasons:
        return
    widths = {row.activations.shape[1] for row in known}
    if len(widths) > 1:
        raise ValueError(f"rows must have the same number of features, got {sorted(widths)}")
    d_sae = widths.pop() if widths else store.d_sae
    fingerprint = None if sae is None else sae.fingerprint()
    with StoreWriter(store, fingerprint, d_sae) as writer:
        for gap in store.ledger.missing:
            for start, stop in store.plan.pieces(*gap):
                run: list[int] = []
                for document in range(start, stop + 1):
                    if document < stop and (rows[document] is not None or document in reasons):
                        run.append(document)
                    elif run:
                        chunk = _chunk_of_rows(d_sae or 0, run, [rows[d] for d in run], reasons)
                        writer.write(chunk.with_failures(chunk.beyond_range(store.dtype)))
                        run = []
        finish(writer)
    store.refresh()


def _chunk_of_rows(
    d_sae: int,
    documents: list[int],
    rows: Sequence[DatasetRow | None],
    reasons: Mapping[int, str],
) -> Chunk:
    known = {d: row for d, row in zip(documents, rows, strict=True) if row is not None}
    failed = [d for d in documents if d not in known]
    tables: list[TokenTable] = []
    vocabulary: dict[int, str] = {}
    for row in known.values():
        table, strings = _token_table(row)
        tables.append(table)
        vocabulary |= strings
    without = Chunk.failed(d_sae, failed, [reasons[d] for d in failed])
    if not known:
        return without
    activations = [row.activations for row in known.values()]
    chunk = Chunk.from_documents(
        d_sae, activations, tables, doc_id=list(known), vocabulary=vocabulary
    )
    if not failed:
        return chunk
    return Chunk.concatenate([without, chunk]).take(np.argsort([*failed, *known]))


def _token_table(row: DatasetRow) -> tuple[TokenTable, dict[int, str]]:
    """Find a row's token strings in its text. Ids are hashes, because only the strings are known."""
    from interp_embed.core.spans import align_strings

    text = row.data if isinstance(row.data, str) else ""
    start, end, special = align_strings(text, row.tokenized_document)
    ids = np.array(
        [crc32(t.encode(errors="surrogatepass")) for t in row.tokenized_document], np.uint32
    )
    strings = dict(zip(ids.tolist(), row.tokenized_document, strict=True))
    return TokenTable(ids, start, end, special), {
        i: strings[i] for i, outside in zip(ids.tolist(), special.tolist(), strict=True) if outside
    }
