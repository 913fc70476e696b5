"""The one-file pickle of the original ``interp_embed``, for exchange with its users.

Owns the layout of that file: which keys it has, what they hold, and how the original names the
kind of an SAE in it. Reading executes nothing the file says (see `interp_embed.interop.restricted`);
writing makes a file that the original's ``Dataset.load_from_file`` opens.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.sparse import csr_matrix

from interp_embed.core.files import replacing
from interp_embed.errors import UnsafePickleError
from interp_embed.interop import pickled_frames as frames

__all__ = ["LegacyDataset", "is_pickle", "read_pickle", "write_pickle"]

ORIGINAL_SAE_TYPES = ("local", "goodfire", "goodfire_api")
"""The values of the original's ``SAEType``; any other is written as a plain string."""

# Arrays of protocol 5 need numpy 2 to be read; those of protocol 4 any that the original runs on.
_PROTOCOL = 4
_KEYS = (
    "dataset", "rows", "aggregate_activations", "tokenized_documents", "field",
    "dataset_description", "id", "sae_metadata", "feature_labels",
)  # fmt: skip


@dataclasses.dataclass(slots=True, eq=False)
class LegacyDataset:
    """The content of a file of the original library.

    Attributes
    ----------
    dataset : DataFrame
        The documents' columns, the text included; one row per document.
    rows : list of csr_matrix or None
        Activations of each document, shape (tokens, d_sae); None if it was not encoded.
    aggregate_activations : list of dict or None
        Document-level activations of each, ``{"max": ..., "sum": ...}``, shape (1, d_sae);
        an empty dictionary where they were not kept.
    tokenized_documents : list of list of str, or None
        Token strings of each document.
    field : str
        Name of the column of ``dataset`` that holds the text.
    dataset_description, id : str
        Free text, and the data set's short name.
    sae_metadata : dict
        Arguments that the SAE was made with, and ``"sae_type"``: "local", "goodfire" or
        "goodfire_api".
    feature_labels : dict of int to str
        What each feature stands for, as far as it is known.
    """

    dataset: pd.DataFrame
    rows: list[csr_matrix | None]
    aggregate_activations: list[dict[str, csr_matrix] | None]
    tokenized_documents: list[list[str] | None]
    field: str
    dataset_description: str = ""
    id: str = ""
    sae_metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    feature_labels: dict[int, str] = dataclasses.field(default_factory=dict)

    def validate(self) -> None:
        """Raise ValueError, naming what, if the parts do not fit together."""
        _expect(isinstance(self.dataset, pd.DataFrame), "'dataset' is not a DataFrame")
        _expect(self.field in self.dataset.columns, f"'field' names no column: {self.field!r}")
        for key in ("rows", "aggregate_activations", "tokenized_documents"):
            value = getattr(self, key)
            _expect(isinstance(value, list), f"{key!r} is not a list")
            _expect(
                len(value) == len(self.dataset),
                f"{key!r} has {len(value)} entries for {len(self.dataset)} documents",
            )
        for key in ("sae_metadata", "feature_labels"):
            _expect(isinstance(getattr(self, key), dict), f"{key!r} is not a dictionary")
        d_sae = next((m.shape[1] for m in self.rows if isinstance(m, csr_matrix)), 0)
        for number, (row, aggregates, tokens) in enumerate(
            zip(self.rows, self.aggregate_activations, self.tokenized_documents, strict=True)
        ):
            if row is not None:
                _validate_document(number, d_sae, row, aggregates, tokens)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(f"not a data set of the original interp_embed: {otherwise}")


def _validate_document(
    number: int, d_sae: int, row: object, aggregates: object, tokens: object
) -> None:
    where = f"document {number}:"
    if not isinstance(row, csr_matrix):
        _expect(
            False, f"{where} 'rows' holds a {type(row).__name__}, expected a csr_matrix or None"
        )
        return
    _expect(row.shape[1] == d_sae, f"{where} {row.shape[1]} features, the others have {d_sae}")
    if not isinstance(tokens, list) or not set(map(type, tokens)) <= {str}:
        _expect(False, f"{where} 'tokenized_documents' holds no list of strings")
        return
    _expect(
        row.shape[0] == len(tokens),
        f"{where} {row.shape[0]} rows of activations for {len(tokens)} tokens",
    )
    if not isinstance(aggregates, dict):
        _expect(aggregates is None, f"{where} 'aggregate_activations' holds no dictionary")
        return
    for name, pooled in aggregates.items():
        _expect(
            isinstance(pooled, csr_matrix) and pooled.shape == (1, d_sae),
            f"{where} 'aggregate_activations' has no csr_matrix of shape (1, {d_sae}) at {name!r}",
        )


