"""A selection of documents, and their activations as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from interp_embed.aggregate.columns import (
    known_totals,
)
from interp_embed.aggregate.execute import (
    aggregate_blocks,
    aggregate_dense,
    aggregate_sparse,
    entries,
    feature_count,
    unavailable,
)
from interp_embed.aggregate.memory import memory_budget, require_memory
from interp_embed.aggregate.reductions import REDUCTIONS, check_method, check_threshold
from interp_embed.aggregate.summary import (
    DEFAULT_STATISTICS,
    check_statistics,
    feature_statistics,
)
from interp_embed.view import View

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import xarray as xr
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix


__all__ = ["Latents"]


class Latents(View):
    """Some documents of a store, and their activations as matrices, lazy arrays and statistics."""

    @overload
    def latents(
        self,
        aggregation_method: Literal["max", "mean", "sum", "binarize", "count"] = "max",
        compress: Literal[False] = False,
        activated_threshold: float = 0,
        *,
        memory: int | str | None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def latents(
        self,
        aggregation_method: Literal["max", "mean", "sum", "binarize", "count"],
        compress: Literal[True],
        activated_threshold: float = 0,
        *,
        memory: int | str | None = None,
    ) -> csr_matrix: ...
    @overload
    def latents(
        self,
        aggregation_method: str = "max",
        compress: Literal[False] = False,
        activated_threshold: float = 0,
        *,
        lazy: Literal[True],
        memory: int | str | None = None,
    ) -> xr.DataArray: ...
    @overload
    def latents(
        self,
        aggregation_method: str = "max",
        compress: bool = False,
        activated_threshold: float = 0,
        *,
        lazy: Literal[False] = False,
        memory: int | str | None = None,
    ) -> NDArray[Any] | csr_matrix | list[csr_matrix]: ...
    def latents(
        self,
        aggregation_method: str = "max",
        compress: bool = False,
        activated_threshold: float = 0,
        *,
        lazy: bool = False,
        memory: int | str | None = None,
    ) -> NDArray[Any] | csr_matrix | list[csr_matrix] | xr.DataArray:
        """Return the documents' activations, aggregated over their tokens.

        A token on which a feature is absent counts as 0. Documents without activations are rows of
        NaN.

        Parameters
        ----------
        aggregation_method
            ``"max"``, ``"mean"``, ``"sum"``, ``"binarize"`` (1 where any token is above the
            threshold), ``"count"`` (tokens above the threshold), ``"nnz"`` (tokens that are not 0),
            ``"var"`` (variance over the tokens, no degree of freedom taken off), or ``"all"`` (no
            aggregation).
        compress
            Return sparse matrices, without explicit zeros.
        activated_threshold
            Above which a feature counts as active, for ``"binarize"`` and ``"count"``; 0 or more.
        lazy
            Return a lazy array, for xarray and dask; nothing is read but the documents' lengths,
            for ``"all"``. Its blocks are sparse whether ``compress`` is given or not, so it must not
            be. See docs/how-to/lazy-arrays.md.
        memory
            Bytes that may be used, or a size such as ``"2G"``; by default what
            ``INTERP_EMBED_MEMORY`` says, or most of what is free. Not for ``lazy``.

        Returns
        -------
        ndarray or csr_matrix of float32, shape (documents, d_sae)
            For ``"all"`` a list of csr_matrix, or a 1-D object array of dense arrays, each of shape
            (n_tokens, d_sae).
        DataArray of float32, dims ("doc", "feature")
            If ``lazy``, over a dask array of `sparse.COO` blocks; ``doc`` is the document's number in
            the store. For ``"all"`` dims ("doc", "token", "feature"): padded with 0 to the longest
            document, and with NaN on the first position of a document without activations.

        Raises
        ------
        ResultTooLargeError
            If the result would not fit in memory; nothing is computed.
        ValueError
            If ``lazy`` is given with ``compress`` or ``memory``.
        """
        check_method(aggregation_method, also=("all",))
        threshold = check_threshold(activated_threshold)
        if lazy:
            if compress:
                raise ValueError("a lazy array is of sparse blocks anyway: leave out compress=True")
            if memory is not None:
                raise ValueError(
                    "memory is for results in memory: the blocks of a lazy array are as large as "
                    "dask's setting array.chunk-size says"
                )
            from interp_embed.lazy import convert

            return convert.latents(
                self._store, self._documents, aggregation_method, threshold, self._folder
            )
        with memory_budget(memory):
            if aggregation_method == "all":
                return self._all_latents(compress)
            run = aggregate_sparse if compress else aggregate_dense
            return run(self._store, self._documents, REDUCTIONS[aggregation_method], threshold)

    def to_xarray(self) -> xr.Dataset:
        """Return all that is known of the documents, as lazy arrays; see docs/how-to/lazy-arrays.md.

        Returns
        -------
        Dataset
            ``activations`` (doc, token, feature); each reduction of `latents` by its name, with an
            ``activated_threshold`` of 0, (doc, feature); ``token_mask`` and ``token_weight`` (doc,
            token), which is where a document has tokens; the documents' columns (doc). A column
            whose name is taken has ``column_`` before it. Coordinates are ``doc`` (the document's
            number in the store), ``feature``, ``token``, ``n_tokens`` (doc), ``status`` (doc), and
            ``feature_label`` (feature) where there are labels. Only the coordinates are in memory.

        Raises
        ------
        ValueError
            If nothing was encoded yet, so that the number of features is unknown.
        """
        from interp_embed.lazy import convert

        return convert.to_dataset(
            self._store,
            self._documents,
            extra=self._extra,
            labels=self.feature_labels(),
            attributes={"id": self.id, "description": self.dataset_description, "path": self.path},
            keep=self._folder,
        )

    def iter_latents(
        self,
        aggregation_method: str = "max",
        activated_threshold: float = 0,
        *,
        memory: int | str | None = None,
    ) -> Iterator[tuple[NDArray[np.int64], csr_matrix]]:
        """Go through the documents' aggregated activations block by block.

        For corpora of which even the sparse matrix does not fit in memory: a few blocks are held at
        a time, whatever the size of the corpus.

        Parameters
        ----------
        aggregation_method, activated_threshold
            See `latents`; not ``"all"``.
        memory
            Bytes that may be used, or a size such as ``"2G"``.

        Returns
        -------
        iterator of (positions, matrix)
            ``positions`` (ndarray of int64) are those of the block's documents in this dataset,
            ``matrix`` (csr_matrix of float32, shape (len(positions), d_sae)) their rows. Blocks come
            in the order of the store; each document of this dataset is in one of them.
        """
        reduction = REDUCTIONS[check_method(aggregation_method)]
        threshold = check_threshold(activated_threshold)
        with memory_budget(memory):
            return aggregate_blocks(self._store, self._documents, reduction, threshold)

    def feature_statistics(
        self,
        statistics: Sequence[str] | str = DEFAULT_STATISTICS,
        quantiles: Sequence[float] = (),
        activated_threshold: float = 0,
        *,
        memory: int | str | None = None,
    ) -> xr.Dataset:
        """Return statistics of every feature over this dataset's documents, in one pass.

        Parameters
        ----------
        statistics
            Any of

            - ``"document_frequency"``: documents in which the feature is above the threshold on some
              token;
            - ``"token_frequency"``: tokens on which it is;
            - ``"mean"``: its activation, averaged over all tokens;
            - ``"max"``: the highest of its documents' ``max``;
            - ``"histogram"``: tokens by activation above zero, in 256 bins, eight of equal width for
              each power of two from 2^-16 to 2^16; the outer bins hold what is beyond, too. Reads
              the tokens.
        quantiles
            From 0 to 1: the activation that so large a share of the activations above zero does not
            exceed (numpy's method ``"inverted_cdf"``: one that occurs, no mean of two), read off the
            histogram and so within 1/16 of its value, where that is from 2^-16 to 2^16. Reads the
            tokens.
        activated_threshold
            0 or more; for the frequencies.
        memory
            Bytes that may be used, or a size such as ``"2G"``.

        Returns
        -------
        xarray.Dataset
            Variables over ``feature``, the histogram over (``feature``, ``bin``), ``quantiles`` over
            (``quantile``, ``feature``); attributes ``n_documents`` and ``n_tokens`` count the
            documents that have activations.

        Raises
        ------
        ValueError
            If a statistic is unknown, a quantile is not from 0 to 1, or the threshold is negative.
        """
        names, wanted = check_statistics(statistics, quantiles)
        threshold = check_threshold(activated_threshold)
        with memory_budget(memory):
            return feature_statistics(
                self._store,
                self._documents,
                names,
                wanted,
                threshold,
                self.feature_labels(),
                known=known_totals(self._store, self._documents, threshold),
            )

    def _all_latents(self, compress: bool) -> NDArray[np.object_] | list[csr_matrix]:
        from scipy.sparse import csr_matrix as csr

        width = feature_count(self._store)
        absent = unavailable(self._store, self._documents)
        size = 4 * width * (self.token_count + int(absent.sum()))
        if compress:
            # A column and a value an entry, a pointer a token; NaN for what is not there.
            known = entries(self._store, self._documents, pooled=False)
            require_memory(
                8 * (known + width * int(absent.sum())) + 4 * (self.token_count + 2 * len(absent)),
                f"sparse activations of {self.token_count} tokens",
                "Select fewer documents, for instance dataset[:1000], or look at documents one by "
                "one through .rows",
            )
        else:
            require_memory(
                size,
                f"dense activations of {self.token_count} tokens x {width} features",
                "Pass compress=True, or look at documents one by one through .rows",
            )
        empty = np.full((1, width), np.nan, np.float32)
        found = [
            csr(empty) if missing else self._store.document(int(document))[0]
            for document, missing in zip(self._documents, absent, strict=True)
        ]
        if compress:
            return found
        out = np.empty(len(found), object)
        for position, matrix in enumerate(found):
            out[position] = matrix.toarray()
        return out
