"""From texts to committed chunks. Knows SAEs by their interface and the store by its writer."""

from interp_embed.encode.pipeline import EncodeReport, encode_store

__all__ = ["EncodeReport", "encode_store"]
