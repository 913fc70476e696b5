"""Excerpts of documents that show a feature, and documents without it that are hard to tell apart."""
