"""Errors of a server in one line that a user can act on and that shows no secret."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import openai
from pydantic import BaseModel

from interp_embed.llm.ask.errors import (
    LLMAuthenticationError,
    LLMConnectionError,
    LLMError,
    LLMRateLimitError,
    LLMStatusError,
    LLMTimeoutError,
)
from interp_embed.net.retries import asked_pause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interp_embed.llm.ask.endpoint import Endpoint

__all__ = [
    "LONGEST_PAUSE",
    "error_within",
    "explain",
    "one_line",
    "refused_parameter",
    "sentence",
    "unanswered",
    "wanted_pause",
]

_SHOWN_CHARACTERS = 300
LONGEST_PAUSE = 120.0
"""Seconds: if a server asks for a longer pause, the caller decides."""
_REFUSALS = (400, 415, 422, 501)
_FORMAT = "response_format"
_FORMAT_WORDS = (
    "response_format", "response format", "json_schema", "json schema", "structured output",
    "structured_output", "guided", "grammar",
)  # fmt: skip


def one_line(text: str, most: int = _SHOWN_CHARACTERS) -> str:
    """Return a text in one line, cut if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."


def sentence(text: str) -> str:
    """Return a text with one full stop at its end, unless it ends with another such mark."""
    text = text.rstrip()
    return text if text.endswith((".", "!", "?", "\u2026")) else f"{text}."


def _shown(text: str, endpoint: Endpoint) -> str:
    """Return what a server said in one line; the key goes before it is cut, which may cut the key."""
    return one_line(endpoint.without_secrets(text))


def explain(error: Exception, endpoint: Endpoint, attempts: int) -> LLMError:
    """Return the error to raise for one of the openai client's.

    Parameters
    ----------
    error
        The client's error; a ValueError if the answer was not JSON.
    endpoint
        The server and the model.
    attempts
        The number of attempts.
    """
    made = _explain(error, endpoint, attempts)
    made.args = (endpoint.without_secrets(str(made)),)
    return made


def _explain(error: Exception, endpoint: Endpoint, attempts: int) -> LLMError:
    server = endpoint.base_url
    tried = f" in {attempts} attempts" if attempts > 1 else ""
    if isinstance(error, (openai.APITimeoutError, TimeoutError)):
        return LLMTimeoutError(
            f"{server} did not answer in time{tried} (model {endpoint.model}). Allow a longer timeout, "
            "or ask for less per request"
        )
    if isinstance(error, openai.APIConnectionError):
        cause = _shown(str(error.__cause__ or "") or type(error.__cause__).__name__, endpoint)
        return LLMConnectionError(
            f"{server} cannot be reached, or broke the connection{tried}: {sentence(cause)} Check "
            f"that it is running, and that its URL is right (the one given, or {endpoint.url_variable})"
        )
    if isinstance(error, openai.APIStatusError):
        said = _shown(_said_by(error.body) or error.message, endpoint)
        return status_error(error.status_code, said, endpoint, attempts, wanted_pause(error))
    return LLMStatusError(
        f"{server} did not answer with a chat completion ({_shown(str(error), endpoint)}). Check its "
        "URL, which usually ends in /v1"
    )


def status_error(
    status: int, said: str, endpoint: Endpoint, attempts: int = 1, wait: float | None = None
) -> LLMStatusError:
    """Return the error for a status, with advice."""
    server, model, variable = endpoint.base_url, endpoint.model, endpoint.key_variable
    kind: type[LLMStatusError] = LLMStatusError
    advice = f"The model asked for is {model!r}"
    tried = f" in {attempts} attempts" if attempts > 1 else ""
    if status in (401, 403):
        kind = LLMAuthenticationError
        advice = f"Check the key in the environment variable {variable}"
        if status == 403:
            advice += "; if other requests are answered, the content of this one is refused"
    elif status == 402:
        advice = f"The account of the key in {variable} has no credit left"
    elif status == 404:
        advice = f"Check the model's name {model!r} and the URL, which usually ends in /v1"
    elif status == 429:
        kind = LLMRateLimitError
        pause = "Wait" if wait is None else f"Wait {wait:g} s, as it asks"
        advice = f"{pause}, or send fewer requests at once (a lower concurrency)"
    elif status >= 500:
        advice = "The failure is the server's: try again later"
    elif status in (400, 413, 422):
        advice = f"If the request is too long for {model!r}, give fewer samples (a lower k)"
    made = kind(
        f"{server} answered {status}{tried}: {sentence(said or 'nothing')} {advice}", status
    )
    if isinstance(made, LLMRateLimitError):
        made.retry_after = wait
    return made


