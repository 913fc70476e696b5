"""From texts to committed chunks. Knows SAEs by their interface and the store by its writer."""

from interp_embed.encode.pipeline import EncodeReport, encode_store
from interp_embed.encode.planned import encode, finish_store
from interp_embed.encode.worker_shares import Worker

__all__ = ["EncodeReport", "Worker", "encode", "encode_store", "finish_store"]
