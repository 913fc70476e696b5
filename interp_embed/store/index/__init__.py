"""The index by feature: which documents a feature is in, without a pass over the corpus."""
