"""SAEs that turn texts into sparse token-level feature activations.

Importing this package is cheap: torch, transformers and SAELens are imported when an SAE is loaded.
"""

from __future__ import annotations

from interp_embed.sae.base import BaseSAE
from interp_embed.sae.kinds import SAEType
from interp_embed.sae.local import LocalSAE

__all__ = ["BaseSAE", "LocalSAE", "SAEType"]
