"""Texts and numbers for HTML: escaped, cut, and with invisible characters made visible."""

from __future__ import annotations

import math
from html import escape

__all__ = ["MINUS", "cut", "number", "visible"]

_LONGEST_CELL = 160
MINUS = "\N{MINUS SIGN}"


def visible(text: str) -> str:
    """Escape ``text``; show its line breaks, and the control characters that have a picture."""
    shown = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\t\n\r" else c for c in text)
    lines = escape(shown.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
    return '<span style="opacity:.5">↵</span>\n'.join(lines)


def number(value: float) -> str:
    """Return a number with four digits and a real minus sign."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4g}".replace("-", MINUS)


def cut(value: object, longest: int = _LONGEST_CELL) -> str:
    """Return ``value`` as escaped text of at most ``longest`` characters."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if len(text) <= longest:
        return escape(text)
    return escape(text[: longest - 1].rstrip()) + "…"
