"""URLs of servers: they must not contain secrets, because they are shown and stored."""

from __future__ import annotations

from urllib.parse import urlsplit

__all__ = ["checked_url"]


def checked_url(
    url: object,
    name: str = "url",
    *,
    example: str = "http://127.0.0.1:8765",
    keys: str = "the environment",
) -> str:
    """Return a base URL without the slash at its end.

    Parameters
    ----------
    url
    name : str
        Name of the argument, for messages.
    example : str
        A valid URL, for messages.
    keys : str
        The right place for keys, for messages.

    Raises
    ------
    TypeError
        If it is not a string.
    ValueError
        If it is not an ``http`` or ``https`` URL, or has a user, password, query or fragment, which
        may contain a key. The message does not repeat them.
    """
    if not isinstance(url, str):
        raise TypeError(f"{name} must be a string, got {type(url).__name__}")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and url == url.strip()
        _ = parts.port
        secret = parts.username is not None or bool(parts.query or parts.fragment)
    except ValueError:
        valid = secret = False
    if secret:
        raise ValueError(
            f"{name} must not contain a user, password, query or fragment; put keys in {keys}"
        )
    if not valid:
        got = "one that may contain a key" if set(url) & set("@?#") else f"{url!r:.100}"
        raise ValueError(f"{name} must be a URL such as {example}, got {got}")
    return url.rstrip("/")
