"""Analyses of whole data sets.

Owns statistics over document-level activations. It uses only ``latents`` and ``feature_labels`` of a
data set, and knows nothing about stores, models or plots.
"""

from __future__ import annotations

from interp_embed.analysis.diff import Binarized, diff, newcombe_interval

__all__ = ["Binarized", "diff", "newcombe_interval"]