def is_pickle(path: str | os.PathLike[str]) -> bool:
    """Return whether ``path`` is a file that begins and ends as a pickle does.

    A pickle of protocol 2 to 5 begins with the byte 0x80 and its protocol's number, and ends with
    a full stop. The name is not looked at, and nothing is unpickled.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(2)
            file.seek(-1, os.SEEK_END)
            return (
                len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5 and file.read() == b"."
            )
    except (IsADirectoryError, FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # too short to seek in
        return False


def read_pickle(path: str | os.PathLike[str]) -> LegacyDataset:
    """Read a file of the original library without running anything it contains.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    LegacyDataset
        Its content, checked: shapes agree with token counts, and indices lie in the matrices.
        Activations that were stored as float16 come as float32, which holds them exactly.

    Raises
    ------
    UnsafePickleError
        The file asks for something other than arrays, csr matrices, frames and plain values.
    ValueError
        If it is not a pickle, is cut short, or does not hold what the original library writes.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = frames.load(file)
    except (UnsafePickleError, OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} cannot be read as a pickle: {error}") from error
    _expect(isinstance(content, dict), f"{path} holds a {type(content).__name__}")
    missing = [key for key in _KEYS if key not in content]
    _expect(not missing, f"{path} lacks {missing}")
    legacy = LegacyDataset(**{key: content[key] for key in _KEYS})
    try:
        legacy.validate()
        legacy.feature_labels = {int(k): v for k, v in legacy.feature_labels.items()}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return legacy


def write_pickle(path: str | os.PathLike[str], legacy: LegacyDataset) -> None:
    """Write ``legacy`` as a file that the original library opens.

    The file appears whole or not at all: it is written beside ``path``, synced and renamed.
    Text columns are stored as objects, which every release of pandas reads.

    Parameters
    ----------
    path
        The file; replaced if it exists, and its folder is made if it does not.
    legacy
        What to write.

    Raises
    ------
    ValueError
        The parts of ``legacy`` do not fit together.
    """
    legacy.validate()
    content = {key: getattr(legacy, key) for key in _KEYS if key != "sae_metadata"}
    content["dataset"] = _portable(legacy.dataset)
    with replacing(Path(path)) as file:
        pickle.dump(content, file, protocol=_PROTOCOL)
        # In place of the final STOP, one more item for the dictionary that is on the stack.
        file.seek(-len(pickle.STOP), os.SEEK_END)
        file.write(pickle.MARK + _opcodes("sae_metadata") + _metadata(legacy.sae_metadata))
        file.write(pickle.SETITEMS + pickle.STOP)


def _portable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``frame`` with the text of pandas 3's own type as objects, its column names too."""
    text = [i for i, dtype in enumerate(frame.dtypes) if dtype == "str"]
    if not text and frame.columns.dtype != "str":
        return frame
    names = frame.columns.astype(object) if frame.columns.dtype == "str" else frame.columns
    columns = {
        i: frame.iloc[:, i].astype(object) if i in text else frame.iloc[:, i]
        for i in range(frame.shape[1])
    }
    portable = pd.DataFrame(columns, index=frame.index)
    portable.columns = names
    return portable


def _metadata(metadata: dict[str, Any]) -> bytes:
    """Return the opcodes of the SAE's arguments, its kind as the original's enumeration.

    ``interp_embed.sae.base_sae.SAEType`` is a name of the original that does not exist here, and a
    pickler writes only names that it can import; hence these few opcodes by hand.
    """
    items = b""
    for key, value in metadata.items():
        items += _opcodes(key)
        if key == "sae_type" and value in ORIGINAL_SAE_TYPES:
            items += pickle.GLOBAL + b"interp_embed.sae.base_sae\nSAEType\n"
            items += _opcodes(value) + pickle.TUPLE1 + pickle.REDUCE
        else:
            items += _opcodes(value)
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS


def _opcodes(value: object) -> bytes:
    """Return a plain value's opcodes, without header, frame or memo, to go inside another pickle."""
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    if isinstance(value, dict):
        items = b"".join(_opcodes(k) + _opcodes(v) for k, v in value.items())
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    if isinstance(value, (list, tuple)):
        items = b"".join(map(_opcodes, value))
        if isinstance(value, list):
            return pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS
        return pickle.MARK + items + pickle.TUPLE
    if value is None or isinstance(value, (bool, int, float)):
        # Protocol 3 has no frames, and these values no memo: two bytes of header, one of STOP.
        buffer = io.BytesIO()
        pickle.Pickler(buffer, protocol=3).dump(value)
        return buffer.getvalue()[2:-1]
    raise ValueError(
        f"SAE metadata may hold text, numbers, lists and dictionaries, not {type(value).__name__}"
    )
