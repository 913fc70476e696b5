"""SAEs that turn texts into sparse token-level feature activations.

Importing this package is cheap. torch, transformers and SAELens are imported when an SAE is loaded,
and a class that needs an extra is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp_embed.core.chunk import Chunk, TokenTable
    from interp_embed.sae.api import ApiDocument, ApiSAE
    from interp_embed.sae.base import BaseSAE
    from interp_embed.sae.goodfire import GoodfireSAE
    from interp_embed.sae.goodfire_api import GoodfireApiSAE
    from interp_embed.sae.http import HttpSAE
    from interp_embed.sae.local import LocalSAE
    from interp_embed.sae.sae_types import SAEType

__all__ = [
    "ApiDocument",
    "ApiSAE",
    "BaseSAE",
    "Chunk",
    "GoodfireApiSAE",
    "GoodfireSAE",
    "HttpSAE",
    "LocalSAE",
    "SAEType",
    "TokenTable",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "api": ["ApiDocument", "ApiSAE"],
        "base": ["BaseSAE"],
        "goodfire": ["GoodfireSAE"],
        "goodfire_api": ["GoodfireApiSAE"],
        "http": ["HttpSAE"],
        "sae_types": ["SAEType"],
        "local": ["LocalSAE"],
        "records": ["Chunk", "TokenTable"],
    },
)
