"""Servers on the loopback: one that does as a test says, and the real one as a process.

`protocol` implements the wire protocol from its description, with the standard library and nothing of
the package, as somebody else would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from zlib import crc32

from tests.support.fake_sae import D_SAE, word_activations, words
from tests.support.waiting import PATIENCE

TOKEN = "a-token-that-nobody-must-see-0123456789"


@contextlib.contextmanager
def refusing():
    """Give the URL of a port that refuses connections, and that nobody else is given meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


class Said:
    """An answer: status, body, headers; `cut` closes the connection in its middle."""

    def __init__(self, status=200, body=b"", headers=None, *, delay=0.0, cut=False):
        self.status = status
        self.body = json.dumps(body).encode() if isinstance(body, dict | list) else body
        self.headers = headers or {"Content-Type": "application/json"}
        self.delay = delay
        self.cut = cut


class Scripted:
    """A server that answers with what ``script(method, path, body, headers)`` returns.

    Attributes
    ----------
    asked : list of (method, path, body)
    most : int
        Requests that were being answered at once.
    """

    def __init__(self, script):
        self.script = script
        self.asked = []
        self.moments = []
        self.headers = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self):
                size = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(size)) if size else None
                with outer._lock:
                    outer.asked.append((self.command, self.path, body))
                    outer.moments.append(time.monotonic())
                    outer.headers.append(dict(self.headers))
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                try:
                    said = outer.script(self.command, self.path, body, self.headers)
                    time.sleep(said.delay)
                finally:
                    with outer._lock:
                        outer._now -= 1
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(said.status)
                    for name, value in said.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(said.body)))
                    self.end_headers()
                    self.wfile.write(said.body[: len(said.body) // 2] if said.cut else said.body)
                if said.cut:
                    self.close_connection = True

            do_GET = do_POST = _answer  # noqa: N815

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def paths(self):
        return [path for _, path, _ in self.asked]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


INFO = {
    "protocol": 1,
    "sae": "words-1",
    "fingerprint": {"class": "words", "version": 1},
    "d_sae": D_SAE,
}


def one_document(text):
    """A document of the protocol: the words of `tests.support.fake_sae`, in plain lists."""
    found, at = {n: [] for n in ("id", "start", "end", "special", "feature", "activation")}, 0
    for word in words(text):
        active = sorted(word_activations(word).items())
        found["id"].append(crc32(repr(word).encode()))
        found["start"].append(at)
        found["end"].append(at + len(word))
        found["special"].append(False)
        found["feature"].append([f for f, _ in active])
        found["activation"].append([v for _, v in active])
        at += len(word)
    return {"truncated": False, **found}


def protocol(method, path, body, headers):
    """The protocol, as its description says, in JSON."""
    if path == "/health":
        return Said(body={"status": "ok"})
    if path == "/v1/info":
        return Said(body=INFO)
    if path == "/v1/labels":
        return Said(body={"protocol": 1, "labels": {"0": "zeroth"}})
    documents = [one_document(text) for text in body["texts"]]
    head = {"protocol": 1, "sae": INFO["sae"], "d_sae": D_SAE}
    return Said(body={**head, "vocabulary": {}, "documents": documents})


def when_encoding(change):
    """The protocol, but ``change(texts)`` answers requests for documents, unless it returns None."""

    def script(method, path, body, headers):
        if path == "/v1/encode" and (said := change(body["texts"])) is not None:
            return said
        return protocol(method, path, body, headers)

    return script


class ServeThread:
    """The real server on a thread of this process, which starts at once.

    Parameters
    ----------
    sae
        Loaded here, if need be.
    queue
        Requests that may wait or run at once.
    token
        What requests have to bring along.
    """

    def __init__(self, sae, *, queue=16, token=None):
        import uvicorn

        from interp_embed.serve.app import make_app
        from interp_embed.serve.queue import DeviceQueue

        if not sae.is_loaded():
            sae.load()
        app = make_app(sae, DeviceQueue(sae, most=queue, batch_size=8), token=token)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


class ServeProcess:
    """``interp-embed serve-sae`` in a process of its own."""

    def __init__(self, *arguments, sae="tests.support.fake_sae:WordSAE", port=0, **environment):
        command = [
            sys.executable,
            "-W",
            "error",
            "-m",
            "interp_embed.cli",
            "serve-sae",
            "--device",
            "cpu",
        ]
        self.process = subprocess.Popen(
            [*command, "--sae", sae, "--port", str(port), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.url = self.process.stdout.readline().strip()

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    def end(self, signal_number=None, timeout=PATIENCE):
        """Send a signal, if any, and return the exit code and what was written to stderr."""
        if signal_number is not None:
            self.process.send_signal(signal_number)
        _, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, errors

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        if not self.process.stdout.closed:
            self.process.communicate()
