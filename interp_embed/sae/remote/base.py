"""The base of every SAE that runs elsewhere: concurrent requests, and failures per document."""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.net.retries import http_status
from interp_embed.net.waiting import Waiting
from interp_embed.sae.base import BaseSAE
from interp_embed.sae.outputs import chunk_matrices, id_rows, string_rows
from interp_embed.sae.remote.call import Call
from interp_embed.sae.remote.loop import LoopThread
from interp_embed.sae.remote.retries import Trouble, retrying, trouble

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from scipy.sparse import csr_matrix

    from interp_embed.core.chunk import Chunk

__all__ = ["RemoteSAE", "require_number"]

_CLOSE_SECONDS = 5.0
_PATIENCE_SECONDS = 60.0
"""A service may take long to encode."""
_REQUESTS = ("max_concurrency", "max_retries", "base_delay")


class RemoteSAE(BaseSAE):
    """An SAE that a service runs. A subclass defines how to ask the service.

    Requests run on an event loop in a separate thread, from `load` to `destroy`. `encode` and
    `encode_chunk` therefore work everywhere, even inside a notebook's running loop. The coroutine
    `encode_chunk_async` is for callers that do not want to block.

    A failed request is repeated if another attempt may succeed. After the last attempt:

    - If the service refuses the client (401, 402, 403), does not answer, or is too busy (429, 502,
      503, 504), `SAEUnavailableError` is raised. No document is marked as failed.
    - If the service fails or takes too long, and encodes no other document either (see
      `check_encoding`), the same error is raised.
    - Otherwise the documents are requested again in halves. A document that fails alone is recorded
      as failed, with the reason.

    Parameters
    ----------
    max_concurrency : int
        Requests in flight at once.
    max_retries : int
        How often a request is repeated.
    base_delay : float
        Seconds before the first repetition; the pause doubles each time.
    truncate, use_assistant_role, device
        As for `BaseSAE`.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    makes_batches = True
    _transport: tuple[str, ...] = _REQUESTS
    """Settings on which activations do not depend, beside those of the classes above."""

    def __init__(
        self,
        max_concurrency: int = 8,
        max_retries: int = 3,
        base_delay: float = 2.0,
        *,
        truncate: bool = True,
        use_assistant_role: bool = True,
        device: str | Mapping[str, str] = "cpu",
    ) -> None:
        super().__init__(truncate=truncate, use_assistant_role=use_assistant_role, device=device)
        require_number("max_concurrency", max_concurrency, 1, whole=True)
        require_number("max_retries", max_retries, 0, whole=True)
        require_number("base_delay", base_delay, 0)
        self.max_concurrency = max_concurrency
        self.max_retries = max_retries
        self.base_delay = base_delay
        self._loop: LoopThread | None = None
        self._slots: asyncio.Semaphore | None = None
        self._waiting: Waiting | None = None

    # What a subclass says

    @abstractmethod
    async def encode_batch(self, texts: Sequence[str]) -> Chunk:
        """Return the documents of one request; failures of single documents are in the chunk."""

    async def open(self) -> None:
        """Create clients, on the event loop that uses them; called by `load`."""
        return

    async def close(self) -> None:
        """Release everything that `open` created, even if `open` failed; called by `destroy`."""
        return

    async def check_service(self) -> None:
        """Raise `SAEUnavailableError` if the service is down; called after a request has failed.

        This implementation does nothing, because most services have no health check.
        """
        return

    async def check_encoding(self) -> None:
        """Raise `SAEUnavailableError` if the service encodes nothing at all.

        Called when a request failed or took too long, and no other was answered meanwhile. This
        implementation does nothing: only a subclass knows a document that the service accepts.
        """
        return

    def service(self) -> str:
        """Return the name of the service in messages."""
        return f"the service of {type(self).__name__}"

    def answer_seconds(self) -> float | None:
        """Return how long a request waits for its answer, if that is known; for messages."""
        return None

    def batches(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the positions of the texts of each request; by default one text per request."""
        return [[i] for i in range(len(texts))]

    def classify(self, error: BaseException) -> Trouble:
        """Return how to treat an error that `encode_batch` raised."""
        return trouble(error)

    # What it does with that

    def metadata(self) -> dict[str, Any]:
        """Return the constructor's arguments as values for JSON; they include no key."""
        settings = {name: getattr(self, name) for name in _REQUESTS}
        return {**super().metadata(), **settings}

    def fingerprint(self) -> dict[str, Any]:
        """Return everything known that activations depend on; request settings are left out."""
        left_out = self._all_transport()
        return {k: v for k, v in super().fingerprint().items() if k not in left_out}

    def _all_transport(self) -> list[str]:
        """Return the names in ``_transport`` of this class and of those above."""
        classes = reversed(type(self).__mro__)
        return [name for cls in classes for name in vars(cls).get("_transport", ())]

    def load_models(self) -> None:
        """Start the event loop and create the client.

        Raises
        ------
        SAEUnavailableError
            If the service cannot be used.
        """
        if self._loop is not None:
            return
        self._loop = LoopThread(f"interp-embed-{type(self).__name__}")
        try:
            self._loop.run(self._open())
        except BaseException:
            self._give_up()
            raise

    def load(self) -> None:
        """Create the client and fetch feature labels."""
        try:
            super().load()
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """End what loading began; what is wrong with that is not what was wrong."""
        with contextlib.suppress(Exception):
            self.destroy_models()

    async def _open(self) -> None:
        self._slots = asyncio.Semaphore(self.max_concurrency)
        limit = self.answer_seconds()
        given_up = "" if limit is None else f"; it times out if nothing comes for {limit:.0f} s"
        self._waiting = Waiting(
            self.service,
            self.max_retries + 1,
            patience=_PATIENCE_SECONDS,
            under_way=f"it may be encoding{given_up}",
        )
        await self.open()

    def destroy_models(self) -> None:
        """Close the client and end the event loop."""
        if self._loop is None:
            return
        loop, self._loop = self._loop, None
        self._slots = self._waiting = None
        if not loop.is_alive():  # in a forked process, whose parent goes on with the client
            return
        try:
            loop.run(asyncio.wait_for(self.close(), _CLOSE_SECONDS))
        finally:
            loop.close()

    def wait_for(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the SAE's event loop and return its result."""
        if self._loop is None:
            work.close()
            self._require_loaded()
            raise RuntimeError(f"{type(self).__name__} has no event loop; call its load() first")
        return self._loop.run(work)

    def encode_chunk(self, texts: Sequence[str]) -> Chunk:
        """Encode documents with their tokens; see `BaseSAE.encode_chunk`.

        Raises
        ------
        SAEUnavailableError
            If the service cannot be used at all.
        """
        self._require_loaded()
        return self.wait_for(self._encode_all(list(texts)))  # type: ignore[no-any-return]

    async def encode_chunk_async(self, texts: Sequence[str]) -> Chunk:
        """Like `encode_chunk`, for callers with their own event loop."""
        self._require_loaded()
        if self._loop is None:
            raise RuntimeError(f"{type(self).__name__} has no event loop; call its load() first")
        return await asyncio.wrap_future(self._loop.submit(self._encode_all(list(texts))))

    def encode(self, texts: Sequence[str]) -> list[csr_matrix | None]:
        """Return one (n_tokens, d_sae) matrix per text; None for a text that failed."""
        return chunk_matrices(self.encode_chunk(texts))

    async def encode_async(self, texts: Sequence[str]) -> list[csr_matrix | None]:
        """Like `encode`, for callers with their own event loop."""
        return chunk_matrices(await self.encode_chunk_async(texts))

    def tokenize(
        self, documents: Sequence[str], as_tokens: bool = True, padding: bool = False
    ) -> Any:
        """Return the tokens of documents as the service sees them. The service encodes them for this.

        Parameters
        ----------
        documents : sequence of str
        as_tokens : bool
            Return strings; otherwise ``input_ids`` and ``attention_mask``.
        padding : bool
            Pad on the right to the longest document, with empty strings or zeros.

        Returns
        -------
        list of list of str, or dict of str to list of list of int
            One string or number per row of activations. A document that failed has none.
        """
        chunk = self.encode_chunk(documents)
        tables = [chunk.tokens.take(slice(a, b)) for a, b in pairwise(chunk.doc_ptr.tolist())]
        if as_tokens:
            return string_rows(documents, tables, chunk.vocabulary, padding="" if padding else None)
        return id_rows(tables, padding=0 if padding else None)

    def encode_chat(
        self, conversations: Sequence[Sequence[Mapping[str, str]]]
    ) -> Sequence[csr_matrix | None]:
        """Raise ValueError: only the service has the tokenizer and its chat template."""
        raise ValueError(
            f"{type(self).__name__} cannot encode conversations: only the service has the chat "
            "template, and it takes texts"
        )

    async def _encode_all(self, texts: list[str]) -> Chunk:
        """Return all documents in order."""
        call = Call(self, texts)
        await call.run()
        return call.chunk()

    async def request(self, texts: Sequence[str]) -> Chunk:
        """Return the documents of one request, repeated if another attempt may succeed."""
        slots, waiting = self._slots, self._waiting
        if slots is None or waiting is None:
            raise RuntimeError(f"{type(self).__name__} has no event loop; call its load() first")
        async with slots:
            with waiting.request() as wait:

                async def ask() -> Chunk:
                    waiting.attempts(wait)
                    return await self.encode_batch(texts)

                def tell(outcome: Chunk | Exception, seconds: float, left: float) -> None:
                    why = " ".join(str(outcome).split()) or type(outcome).__name__
                    gone = http_status(outcome) is None
                    waiting.pauses(wait, why, seconds, left, gone=gone)

                chunk = await retrying(
                    ask,
                    self.classify,
                    max_retries=self.max_retries,
                    base_delay=self.base_delay,
                    before_pause=tell,
                )
                waiting.answers(wait)
        if chunk.n_documents != len(texts):
            raise ValueError(
                f"{self.service()} returned {chunk.n_documents} documents for {len(texts)} texts"
            )
        if chunk.d_sae and self._d_sae and chunk.d_sae != self._d_sae:
            raise ValueError(
                f"{self.service()} returned {chunk.d_sae} features, but {self._d_sae} before"
            )
        self._d_sae = self._d_sae or chunk.d_sae or None
        return chunk


def require_number(name: str, value: object, least: float, *, whole: bool = False) -> None:
    """Raise if an argument is not a number of at least ``least``.

    Raises
    ------
    TypeError
        If it is not a number, or not an integer although it must be one.
    ValueError
        If it is too small, or not finite.
    """
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds):
        kind = "an integer" if whole else "a number"
        raise TypeError(f"{name} must be {kind}, got {type(value).__name__}: {value!r}")
    if not least <= float(value) < float("inf"):
        raise ValueError(f"{name} must be at least {least:g}, got {value}")
