"""Selecting documents of a store, in some order, and reading their rows."""
