"""Questions asked of whole data sets.

Owns statistics over document-level activations. Knows a data set only by what it asks of it
(``latents`` and ``feature_labels``); nothing of stores, models or plots.
"""

from __future__ import annotations

from interp_embed.analysis.diff import Binarized, diff, newcombe_interval

__all__ = ["Binarized", "diff", "newcombe_interval"]
