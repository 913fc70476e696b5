"""A chunk on disk: writing its arrays and reading them back."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.chunk import Chunk, DocumentStatus, TokenTable, has_own_sum, trusted_csr
from interp_embed.errors import CorruptStoreError
from interp_embed.store.arrays.folder import OpenFolder
from interp_embed.store.arrays.shard import INNER_ELEMENTS
from interp_embed.store.format.columns import inner_documents
from interp_embed.store.format.layout import chunk_arrays

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from interp_embed.kernels.document_level import Pooled
    from interp_embed.store.arrays.folder import FolderWriter
    from interp_embed.store.arrays.readahead import Wanted
    from interp_embed.store.arrays.shard import ArraySpec
    from interp_embed.store.arrays.shard_reader import BlockCache, ShardedArray
    from interp_embed.store.ledger import Commit
    from interp_embed.store.storage import Storage

__all__ = ["StoredChunk", "write_chunk"]

_LARGEST = 2**32 - 1
_INNER_TOKENS = 2**14
_FEW = 2**16


def write_chunk(
    folder: FolderWriter,
    chunk: Chunk,
    dtype: np.dtype[Any],
    pooled: Pooled | None = None,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Write the arrays of a chunk, its document level included.

    Parameters
    ----------
    folder
        Where to.
    chunk
        Its activations must already be of ``dtype`` (see `Chunk.as_dtype`).
    dtype
        Of the stored activations.
    pooled
        The document level, if it is already known.
    executor
        Threads to compute it with.

    Returns
    -------
    dict
        The fields of the commit that describe the chunk's content.

    Raises
    ------
    OverflowError
        If the chunk is too large for 32-bit pointers.
    """
    if max(chunk.nnz, chunk.n_tokens) > _LARGEST:
        raise OverflowError(
            f"a chunk of {chunk.nnz} nonzeros is too large; use fewer documents per chunk"
        )
    has_negative = chunk.extent[0] < 0
    # A feature is on at most every token of a document.
    longest = int(np.diff(chunk.doc_ptr).max(initial=1))
    specs = chunk_arrays(chunk.d_sae, dtype, longest)
    values: dict[str, NDArray[Any]] = {
        "activation": chunk.activation,
        "feature": chunk.feature,
        "token_ptr": chunk.token_ptr,
        "doc_ptr": chunk.doc_ptr,
        "doc_id": chunk.doc_id,
        "status": chunk.status,
        "token/id": chunk.tokens.id,
        "token/start": chunk.tokens.start,
        "token/end": chunk.tokens.end,
        "token/special": chunk.tokens.special,
    }
    # The largest arrays first: the disk syncs them while the document level is computed.
    for name, array in values.items():
        folder.add(name, specs[name], array, _inner(specs[name]))
    level = _write_document_level(folder, specs, chunk, has_negative, pooled, executor)
    for name, array in level.items():
        folder.add(name, specs[name], array)
    failed = chunk.status == DocumentStatus.FAILED
    if failed.any():
        reasons = np.full(chunk.n_documents, "", object)
        for position, reason in chunk.reasons.items():
            reasons[position] = reason.encode(errors="replace").decode()
        folder.add("reason", specs["reason"], reasons, inner_documents(reasons))
    return {
        "n_tokens": chunk.n_tokens,
        "n_special": int(chunk.tokens.special.sum()),
        "nnz": chunk.nnz,
        "pooled_nnz": int(level["pooled/doc_ptr"][-1]),
        "n_failed": int(failed.sum()),
        "n_truncated": int((chunk.status == DocumentStatus.TRUNCATED).sum()),
        "has_negative": has_negative,
    }


def _inner(spec: ArraySpec) -> int:
    """Return the elements per inner chunk, fewer for arrays that are only read for single documents.

    A document's few tokens are in five arrays. Whole passes read only one of them, a small one.
    """
    return _INNER_TOKENS if spec.dimension in ("token", "token_ptr") else INNER_ELEMENTS


