"""Labelling thousands of features: what it will take, many requests at once, what came of each."""
