"""Ordering a selection by the documents' columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from interp_embed.selection.selection import Selection

__all__ = ["sorted_by_columns"]


def sorted_by_columns(selection: Selection, columns: Any, *, descending: bool) -> Selection:
    """Return the documents ordered by one column or several; see `Dataset.sort_by_columns`."""
    single = columns is None or np.isscalar(columns)
    names: Any = [columns] if single else [*columns]
    known = selection.column_names
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no column {unknown[0]!r}; the columns are {known}")
    if not names:
        raise ValueError("columns must name at least one column to sort by, got none")
    frame = selection.frame(names=names)
    for name in reversed(names):  # as all sorts are stable, the first column decides
        try:
            frame = frame.sort_values(by=name, ascending=not descending, kind="stable")
        except TypeError as error:
            raise TypeError(
                f"column {name!r} cannot be used for sorting, because its values have no order "
                f"({error}). Sort by another column"
            ) from error
    return selection.take(frame.index.to_numpy(np.int64))
