"""Look at a corpus through a sparse autoencoder.

The public names are imported when they are first used, so that ``import interp_embed`` costs nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import lazy_loader

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

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dataset": ["Dataset", "merge"],
        "lazy.densify": ["densify"],
        "selection.row": ["DatasetRow"],
    },
)