def _write_document_level(
    folder: FolderWriter,
    specs: Mapping[str, ArraySpec],
    chunk: Chunk,
    has_negative: bool,
    pooled: Pooled | None,
    executor: Executor | None,
) -> dict[str, NDArray[Any]]:
    """Write the entries for pairs of a document and a feature; return the pointers."""
    if pooled is not None:
        blocks: Iterable[Pooled] = [pooled]
    else:
        from interp_embed.kernels.document_level import (
            pool_blocks,  # a compiler: not needed to read
        )

        blocks = pool_blocks(
            chunk.feature,
            chunk.activation,
            chunk.token_ptr,
            chunk.doc_ptr,
            chunk.d_sae,
            signed=has_negative,
            executor=executor,
        )
    names = ["feature", "max", "sum", "count", *(["positive"] if has_negative else [])]
    lengths = {name: [np.zeros(1, np.int64)] for name in ("doc_ptr", "sum_ptr")}
    for name in names:  # an array without entries exists too
        key = f"pooled/{name}"
        folder.append(key, specs[key], np.empty(0, specs[key].dtype))
    for block in blocks:
        for name in names:
            key = f"pooled/{name}"
            folder.append(key, specs[key], getattr(block, name))
        for name, parts in lengths.items():
            parts.append(np.diff(getattr(block, name)))
    return {f"pooled/{name}": np.cumsum(np.concatenate(parts)) for name, parts in lengths.items()}


