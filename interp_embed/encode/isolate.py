"""One bad document never makes others fail: batches that fail are tried again in halves."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.bisect import Worklist
from interp_embed.core.chunk import Chunk
from interp_embed.core.spans import reason_not_text
from interp_embed.errors import SAEUnavailableError
from interp_embed.sae.assemble import one_line
from interp_embed.sae.batch_budget import free_cached, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from interp_embed.sae.base import BaseSAE
    from interp_embed.sae.batch_budget import Budget

__all__ = ["EncodedDocuments", "PreparedDocuments", "encode_isolated", "prepare_isolated"]

_PREPARED_AT_ONCE = 64
_CHARACTERS_AT_ONCE = 2**20
"""Tokenisers take about a hundred bytes a character while they work on a text."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedDocuments:
    """Documents ready for the device.

    Attributes
    ----------
    count : int
        Number of documents, including those that have already failed.
    items : dict of int to object
        The prepared form of each document's text, by position.
    order : list of int
        Positions of the items, in the order in which they are encoded.
    reasons : dict of int to str
        Why documents failed already, by position.
    """

    count: int
    items: dict[int, Any]
    order: list[int]
    reasons: dict[int, str]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedDocuments:
    """Documents as they came from the device: in batches, not in order.

    Attributes
    ----------
    parts : list of (Chunk, list of int)
        Chunks, and the positions of their documents.
    reasons : dict of int to str
        Why documents failed, by position.
    """

    parts: list[tuple[Chunk, list[int]]]
    reasons: dict[int, str]

    def chunk(self, start: int, d_sae: int | None) -> Chunk:
        """Return the documents as one chunk, in order and numbered from ``start``.

        Parameters
        ----------
        start
            Number of the first document.
        d_sae
            Number of features, if known: it does not follow from documents that all failed.
        """
        parts = [chunk for chunk, _ in self.parts]
        positions = [p for _, members in self.parts for p in members]
        if self.reasons:
            width = next((c.d_sae for c in parts if c.d_sae), d_sae or 0)
            parts.append(Chunk.failed(width, list(self.reasons), list(self.reasons.values())))
            positions += list(self.reasons)
        order = np.argsort(positions, kind="stable")
        joined = parts[0] if len(parts) == 1 else Chunk.concatenate(parts)
        numbers = np.arange(start, start + len(order))
        return joined.take(order).with_doc_id(numbers)


def prepare_isolated(
    sae: BaseSAE, texts: Sequence[Any], check: Callable[[], None] = lambda: None
) -> PreparedDocuments:
    """Tokenise documents. A failure concerns only its own document.

    Parameters
    ----------
    sae
        A loaded SAE.
    texts
        The documents; one that is not a string fails.
    check
        Called now and then, to raise an error that should end the run.
    """
    reasons = {i: r for i, t in enumerate(texts) if (r := reason_not_text(t)) is not None}
    wanted = [i for i in range(len(texts)) if i not in reasons]
    items: dict[int, Any] = {}

    def prepare(batch: Sequence[int]) -> None:
        found = sae.prepare([texts[i] for i in batch])
        _require_count(len(found), len(batch))
        items.update(zip(batch, found, strict=True))

    if _encodes_texts(sae):
        items = {i: texts[i] for i in wanted}
    else:

        def most(left: Sequence[int]) -> int:
            lengths = [len(texts[i]) for i in left[:_PREPARED_AT_ONCE]]
            return sum(total <= _CHARACTERS_AT_ONCE for total in accumulate(lengths))

        _in_batches(wanted, most, prepare, reasons, check)
    # Neighbours in length waste least on padding.
    order = sorted(items, key=lambda i: len(texts[i]))
    return PreparedDocuments(len(texts), items, order, reasons)


def encode_isolated(
    sae: BaseSAE,
    prepared: PreparedDocuments,
    budget: Budget,
    check: Callable[[], None] = lambda: None,
) -> EncodedDocuments:
    """Encode documents. A failure concerns only its own document.

    Parameters
    ----------
    sae
        A loaded SAE.
    prepared
        The documents.
    budget
        Number of documents that an SAE gets at once if it makes no batches itself.
    check
        Called before each batch, to raise an error that should end the run.
    """
    encode = sae.encode_chunk if _encodes_texts(sae) else sae.encode_prepared
    reasons = dict(prepared.reasons)
    parts: list[tuple[Chunk, list[int]]] = []

    def run(batch: Sequence[int]) -> None:
        try:
            chunk = encode([prepared.items[i] for i in batch])
        except Exception as error:
            if is_out_of_memory(error):
                budget.fell_short(len(batch))
            raise
        _require_count(chunk.n_documents, len(batch))
        budget.sufficed(len(batch))
        parts.append((chunk, list(batch)))

    def most(left: Sequence[int]) -> int:
        return len(left) if sae.makes_batches else budget.now

    _in_batches(prepared.order, most, run, reasons, check)
    return EncodedDocuments(parts, reasons)


def _in_batches(
    order: list[int],
    most: Callable[[Sequence[int]], int],
    run: Callable[[Sequence[int]], None],
    reasons: dict[int, str],
    check: Callable[[], None],
) -> None:
    """Call ``run`` with batches of positions, in order; those that fail are tried again in halves.

    Parameters
    ----------
    order
        Positions of documents.
    most
        Returns how many of the positions that are left the next batch may have.
    run
        Does the work.
    reasons
        Is told why documents failed.
    check
        Called before each batch.
    """
    todo = Worklist(order)
    while todo:
        check()
        batch = todo.take(most(todo.front))
        try:
            run(batch)
        except SAEUnavailableError:
            raise  # no document is to blame, and the next ones would fail too
        except Exception as error:  # noqa: BLE001 - whatever is raised is this batch's failure
            reason = one_line(error)
            no_memory = is_out_of_memory(error)
        else:
            continue
        if no_memory:
            free_cached()  # now that the error, which held the batch's tensors, is gone
        if not todo.split(batch):
            reasons[batch[0]] = reason


def _encodes_texts(sae: BaseSAE) -> bool:
    """Return whether a class overrides `encode_chunk` below the one that gave `encode_prepared`."""
    if "encode_chunk" in vars(sae):
        return True
    for cls in type(sae).__mro__:
        if "encode_prepared" in vars(cls):
            return False
        if "encode_chunk" in vars(cls):
            return True
    return False


def _require_count(found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"the SAE returned {found} documents for a batch of {wanted}")
