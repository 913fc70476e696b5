"""`interp-embed serve-sae`."""

from __future__ import annotations

from interp_embed.cli.saes import build_sae, quiet_loading
from interp_embed.serve import serve

__all__ = ["run_serve"]


def run_serve(sae: str, *, host: str, port: int, device: str, queue: int, batch_size: int) -> None:
    """Serve an SAE to other machines until the process is told to stop."""
    model = build_sae(sae, device)
    quiet_loading()

    def show(url: str) -> None:
        print(url, flush=True)  # for a program that waits for it

    serve(model, host, port, queue=queue, batch_size=batch_size, on_listening=show)
