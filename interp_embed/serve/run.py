"""The life of a server: its address, its start, and its end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING, Any

from interp_embed.core.checks import check_positive
from interp_embed.encode.interrupts import kept_interrupts
from interp_embed.net.keys import read_key
from interp_embed.sae.http import TOKEN_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from interp_embed.sae.base import BaseSAE

__all__ = ["serve"]

_LOGGER = logging.getLogger("interp_embed.serve")
_GRACE_SECONDS = 30
_SHORTEST_TOKEN = 16


def serve(
    sae: BaseSAE,
    host: str = "127.0.0.1",
    port: int = 8765,
    *,
    queue: int = 16,
    batch_size: int = 8,
    on_listening: Callable[[str], object] | None = None,
) -> None:
    """Serve an SAE to other machines until SIGINT or SIGTERM.

    If the environment variable ``INTERP_EMBED_HTTP_TOKEN`` is set, requests must send its value. When
    the server is told to stop, the running request is finished and answered if that takes at most 30
    seconds. Waiting requests are rejected with 503.

    Parameters
    ----------
    sae : BaseSAE
        The SAE. It is loaded, and destroyed at the end, unless it is already loaded.
    host : str
        An address or name of this machine. Any other than the loopback needs a token.
    port : int
        The port; 0 for any free one.
    queue : int
        Requests that may wait or run at once. Others are answered with 429.
    batch_size : int
        Documents per batch, for an SAE that makes no batches itself.
    on_listening : callable, optional
        Called with the URL when the server listens, for example ``print``. The served SAE is logged
        under ``interp_embed.serve``.

    Raises
    ------
    ValueError
        If an argument is out of range, or a token is missing or too short.
    OSError
        If the server cannot listen on the address.
    RuntimeError
        If an event loop runs in this thread, as in a notebook.
    """
    _require_serve()
    _require_no_loop()
    if not 0 <= port < 2**16:
        raise ValueError(f"port must be between 0 and 65535, got {port}")
    check_positive(queue=queue, batch_size=batch_size)
    token = _token(host)
    listening = _listen(host, port)  # before the SAE is loaded, which may take minutes
    loaded_here = not sae.is_loaded()
    try:
        with kept_interrupts():
            if loaded_here:
                sae.load()
            _run(sae, listening, token, queue, batch_size, on_listening)
    finally:
        listening.close()
        if loaded_here:
            sae.destroy()


def _run(
    sae: BaseSAE,
    listening: socket.socket,
    token: str | None,
    most: int,
    batch_size: int,
    on_listening: Callable[[str], object] | None,
) -> None:
    import uvicorn

    from interp_embed.serve.app import make_app
    from interp_embed.serve.queue import DeviceQueue

    queue = DeviceQueue(sae, most=most, batch_size=batch_size)

    class Server(uvicorn.Server):
        """Turns away what waits as soon as it is told to end."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            queue.stop()
            super().handle_exit(sig, frame)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host, port = listening.getsockname()[:2]
            name = f"[{host}]" if ":" in host else host
            asks = "without a token" if token is None else f"with the token of {TOKEN_VARIABLE}"
            _LOGGER.info("%r", sae)
            _LOGGER.info("listening %s; Ctrl-C ends it", asks)
            if on_listening is not None:
                on_listening(f"http://{name}:{port}")

    server = Server(
        uvicorn.Config(
            make_app(sae, queue, token=token),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )
    asyncio.run(server.serve(sockets=[listening]))


def _token(host: str) -> str | None:
    """Return the token that requests have to bring along.

    Raises
    ------
    ValueError
        If there is none where there has to be one, or it is easily guessed.
    """
    token = read_key(TOKEN_VARIABLE)
    make = "to make one, run python -c 'import secrets; print(secrets.token_urlsafe(32))'"
    if token is not None and len(token) < _SHORTEST_TOKEN:
        raise ValueError(
            f"the token in {TOKEN_VARIABLE} must have at least {_SHORTEST_TOKEN} characters, got "
            f"{len(token)}; {make}"
        )
    if token is None and not _is_loopback(host):
        raise ValueError(
            f"host {host!r} can be reached from other machines, so a token is needed in the "
            f"environment variable {TOKEN_VARIABLE}; {make}"
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        listening = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    listening.set_inheritable(True)
    return listening


def _require_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "serve() blocks until the server ends, but an event loop already runs in this thread, as in a "
        "notebook; start 'interp-embed serve-sae', or call serve() in another thread"
    )


def _require_serve() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"serving an SAE needs {error.name}: pip install 'interp_embed[serve]'", name=error.name
        ) from error
