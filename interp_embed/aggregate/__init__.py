"""From activations to answers, a bounded number of chunks at a time. Knows neither torch nor an LLM."""
