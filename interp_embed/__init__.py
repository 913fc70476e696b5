"""Look at a corpus through a sparse autoencoder.

The public names are imported when they are first used, so that ``import interp_embed`` costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp_embed.dataset import Dataset, merge
    from interp_embed.lazy.densify import densify
    from interp_embed.selection.row import DatasetRow

if os.name != "posix":
    raise ImportError(
        "interp_embed needs a POSIX system such as Linux or macOS; on Windows use WSL"
    )

__version__ = "0.1.0"
__all__ = ["Dataset", "DatasetRow", "__version__", "densify", "merge"]

_HOME = {
    "Dataset": "interp_embed.dataset",
    "DatasetRow": "interp_embed.selection.row",
    "densify": "interp_embed.lazy.densify",
    "merge": "interp_embed.dataset",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'interp_embed' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
