"""A server on this machine that speaks OpenAI's chat completions over HTTP, and fails on demand.

For tests of code that asks a language model: real requests, real connections, and answers by a Python
function. It needs only the standard library.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

__all__ = ["LLMServer", "ReceivedRequest", "Reply", "samples_of"]

_BLOCK = re.compile(r"^<(data-[0-9a-f]{16})>\n(.*?)\n?^</\1>$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reply:
    """The server's reply to a request.

    Attributes
    ----------
    text : str or None
        The model's answer; None for no content at all.
    status : int
        HTTP status; anything but 200 is a failure with ``text`` as its message.
    headers : mapping of str to str
        Further headers.
    body : bytes or None
        The raw body, instead of a completion.
    content_type : str
    delay : float
        Seconds before it answers.
    disconnect : bool
        Close the connection instead of answering.
    finish_reason : str
    usage : mapping or None
        The server's count of tokens; None for no count.
    param : str or None
        For a failure: the parameter that caused it.
    """

    text: str | None = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = "application/json"
    delay: float = 0.0
    disconnect: bool = False
    finish_reason: str = "stop"
    usage: Mapping[str, Any] | None = field(
        default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    )
    param: str | None = None

    @classmethod
    def rate_limited(cls, retry_after: float = 0.01) -> Self:
        """Refuse with 429, and say when to come back."""
        return cls("too many requests", 429, {"Retry-After": str(retry_after)})

    @classmethod
    def failing(cls, status: int = 500, message: str = "internal error") -> Self:
        """Fail with a status; a client need not wait before it tries again."""
        return cls(message, status, {"retry-after-ms": "1"})

    @classmethod
    def truncated(cls, text: str) -> Self:
        """Answer with the first half of a text, at the limit of tokens."""
        return cls(text[: len(text) // 2], finish_reason="length")

    @classmethod
    def in_prose(cls, text: str) -> Self:
        """Answer with a text in a code fence, with prose around it."""
        return cls(f"Sure! Here is the {{answer}}:\n\n```json\n{text}\n```\nI hope this helps.")

    @classmethod
    def gone(cls) -> Self:
        """Close the connection."""
        return cls(disconnect=True)


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A received request.

    Attributes
    ----------
    path : str
    headers : dict of str to str
        Names in lower case.
    body : dict
    """

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation."""
        found: list[dict[str, str]] = self.body["messages"]
        return found


class LLMServer:
    """A chat completions server; ``with`` starts and stops it.

    Parameters
    ----------
    answer
        Takes the body of a request and returns the model's answer: a text, a value to write as JSON,
        or a `Reply`.
    script
        Replies for the first requests, before ``answer`` is called; None stands for ``answer``.
    structured_output
        Whether it knows ``response_format``; otherwise it refuses requests that have it with 400.
    unknown
        Other parameters that it refuses with 400, naming them.

    Attributes
    ----------
    url : str
        The value for ``base_url``.
    requests : list of ReceivedRequest
        All requests in order, including those that were refused.
    script : deque
        The remaining replies.
    most_at_once : int
        Largest number of requests that were answered at the same time.

    Examples
    --------
    >>> with LLMServer(lambda body: {"label": "cats", "brief_description": "Cats."}) as server:
    ...     print(len(server.requests))
    0
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], Any],
        script: Iterable[Reply | None] = (),
        *,
        structured_output: bool = True,
        unknown: Iterable[str] = (),
    ) -> None:
        self.answer = answer
        self.script = deque(script)
        self.structured_output = structured_output
        self.unknown = tuple(unknown)
        self.requests: list[ReceivedRequest] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._serve, name="llm-server", daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.01)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and break off what is under way."""
        self._server.shutdown()
        self._thread.join()
        self._server.break_off()
        self._server.server_close()

    def reply(self, request: ReceivedRequest) -> Reply:
        """Return what to do with a request."""
        with self._lock:
            self.requests.append(request)
            refused = ["response_format"] if not self.structured_output else []
            for name in (*self.unknown, *refused):
                if name in request.body:
                    return Reply(f"Unsupported parameter: {name!r}", 400, param=name)
            scripted = self.script.popleft() if self.script else None
        if scripted is not None:
            return scripted
        said = self.answer(request.body)
        if isinstance(said, Reply):
            return said
        return Reply(said if isinstance(said, str) else json.dumps(said))

    def enter(self, step: int) -> None:
        """Count requests that are being answered."""
        with self._lock:
            self._now += step
            self.most_at_once = max(self.most_at_once, self._now)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[socket.socket] = set()

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    @override
    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that give up are part of what is tested."""

    def break_off(self) -> None:
        for request in list(self._open):
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def _handler(owner: LLMServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = ReceivedRequest(self.path, headers, json.loads(raw))
            owner.enter(1)
            try:
                self._send(owner.reply(request), request)
            finally:
                owner.enter(-1)

        def do_GET(self) -> None:
            self._write(Reply("not found", 404), b'{"error": {"message": "not found"}}')

        def _send(self, reply: Reply, request: ReceivedRequest) -> None:
            if not request.path.endswith("/chat/completions"):
                reply = Reply(f"no such path: {request.path}", 404)
            time.sleep(reply.delay)
            if reply.disconnect:
                self.close_connection = True
                return
            self._write(reply, _body(reply, request.body.get("model", "")))

        def _write(self, reply: Reply, body: bytes) -> None:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        @override
        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    return Handler


def _body(reply: Reply, model: str) -> bytes:
    if reply.body is not None:
        return reply.body
    if reply.status != 200:
        error = {"message": reply.text, "type": "error", "param": reply.param, "code": None}
        return json.dumps({"error": error}).encode()
    message = {"role": "assistant", "content": reply.text}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    completion: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [choice],
    }
    if reply.usage is not None:
        completion["usage"] = dict(reply.usage)
    return json.dumps(completion).encode()


def samples_of(body: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the data in a request of this library: one list of JSON objects per block.

    A request for a label has the positive samples, the negative samples, and the label so far if
    there is one; a request for a score the description, and the samples.
    """
    text = next(m["content"] for m in body["messages"] if m["role"] == "user")
    return [
        [json.loads(line) for line in block.split("\n") if line]
        for _, block in _BLOCK.findall(text)
    ]
