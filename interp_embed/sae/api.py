"""SAEs behind an API: a subclass implements one coroutine, from a document to its activations."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
from scipy.sparse import csr_matrix

from interp_embed.core.chunk import Chunk, TokenTable
from interp_embed.core.spans import align_strings
from interp_embed.sae.assemble import NOT_FINITE
from interp_embed.sae.remote.base import RemoteSAE
from interp_embed.sae.remote.checks import check_chunk
from interp_embed.sae.remote.retries import Trouble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ApiDocument", "ApiSAE", "Trouble"]


@dataclass(frozen=True, slots=True, eq=False)
class ApiDocument:
    """The answer of a service for one document.

    Attributes
    ----------
    activations : csr_matrix, shape (n_tokens, d_sae)
    tokens : list of str, or TokenTable
        One per row. Strings are searched for in the text to find their spans; strings that are not
        part of it are special tokens. If ids and spans are known, pass a `TokenTable`.
    truncated : bool or None
        Whether the document was cut. If None, and tokens are strings, it counts as cut if the tokens
        end before the text does.
    vocabulary : mapping of int to str
        With a `TokenTable`: the strings of special tokens, by id.
    """

    activations: csr_matrix
    tokens: Sequence[str] | TokenTable
    truncated: bool | None = None
    vocabulary: Mapping[int, str] = field(default_factory=dict)


class ApiSAE(RemoteSAE):
    """An SAE behind an API. A subclass implements `encode_document`.

    Documents are requested concurrently, at most ``max_concurrency`` at once. A request is repeated
    after a failed connection, a timeout, or the HTTP status 408, 425, 429 or 500 and above, after the
    pause that ``Retry-After`` asks for. Errors of the usual HTTP libraries, and of SDKs built on them,
    are recognised; override `classify` for others.

    A document that still fails after all retries is recorded as failed, with the reason. Other
    documents are not affected. If the service refuses the key, or is still busy or unreachable after
    all retries (429, 502, 503, 504, failed connections), the run ends with `SAEUnavailableError`. No
    document is marked as failed then, and the run can be resumed later. `encode_document` describes how
    to report either case.

    Keep keys in the environment: everything that `metadata` returns is written into stores.

    Parameters
    ----------
    max_concurrency : int
        Largest number of documents in progress at once.
    max_retries : int
        How often a request is repeated.
    base_delay : float
        Seconds before the first repetition; the pause doubles each time, up to a minute.
    truncate, use_assistant_role, device
        As for `BaseSAE`.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_matrix
    >>> class LengthSAE(ApiSAE):
    ...     async def encode_document(self, text):
    ...         words = text.split()
    ...         lengths = np.array([[len(w)] for w in words], np.float32).reshape(-1, 1)
    ...         return ApiDocument(csr_matrix(lengths), words)
    >>> sae = LengthSAE(max_concurrency=2)
    >>> sae.load()
    >>> sae.encode(["one two three"])[0].toarray().ravel().tolist()
    [3.0, 3.0, 5.0]
    >>> sae.destroy()
    """

    recorded_as = "interp_embed.sae:ApiSAE"

    @abstractmethod
    async def encode_document(self, text: str) -> ApiDocument:
        """Return the activations and tokens of one document.

        Runs on the SAE's own event loop. Create a client that belongs to a loop in `open` and close
        it in `close`.

        Parameters
        ----------
        text : str
            Never empty.

        Raises
        ------
        SAEUnavailableError
            If the service cannot be used at all now, for example because a quota is used up. The run
            ends immediately.
        ConnectionError
            If it cannot be reached, or is too busy. The request is repeated; then the run ends.
        TimeoutError
            If it took too long. The request is repeated; then the document is recorded as failed.
        Exception
            Any other error, such as `ValueError`, marks the document as failed, with the error as the
            reason. Errors of HTTP libraries are judged by their status: 400, 404, 413, 422 and similar
            ones mark the document as failed. `classify` can override this with a `Trouble`.
        """

    async def encode_batch(self, texts: Sequence[str]) -> Chunk:
        """Return the documents, each encoded by `encode_document`."""
        chunks = [
            self._document(text, await self.encode_document(text)) if text else self._nothing()
            for text in texts
        ]
        return chunks[0] if len(chunks) == 1 else Chunk.concatenate(chunks)

    def _nothing(self) -> Chunk:
        """Return an empty text: it has no tokens, and nobody is asked."""
        width = self.d_sae or 0
        nothing = csr_matrix(np.empty((0, width), np.float32))
        return Chunk.from_documents(width, [nothing], [TokenTable.empty()])

    def _document(self, text: str, found: ApiDocument) -> Chunk:
        """Return a document as a chunk.

        Raises
        ------
        ValueError
            If tokens and activations do not fit together, or are not finite.
        """
        if not isinstance(found, ApiDocument):
            raise TypeError(
                f"encode_document() must return an ApiDocument, got {type(found).__name__}"
            )
        with np.errstate(over="ignore"):  # what is too large is infinite, which is told below
            matrix = csr_matrix(found.activations, dtype=np.float32)
        matrix.check_format(full_check=True)  # scipy lets indices be anything
        if matrix.shape[0] != len(found.tokens):
            raise ValueError(
                f"{self.service()} returned {matrix.shape[0]} rows of activations for "
                f"{len(found.tokens)} tokens"
            )
        if not np.isfinite(matrix.data).all():
            raise ValueError(NOT_FINITE)
        vocabulary = dict(found.vocabulary)
        truncated = bool(found.truncated)
        if isinstance(found.tokens, TokenTable):
            table = found.tokens
            sizes = {len(getattr(table, name)) for name in TokenTable.__slots__}
            if len(sizes) > 1:
                raise ValueError(
                    f"the arrays of the TokenTable must have one length, got lengths {sorted(sizes)}"
                )
        else:
            strings = list(found.tokens)
            start, end, special = align_strings(text, strings)
            # Ids are a hash: an API that gives strings has no others.
            ids = np.array([crc32(s.encode(errors="surrogatepass")) for s in strings], np.uint32)
            table = TokenTable(ids, start, end, special)
            outside = zip(ids.tolist(), strings, special.tolist(), strict=True)
            vocabulary |= {number: string for number, string, extra in outside if extra}
            if found.truncated is None:
                truncated = 0 < int(end.max(initial=0)) < len(text)
        chunk = Chunk.from_documents(
            matrix.shape[1], [matrix], [table], truncated=[truncated], vocabulary=vocabulary
        )
        check_chunk(chunk, [text])
        return chunk
