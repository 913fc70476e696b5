"""URLs and keys: what is refused, and that messages repeat no secret."""

from __future__ import annotations

import traceback

import pytest

from interp_embed.net.keys import read_key, without_key
from interp_embed.net.urls import checked_url


@pytest.mark.parametrize("url", ["http://host", "https://host:80/v1", "http://[::1]:8765/"])
def test_a_url_is_returned_without_its_last_slash(url):
    assert checked_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    ["http://me:hunter2@host", "https://hunter2@host", "http://host?key=hunter2", "http://host#hunter2",
     "me:hunter2@host", "host?hunter2", "ftp://me:hunter2@host", "http://me:hunter2@host:port"],
)  # fmt: skip
def test_a_url_with_a_secret_is_refused_and_not_shown(url):
    with pytest.raises(ValueError, match="my_url must ") as caught:
        checked_url(url, "my_url", keys="MY_KEY")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value)).partition("Error:")[2]
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "url", ["", "host:80", "ftp://host", "http://", " http://host", "http://[::1"]
)
def test_what_is_no_url_is_shown(url):
    with pytest.raises(ValueError, match="url must be a URL such as http://x, got ") as caught:
        checked_url(url, example="http://x")
    assert repr(url) in str(caught.value)


def test_what_is_no_string_is_a_type_error():
    with pytest.raises(TypeError, match="url must be a string, got bytes"):
        checked_url(b"http://host")


def test_a_key_is_read_without_the_space_around_it(monkeypatch):
    monkeypatch.setenv("SOME_KEY", " sk-1\n")
    assert read_key("SOME_KEY") == "sk-1"
    monkeypatch.setenv("SOME_KEY", " ")
    assert read_key("SOME_KEY") is None
    monkeypatch.delenv("SOME_KEY")
    assert read_key("SOME_KEY") is None


@pytest.mark.parametrize("key", ["sk a", "sk\na", "schlüssel", "sk\x7f"])
def test_no_frame_of_the_error_holds_a_key_that_cannot_be_sent(monkeypatch, key):
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(ValueError, match="the key in SOME_KEY has characters") as caught:
        read_key("SOME_KEY")
    inner = [frame for frame, _ in traceback.walk_tb(caught.tb)][1:]
    assert inner
    for frame in inner:
        assert key not in map(str, frame.f_locals.values())


def test_a_key_is_replaced_wherever_it_stands():
    assert without_key("a sk-1 b sk-1", "sk-1") == "a [key] b [key]"
    assert without_key("none", None) == "none"
    assert without_key("cats", "cat", least=4) == "cats"
