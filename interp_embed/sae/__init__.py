"""SAEs that turn texts into sparse token-level feature activations.

Importing this package is cheap. torch, transformers and SAELens are imported when an SAE is loaded,
and a class that needs an extra is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp_embed.sae.api import ApiSAE
    from interp_embed.sae.base import BaseSAE
    from interp_embed.sae.goodfire import GoodfireSAE
    from interp_embed.sae.goodfire_api import GoodfireApiSAE
    from interp_embed.sae.http import HttpSAE
    from interp_embed.sae.kinds import SAEType
    from interp_embed.sae.local import LocalSAE

__all__ = [
    "ApiSAE",
    "BaseSAE",
    "GoodfireApiSAE",
    "GoodfireSAE",
    "HttpSAE",
    "LocalSAE",
    "SAEType",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "api": ["ApiSAE"],
        "base": ["BaseSAE"],
        "goodfire": ["GoodfireSAE"],
        "goodfire_api": ["GoodfireApiSAE"],
        "http": ["HttpSAE"],
        "kinds": ["SAEType"],
        "local": ["LocalSAE"],
    },
)
