"""Documents that are already in memory: a data frame, or a list of dictionaries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp_embed.inputs.records import typed

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "MissingFieldError",
    "as_frame",
    "check_record",
    "no_documents",
    "without_odd_texts",
]


_ROUNDED = 2**53 - 1
"""Beyond this magnitude a float cannot hold every integer."""


class MissingFieldError(ValueError):
    """The documents do not have the column that should hold the text.

    Attributes
    ----------
    columns : list
        The columns that they have.
    """

    def __init__(self, field: Any, columns: list[Any]) -> None:
        super().__init__(f"field {field!r} not found in data; its columns are {columns}")
        self.columns = columns


def no_documents(field: Any) -> pd.DataFrame:
    """Return a frame without documents."""
    return pd.DataFrame({0: pd.Series([], dtype=object)}).set_axis([field], axis=1)


def as_frame(data: pd.DataFrame | Sequence[dict[Any, Any]], field: Any) -> pd.DataFrame:
    """Return the documents as a data frame with index 0 to n - 1.

    Raises
    ------
    TypeError
        If a record is not a dictionary.
    ValueError
        If no document has ``field``.
    """
    if isinstance(data, pd.DataFrame):
        frame = data.reset_index(drop=True)
    else:
        records = list(data)
        for number, record in enumerate(records):
            check_record(record, f"data[{number}]", field)
        frame = _exact(pd.DataFrame(records), records)
    if field not in frame.columns:
        if len(frame) == 0:
            return no_documents(field)
        raise MissingFieldError(field, frame.columns.tolist())
    return frame


def _exact(frame: pd.DataFrame, records: Sequence[dict[Any, Any]]) -> pd.DataFrame:
    """Return a frame of dictionaries with the integers beyond 2**53 that pandas rounded restored."""
    for name in frame.columns[frame.dtypes == np.float64]:
        if not (frame[name].abs() > _ROUNDED).any():
            continue
        values = [record.get(name) for record in records]
        if any(isinstance(v, int) and abs(v) > _ROUNDED for v in values):
            frame[name] = typed(values)
    return frame


def check_record(record: Any, where: str, field: Any) -> None:
    """Raise TypeError unless a record is a dictionary."""
    if not isinstance(record, dict):
        hint = (
            f". For texts pass [{{{field!r}: text}} for text in texts]"
            if isinstance(record, str)
            else ""
        )
        raise TypeError(f"{where} must be a dictionary, got {type(record).__name__}{hint}")


def without_odd_texts(frame: pd.DataFrame, field: Any) -> pd.DataFrame:
    """Return a frame with None for texts that cannot be stored, so that only these documents fail."""
    if field not in frame.columns:
        frame = frame.copy(deep=False)
        frame[field] = pd.Series([None] * len(frame), index=frame.index, dtype=object)
        return frame
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
    from interp_embed.store.format.columns import encode_frame
    from interp_embed.store.format.schema import schema_of

    frame = pd.DataFrame({"text": pd.Series(texts, dtype=object)})
    try:
        encode_frame(frame, schema_of(frame))
    except (TypeError, ValueError):
        return False
    return True
