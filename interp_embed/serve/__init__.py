"""A server through which `interp_embed.sae.http.HttpSAE` uses an SAE from other machines.

The protocol is described in ``docs/reference/http-protocol.md``. starlette and uvicorn are imported
when a server is made.
"""

from __future__ import annotations

from interp_embed.serve.run import serve

__all__ = ["serve"]
