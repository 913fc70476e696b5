"""The kinds of SAE that the library knows by name, and their settings as values for JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum, StrEnum
from pathlib import PurePath
from typing import Any

import numpy as np

__all__ = ["SAEType", "plain_json"]

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class SAEType(StrEnum):
    """Kind of SAE, as recorded in its metadata; a string, so that it can be written as JSON."""

    LOCAL = "local"
    GOODFIRE = "goodfire"
    GOODFIRE_API = "goodfire_api"


def plain_json(value: Any) -> Any:
    """Return a value as one for JSON, equal in every process and different for different values.

    Numpy's scalars become Python's; arrays, tuples and sets (sorted) become lists; paths and keys
    become strings; members of an enum become their values. Any other value becomes its ``repr``,
    without the address in memory.
    """
    if isinstance(value, Enum):
        return plain_json(value.value)
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return str.__str__(value) if kind is str else kind(value)
    if isinstance(value, np.generic):
        item = value.item()
        return _text(value) if isinstance(item, np.generic) else plain_json(item)
    if isinstance(value, np.ndarray):
        return plain_json(value.tolist())
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(plain_json(k)): plain_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((plain_json(v) for v in value), key=lambda v: json.dumps(v, sort_keys=True))
    return _text(value)


def _text(value: object) -> str:
    return _ADDRESS.sub("", repr(value))
