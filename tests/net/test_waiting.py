"""What somebody who waits for a server is told, on a clock that the test moves."""

from __future__ import annotations

import asyncio

import pytest

from interp_embed.core.progress import log_as
from interp_embed.net.waiting import Waiting


@pytest.fixture
def loop():
    """An event loop whose clock stands still; `pass_time` moves it."""

    class Loop(asyncio.SelectorEventLoop):
        now = 0.0

        def time(self):
            return self.now

    found = Loop()
    yield found
    found.close()


async def pass_time(seconds):
    loop = asyncio.get_running_loop()
    for _ in range(round(seconds)):
        loop.now += 1
        for _ in range(3):
            await asyncio.sleep(0)


def told(loop, story, caplog, **settings):
    """What is said while something happens."""

    async def run():
        waiting = Waiting(lambda: "the server", 3, **{"patience": 20.0, **settings})
        await story(waiting)
        assert waiting._timer is None

    loop.run_until_complete(run())
    lines = [r.getMessage() for r in caplog.records if r.name == "interp_embed"]
    caplog.clear()
    return lines


def test_a_silent_server_is_spoken_of_after_twice_as_long_each_time(loop, caplog):
    async def story(waiting):
        with waiting.request() as wait:
            waiting.attempts(wait, 100)
            await pass_time(90)
            waiting.answers(wait)

    assert told(loop, story, caplog) == [
        f"the server has not answered for {n} s (1 request waits): it is asked again in "
        f"{100 - n} s (attempt 2 of 3)"
        for n in (20, 40, 80)
    ] + ["the server answers again"]


def test_the_last_attempt_is_given_up_and_a_pause_says_why(loop, caplog):
    async def story(waiting):
        with waiting.request() as wait:
            for _ in range(2):
                waiting.attempts(wait, 5)
            waiting.pauses(wait, "it said 503", 15, 20, gone=False)
            await pass_time(20)
            waiting.attempts(wait, 25)
            await pass_time(20)

    assert told(loop, story, caplog) == [
        "the server is busy or fails (it said 503): retrying a request in 15 s, and for about 20 s "
        "in all",
        "the server has not answered for 20 s (1 request waits): it said 503; attempt 3 of 3 follows in "
        "0 s",
        "the server has not answered for 40 s (1 request waits): the request is given up in 5 s",
    ]


def test_an_answer_to_another_request_ends_the_silence(loop, caplog):
    async def story(waiting):
        with waiting.request() as slow:
            waiting.attempts(slow)
            for _ in range(4):
                with waiting.request() as quick:
                    waiting.attempts(quick)
                    await pass_time(15)
                    waiting.answers(quick)
            await pass_time(19)

    assert told(loop, story, caplog, under_way="it may be encoding") == []


def test_a_server_that_is_gone_is_said_so_once_for_all_requests_and_so_is_its_return(loop, caplog):
    async def story(waiting):
        with waiting.request() as one, waiting.request() as other:
            for wait in (one, other, one):
                waiting.attempts(wait)
                waiting.pauses(wait, "refused", 1, 60, gone=True)
                await pass_time(1)
            waiting.answers(one)
            waiting.answers(other)

    assert told(loop, story, caplog) == [
        "the server does not answer (refused): trying again for about 60 s",
        "the server answers again",
    ]


def test_a_request_that_failed_for_good_makes_the_next_one_news(loop, caplog):
    async def story(waiting):
        for _ in range(2):
            with waiting.request() as wait:
                waiting.pauses(wait, "refused", 1, 300, gone=True)

    assert (
        told(loop, story, caplog)
        == ["the server does not answer (refused): trying again for about 5 min"] * 2
    )


def test_nothing_is_said_where_nobody_wants_to_know(loop, caplog):
    async def story(waiting):
        with waiting.request() as wait:
            waiting.pauses(wait, "refused", 1, 300, gone=True)
            await pass_time(50)

    with log_as("none"):
        assert told(loop, story, caplog) == []
