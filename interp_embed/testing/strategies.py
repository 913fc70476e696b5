"""Random documents and data frames, by hypothesis and by seed."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from interp_embed.core.chunk import Chunk, DocumentStatus, TokenTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["WIDTHS", "chunks", "frames", "random_chunk"]

WIDTHS = (1, 2, 63, 64, 65, 4096, 4097, 65_536, 65_537, 100_000)
"""Numbers of features around which dtypes and bitmaps change."""

_SPECIAL_ID = 7


def _activations(dtype: np.dtype[Any], *, negative: bool) -> st.SearchStrategy[float]:
    half = dtype.itemsize == 2
    low, high = (2.0**-14, 60_000.0) if half else (2.0**-100, 2.0**100)
    few = st.sampled_from([0.5, 1.0, 1.5, 2.0])  # values that meet: ties, and sums that cancel
    above = few | st.floats(low, high, width=16 if half else 32)
    return above | above.map(lambda v: -v) if negative else above


@st.composite
def _document(
    draw: Callable[..., Any], d_sae: int, values: st.SearchStrategy[float], max_tokens: int
) -> tuple[csr_matrix, TokenTable, DocumentStatus]:
    rows = draw(
        st.lists(
            st.dictionaries(st.integers(0, d_sae - 1), values, max_size=6), max_size=max_tokens
        )
    )
    n = len(rows)
    special = np.array([draw(st.booleans()) if i == 0 else False for i in range(n)], np.bool_)
    lengths = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    truncated = n > 0 and draw(st.booleans())
    status = DocumentStatus.TRUNCATED if truncated else DocumentStatus.OK
    entries = [sorted(row.items()) for row in rows]
    matrix = csr_matrix(
        (
            np.array([v for row in entries for _, v in row], np.float32),
            np.array([f for row in entries for f, _ in row], np.int32),
            np.cumsum([0, *map(len, entries)]),
        ),
        shape=(n, d_sae),
    )
    return matrix, _table(special, lengths, draw(st.integers(8, 2**32 - 1))), status


def _table(special: NDArray[np.bool_], lengths: Sequence[int], token: int) -> TokenTable:
    size = np.where(special, 0, np.asarray(lengths, np.int64))
    end = np.where(special, 0, np.cumsum(size))
    start = np.where(special, 0, end - size)
    ids = np.where(special, _SPECIAL_ID, token)
    u32 = np.uint32
    return TokenTable(ids.astype(u32), start.astype(u32), end.astype(u32), special)


@st.composite
def chunks(
    draw: Callable[..., Any],
    *,
    d_sae: int | None = None,
    dtype: np.dtype[Any] | str | None = None,
    min_documents: int = 1,
    max_documents: int = 6,
    max_tokens: int = 5,
    negative: bool | None = None,
    failures: bool = True,
) -> Chunk:
    """Ragged documents: empty ones, failed ones, truncated ones, ones of a single token.

    Parameters
    ----------
    draw
        Given by hypothesis.
    d_sae
        Number of features; from 1 to 100,000 by default.
    dtype
        float16 or float32: the activations are of this dtype; either by default.
    min_documents, max_documents, max_tokens
        Sizes.
    negative
        Whether some activations may be below zero; drawn by default.
    failures
        Whether some documents may have failed.
    """
    width = draw(st.sampled_from(WIDTHS) | st.integers(1, 300)) if d_sae is None else d_sae
    kind = np.dtype(draw(st.sampled_from(["float32", "float16"])) if dtype is None else dtype)
    values = _activations(kind, negative=draw(st.booleans()) if negative is None else negative)
    documents = draw(
        st.lists(
            _document(width, values, max_tokens), min_size=min_documents, max_size=max_documents
        )
    )
    chunk = Chunk.from_documents(
        width,
        [m for m, _, _ in documents],
        [t for _, t, _ in documents],
        truncated=[s == DocumentStatus.TRUNCATED for _, _, s in documents],
        vocabulary={_SPECIAL_ID: "<|start|>"},
    ).as_dtype(kind)
    if failures and len(documents):
        lost = draw(st.sets(st.integers(0, len(documents) - 1), max_size=2))
        reason = st.sampled_from(["", "not a string", "ü 🙂"])
        chunk = chunk.with_failures({i: draw(reason) for i in sorted(lost)})
    return chunk


def random_chunk(
    seed: int | np.random.Generator,
    n_documents: int,
    *,
    d_sae: int = 512,
    mean_tokens: float = 20,
    active: int = 8,
    dtype: np.dtype[Any] | str = "float32",
    negative: bool = True,
    failures: bool = True,
) -> Chunk:
    """Return a given number of documents from a seed, quickly.

    Parameters
    ----------
    seed
        Seed of numpy's generator.
    n_documents
        Number of documents. One in ten is empty, and one in ten failed.
    d_sae, mean_tokens, active
        Number of features, tokens per document, and features per token; the last two are averages.
    dtype
        Of the activations.
    negative
        Whether one activation in ten is below zero.
    failures
        Whether documents fail.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.poisson(mean_tokens, n_documents) * (rng.random(n_documents) > 0.1)
    n_tokens = int(lengths.sum())
    per_token = np.minimum(rng.poisson(active, n_tokens), d_sae)
    rows = np.repeat(np.arange(n_tokens), per_token)
    features = np.minimum((d_sae * rng.random(len(rows)) ** 2).astype(np.int64), d_sae - 1)
    data = rng.exponential(size=len(rows)) + 0.05
    if negative:
        data[rng.random(len(rows)) < 0.1] *= -1
    pairs = np.unique(rows * d_sae + features, return_index=True)
    token, feature = np.divmod(pairs[0], d_sae)
    every = csr_matrix((data[pairs[1]], (token, feature)), shape=(n_tokens, d_sae))
    cuts = np.concatenate([[0], np.cumsum(lengths)]).astype(int)
    matrices = [every[a:b] for a, b in itertools.pairwise(cuts)]
    tables = [
        _table(np.arange(n) == 0, rng.integers(0, 6, n).tolist(), int(rng.integers(8, 50_000)))
        for n in lengths
    ]
    chunk = Chunk.from_documents(
        d_sae, matrices, tables, vocabulary={_SPECIAL_ID: "<|start|>"}
    ).as_dtype(np.dtype(dtype))
    if failures:
        lost = np.flatnonzero(rng.random(n_documents) < 0.1)
        chunk = chunk.with_failures({int(i): f"out of luck: document {i}" for i in lost})
    return chunk


