"""Aggregating activations, a bounded number of chunks at a time. It knows neither torch nor an LLM."""
