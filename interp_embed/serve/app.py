"""The protocol's paths: authorisation, requests, and answers."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
from typing import TYPE_CHECKING, Any

from interp_embed.sae.assemble import one_line
from interp_embed.sae.remote.arrow_form import encode_arrow, has_arrow
from interp_embed.sae.remote.json_form import encode_json
from interp_embed.sae.remote.wire import ARROW, JSON, PROTOCOL
from interp_embed.sae.sae_types import plain_json
from interp_embed.serve.queue import BusyError, ClosingError, GoneError
from interp_embed.store.format.sealed import digest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from interp_embed.sae.base import BaseSAE
    from interp_embed.serve.queue import DeviceQueue

_log = logging.getLogger("interp_embed.serve")

__all__ = ["MAX_CHARACTERS", "MAX_DOCUMENTS", "make_app"]

MAX_CHARACTERS = 2**20
MAX_DOCUMENTS = 4096
_LONGEST_TEXT = 2**24
"""Of a document that is asked for alone."""
_BYTES_A_CHARACTER = 12
"""Of JSON at most: two escapes."""
_BODY_SECONDS = 30.0
"""For the next part of a request: it has a place in the queue meanwhile."""


class _RefusedError(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: int, why: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(why)
        self.status = status
        self.headers = headers or {}


def make_app(sae: BaseSAE, queue: DeviceQueue, *, token: str | None) -> Starlette:
    """Return the application.

    Parameters
    ----------
    sae : BaseSAE
        Loaded.
    queue : DeviceQueue
        Of the same SAE.
    token : str or None
        Token that requests must send in the header ``Authorization: Bearer TOKEN``.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    handlers = _Handlers(sae, queue, token)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        queue.close()

    return Starlette(
        routes=[
            Route("/health", handlers.health),
            Route("/v1/info", handlers.info),
            Route("/v1/labels", handlers.labels),
            Route("/v1/encode", handlers.encode, methods=["POST"]),
        ],
        lifespan=lifespan,
        exception_handlers={_RefusedError: _refused, HTTPException: _refused},
    )


