"""Labelling thousands of features: the estimate, concurrent requests, and the results."""
