"""A chunk of documents in memory, passed from an encoder to a writer.

This is the one structure that both sides of the pipeline know. It holds nothing but numpy arrays,
so that neither torch (the encoder's side) nor zarr (the store's side) leaks across.

Two compressed-sparse-row levels are nested: ``doc_ptr`` maps a document to its tokens and
``token_ptr`` maps a token to its nonzero activations.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

from interp_embed.core.csr import canonical_csr, gather_ranges, take_ranges, trusted_csr

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "Chunk",
    "DocumentStatus",
    "TokenTable",
    "feature_dtype",
    "gather_ranges",
    "has_own_sum",
    "trusted_csr",
]


_CACHED_ELEMENTS = 2**18  # a block of activations that a processor's cache holds


class DocumentStatus(IntEnum):
    """The status of a document."""

    OK = 0
    TRUNCATED = 1
    """Encoded, but only up to the context length."""
    FAILED = 2
    """Not encoded; the chunk holds the reason, and no tokens for it."""


def feature_dtype(d_sae: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest unsigned integer dtype that holds every feature id below ``d_sae``."""
    return np.dtype(np.uint16) if d_sae <= 2**16 else np.dtype(np.uint32)


def has_own_sum(count: NDArray[np.integer], highest: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which entries of the document level have a sum that is not their max."""
    return (count > 1) | (highest <= 0)


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """Tokens as ids and character spans.

    The spans of a document's ordinary tokens partition its text (or the part of it that was
    encoded): each begins where the one before ended, so the strings join to the text exactly.
    A token that carries only part of a character (an emoji split into bytes) has an empty span,
    except the first of them, which has the whole character.

    Attributes
    ----------
    id : ndarray of uint32, shape (tokens,)
        Vocabulary ids.
    start, end : ndarray of uint32, shape (tokens,)
        Span in characters (not bytes) of the document's text; ``0, 0`` for special tokens.
    special : ndarray of bool, shape (tokens,)
        True for tokens that represent no part of the text: BOS, chat template, padding.
    """

    id: NDArray[np.uint32]
    start: NDArray[np.uint32]
    end: NDArray[np.uint32]
    special: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.id)

    def take(self, index: NDArray[np.int64] | slice) -> TokenTable:
        """Return the tokens at ``index``, in that order."""
        return TokenTable(self.id[index], self.start[index], self.end[index], self.special[index])

    @classmethod
    def empty(cls) -> TokenTable:
        """Return a table of no tokens."""
        u32, boolean = np.empty(0, np.uint32), np.empty(0, np.bool_)
        return cls(u32, u32, u32, boolean)

    @classmethod
    def concatenate(cls, tables: Sequence[TokenTable]) -> TokenTable:
        """Join tables end to end."""
        if not tables:
            return cls.empty()
        return cls(
            np.concatenate([t.id for t in tables]),
            np.concatenate([t.start for t in tables]),
            np.concatenate([t.end for t in tables]),
            np.concatenate([t.special for t in tables]),
        )


@dataclass(frozen=True, eq=False)
class Chunk:
    """Token-level activations of some documents.

    Attributes
    ----------
    d_sae : int
        Number of features of the SAE; 0 if no document was encoded and the SAE does not say.
    doc_id : ndarray of int64, shape (documents,)
        Global document numbers.
    status : ndarray of uint8, shape (documents,)
        One `DocumentStatus` per document.
    doc_ptr : ndarray of int64, shape (documents + 1,)
        Document ``i`` has tokens ``doc_ptr[i]:doc_ptr[i + 1]``.
    token_ptr : ndarray of int64, shape (tokens + 1,)
        Token ``t`` has nonzeros ``token_ptr[t]:token_ptr[t + 1]``.
    feature : ndarray of uint16 or uint32, shape (nnz,)
        Feature ids, ascending and unique within a token.
    activation : ndarray of float32 or float16, shape (nnz,)
        Activations; finite and nonzero.
    tokens : TokenTable
        Ids and spans of the tokens.
    reasons : dict of int to str
        Position in the chunk of each failed document, and why it failed.
    vocabulary : dict of int to str
        Strings of the token ids that are special somewhere in the chunk.
    """

    d_sae: int
    doc_id: NDArray[np.int64]
    status: NDArray[np.uint8]
    doc_ptr: NDArray[np.int64]
    token_ptr: NDArray[np.int64]
    feature: NDArray[np.uint16] | NDArray[np.uint32]
    activation: NDArray[np.float32] | NDArray[np.float16]
    tokens: TokenTable
    reasons: Mapping[int, str] = field(default_factory=dict)
    vocabulary: Mapping[int, str] = field(default_factory=dict)

    @property
    def n_documents(self) -> int:
        """Number of documents, failed ones included."""
        return len(self.doc_id)

    @property
    def n_tokens(self) -> int:
        """Number of tokens, special ones included."""
        return len(self.tokens)

    @property
    def nnz(self) -> int:
        """Number of stored activations."""
        return len(self.feature)

    @cached_property
    def extent(self) -> tuple[float, float]:
        """Lowest and highest activation; 0, 0 if there are none, nan if one is nan."""
        values = self.activation
        blocks = [values[i : i + _CACHED_ELEMENTS] for i in range(0, self.nnz, _CACHED_ELEMENTS)]
        if not blocks:
            return 0.0, 0.0
        found = np.array([(block.min(), block.max()) for block in blocks], np.float64)
        return float(found[:, 0].min()), float(found[:, 1].max())

    def csr(self, position: int) -> csr_matrix:
        """Return the activations of the document at ``position``.

        Returns
        -------
        csr_matrix of float32, shape (n_tokens, d_sae)
        """
        first, last = self.doc_ptr[position], self.doc_ptr[position + 1]
        pointer = self.token_ptr[first : last + 1]
        where = slice(pointer[0], pointer[-1])
        return csr_matrix(
            (
                self.activation[where].astype(np.float32),
                self.feature[where].astype(np.int32),
                (pointer - pointer[0]).astype(np.int32),
            ),
            shape=(int(last - first), self.d_sae),
        )

    def take(self, positions: Sequence[int] | NDArray[np.integer]) -> Chunk:
        """Return the documents at ``positions``, in that order."""
        rows = np.asarray(positions, np.int64)
        first, last = self.doc_ptr[rows], self.doc_ptr[rows + 1]
        length, *columns = take_ranges(
            [np.diff(self.token_ptr)]
            + [getattr(self.tokens, name) for name in TokenTable.__slots__],
            first,
            last,
        )
        feature, activation = take_ranges(
            [self.feature, self.activation], self.token_ptr[first], self.token_ptr[last]
        )
        return Chunk(
            d_sae=self.d_sae,
            doc_id=self.doc_id[rows],
            status=self.status[rows],
            doc_ptr=_pointer(np.diff(self.doc_ptr)[rows]),
            token_ptr=_pointer(length),
            feature=feature,
            activation=activation,
            tokens=TokenTable(*columns),
            reasons={
                new: self.reasons[int(old)]
                for new, old in enumerate(rows)
                if int(old) in self.reasons
            },
            vocabulary=self.vocabulary,
        )

    def with_doc_id(self, doc_id: NDArray[np.int64]) -> Chunk:
        """Return the chunk with other document numbers."""
        return replace(self, doc_id=doc_id)

    def with_failures(self, reasons: Mapping[int, str]) -> Chunk:
        """Return the chunk with the documents at some positions failed and their tokens gone."""
        if not reasons:
            return self
        failed = np.zeros(self.n_documents, np.bool_)
        failed[list(reasons)] = True
        kept = self.take(np.flatnonzero(~failed))
        lengths = np.where(failed, 0, np.diff(self.doc_ptr))
        return replace(
            kept,
            doc_id=self.doc_id,
            status=np.where(failed, DocumentStatus.FAILED, self.status).astype(np.uint8),
            doc_ptr=_pointer(lengths),
            reasons={**self.reasons, **reasons},
        )

    def as_dtype(self, dtype: np.dtype[Any]) -> Chunk:
        """Return the chunk with activations rounded to ``dtype``. Values that round to zero are dropped.

        Values beyond the range of ``dtype`` become infinite: see `beyond_range`.
        """
        with np.errstate(over="ignore"):
            rounded = self.activation.astype(dtype, copy=False)
        if rounded is self.activation and self.extent[0] > 0:
            return self
        if rounded.all():
            same = replace(self, activation=rounded)
            if rounded is not self.activation:  # rounding keeps order, and numpy is slow on float16
                with np.errstate(over="ignore"):
                    same.__dict__["extent"] = tuple(dtype.type(e).item() for e in self.extent)
            return same
        kept = rounded != 0
        before = np.concatenate([[0], np.cumsum(kept)])
        return replace(
            self,
            activation=rounded[kept],
            feature=self.feature[kept],
            token_ptr=before[self.token_ptr].astype(np.int64),
        )

    def beyond_range(self, dtype: np.dtype[Any]) -> dict[int, str]:
        """Return, for each document with an activation that ``dtype`` cannot hold, the reason."""
        if not self.nnz:
            return {}
        limit = float(np.finfo(dtype).max)
        highest = max(-self.extent[0], self.extent[1])
        longest = int(np.diff(self.doc_ptr).max(initial=0))
        if highest <= limit and highest * longest <= np.finfo(np.float32).max:
            return {}
        with np.errstate(over="ignore"):
            bad = np.flatnonzero(~np.isfinite(self.activation.astype(dtype, copy=False)))
        token = np.searchsorted(self.token_ptr, bad, side="right") - 1
        document = np.searchsorted(self.doc_ptr, token, side="right") - 1
        reasons: dict[int, str] = {}
        for where, position in zip(bad.tolist(), document.tolist(), strict=True):
            value = float(self.activation[where])
            reasons.setdefault(
                position,
                f"feature {int(self.feature[where])} has activation {value:g}, "
                + (
                    f"beyond the range of {dtype.name}; store float32"
                    if np.isfinite(value)
                    else "which is not finite"
                ),
            )
        if reasons:
            return reasons
        # Sums over a document are kept as float32.
        bounds = self.token_ptr[self.doc_ptr]
        for position in range(self.n_documents):
            values = self.activation[bounds[position] : bounds[position + 1]].astype(np.float64)
            if np.abs(values).sum() > np.finfo(np.float32).max:
                reasons[position] = "activations add up to more than float32 can hold"
        return reasons

    @classmethod
    def concatenate(cls, chunks: Sequence[Chunk]) -> Chunk:
        """Join chunks end to end. At least one is needed, and all must have the same ``d_sae``."""
        widths = {c.d_sae for c in chunks if c.d_sae} or {0}
        if len(widths) != 1:
            raise ValueError(f"chunks must have the same d_sae, got {sorted(widths)}")
        before = np.concatenate([[0], np.cumsum([c.n_documents for c in chunks])]).tolist()
        return cls(
            d_sae=widths.pop(),
            doc_id=np.concatenate([c.doc_id for c in chunks]),
            status=np.concatenate([c.status for c in chunks]),
            doc_ptr=_pointer(np.concatenate([np.diff(c.doc_ptr) for c in chunks])),
            token_ptr=_pointer(np.concatenate([np.diff(c.token_ptr) for c in chunks])),
            feature=np.concatenate([c.feature for c in chunks]),
            activation=np.concatenate([c.activation for c in chunks]),
            tokens=TokenTable.concatenate([c.tokens for c in chunks]),
            reasons={
                base + position: reason
                for base, c in zip(before, chunks, strict=False)
                for position, reason in c.reasons.items()
            },
            vocabulary={k: v for c in chunks for k, v in c.vocabulary.items()},
        )

    @classmethod
    def from_documents(
        cls,
        d_sae: int,
        matrices: Iterable[csr_matrix],
        tokens: Iterable[TokenTable],
        *,
        doc_id: Sequence[int] | NDArray[np.integer] | None = None,
        truncated: Sequence[bool] | None = None,
        vocabulary: Mapping[int, str] | None = None,
    ) -> Chunk:
        """Build a chunk from one sparse matrix and one token table per document.

        Explicit zeros are dropped, duplicates summed and features sorted within each token.
        """
        clean = [canonical_csr(m, d_sae) for m in matrices]
        tables = list(tokens)
        for number, (matrix, table) in enumerate(zip(clean, tables, strict=True)):
            if matrix.shape[0] != len(table):
                raise ValueError(
                    f"document {number} has {len(table)} tokens but {matrix.shape[0]} rows of "
                    "activations; tokenize() and encode() must agree token by token"
                )
        n = len(clean)
        return cls(
            d_sae=d_sae,
            doc_id=np.arange(n) if doc_id is None else np.asarray(doc_id, np.int64),
            status=np.zeros(n, np.uint8)
            if truncated is None
            else np.where(truncated, DocumentStatus.TRUNCATED, DocumentStatus.OK).astype(np.uint8),
            doc_ptr=_pointer(np.array([len(t) for t in tables], np.int64)),
            token_ptr=_pointer(
                np.concatenate([np.empty(0, np.int64), *(np.diff(m.indptr) for m in clean)])
            ),
            feature=np.concatenate([np.empty(0, np.int32), *(m.indices for m in clean)]).astype(
                feature_dtype(d_sae)
            ),
            activation=np.concatenate(
                [np.empty(0, np.float32), *(m.data for m in clean)], dtype=np.float32
            ),
            tokens=TokenTable.concatenate(tables),
            vocabulary=dict(vocabulary or {}),
        )

    @classmethod
    def failed(cls, d_sae: int, doc_id: Sequence[int], reasons: Sequence[str]) -> Chunk:
        """Build a chunk of documents that could not be encoded."""
        n = len(doc_id)
        return cls(
            d_sae=d_sae,
            doc_id=np.asarray(doc_id, np.int64),
            status=np.full(n, DocumentStatus.FAILED, np.uint8),
            doc_ptr=np.zeros(n + 1, np.int64),
            token_ptr=np.zeros(1, np.int64),
            feature=np.empty(0, feature_dtype(d_sae)),
            activation=np.empty(0, np.float32),
            tokens=TokenTable.empty(),
            reasons=dict(enumerate(reasons)),
        )


def _pointer(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