def wanted_pause(error: Exception) -> float | None:
    """Return the seconds that a server asks to wait; None if it does not ask."""
    if not isinstance(error, openai.APIStatusError):
        return None
    return asked_pause(error.response.headers) or None


def error_within(completion: Any, endpoint: Endpoint, attempts: int = 1) -> LLMStatusError | None:
    """Return the error inside an answer with status 200; None if there is none.

    OpenRouter sends such an answer if a provider fails after the answer has begun: with ``error``
    instead of a completion, or in its choice (openrouter.ai/docs, "Errors").
    """
    choices = getattr(completion, "choices", None)
    found = getattr(completion, "error", None)
    if not isinstance(found, dict) and isinstance(choices, list) and choices:
        found = getattr(choices[0], "error", None)
    if not isinstance(found, dict):
        return None
    said = _shown(str(found.get("message") or found), endpoint)
    for name in ("code", "status"):
        code = found.get(name)
        text = str(code) if isinstance(code, (int, str)) else ""
        if re.fullmatch(r"[45]\d\d", text):
            return status_error(int(text), said, endpoint, attempts)
    return _no_completion(said, endpoint)


def unanswered(completion: Any, endpoint: Endpoint) -> LLMStatusError:
    """Return the error for an answer with status 200 that has neither a completion nor an error."""
    if isinstance(completion, str):
        return _no_completion(_shown(completion, endpoint), endpoint)
    if getattr(completion, "choices", None) == []:
        return _no_completion("its list of choices is empty", endpoint)
    given = completion
    if isinstance(completion, BaseModel):
        given = completion.model_dump(exclude_unset=True)
    return _no_completion(_shown(repr(given), endpoint), endpoint)


def _no_completion(said: str, endpoint: Endpoint) -> LLMStatusError:
    return LLMStatusError(
        f"{endpoint.base_url} answered without a completion: {sentence(said)} Check its URL, which "
        "usually ends in /v1",
        200,
    )


def refused_parameter(error: Exception, negotiable: Sequence[str]) -> str | None:
    """Return the parameter that a server says it does not know; None if it says no such thing.

    If it does not name the parameter, structured output is assumed, which servers most often lack.

    Parameters
    ----------
    error
        The client's error.
    negotiable
        The parameters that the request can do without.
    """
    if not isinstance(error, openai.APIStatusError):
        return None
    status = error.status_code
    said = f"{_said_by(error.body)} {error.message}".lower()
    param = error.param if isinstance(error.param, str) else ""
    formatted = _FORMAT in negotiable
    if formatted and (param.startswith(_FORMAT) or any(word in said for word in _FORMAT_WORDS)):
        # OpenRouter answers 404 where no provider of a model has structured output.
        return _FORMAT if status in (*_REFUSALS, 404) else None
    if status not in _REFUSALS:
        return None
    for name in negotiable:
        if name == param or re.search(rf"\b{name}\b", said):
            return name
    return _FORMAT if formatted else None


def _said_by(body: object) -> str:
    """Return the message in the body of a failure, of whichever form."""
    for _ in range(3):
        if not isinstance(body, dict):
            break
        body = body.get("error") or body.get("message") or body.get("detail") or ""
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
    return body if isinstance(body, str) else ""
