"""Which server a model is asked at, and which environment variable has its key.

A key is read when a client is opened and is in no object of this package.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from interp_embed.llm.ask.errors import LLMAuthenticationError

__all__ = ["Endpoint", "resolve_endpoint"]

_OPENAI_PREFIX = "openai/"


@dataclass(frozen=True, slots=True)
class _Provider:
    url: str
    url_variable: str
    key_variable: str


_OPENROUTER = _Provider("https://openrouter.ai/api/v1", "OPENROUTER_BASE_URL", "OPENROUTER_API_KEY")
_OPENAI = _Provider("https://api.openai.com/v1", "OPENAI_BASE_URL", "OPENAI_API_KEY")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is.

    Attributes
    ----------
    base_url : str
        Of the server, with nothing secret in it; ``/chat/completions`` comes behind it.
    model : str
        The model's name at that server.
    key_variable : str
        Environment variable that has the key.
    needs_key : bool
        Whether the server is known to refuse requests without one.
    url_variable : str
        Environment variable that names the server where nothing else does.
    """

    base_url: str
    model: str
    key_variable: str
    needs_key: bool
    url_variable: str = ""

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, {self.model!r}, key from {self.key_variable})"

    def read_key(self) -> str | None:
        """Return the key from the environment, None where the server needs none and none is set.

        Raises
        ------
        LLMAuthenticationError
            If the server needs a key and there is none, or what is set cannot be a key.
        """
        # No variable here holds the key where an error is raised: some tracebacks show variables.
        state = _state(os.environ.get(self.key_variable, ""))
        if state == "empty":
            if self.needs_key:
                raise LLMAuthenticationError(
                    f"{self.base_url} needs a key: set the environment variable "
                    f"{self.key_variable}, or name another server by its base URL"
                )
            return None
        if state == "broken":
            # An HTTP library would say so with the key in its message.
            raise LLMAuthenticationError(
                f"the environment variable {self.key_variable} holds characters that cannot be in a "
                "key, such as spaces or line breaks (it is not shown here): set it to the key alone"
            )
        return os.environ[self.key_variable].strip()

    def without_secrets(self, text: str, least: int = 4) -> str:
        """Return a text without the key, wherever a server has repeated it.

        What has fewer than ``least`` characters is no secret but a word such as "none", that servers
        without keys are given.
        """
        key = os.environ.get(self.key_variable, "").strip()
        return text.replace(key, "[key]") if len(key) >= least else text


def resolve_endpoint(model: str, base_url: str | None = None) -> Endpoint:
    """Return where a model is asked for.

    Parameters
    ----------
    model
        ``openai/NAME`` is NAME at OpenAI (``OPENAI_BASE_URL``, ``OPENAI_API_KEY``); any other is at
        OpenRouter (``OPENROUTER_BASE_URL``, ``OPENROUTER_API_KEY``).
    base_url
        Another server that speaks OpenAI's protocol, in place of the variable. The key of the same
        provider is sent to it where it is set, and none is needed.

    Raises
    ------
    ValueError
        If there is no model name, or the URL is none, or has more than a host and a path.
    """
    if not isinstance(model, str) or not model.strip():
        raise ValueError(f"model must be the name of a model, got {model!r}")
    provider, name = _OPENROUTER, model
    if model.startswith(_OPENAI_PREFIX):
        provider, name = _OPENAI, model.removeprefix(_OPENAI_PREFIX)
        if not name:
            raise ValueError(f"model must be the name of a model after openai/, got {model!r}")
    origin = "base_url"
    given = base_url
    if given is None:
        origin = provider.url_variable
        given = os.environ.get(provider.url_variable, "").strip() or None
    if given is None:
        return Endpoint(provider.url, name, provider.key_variable, True, provider.url_variable)
    try:
        parts = urlsplit(given)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        bare = not (parts.username or parts.password or parts.query or parts.fragment)
        _ = parts.port
    except (ValueError, AttributeError, TypeError):
        valid = bare = False
    if valid and not bare:  # not shown: logs of HTTP libraries would show it
        raise ValueError(
            f"{origin} must have no user, password, query or fragment; a key belongs in the "
            f"environment variable {provider.key_variable}"
        )
    if not valid:
        shown = given.rpartition("@")[2] if isinstance(given, str) else given
        raise ValueError(
            f"{origin} must be a URL such as http://localhost:8000/v1, got {shown!r:.100}"
        )
    given = given.rstrip("/")
    same = given == provider.url
    return Endpoint(given, name, provider.key_variable, same, provider.url_variable)


def _state(key: str) -> str:
    key = key.strip()
    if not key:
        return "empty"
    return "sound" if key.isascii() and key.isprintable() and " " not in key else "broken"
