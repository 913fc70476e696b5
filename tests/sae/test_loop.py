"""The event loop of SAEs that run elsewhere: how it ends, whatever became of its process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("anyio")

from interp_embed.sae.remote.loop import LoopThread


@pytest.fixture
def loop():
    found = LoopThread("the loop")
    yield found
    found.close()
    assert not found.is_alive()


async def said(value):
    await asyncio.sleep(0)
    return value


def test_threads_and_other_loops_wait_for_it(loop):
    async def elsewhere():
        return loop.run(said(2)) + await asyncio.wrap_future(loop.submit(said(3)))

    assert loop.run(said(1)) == 1
    assert asyncio.run(elsewhere()) == 5


def test_what_a_coroutine_raises_is_raised_where_it_is_waited_for(loop):
    async def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        loop.run(fail())
    assert loop.run(said(1)) == 1


def test_a_coroutine_that_would_wait_for_itself_is_told_so(loop):
    async def within():
        return loop.run(said(1))

    with pytest.raises(RuntimeError, match="cannot call the blocking methods of the same SAE"):
        loop.run(within())


@pytest.mark.parametrize("how", ["the future is cancelled", "the loop is closed"])
def test_what_runs_is_cancelled(how):
    loop = LoopThread("the loop")
    started, cancelled = threading.Event(), threading.Event()

    async def forever():
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    future = loop.submit(forever())
    assert started.wait(10)
    if how == "the future is cancelled":
        future.cancel()
        assert cancelled.wait(10)
    loop.close()
    loop.close()
    assert cancelled.is_set()
    assert not loop.is_alive()


def test_an_interrupt_cancels_what_runs_although_it_comes_while_the_portal_starts_it(loop):
    """A coroutine may run before the portal has given a future for it."""
    cancelled = threading.Event()

    async def interrupting():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    with pytest.raises(KeyboardInterrupt):
        loop.run(interrupting())
    assert cancelled.wait(10)


SCRIPT = """
from interp_embed.sae.remote.loop import LoopThread
loop = LoopThread("the loop")
async def said(): return "said"
print(loop.run(said()))
"""


def test_a_process_that_forgets_to_close_it_ends():
    """Which it does not with ``start_blocking_portal``: it waits for the thread of a loop that is gone."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "said\n"


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_is_told_and_ends(loop):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # in place of a wait for a thread that is not there
        try:
            with pytest.raises(RuntimeError, match="which was forked after the SAE was loaded"):
                loop.run(said(1))
            loop.close()
            os._exit(0)
        finally:
            os._exit(1)
    begun = time.monotonic()
    assert os.waitpid(child, 0)[1] == 0
    assert time.monotonic() - begun < 20
    assert loop.run(said(1)) == 1
