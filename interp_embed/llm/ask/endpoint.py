"""The server of a model, and the environment variable with its key.

A key is read when a client is opened. No object of this package holds it.
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
    """The location of a model.

    Attributes
    ----------
    base_url : str
        URL of the server, without secrets; ``/chat/completions`` is appended to it.
    model : str
        The model's name at that server.
    key_variable : str
        Environment variable that has the key.
    needs_key : bool
        Whether the server is known to refuse requests without a key.
    url_variable : str
        Environment variable that names the server if nothing else does.
    """

    base_url: str
    model: str
    key_variable: str
    needs_key: bool
    url_variable: str = ""

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, {self.model!r}, key from {self.key_variable})"

    def read_key(self) -> str | None:
        """Return the key from the environment; None if the server needs none and none is set.

        Raises
        ------
        LLMAuthenticationError
            If the server needs a key and there is none, or if the value cannot be a key.
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
        """Return a text from which every repetition of the key is removed.

        A key of fewer than ``least`` characters is not a secret but a word such as "none", which is
        used for servers without keys.
        """
        return without_key(text, os.environ.get(self.key_variable, "").strip(), least)


def resolve_endpoint(model: str, base_url: str | None = None) -> Endpoint:
    """Return the endpoint of a model.

    Parameters
    ----------
    model
        ``openai/NAME`` is NAME at OpenAI (``OPENAI_BASE_URL``, ``OPENAI_API_KEY``). Any other name is
        at OpenRouter (``OPENROUTER_BASE_URL``, ``OPENROUTER_API_KEY``).
    base_url
        Another server that speaks OpenAI's protocol, instead of the variable's. It needs no key. The
        key of the same provider is sent to it if it is set.

    Raises
    ------
    ValueError
        If the model name is empty, or the URL is invalid or has more than a host and a path.
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
