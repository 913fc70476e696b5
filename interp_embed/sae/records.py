"""What an SAE of your own returns: documents with their tokens and activations."""

from __future__ import annotations

from interp_embed.core.chunk import Chunk, TokenTable

__all__ = ["Chunk", "TokenTable"]