def _column(n: int) -> st.SearchStrategy[pd.Series[Any]]:
    def series(values: st.SearchStrategy[Any], dtype: Any) -> st.SearchStrategy[pd.Series[Any]]:
        return st.lists(values, min_size=n, max_size=n).map(lambda v: pd.Series(v, dtype=dtype))

    text = st.text(st.characters(exclude_categories=()), max_size=8)  # lone surrogates too
    plain = st.text(max_size=8)
    nested = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
        max_leaves=4,
    )
    stamps = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1)) | st.just(pd.NaT)
    small = st.integers(-(2**31), 2**31 - 1)
    return st.one_of(
        series(st.integers(-(2**63), 2**63 - 1), "int64"),
        series(st.integers(0, 2**64 - 1), "uint64"),
        series(st.integers(-128, 127), "int8"),
        series(st.floats(), "float64"),
        series(st.floats(width=32), "float32"),
        series(st.booleans(), "bool"),
        series(small | st.just(pd.NA), "Int32"),
        series(st.booleans() | st.just(pd.NA), "boolean"),
        series(plain | st.just(pd.NA), "string"),
        series(plain | st.none(), object),
        series(text | st.just(float("nan")), object),
        series(stamps, "datetime64[ns]"),
        series(stamps, "datetime64[us]"),
        series(stamps, "datetime64[ns]").map(lambda s: s.dt.tz_localize("Asia/Tokyo")),
        series(st.timedeltas(dt.timedelta(-9999), dt.timedelta(9999)), "timedelta64[ns]"),
        series(st.dates() | st.none(), object),
        series(st.sampled_from(["b", "a", None]), pd.CategoricalDtype(["a", "b"], ordered=True)),
        series(st.sampled_from([3, 1, None]), pd.CategoricalDtype([3, 1])),
        series(nested, object),
    )


@st.composite
def frames(
    draw: Callable[..., Any], *, min_rows: int = 0, max_rows: int = 8, max_columns: int = 4
) -> pd.DataFrame:
    """Draw data frames of all dtypes that a store keeps, with awkward names and values."""
    n = draw(st.integers(min_rows, max_rows))
    awkward = st.sampled_from(
        ["text", "Text", "a/b", "..", ".", "", " ", "zarr.json", "ü🙂", "%41"]
    )
    names = st.lists(
        awkward | st.text(max_size=5).filter(lambda v: v.isprintable()) | st.integers(-9, 9),
        max_size=max_columns,
        unique=True,
    )
    columns = {name: draw(_column(n)) for name in draw(names)}
    return pd.DataFrame(columns, index=pd.RangeIndex(n))
