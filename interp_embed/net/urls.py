"""URLs of servers: nothing in them may be a secret, since they are shown and kept."""

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
        What messages call it.
    example : str
        A URL that would do.
    keys : str
        Where keys belong, for messages.

    Raises
    ------
    TypeError
        If it is no string.
    ValueError
        If it is no ``http`` or ``https`` URL, or has a user, password, query or fragment, which are
        where keys are put. The message does not repeat them.
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
            f"{name} must not hold a user or password, nor a query or fragment; keys belong in {keys}"
        )
    if not valid:
        got = "one that may hold a key" if set(url) & set("@?#") else f"{url!r:.100}"
        raise ValueError(f"{name} must be a URL such as {example}, got {got}")
    return url.rstrip("/")
