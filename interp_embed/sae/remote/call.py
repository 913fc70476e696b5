"""Asking a service for the documents of one call, and finding out what caused a failure."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import numpy as np

from interp_embed.core.bisect import halves
from interp_embed.core.chunk import Chunk
from interp_embed.core.spans import reason_not_text
from interp_embed.errors import SAEUnavailableError
from interp_embed.sae.assemble import one_line
from interp_embed.sae.remote.retries import Trouble

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Call", "Service"]


class Service(Protocol):
    """The methods of `interp_embed.sae.remote.base.RemoteSAE` that a call uses."""

    @property
    def d_sae(self) -> int | None:
        """Number of features; None until it is known."""

    def service(self) -> str:
        """Return the name of the service in messages."""

    def batches(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the positions of the texts of each request."""

    async def request(self, texts: Sequence[str]) -> Chunk:
        """Return the documents of one request, repeated if another attempt may succeed."""

    def classify(self, error: BaseException) -> Trouble:
        """Return how to treat an error of `request`."""

    async def check_service(self) -> None:
        """Raise `SAEUnavailableError` if the service is down."""

    async def check_encoding(self) -> None:
        """Raise `SAEUnavailableError` if the service encodes nothing at all."""


class Call:
    """One call of `RemoteSAE.encode_chunk`: its documents and their results.

    Parameters
    ----------
    sae
        Loaded.
    texts
        The documents.
    """

    def __init__(self, sae: Service, texts: list[str]) -> None:
        self._sae = sae
        self._texts = texts
        self._reasons = {i: r for i, t in enumerate(texts) if (r := reason_not_text(t)) is not None}
        self._parts: list[tuple[Chunk, list[int]]] = []
        self._answers = 0

    async def run(self) -> None:
        """Ask for all documents.

        Raises
        ------
        SAEUnavailableError
            If the service refuses the client, if a request is not answered after all retries, or if
            the service encodes nothing.
        """
        wanted = [i for i in range(len(self._texts)) if i not in self._reasons]
        batches = self._sae.batches([self._texts[i] for i in wanted])
        await self._side_by_side([[wanted[k] for k in batch] for batch in batches])

    async def _side_by_side(self, batches: Sequence[Sequence[int]]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for batch in batches:
                    group.create_task(self._ask(batch))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors.exceptions[0].__cause__

    async def _ask(self, batch: Sequence[int]) -> None:
        """Ask for some documents, and for each half of them if that fails because of them."""
        sae, before = self._sae, self._answers
        try:
            chunk = await sae.request([self._texts[i] for i in batch])
        except SAEUnavailableError:
            raise
        except Exception as error:
            kind = sae.classify(error)
            if kind is Trouble.REFUSED:
                raise SAEUnavailableError(
                    f"{sae.service()} refuses requests: {one_line(error)}"
                ) from error
            await sae.check_service()
            if kind is Trouble.UNREACHABLE:
                # Not the documents' fault: as failures they would stand in the store for good.
                what = "no longer answers" if self._answers else "answers no request"
                raise SAEUnavailableError(f"{sae.service()} {what}: {one_line(error)}") from error
            broken = kind in (Trouble.BROKEN, Trouble.SLOW)
            if broken and self._answers == before:
                # Nothing says that it would do better on other documents.
                await sae.check_encoding()
            if len(batch) == 1:
                self._reasons[batch[0]] = one_line(error)
                return
        else:
            self._answers += 1
            self._parts.append((chunk, list(batch)))
            return
        await self._side_by_side(halves(batch))

    def chunk(self) -> Chunk:
        """Return all documents, in order."""
        parts = [chunk for chunk, _ in self._parts]
        positions = [p for _, members in self._parts for p in members]
        failed = list(self._reasons)
        if failed or not parts:
            width = next((c.d_sae for c in parts if c.d_sae), self._sae.d_sae or 0)
            parts.append(Chunk.failed(width, failed, [self._reasons[p] for p in failed]))
            positions += failed
        order = np.argsort(np.array(positions, np.int64), kind="stable")
        return Chunk.concatenate(parts).take(order).with_doc_id(np.arange(len(order)))
