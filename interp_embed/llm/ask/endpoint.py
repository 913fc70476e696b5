"""Which server a model is asked at, and which environment variable has its key.

A key is read when a client is opened and is in no object of this package.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from interp_embed.llm.ask.errors import LLMAuthenticationError
from interp_embed.net.keys import read_key, without_key
from interp_embed.net.urls import checked_url

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
        key = problem = None
        try:
            key = read_key(self.key_variable)
        except ValueError as error:
            problem = str(error)
        if problem is not None:  # raised here, it has no context whose variables would be shown
            raise LLMAuthenticationError(problem)
        if key is None and self.needs_key:
            raise LLMAuthenticationError(
                f"{self.base_url} needs a key: set the environment variable "
                f"{self.key_variable}, or name another server by its base URL"
            )
        return key

    def without_secrets(self, text: str, least: int = 4) -> str:
        """Return a text without the key, wherever a server has repeated it.

        What has fewer than ``least`` characters is no secret but a word such as "none", that servers
        without keys are given.
        """
        return without_key(text, os.environ.get(self.key_variable, "").strip(), least)


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
    given = checked_url(
        given,
        origin,
        example="http://localhost:8000/v1",
        keys=f"the environment variable {provider.key_variable}",
    )
    same = given == provider.url
    return Endpoint(given, name, provider.key_variable, same, provider.url_variable)
