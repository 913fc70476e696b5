"""Why language models are asked again by `net.retries`: what the openai client's own retries do not do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest

from interp_embed.testing import LLMServer, Reply

openai = pytest.importorskip("openai")

GOOD = {"label": "cats", "brief_description": "It is about cats.", "detailed_explanation": None}


def ask(url, retries, timeout=10.0, limit=30.0):
    """Ask as a client would that left retries to openai."""

    async def run():
        async with openai.AsyncOpenAI(
            api_key="none", base_url=url, timeout=timeout, max_retries=retries
        ) as client:
            async with asyncio.timeout(limit):
                return await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "?"}]
                )

    return asyncio.run(run())


def test_it_does_not_see_a_failure_within_an_answer():
    failure = Reply(body=json.dumps({"error": {"code": 502, "message": "failed"}}).encode())
    with LLMServer(lambda body: GOOD, [failure]) as server:
        assert not ask(server.url, retries=3).choices
        assert len(server.requests) == 1


def test_its_timeout_is_no_limit_for_an_attempt():
    """Every byte may take as long, so that an answer may take for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(1000):
                    connection.sendall(b" ")
                    time.sleep(0.1)

        threading.Thread(target=trickle, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        with pytest.raises(TimeoutError):  # the test's, and not openai.APITimeoutError
            ask(url, retries=0, timeout=1.0, limit=4.0)
