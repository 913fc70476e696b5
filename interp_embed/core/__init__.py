"""Helpers that every other package may use. They need only numpy and the standard library."""
