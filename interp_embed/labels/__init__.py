"""Labels as records: the text for a feature, its source, and its scores."""

from __future__ import annotations

from interp_embed.labels.record import FeatureLabel, LabelExample, Score

__all__ = ["FeatureLabel", "LabelExample", "Score"]
