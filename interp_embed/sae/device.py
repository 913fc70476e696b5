"""The devices that SAEs run on: parsing their names, checking that they exist, and choosing one.

torch is asked only whether a device exists, and only if torch is installed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["best_device", "device_problem", "parse_device", "sees_gpu"]

_DEVICE = re.compile(r"[a-z]+(:\d+)?")


def parse_device(device: str | Mapping[str, str]) -> tuple[str, str]:
    """Return the devices of the language model and of the SAE.

    Parameters
    ----------
    device : str or mapping
        One name for both, such as ``"cpu"``, ``"cuda:0"`` or ``"mps"``, or
        ``{"model": name, "sae": name}``. The model's may be ``"auto"`` (spread over all devices);
        the SAE's may not.

    Returns
    -------
    model_device, sae_device : str

    Raises
    ------
    TypeError
        If ``device`` is neither a string nor a mapping of strings.
    ValueError
        If a name is not the name of a device, or the mapping has other keys.
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
        raise ValueError("device['sae'] must be one device, such as 'cuda:0', got 'auto'")
    model = device["model"]
    return (
        model if model == "auto" else _named("device['model']", model),
        _named("device['sae']", device["sae"]),
    )


def device_problem(device: str) -> str | None:
    """Return why torch cannot use a device here; None if it can, or if torch is not installed."""
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


def sees_gpu() -> bool:
    """Return whether torch sees a CUDA GPU here; False if torch is not installed."""
    try:
        import torch
    except ImportError:  # whether torch is needed is for the SAE to say
        return False
    return bool(torch.cuda.is_available())


def best_device() -> str:
    """Return the first GPU if torch sees one, and the CPU otherwise."""
    return "cuda:0" if sees_gpu() else "cpu"


def _named(what: str, name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a string, got {type(name).__name__}: {name!r}")
    if not _DEVICE.fullmatch(name):
        raise ValueError(f"{what} must look like 'cpu', 'cuda', 'cuda:0' or 'mps', got {name!r}")
    return name
