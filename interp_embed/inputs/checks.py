"""Checks of data and SAEs before any work starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from interp_embed.selection.row import DatasetRow

__all__ = ["check_rows", "check_sae"]


def check_sae(sae: object) -> None:
    """Raise TypeError unless ``sae`` is an SAE."""
    from interp_embed.sae.base import BaseSAE

    if not isinstance(sae, BaseSAE):
        hint = " (an instance, not the class)" if isinstance(sae, type) else ""
        raise TypeError(f"sae must be an instance of a subclass of BaseSAE{hint}, got {sae!r:.100}")


def check_rows(rows: Sequence[DatasetRow | None], frame: pd.DataFrame, field: Any) -> None:
    """Check that rows with known activations belong to the documents.

    Raises
    ------
    TypeError
        If one of them is neither a row nor None.
    ValueError
        If their number differs from the number of documents, or one has another text than its
        document.
    """
    from interp_embed.selection.row import DatasetRow

    if len(rows) != len(frame):
        raise ValueError(
            f"rows must have one entry per document, got {len(rows)} rows for {len(frame)} documents"
        )
    for number, (row, text) in enumerate(zip(rows, frame[field].tolist(), strict=True)):
        if row is None:
            continue
        if not isinstance(row, DatasetRow):
            raise TypeError(
                f"rows[{number}] must be a DatasetRow or None, got {type(row).__name__}"
            )
        if isinstance(text, str) and row.data != text:
            raise ValueError(
                f"rows[{number}] must have the text of document {number}, {text!r:.60}, "
                f"got {row.data!r:.60}"
            )
