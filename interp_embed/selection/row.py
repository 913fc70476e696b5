"""One document with its activations."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from scipy.sparse import csr_matrix

from interp_embed.aggregate.reductions import check_method, check_threshold
from interp_embed.core.checks import check_feature

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["DatasetRow", "highlight"]

_SHOWN_CHARACTERS = 100


def highlight(
    tokens: Sequence[str], active: Sequence[bool] | NDArray[np.bool_], left: str, right: str
) -> str:
    """Join tokens, with markers around each run of active ones.

    A token with an empty string carries the rest of a character that the token before it began (an
    emoji split into bytes); the two are one for this purpose.
    """
    units: list[list[Any]] = []
    for token, is_active in zip(tokens, active, strict=True):
        if token == "" and units:
            units[-1][1] = units[-1][1] or bool(is_active)
        else:
            units.append([token, bool(is_active)])
    pieces: list[str] = []
    inside = False
    for token, is_active in units:
        if is_active != inside:
            pieces.append(left if is_active else right)
            inside = is_active
        pieces.append(token)
    if inside:
        pieces.append(right)
    return "".join(pieces)


class DatasetRow:
    """A single document and its activations. Usually made by a `Dataset`.

    Parameters
    ----------
    row : dict
        The document's columns.
    tokenized_document : list of str
        The token strings.
    activations : csr_matrix
        Shape (n_tokens, d_sae).
    truncate_chat_template : bool
        Hide the special tokens (chat template, BOS) from everything this row returns.
    aggregate_activations : dict of str to csr_matrix, optional
        ``max`` and ``sum``, each of shape (1, d_sae), if they are already known.
    field : str
        Column that holds the text.
    low_memory : bool
        Compute aggregates each time they are asked for instead of keeping them.
    special_tokens : array of bool, optional
        Which tokens stand for no part of the text. Without it, none does.

    Attributes
    ----------
    data : str
        The text.
    field : str
        Column that holds the text.
    row : dict
        The document's columns.
    tokenized_document : list of str
        The token strings, special ones included; the others join to the text.
    n_tokens : int
        Number of tokens, special ones included.
    activations : csr_matrix
        float32, shape (n_tokens, d_sae).
    special_tokens : ndarray of bool
        Which tokens stand for no part of the text.

    Raises
    ------
    TypeError
        If ``row`` is not a dictionary or ``activations`` is not a CSR matrix.
    ValueError
        If the parts do not fit together.
    """

    def __init__(
        self,
        row: dict[Any, Any],
        tokenized_document: list[str],
        activations: csr_matrix,
        truncate_chat_template: bool = False,
        aggregate_activations: Mapping[str, csr_matrix] | None = None,
        field: str = "text",
        low_memory: bool = False,
        *,
        special_tokens: ArrayLike | None = None,
    ) -> None:
        if not isinstance(row, dict):
            raise TypeError(f"row must be a dictionary, got {type(row).__name__}")
        if not isinstance(activations, csr_matrix):
            raise TypeError(
                f"activations must be a scipy.sparse.csr_matrix, got {type(activations).__name__}"
            )
        if field not in row:
            raise ValueError(f"field must be a key of row, one of {list(row)}, got {field!r}")
        if len(tokenized_document) != activations.shape[0]:
            raise ValueError(
                f"activations must have one row per token, got {activations.shape[0]} rows for "
                f"{len(tokenized_document)} tokens"
            )
        special = (
            np.zeros(len(tokenized_document), np.bool_)
            if special_tokens is None
            else np.asarray(special_tokens, np.bool_)
        )
        if special.shape != (len(tokenized_document),):
            raise ValueError(
                f"special_tokens must have one value per token, shape ({len(tokenized_document)},), "
                f"got shape {special.shape}"
            )
        # Entries given twice count as their sum; the caller's matrix stays as it is.
        canonical = activations.has_canonical_format
        self.row = row
        self.field = field
        self.data = row[field]
        self.tokenized_document = list(tokenized_document)
        self.activations = activations if canonical else _canonical(activations)
        self.n_tokens = int(activations.shape[0])
        self.special_tokens = special
        self.truncate_chat_template = truncate_chat_template
        self.low_memory = low_memory
        self._aggregates = None if aggregate_activations is None else dict(aggregate_activations)

    @property
    def _shown(self) -> csr_matrix:
        """Activations of the tokens that count."""
        if not self.truncate_chat_template or not self.special_tokens.any():
            return self.activations
        return self.activations[np.flatnonzero(~self.special_tokens)]

    @property
    def aggregate_activations(self) -> dict[str, csr_matrix]:
        """``max`` and ``sum`` over the tokens, float32 of shape (1, d_sae)."""
        known = self._aggregates or {}
        missing = [name for name in ("max", "sum") if name not in known]
        if not missing:
            return known
        shown = self._shown
        found = {**known, **{name: _aggregate(shown, name, 0.0) for name in missing}}
        if not self.low_memory:
            self._aggregates = found
        return found

    def row_record(self) -> dict[Any, Any]:
        """Return the document's columns."""
        return self.row

    def document(self) -> str:
        """Return the text."""
        return self.data  # type: ignore[no-any-return]

    def latents(
        self,
        activation_type: str = "max",
        compress: bool = False,
        activated_threshold: float = 0,
    ) -> NDArray[np.float32] | csr_matrix:
        """Return the document's activations, aggregated over its tokens.

        Parameters
        ----------
        activation_type
            ``"max"``, ``"mean"``, ``"sum"``, ``"binarize"``, ``"count"``, or ``"all"`` for one row per
            token. A feature that is absent on a token counts as 0 there.
        compress
            Return a sparse matrix.
        activated_threshold
            A feature counts as active above this value, for ``"binarize"`` and ``"count"``; 0 or more.

        Returns
        -------
        ndarray or csr_matrix of float32
            Shape (1, d_sae), or (n_tokens, d_sae) for ``"all"``.
        """
        check_method(activation_type, also=("all",))
        threshold = check_threshold(activated_threshold)
        if activation_type == "all":
            found = self._shown
        elif activation_type in ("max", "sum"):
            found = self.aggregate_activations[activation_type]
        else:
            found = _aggregate(self._shown, activation_type, threshold)
        return found.copy() if compress else found.toarray()

    @overload
    def token_activations(
        self,
        feature: int,
        as_string: Literal[True] = True,
        left_marker: str = "<<",
        right_marker: str = ">>",
    ) -> str: ...
    @overload
    def token_activations(
        self,
        feature: int,
        as_string: Literal[False],
        left_marker: str = "<<",
        right_marker: str = ">>",
    ) -> list[dict[str, Any]]: ...
    def token_activations(
        self,
        feature: int,
        as_string: bool = True,
        left_marker: str = "<<",
        right_marker: str = ">>",
    ) -> str | list[dict[str, Any]]:
        """Return one feature's activation token by token.

        Parameters
        ----------
        feature
            Feature index.
        as_string
            Return the text with each run of active tokens between markers; special tokens appear
            in it only where the feature is active on them. Otherwise return
            ``[{"token": str, "activation": float}, ...]`` with every token.
        left_marker, right_marker
            The markers.

        Raises
        ------
        IndexError
            If there is no such feature.
        """
        feature = check_feature(operator.index(feature), self.activations.shape[1])
        values = self.activations[:, [feature]].toarray()[:, 0]
        hidden = self.special_tokens & (self.truncate_chat_template | (as_string & (values <= 0)))
        tokens = [t for t, h in zip(self.tokenized_document, hidden.tolist(), strict=True) if not h]
        values = values[~hidden]
        if as_string:
            return highlight(tokens, values > 0, left_marker, right_marker)
        return [
            {"token": token, "activation": value}
            for token, value in zip(tokens, values.tolist(), strict=True)
        ]

    def html(self, feature: int, label: str = "") -> str:
        """Return the document as HTML, tokens shaded by a feature's activation; text is escaped."""
        from interp_embed.viz.html import row_html

        tokens = self.token_activations(feature, as_string=False)
        special = self.special_tokens
        if self.truncate_chat_template:
            special = special[~special]
        others = {name: value for name, value in self.row.items() if name != self.field}
        title = f"Feature {feature}" + (f": {label}" if label else "")
        return row_html(
            others,
            [t["token"] for t in tokens],
            [t["activation"] for t in tokens],
            special=special.tolist(),
            title=title,
        )

    def _repr_html_(self) -> str:
        """Show the strongest feature of the document."""
        top = self.aggregate_activations["max"]
        strongest = int(top.indices[np.argmax(top.data)]) if top.nnz else 0
        return self.html(strongest)

    def __repr__(self) -> str:
        text = str(self.data)
        cut = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
        return f"DatasetRow({cut!r}, n_tokens={self.n_tokens})"


