"""Compiled loops over compressed-sparse-row arrays. Knows numpy and numba, nothing else."""
