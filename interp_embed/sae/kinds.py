"""The kinds of SAE that the library knows by name, and the devices they may be put on.

Nothing here knows how an SAE is loaded or run, and torch is asked only whether a device is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum, StrEnum
from pathlib import PurePath
from typing import Any

import numpy as np

__all__ = ["SAEType", "device_problem", "parse_device", "plain_json"]

_DEVICE = re.compile(r"[a-z]+(:\d+)?")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class SAEType(StrEnum):
    """Kind of SAE, as recorded in its metadata; a string, so that it can be written as JSON."""

    LOCAL = "local"
    GOODFIRE = "goodfire"
    GOODFIRE_API = "goodfire_api"


def parse_device(device: str | Mapping[str, str]) -> tuple[str, str]:
    """Return the devices of the language model and of the SAE.

    Parameters
    ----------
    device : str or mapping
        One name for both, such as ``"cpu"``, ``"cuda:0"`` or ``"mps"``, or
        ``{"model": name, "sae": name}``. The model's may be ``"auto"`` (spread over the devices
        there are), the SAE's may not.

    Returns
    -------
    model_device, sae_device : str

    Raises
    ------
    TypeError
        If ``device`` is neither a string nor a mapping of strings.
    ValueError
        If a name is not that of a device, or the mapping has other keys.
    """
    if isinstance(device, str):
        if device == "auto":
            raise ValueError(
                "device='auto' would leave the SAE without a device; pass "
                "{'model': 'auto', 'sae': 'cuda:0'} (or another device for the SAE)"
            )
        return _named("device", device), device
    try:
        keys = set(device)
    except TypeError:
        keys = None
    if keys is None or not hasattr(device, "__getitem__") or isinstance(device, list | tuple | set):
        raise TypeError(
            "device must be a string or {'model': ..., 'sae': ...}, "
            f"got {type(device).__name__}: {device!r}"
        )
    if keys != {"model", "sae"}:
        raise ValueError(
            f"device must have the keys 'model' and 'sae', got {sorted(map(str, keys))}"
        )
    if device["sae"] == "auto":
        raise ValueError("device['sae'] cannot be 'auto'; name one device, such as 'cuda:0'")
    model = device["model"]
    return (
        model if model == "auto" else _named("device['model']", model),
        _named("device['sae']", device["sae"]),
    )


def device_problem(device: str) -> str | None:
    """Return why torch cannot use a device here; None where it can, or is not installed."""
    try:
        import torch
    except ImportError:
        return None  # an SAE that needs it says so
    try:
        kind, index = (parsed := torch.device(device)).type, parsed.index
    except RuntimeError:
        return "torch knows no such device"
    if kind == "cuda":
        if not torch.cuda.is_available():
            return "torch sees no GPU here"
        if index is not None and index >= (count := torch.cuda.device_count()):
            return f"torch sees {count} GPU{'s' * (count != 1)} here, numbered from 0"
        return None
    try:
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError, ImportError):
        return f"torch sees no {kind} here"
    return None


def plain_json(value: Any) -> Any:
    """Return a value as one for JSON, equal in every process and different for different values.

    Numpy's scalars become Python's; arrays, tuples and sets (sorted) lists; paths and keys strings;
    members of an enum their values. What JSON has nothing for becomes its ``repr``, without the
    address in memory.
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


def _named(what: str, name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a string, got {type(name).__name__}: {name!r}")
    if not _DEVICE.fullmatch(name):
        raise ValueError(f"{what} must look like 'cpu', 'cuda', 'cuda:0' or 'mps', got {name!r}")
    return name
