"""Requests over HTTP, with answers of bounded size and one-line errors that contain no key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from interp_embed.net.keys import without_key
from interp_embed.net.retries import asked_pause

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

__all__ = [
    "LONGEST_ANSWER",
    "Answer",
    "AnswerError",
    "BadAnswerError",
    "ForeignAnswerError",
    "HttpTransport",
    "require_http",
]

LONGEST_ANSWER = 2**31
"""Bytes, unpacked."""
_LONGEST_REFUSAL = 2**16
_LONGEST_SAID = 300
_CONNECT_SECONDS = 10.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class AnswerError(OSError):
    """A server answered with an HTTP status that is not 200.

    Attributes
    ----------
    status_code : int
    retry_after : float or None
        Seconds that the server asks to wait before the next request.
    """

    def __init__(self, message: str, status_code: int, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.retry_after = retry_after


class BadAnswerError(ValueError):
    """A server's answer is not in the expected form."""


class ForeignAnswerError(BadAnswerError):
    """A server's answer is of another kind, for example a web page of a proxy in front of it."""


class Answer:
    """An answer with status 200.

    Parameters
    ----------
    content_type : str
        Without parameters, in lower case.
    body : bytes
    """

    def __init__(self, content_type: str, body: bytes) -> None:
        self.content_type = content_type
        self.body = body


def require_http(what: str) -> None:
    """Raise ImportError, saying what to install, if the HTTP client is missing."""
    try:
        import anyio  # noqa: F401
        import httpx  # noqa: F401
        import tenacity  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{what} needs {error.name}: pip install 'interp_embed[http]'", name=error.name
        ) from error


class HttpTransport:
    """An HTTP client for one server. Create it on the event loop that uses it.

    Parameters
    ----------
    url : str
        From `net.urls.checked_url`.
    key : str or None
        Sent as a bearer token, and never shown.
    timeout : float
        Seconds to wait for an answer to begin or to continue.
    """

    def __init__(self, url: str, *, key: str | None, timeout: float) -> None:
        import httpx

        self.url = url
        self._key = key
        self._timeout = timeout
        host = urlsplit(url).hostname or ""
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS), pool=None),
            limits=httpx.Limits(max_connections=None),
            trust_env=host
            not in _LOOPBACK,  # proxies of the environment do not lead to this machine
            follow_redirects=False,
        )

    def __repr__(self) -> str:
        return f"HttpTransport({self.url!r})"

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()

    async def get(self, path: str, *, timeout: float | None = None) -> Answer:
        """Return the answer to a GET request."""
        return await self._ask("GET", path, {}, None, timeout)

    async def post(self, path: str, body: bytes, *, accept: str) -> Answer:
        """Return the answer to a POST request with JSON."""
        headers = {"Content-Type": "application/json", "Accept": accept}
        return await self._ask("POST", path, headers, body, None)

    async def _ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float | None,
    ) -> Answer:
        import httpx

        options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        try:
            async with self._client.stream(
                method, path, headers=dict(headers), content=body, **options
            ) as response:
                if response.status_code != 200:
                    raise await self._refusal(response)
                kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                return Answer(kind, await self._body(response, LONGEST_ANSWER))
        except httpx.TransportError as error:
            what = str(error)
            if not what and isinstance(error, httpx.TimeoutException):
                what = f"no answer within {self._timeout if timeout is None else timeout:g} s"
            # The same class, so that it is known what to make of it, in words that name the server.
            raise type(error)(self._said(f"{self.url}{path}: {what}")) from None
        except httpx.DecodingError as error:
            raise BadAnswerError(
                self._said(f"{self.url}{path} sent an answer that cannot be decompressed: {error}")
            ) from None

    async def _body(self, response: httpx.Response, longest: int) -> bytes:
        parts, size = [], 0
        async for part in response.aiter_bytes():
            size += len(part)
            if size > longest:
                raise BadAnswerError(f"{response.url} answered with more than {longest:,} bytes")
            parts.append(part)
        return b"".join(parts)

    async def _refusal(self, response: httpx.Response) -> AnswerError:
        """Return the error for a status that is not 200, with what the server says of it."""
        try:
            body = await self._body(response, _LONGEST_REFUSAL)
        except BadAnswerError:
            body = b""
        said = self._said(_message(body))
        said = said if len(said) <= _LONGEST_SAID else f"{said[:_LONGEST_SAID]}…"
        reason = f"{response.status_code} {response.reason_phrase}".strip()
        return AnswerError(
            self._said(f"{response.url} answered {reason}" + (f": {said}" if said else "")),
            response.status_code,
            asked_pause(response.headers),
        )

    def refuse_echo(self, url: str, sent: bytes | str) -> None:
        """Raise BadAnswerError if a server repeats the key in an answer that may enter a store."""
        if self._key is not None and self._key in (
            sent if isinstance(sent, str) else sent.decode(errors="replace")
        ):
            raise BadAnswerError(f"{url} repeats the key of the request in its answer")

    def _said(self, message: str) -> str:
        """Return a message in one line, without the key should a server have repeated it."""
        line = " ".join(message.split()).rstrip(": ")
        return without_key(line, self._key)


def _message(body: bytes) -> str:
    """Return what the body of a refusal says."""
    import json

    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        found = "" if text.lstrip().startswith("<") else text  # a page for people says little
    for name in ("error", "detail", "message"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    said = " ".join((found if isinstance(found, str) else json.dumps(found)).split())
    return "" if said in ("{}", "null", "[]", '""') else said
