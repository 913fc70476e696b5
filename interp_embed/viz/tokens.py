"""Tokens as text, shaded by a feature's activation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from interp_embed.viz.texts import number, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["full_shade", "token_html", "token_units"]


def token_html(
    tokens: Sequence[str],
    activations: Sequence[float],
    *,
    special: Sequence[bool] | None = None,
    max_activation: float | None = None,
) -> str:
    """Return tokens as text, shaded by a feature's activation, the value shown on hover.

    Parameters
    ----------
    tokens
        Token strings. An empty one continues the character before it (an emoji is often several
        tokens) and is shaded with it.
    activations
        One per token. Positive ones are shaded amber, negative ones blue, zeros not at all.
    special
        Tokens to dim, because they stand for no part of the text.
    max_activation
        The activation of full shade; the largest in absolute value among these (special tokens
        aside) if None. Give it to make several documents comparable.

    Returns
    -------
    str
        An HTML fragment with its own style. Line breaks are shown as ↵ and kept.

    Raises
    ------
    ValueError
        If the arguments do not have one length.
    """
    special = [False] * len(tokens) if special is None else special
    if not len(tokens) == len(activations) == len(special):
        raise ValueError(
            f"tokens, activations and special must have one length, got {len(tokens)}, "
            f"{len(activations)} and {len(special)}"
        )
    units = token_units(tokens, activations, special)
    if max_activation is None:
        max_activation = full_shade(units)
    spans = "".join(_span(text, values, dim, max_activation) for text, values, dim in units)
    return (
        f'<span style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75">{spans}</span>'
    )


def token_units(
    tokens: Sequence[str], activations: Sequence[float], special: Sequence[bool]
) -> list[tuple[str, list[float], bool]]:
    """Join each empty token to the one before it."""
    units: list[tuple[str, list[float], bool]] = []
    for token, activation, dim in zip(tokens, activations, special, strict=True):
        if token == "" and units and units[-1][2] == bool(dim):
            units[-1][1].append(float(activation))
        else:
            units.append((token, [float(activation)], bool(dim)))
    return units


def full_shade(units: Sequence[tuple[str, list[float], bool]]) -> float:
    """Return the activation of full shade: of ordinary tokens, for special ones often tower."""
    ordinary = [abs(_strongest(values)) for _, values, dim in units if not dim]
    return max(ordinary, default=0.0) or max((abs(_strongest(v)) for _, v, _ in units), default=0.0)


def _strongest(values: list[float]) -> float:
    return max((v for v in values if math.isfinite(v)), key=abs, default=0.0)


def _span(text: str, values: list[float], dim: bool, max_activation: float) -> str:
    value = _strongest(values)
    content = visible(text)
    if value:
        share = min(1.0, abs(value) / max_activation) if max_activation > 0 else 1.0
        colour = "245,140,0" if value > 0 else "40,120,240"
        title = ", ".join(number(v) for v in values)
        content = (
            f'<mark title="{title}" style="color:inherit;border-radius:.2em;padding:.12em 0;'
            f'background:rgba({colour},{0.14 + 0.42 * share:.2f})">{content or "·"}</mark>'
        )
    if dim and content:
        content = f'<span style="opacity:.65;font-size:.85em;margin-right:.3em">{content}</span>'
    return content
