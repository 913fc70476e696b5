"""The default settings of questions to language models."""

from __future__ import annotations

__all__ = ["DEFAULT_MODEL", "DEFAULT_RETRIES", "DEFAULT_TIMEOUT"]

DEFAULT_MODEL = "google/gemini-2.5-flash"
DEFAULT_TIMEOUT = 120.0
"""Seconds: models that run on a CPU, or think before they answer, need most of a minute."""
DEFAULT_RETRIES = 4