class _Handlers:
    """One method a path.

    Parameters
    ----------
    sae, queue, token
        As for `make_app`.
    """

    def __init__(self, sae: BaseSAE, queue: DeviceQueue, token: str | None) -> None:
        self._sae = sae
        self._queue = queue
        self._token = None if token is None else token.encode()
        self._fingerprint = plain_json(sae.fingerprint())
        self._name = digest(self._fingerprint)

    async def health(self, _: Request) -> Response:
        if self._queue.closing:
            return _json({"error": "the server is shutting down"}, 503)
        return _json({"status": "ok", "waiting": self._queue.inside})

    async def info(self, request: Request) -> Response:
        self._admit(request)
        return _json(
            {
                "protocol": PROTOCOL,
                "sae": self._name,
                "fingerprint": self._fingerprint,
                "d_sae": self._sae.d_sae,
                "max_characters": MAX_CHARACTERS,
                "max_documents": MAX_DOCUMENTS,
            }
        )

    async def labels(self, request: Request) -> Response:
        self._admit(request)
        labels = {str(k): v for k, v in self._sae.feature_labels().items()}
        return _json({"protocol": PROTOCOL, "labels": labels})

    async def encode(self, request: Request) -> Response:
        self._admit(request)
        try:
            with self._queue.admit():
                texts = await self._texts(request)
                chunk = await self._queue.encode(texts, request.is_disconnected)
                kind = _form(request.headers.get("accept", "*/*"))
                write = encode_arrow if kind == ARROW else encode_json
                body = await self._queue.off_loop(write, chunk, self._name)
        except BusyError as error:
            headers = {"Retry-After": str(error.retry_after)}
            raise _RefusedError(429, str(error), headers) from None
        except ClosingError:
            raise _RefusedError(503, "the server is shutting down", {"Retry-After": "1"}) from None
        except GoneError:
            raise _RefusedError(499, "the client has disconnected") from None
        except _RefusedError:
            raise
        except asyncio.CancelledError:  # as uvicorn does with what is not done in time
            if not self._queue.closing:
                raise
            raise _RefusedError(503, "the server is shutting down", {"Retry-After": "1"}) from None
        except Exception as error:  # noqa: BLE001  (the server goes on)
            # What goes wrong with documents is in the chunk, so this is the server's own failure.
            _log.exception("a request could not be answered")
            raise _RefusedError(500, one_line(error)) from None
        return _response(body, kind)

    def _admit(self, request: Request) -> None:
        if self._token is None:
            return
        given = request.headers.get("authorization", "").encode()
        # Compared in a time that does not tell how much of it is right.
        if not hmac.compare_digest(given, b"Bearer " + self._token):
            raise _RefusedError(
                401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"}
            )

    async def _texts(self, request: Request) -> list[str]:
        """Return the texts of a request."""
        from starlette.requests import ClientDisconnect

        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON:  # what a web page elsewhere cannot have a browser send unasked
            raise _RefusedError(415, f"expected {JSON}")
        most = _BYTES_A_CHARACTER * _LONGEST_TEXT
        parts, size = [], 0
        stream = aiter(request.stream())
        try:
            while True:
                async with asyncio.timeout(_BODY_SECONDS):
                    part = await anext(stream, None)
                if part is None:
                    break
                size += len(part)
                if size > most:
                    raise _RefusedError(413, f"the request has more than {most:,} bytes")
                parts.append(part)
        except TimeoutError:
            raise _RefusedError(
                408, f"no part of the request came for {_BODY_SECONDS:g} s", {"Connection": "close"}
            ) from None
        except ClientDisconnect:
            raise GoneError from None
        try:
            said = await self._queue.off_loop(json.loads, b"".join(parts))
        except (ValueError, RecursionError) as error:
            raise _RefusedError(400, f"the request is not JSON ({error})") from None
        if not isinstance(said, dict) or said.get("protocol", PROTOCOL) != PROTOCOL:
            raise _RefusedError(400, f"the request must be an object of protocol {PROTOCOL}")
        texts = said.get("texts")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise _RefusedError(400, "'texts' must be a list of strings")
        if len(texts) > MAX_DOCUMENTS:
            raise _RefusedError(
                413, f"'texts' must have at most {MAX_DOCUMENTS:,} documents, got {len(texts):,}"
            )
        characters = sum(map(len, texts))
        limit = MAX_CHARACTERS if len(texts) > 1 else _LONGEST_TEXT
        if characters > limit:
            raise _RefusedError(
                413, f"'texts' must have at most {limit:,} characters, got {characters:,}"
            )
        return texts


def _form(accept: str) -> str:
    """Return the form that a request prefers and this machine can write.

    Raises
    ------
    _RefusedError
        If there is none.
    """
    kinds = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    anything = bool(kinds & {"*/*", "application/*", ""})
    if ARROW in kinds and has_arrow():
        return ARROW
    if JSON in kinds or anything:
        return JSON
    if ARROW in kinds:
        raise _RefusedError(406, "this server has no pyarrow, so it answers in JSON only")
    raise _RefusedError(406, f"Accept must contain {ARROW} or {JSON}")


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return _response(json.dumps(content).encode(), JSON, status)


def _response(
    body: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    from starlette.responses import Response

    return Response(body, status, headers, media_type=kind)


async def _refused(_: Request, error: Exception) -> Response:
    """Answer what is refused here, and what starlette refuses: paths and methods that there are not."""
    status: int = getattr(error, "status", 0) or getattr(error, "status_code", 500)
    said = getattr(error, "detail", None) or str(error)
    headers = getattr(error, "headers", None)
    return _response(json.dumps({"error": said}).encode(), JSON, status, headers)
