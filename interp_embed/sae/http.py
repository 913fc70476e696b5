"""An SAE on another machine, reached through the protocol of ``interp-embed serve-sae``."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from interp_embed.errors import SAEUnavailableError
from interp_embed.net.keys import read_key
from interp_embed.net.retries import http_status
from interp_embed.net.urls import checked_url
from interp_embed.sae.assemble import one_line
from interp_embed.sae.remote.arrow_form import decode_arrow, has_arrow
from interp_embed.sae.remote.base import RemoteSAE, require_number
from interp_embed.sae.remote.json_form import decode_json
from interp_embed.sae.remote.retries import Trouble, retrying
from interp_embed.sae.remote.transport import (
    AnswerError,
    BadAnswerError,
    ForeignAnswerError,
    HttpTransport,
    require_http,
)
from interp_embed.sae.remote.wire import ARROW, JSON, PROTOCOL, parse_json, strings
from interp_embed.sae.sae_types import plain_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interp_embed.core.chunk import Chunk
    from interp_embed.sae.remote.transport import Answer

__all__ = ["TOKEN_VARIABLE", "HttpSAE"]

TOKEN_VARIABLE = "INTERP_EMBED_HTTP_TOKEN"
_RETRIES_AT_ONCE = 2
"""When loading: a mistyped URL should not make the user wait for minutes."""
_INFO_SECONDS = 15.0
_LABELS_SECONDS = 60.0
_HEALTH_SECONDS = 10.0
_FOREIGN = frozenset({301, 302, 303, 307, 308, 404, 405, 406, 410, 415})
"""Statuses of a proxy before the server, or of another server: they do not depend on a document."""
_WORD = "a"
"""A text that every working server can encode."""


class HttpSAE(RemoteSAE):
    """An SAE that a server such as ``interp-embed serve-sae`` runs; see ``docs/how-to/remote-saes.md``.

    Chunks are those of the SAE behind the server, including token ids, spans, special tokens,
    statuses and reasons. A store records the server's URL, and in the fingerprint the fingerprint of
    the SAE behind the server. A run can therefore be resumed only with the same SAE.

    If the environment variable ``INTERP_EMBED_HTTP_TOKEN`` is set when the SAE is loaded, its value is
    sent as a bearer token. The token is never recorded.

    Parameters
    ----------
    url : str
        URL of the server, such as ``"http://127.0.0.1:8765"``.
    max_concurrency : int
        Requests in flight at once. A server encodes one request at a time; the others wait there.
    max_retries : int
        How often a request is repeated if the connection fails, or if the server is busy (429) or
        fails (5xx).
    base_delay : float
        Seconds before the first repetition. The pause doubles each time, up to a minute, unless the
        server asks for another pause.
    timeout : float
        Seconds to wait for an answer to begin or to continue. After that, the documents of the
        request are requested in halves, unless the server is down.
    request_characters, request_documents : int
        Largest number of characters and of documents per request. A document with more characters is
        sent alone. A lower limit of the server takes precedence.
    form : {"auto", "arrow", "json"}
        How activations are sent: as Arrow, which needs pyarrow on both sides, or as JSON. With
        ``"auto"``, Arrow if both sides have pyarrow.

    Raises
    ------
    ValueError
        If an argument is out of range, or the URL may contain a key.
    """

    recorded_as = "interp_embed.sae:HttpSAE"
    _transport = ("url", "timeout", "request_characters", "request_documents", "form")

    def __init__(
        self,
        url: str,
        max_concurrency: int = 4,
        max_retries: int = 8,
        base_delay: float = 0.5,
        *,
        timeout: float = 300.0,
        request_characters: int = 2**16,
        request_documents: int = 256,
        form: str = "auto",
    ) -> None:
        super().__init__(max_concurrency, max_retries, base_delay)
        require_number("timeout", timeout, 0)
        if timeout <= 0:
            raise ValueError(f"timeout must be above 0, got {timeout}")
        require_number("request_characters", request_characters, 1, whole=True)
        require_number("request_documents", request_documents, 1, whole=True)
        if form not in ("auto", "arrow", "json"):
            raise ValueError(f"form must be one of 'auto', 'arrow', 'json', got {form!r}")
        self.url = checked_url(url)
        self.timeout = timeout
        self.request_characters = request_characters
        self.request_documents = request_documents
        self.form = form
        self._http: HttpTransport | None = None
        self._served: dict[str, Any] | None = None
        self._name = ""
        self._most = (request_characters, request_documents)

    def __repr__(self) -> str:
        loaded = "loaded" if self.is_loaded() else "not loaded"
        return f"{type(self).__name__}({self.url!r}, {loaded})"

    def service(self) -> str:
        """Return the name of the server in messages."""
        return f"the SAE server at {self.url}"

    def answer_seconds(self) -> float:
        """Return how long a request waits for its answer."""
        return self.timeout

    def metadata(self) -> dict[str, Any]:
        """Return the constructor's arguments as values for JSON; the token is not among them."""
        return {name: getattr(self, name) for name in self._all_transport()}

    def fingerprint(self) -> dict[str, Any]:
        """Return everything known that activations depend on: once loaded, the server's SAE.

        The URL is not part of it, because a server may move.
        """
        served = {} if self._served is None else {"server": self._served}
        return {**super().fingerprint(), **served}

    async def open(self) -> None:
        """Ask the server what it serves.

        Raises
        ------
        SAEUnavailableError
            If it does not answer within seconds, refuses the token, or is not an SAE server.
        """
        require_http("HttpSAE")
        if self.form == "arrow":
            _require_arrow()
        key = read_key(TOKEN_VARIABLE)
        self._http = HttpTransport(self.url, key=key, timeout=self.timeout)
        said = await self._document("/v1/info", _INFO_SECONDS)
        try:
            self._take_info(said)
        except BadAnswerError as error:
            raise SAEUnavailableError(
                f"{self.url}/v1/info: {error}. Is it an SAE server of protocol {PROTOCOL}?"
            ) from error

    def _take_info(self, said: Mapping[str, Any]) -> None:
        if said.get("protocol") != PROTOCOL:
            raise BadAnswerError(f"'protocol' is {said.get('protocol')!r:.40}, expected {PROTOCOL}")
        name, served, width = said.get("sae"), said.get("fingerprint"), said.get("d_sae")
        if not isinstance(name, str) or not name:
            raise BadAnswerError(f"'sae' is {name!r:.40}, expected a string")
        if not isinstance(served, dict):
            raise BadAnswerError(f"'fingerprint' is {served!r:.40}, expected an object")
        if width is not None and (
            isinstance(width, bool) or not isinstance(width, int) or width < 1
        ):
            raise BadAnswerError(f"'d_sae' is {width!r:.40}, expected a number of features or null")
        limits = []
        for key, mine in (
            ("max_characters", self.request_characters), ("max_documents", self.request_documents),
        ):  # fmt: skip
            theirs = said.get(key, mine)
            if isinstance(theirs, bool) or not isinstance(theirs, int) or theirs < 1:
                raise BadAnswerError(f"{key!r} is {theirs!r:.40}, expected a number above 0")
            limits.append(min(mine, theirs))
        self._name, self._served, self._d_sae = name, plain_json(served), width
        self._most = (limits[0], limits[1])

    def load_feature_labels(self) -> None:
        """Ask the server for the labels of its SAE's features."""
        self._feature_labels = self.wait_for(self._labels())

    async def _labels(self) -> dict[int, str]:
        said = await self._document("/v1/labels", _LABELS_SECONDS)
        try:
            return strings(said.get("labels"), "labels", 2**32)
        except BadAnswerError as error:
            raise SAEUnavailableError(f"{self.url}/v1/labels: {error}") from error

    async def _document(self, path: str, seconds: float) -> dict[str, Any]:
        """Return a JSON object that the server has; what goes wrong here goes wrong altogether."""

        async def ask() -> dict[str, Any]:
            answer = await self._client().get(path, timeout=min(self.timeout, seconds))
            self._client().refuse_echo(self.url + path, answer.body)
            return parse_json(answer.body, "the answer")

        try:
            return await retrying(
                ask,
                self._classify_early,
                max_retries=min(self.max_retries, _RETRIES_AT_ONCE),
                base_delay=self.base_delay,
            )
        except AnswerError as error:
            raise SAEUnavailableError(_with_advice(error)) from error
        except BadAnswerError as error:
            raise SAEUnavailableError(f"{self.url}{path}: {error}. Is it an SAE server?") from error
        except Exception as error:
            raise SAEUnavailableError(
                f"{self.service()} cannot be reached: {one_line(error)}. Is "
                "'interp-embed serve-sae' running there?"
            ) from error

    def _classify_early(self, error: BaseException) -> Trouble:
        """Return what to make of an error while loading.

        Who does not answer is not asked again, nor who has no such path: it is a wrong URL then.
        """
        late = "TimeoutException" in {cls.__name__ for cls in type(error).__mro__}
        return Trouble.DOCUMENT if late or _is_foreign(error) else self.classify(error)

    async def close(self) -> None:
        """Close connections."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    def _client(self) -> HttpTransport:
        if self._http is None:
            raise RuntimeError("HttpSAE has no connection; call its load() first")
        return self._http

    async def check_service(self) -> None:
        """Raise `SAEUnavailableError` if the server does not report that it is healthy."""
        try:
            await self._client().get("/health", timeout=min(self.timeout, _HEALTH_SECONDS))
        except Exception as error:
            if http_status(error) == 404:  # a server may leave it out
                said = await self._document("/v1/info", _HEALTH_SECONDS)
                self._require_same(said.get("sae"))
                return
            raise SAEUnavailableError(
                f"{self.service()} is down or overloaded: {one_line(error)}. Start it again and resume"
            ) from error

    async def check_encoding(self) -> None:
        """Raise `SAEUnavailableError` if the server cannot encode even a single word."""
        try:
            await self.request([_WORD])
        except SAEUnavailableError:
            raise
        except Exception as error:
            raise SAEUnavailableError(
                f"{self.service()} cannot encode even the text {_WORD!r}: {one_line(error)}. "
                "Start it again, or give it more time (timeout=) or smaller requests "
                "(request_characters=), and resume"
            ) from error

    def classify(self, error: BaseException) -> Trouble:
        """Classify an error: documents that take too long are not tried again together.

        They have waited for minutes. Half of them may be quicker, and `check_service` and
        `check_encoding` find out whether the server hangs.
        """
        if _is_foreign(error):
            return Trouble.UNREACHABLE
        waited = {"ReadTimeout", "WriteTimeout"} & {cls.__name__ for cls in type(error).__mro__}
        return Trouble.SLOW if waited else super().classify(error)

    def batches(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the positions of the texts of each request, neighbours together."""
        characters, documents = self._most
        found: list[list[int]] = []
        size = math.inf
        for position, text in enumerate(texts):
            size += len(text)
            if size > characters or len(found[-1]) >= documents:
                found.append([])
                size = len(text)
            found[-1].append(position)
        return found

    async def encode_batch(self, texts: Sequence[str]) -> Chunk:
        """Return the documents as the server encodes them.

        Raises
        ------
        BadAnswerError
            If the answer is anything but these documents.
        SAEUnavailableError
            If the server now has another SAE than when this SAE was loaded.
        """
        # ASCII, as the default is, so that a text with half of a surrogate pair arrives as it is.
        body = json.dumps({"protocol": PROTOCOL, "texts": list(texts)}).encode()
        answer = await self._client().post("/v1/encode", body, accept=self._accept())
        try:
            return self._read(answer, texts)
        except BadAnswerError as error:
            raise type(error)(f"{self.url}/v1/encode sent a bad answer: {error}") from None

    def _read(self, answer: Answer, texts: Sequence[str]) -> Chunk:
        if answer.content_type == ARROW:
            _require_arrow()
            header, chunk = decode_arrow(answer.body, texts)
        elif answer.content_type == JSON:
            self._client().refuse_echo(self.url, answer.body)  # errors may quote it
            header, chunk = decode_json(answer.body, texts)
        else:
            raise ForeignAnswerError(
                f"its content type is {answer.content_type or 'missing'!r:.60}, expected {ARROW} or "
                f"{JSON}; it begins {answer.body[:40]!r}"
            )
        # As they are read: JSON may write a character in several ways.
        for said in (*chunk.reasons.values(), *chunk.vocabulary.values()):
            self._client().refuse_echo(self.url, said)
        self._require_same(header.sae)
        return chunk

    def _require_same(self, name: object) -> None:
        if name != self._name:
            raise SAEUnavailableError(
                f"{self.service()} now has another SAE than when the run began; start it with the SAE "
                "that the store was made with, and resume"
            )

    def _accept(self) -> str:
        if self.form == "json" or (self.form == "auto" and not has_arrow()):
            return JSON
        return ARROW if self.form == "arrow" else f"{ARROW}, {JSON};q=0.5"


def _is_foreign(error: BaseException) -> bool:
    """Return whether an error says that something else than an SAE server answered."""
    return isinstance(error, ForeignAnswerError) or http_status(error) in _FOREIGN


def _with_advice(error: AnswerError) -> str:
    if error.status_code in (401, 403):
        return f"{error}. Set {TOKEN_VARIABLE} to the server's token"
    if error.status_code == 404:
        return f"{error}. Is it an SAE server, and is the URL its root?"
    return str(error)


def _require_arrow() -> None:
    if not has_arrow():
        raise ImportError(
            "activations as Arrow need pyarrow: pip install 'interp_embed[io]', or pass form='json'",
            name="pyarrow",
        )