def _canonical(matrix: csr_matrix) -> csr_matrix:
    found = matrix.copy()
    found.sum_duplicates()
    return found


def _aggregate(matrix: csr_matrix, method: str, threshold: float) -> csr_matrix:
    """Reduce over tokens in float64; a CSR matrix of shape (1, d_sae) without explicit zeros."""
    n_tokens, d_sae = matrix.shape
    feature = matrix.indices.astype(np.int64)
    value = matrix.data.astype(np.float64)
    columns, where = np.unique(feature, return_inverse=True)
    reduced: NDArray[Any]
    if method in ("binarize", "count"):
        reduced = np.bincount(where, value > threshold, len(columns))
        if method == "binarize":
            reduced = np.minimum(reduced, 1)
    elif method == "nnz":
        reduced = np.bincount(where, value != 0, len(columns))
    elif method == "var":
        mean = np.bincount(where, value, len(columns)) / max(n_tokens, 1)
        absent = n_tokens - np.bincount(where, minlength=len(columns))
        apart = np.bincount(where, (value - mean[where]) ** 2, len(columns)) + absent * mean**2
        reduced = apart / max(n_tokens, 1)
    elif method == "max":
        reduced = np.full(len(columns), -np.inf)
        np.maximum.at(reduced, where, value)
        somewhere_absent = np.bincount(where, minlength=len(columns)) < n_tokens
        reduced = np.where(somewhere_absent, np.maximum(reduced, 0), reduced)
    elif method in ("sum", "mean"):
        reduced = np.bincount(where, value, len(columns))
        if method == "mean":
            reduced = reduced / max(n_tokens, 1)
    else:  # pragma: no cover - a reduction that was added and is missing here
        raise NotImplementedError(f"{method} of a row")
    kept = reduced != 0
    data = np.asarray(reduced[kept], np.float32)
    return csr_matrix((data, columns[kept], [0, len(data)]), shape=(1, d_sae))
