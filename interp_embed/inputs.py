"""What a caller may pass as data, and what is checked before any work starts."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interp_embed.row import DatasetRow

__all__ = ["as_frame", "check_positive", "check_rows", "check_sae"]


def as_frame(data: pd.DataFrame | Sequence[dict[Any, Any]], field: Any) -> pd.DataFrame:
    """Return the documents as a data frame with index 0 to n - 1.

    Texts that cannot be stored (bytes, objects) become None, so that only their documents fail.

    Raises
    ------
    TypeError
        If ``data`` is neither a data frame nor a list of dictionaries.
    ValueError
        If no document has ``field``.
    """
    if isinstance(data, pd.DataFrame):
        frame = data.reset_index(drop=True)
    else:
        if isinstance(data, (str, bytes, dict)) or not hasattr(data, "__len__"):
            raise TypeError(
                f"data must be a DataFrame or a list of dictionaries, got {type(data).__name__}"
            )
        records = list(data)
        for number, record in enumerate(records):
            if not isinstance(record, dict):
                raise TypeError(
                    f"data[{number}] must be a dictionary, got {type(record).__name__}. For a list "
                    f"of strings pass [{{{field!r}: text}} for text in texts]"
                )
        frame = pd.DataFrame(records) if records else pd.DataFrame({field: []}, dtype=object)
    if field not in frame.columns:
        if len(frame) == 0:
            return pd.DataFrame({field: []}, dtype=object)
        raise ValueError(
            f"field {field!r} not found in data; its columns are {frame.columns.tolist()}"
        )
    return _without_odd_texts(frame, field)


def _without_odd_texts(frame: pd.DataFrame, field: Any) -> pd.DataFrame:
    if not frame.columns.is_unique or frame[field].dtype != object:
        return frame
    texts = frame[field].tolist()
    others = [i for i, text in enumerate(texts) if text is not None and type(text) is not str]
    if not others or _can_be_stored(texts):
        return frame
    # Beside a number, as what stands in a column of one kind may not be stored in a mixed one.
    odd = [i for i in others if not _can_be_stored([texts[i], 0])]
    for i in odd:
        texts[i] = None
    if not _can_be_stored(texts):
        odd = [i for i, text in enumerate(texts) if not _can_be_stored([text, 0])]
        for i in odd:
            texts[i] = None
    frame = frame.copy(deep=False)
    frame[field] = pd.Series(texts, index=frame.index, dtype=object)
    return frame


def _can_be_stored(texts: list[Any]) -> bool:
    from interp_embed.store.columns import encode_frame, schema_of

    frame = pd.DataFrame({"text": pd.Series(texts, dtype=object)})
    try:
        encode_frame(frame, schema_of(frame))
    except (TypeError, ValueError):
        return False
    return True


def check_sae(sae: object) -> None:
    """Raise TypeError unless ``sae`` is an SAE."""
    from interp_embed.sae.base import BaseSAE

    if not isinstance(sae, BaseSAE):
        hint = " (an instance, not the class)" if isinstance(sae, type) else ""
        raise TypeError(f"sae must be an instance of a subclass of BaseSAE{hint}, got {sae!r:.100}")


def check_rows(rows: Sequence[DatasetRow | None], frame: pd.DataFrame, field: Any) -> None:
    """Make sure that rows that are known already belong to the documents.

    Raises
    ------
    TypeError
        If one is neither a row nor None.
    ValueError
        If there are more or fewer than documents, or one is of another text than its document.
    """
    from interp_embed.row import DatasetRow

    if len(rows) != len(frame):
        raise ValueError(f"{len(rows)} rows for {len(frame)} documents")
    for number, (row, text) in enumerate(zip(rows, frame[field].tolist(), strict=True)):
        if row is None:
            continue
        if not isinstance(row, DatasetRow):
            raise TypeError(
                f"rows[{number}] must be a DatasetRow or None, got {type(row).__name__}"
            )
        if isinstance(text, str) and row.data != text:
            raise ValueError(
                f"rows[{number}] is of another text than document {number}: "
                f"{row.data!r:.60} is not {text!r:.60}"
            )


def check_positive(**numbers: Any) -> None:
    """Raise ValueError unless every number is a positive integer."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
            raise ValueError(f"{name} must be a positive integer, got {number!r}")
