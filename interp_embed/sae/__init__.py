"""SAEs that turn texts into sparse token-level feature activations.

Importing this package is cheap: torch, transformers and SAELens are imported when an SAE is loaded,
and a class that needs an extra when it is asked for by name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from interp_embed.sae.base import BaseSAE
from interp_embed.sae.kinds import SAEType
from interp_embed.sae.local import LocalSAE

if TYPE_CHECKING:
    from interp_embed.sae.api import ApiSAE
    from interp_embed.sae.goodfire import GoodfireSAE
    from interp_embed.sae.goodfire_api import GoodfireApiSAE
    from interp_embed.sae.http import HttpSAE

__all__ = [
    "ApiSAE",
    "BaseSAE",
    "GoodfireApiSAE",
    "GoodfireSAE",
    "HttpSAE",
    "LocalSAE",
    "SAEType",
]

_WHERE = {
    "ApiSAE": "api",
    "GoodfireApiSAE": "goodfire_api",
    "GoodfireSAE": "goodfire",
    "HttpSAE": "http",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
