"""A label as a record: what was said of a feature, by whom, and how well it holds."""

from __future__ import annotations

from interp_embed.labels.record import FeatureLabel, LabelExample, Score

__all__ = ["FeatureLabel", "LabelExample", "Score"]