def _all_sums(
    count: NDArray[np.unsignedinteger], highest: NDArray[np.floating], own: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the sum of every entry, from the stored sums and one additional element."""
    single = highest.astype(np.float32)
    if len(single) < _FEW:  # not worth a compiler
        which = has_own_sum(count, single)
        needed = int(which.sum())
        if needed == len(own) - 1:
            single[which] = own[:-1]
    else:
        from interp_embed.kernels.document_level import fill_sums

        needed = fill_sums(count, single, own, single)
    if needed != len(own) - 1:
        raise CorruptStoreError(
            f"a chunk has {len(own) - 1} sums but needs {needed}. Run 'interp-embed verify' on the "
            "store, and encode the chunk's documents again"
        )
    return single


class StoredChunk:
    """A committed chunk whose arrays are read on request."""

    def __init__(self, storage: Storage, commit: Commit, cache: BlockCache | None = None) -> None:
        self.storage = storage
        self.commit = commit
        self._arrays = OpenFolder(storage, commit.folder, cache)

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.commit.d_sae

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return self.commit.stop - self.commit.start

    def array(self, name: str) -> ShardedArray:
        """Return one of the chunk's arrays, unread."""
        return self._arrays.array(name)

    def has(self, name: str) -> bool:
        """Return whether the chunk has an array called ``name``."""
        return name in self.commit.folder.arrays

    @cached_property
    def vocabulary(self) -> dict[int, str]:
        """Strings of the token ids that are special somewhere in the chunk."""
        return {int(k): v for k, v in self.commit.vocabulary.items()}

    def span(self, pointer: str, start: int, stop: int) -> tuple[int, int]:
        """Return where rows ``start:stop`` begin and end in what ``pointer`` points into."""
        if start == stop:
            return 0, 0
        array = self.array(pointer)
        first = int(array.read(start, start + 1)[0])
        return first, int(array.read(stop, stop + 1)[0])

    def status(self) -> NDArray[np.uint8]:
        """Return the status of every document."""
        return self.array("status").read(0, self.n_documents)

    def n_tokens(self) -> NDArray[np.int64]:
        """Return the number of tokens of every document."""
        pointer = self.array("doc_ptr").read(0, self.n_documents + 1).astype(np.int64)
        return pointer[1:] - pointer[:-1]

    def reason(self, position: int) -> str:
        """Return why the document at ``position`` failed."""
        return str(self.array("reason").read(position, position + 1)[0])

    def csr(self, position: int) -> csr_matrix:
        """Return the activations of one document, float32, shape (n_tokens, d_sae)."""
        first, last = (int(x) for x in self.array("doc_ptr").read(position, position + 2))
        pointer = self.array("token_ptr").read(first, last + 1).astype(np.int32)
        begin, end = self.span("token_ptr", first, last) if last > first else (0, 0)
        return trusted_csr(
            self.array("activation").read(begin, end).astype(np.float32),
            self.array("feature").read(begin, end).astype(np.int32),
            pointer - np.int32(pointer[0]),
            (last - first, self.d_sae),
        )

    def tokens(self, position: int) -> TokenTable:
        """Return the tokens of one document."""
        first, last = (int(x) for x in self.array("doc_ptr").read(position, position + 2))
        return TokenTable(
            *(self.array(f"token/{name}").read(first, last) for name in TokenTable.__slots__)
        )

    def read(self, start: int = 0, stop: int | None = None) -> Chunk:
        """Return documents ``start:stop`` of the chunk, whole."""
        stop = self.n_documents if stop is None else stop
        doc_ptr = self.array("doc_ptr").read(start, stop + 1).astype(np.int64)
        first, last = int(doc_ptr[0]), int(doc_ptr[-1])
        token_ptr = self.array("token_ptr").read(first, last + 1).astype(np.int64)
        begin, end = int(token_ptr[0]), int(token_ptr[-1])
        status = self.array("status").read(start, stop)
        return Chunk(
            d_sae=self.d_sae,
            doc_id=self.array("doc_id").read(start, stop) + self.commit.shift,
            status=status,
            doc_ptr=doc_ptr - first,
            token_ptr=token_ptr - begin,
            feature=self.array("feature").read(begin, end),
            activation=self.array("activation").read(begin, end),
            tokens=TokenTable(
                *(self.array(f"token/{name}").read(first, last) for name in TokenTable.__slots__)
            ),
            reasons={
                int(p): self.reason(start + int(p))
                for p in np.flatnonzero(status == DocumentStatus.FAILED)
            },
            vocabulary=self.vocabulary,
        )

    def document_level(self, start: int, stop: int) -> Pooled:
        """Return the document level of documents ``start:stop`` as it is stored."""
        from interp_embed.kernels.document_level import Pooled

        level = self.pooled(("max", "count", "positive"), start, stop)
        pointer = self.array("pooled/sum_ptr").read(start, stop + 1).astype(np.int64)
        own = self.array("pooled/sum").read(int(pointer[0]), int(pointer[-1]))
        return Pooled(**level, sum_ptr=pointer - pointer[0], sum=own)

    def pooled(
        self,
        names: Sequence[str] = ("max", "sum", "count"),
        start: int = 0,
        stop: int | None = None,
        *,
        keep: bool = True,
    ) -> dict[str, NDArray[Any]]:
        """Return arrays of the document level of documents ``start:stop``.

        Parameters
        ----------
        names
            Any of ``max``, ``sum``, ``count`` and ``positive``. Each has one value per entry,
            regardless of what is stored.
        start, stop
            Positions in the chunk.
        keep
            Whether data of a few documents is kept in the cache; see `ShardedArray.read`.

        Returns
        -------
        dict of str to ndarray
            The arrays asked for, with ``doc_ptr`` (starting at 0) and ``feature``.
        """
        stop = self.n_documents if stop is None else stop
        pointer = self.array("pooled/doc_ptr").read(start, stop + 1, keep=keep).astype(np.int64)
        begin, end = int(pointer[0]), int(pointer[-1])

        def stored(name: str) -> NDArray[Any]:
            return self.array(f"pooled/{name}").read(begin, end, keep=keep)

        found = {"doc_ptr": pointer - begin, "feature": stored("feature")}
        wanted = set(names)
        if "sum" in wanted:
            wanted |= {"max", "count"}
        for name in sorted(wanted - {"sum", "positive"}):
            found[name] = stored(name)
        if "sum" in wanted:
            first, last = self.span("pooled/sum_ptr", start, stop)
            own = np.zeros(last - first + 1, np.float32)
            self.array("pooled/sum").read_into(own[:-1], first)
            found["sum"] = _all_sums(found["count"], found["max"], own)
        if "positive" in wanted:
            found["positive"] = stored("positive" if self.commit.has_negative else "count")
        return found

    # What is read, to be read ahead; see `interp_embed.store.arrays.readahead`

    def steps_of(self, *names: str) -> Iterator[Iterable[Wanted]]:
        """Yield arrays that are read whole."""
        yield [(self.array(name), 0, len(self.array(name))) for name in names if self.has(name)]

    def _soon(self, *names: str) -> list[Wanted]:
        """Return arrays of which ranges will be read, once it is known which."""
        return [(self.array(name), 0, 0) for name in names if len(self.array(name))]

    def steps_of_documents(
        self, start: int, stop: int, *, level: bool = False
    ) -> Iterator[Iterable[Wanted]]:
        """Yield what `read`, `csr` and `tokens` read, and with ``level`` `document_level` too."""
        tokens = tuple(f"token/{name}" for name in TokenTable.__slots__)
        stored = ["feature", "max", "count", *(["positive"] if self.commit.has_negative else [])]
        pooled = [f"pooled/{name}" for name in stored] if level else []
        pointers = ["doc_ptr", *(["pooled/doc_ptr", "pooled/sum_ptr"] if level else [])]
        wanted = [(self.array(name), start, stop + 1) for name in pointers]
        if level or stop - start > 1:
            whole = ["status", "doc_id", *(["reason"] if self.commit.n_failed else [])]
            wanted += [(self.array(name), start, stop) for name in whole]
        sums = ["pooled/sum"] if level else []
        yield wanted + self._soon("token_ptr", *tokens, "feature", "activation", *pooled, *sums)
        first, last = self.span("doc_ptr", start, stop)
        wanted = [(self.array(name), first, last) for name in tokens]
        yield [(self.array("token_ptr"), first, last + 1), *wanted]
        begin, end = self.span("token_ptr", first, last)
        wanted = [(self.array(name), begin, end) for name in ("feature", "activation")]
        if level:
            begin, end = self.span("pooled/doc_ptr", start, stop)
            wanted += [(self.array(name), begin, end) for name in pooled]
            wanted.append((self.array("pooled/sum"), *self.span("pooled/sum_ptr", start, stop)))
        yield wanted

    def steps_of_ends(self, start: int, stop: int) -> Iterator[Iterable[Wanted]]:
        """Yield what says how far documents ``start:stop`` were encoded."""
        yield [(self.array("doc_ptr"), start, stop + 1), *self._soon("token/end")]
        yield [(self.array("token/end"), *self.span("doc_ptr", start, stop))]

    def steps_of_nonzeros(
        self, start: int, stop: int, *, entries: bool = False
    ) -> Iterator[Iterable[Wanted]]:
        """Yield what a pass over the tokens of documents ``start:stop`` reads.

        With ``entries``, how many entries of the document level they have too.
        """
        names = ["doc_ptr", *(["pooled/doc_ptr"] if entries else [])]
        pointers = [(self.array(name), start, stop + 1) for name in names]
        yield pointers + self._soon("token_ptr", "feature", "activation")
        first, last = self.span("doc_ptr", start, stop)
        yield [(self.array("token_ptr"), first, last + 1)]
        begin, end = self.span("token_ptr", first, last)
        yield [(self.array(name), begin, end) for name in ("feature", "activation")]

    def steps_of_pooled(
        self, names: Sequence[str], start: int, stop: int, *, n_tokens: bool = False
    ) -> Iterator[Iterable[Wanted]]:
        """Yield what `pooled` reads, and with ``n_tokens`` the documents' numbers of tokens."""
        wanted = {*names, "feature"}
        if "sum" in wanted:
            wanted |= {"max", "count"}
        if "positive" in wanted and not self.commit.has_negative:
            wanted = wanted - {"positive"} | {"count"}
        pointers = ["pooled/doc_ptr", *(["pooled/sum_ptr"] if "sum" in wanted else [])]
        pointers += ["doc_ptr"] if n_tokens else []
        stored = sorted(f"pooled/{name}" for name in wanted)
        yield [(self.array(name), start, stop + 1) for name in pointers] + self._soon(*stored)
        begin, end = self.span("pooled/doc_ptr", start, stop)
        last = [(self.array(name), begin, end) for name in stored if name != "pooled/sum"]
        if "sum" in wanted:
            last.append((self.array("pooled/sum"), *self.span("pooled/sum_ptr", start, stop)))
        yield last
