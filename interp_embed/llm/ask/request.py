"""A question as plain values, and the digest that identifies it. Sends nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["DEFAULT_SETTINGS", "Message", "Request", "canonical_digest", "check_settings"]

ModelT = TypeVar("ModelT", bound="BaseModel")

DEFAULT_SETTINGS: Mapping[str, Any] = {"temperature": 0}
_RESERVED = ("model", "messages", "response_format", "stream", "n")
_KEPT = frozenset(
    {"type", "properties", "required", "items", "anyOf", "enum", "const", "$ref", "$defs"}
)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation: ``role`` is "system", "user" or "assistant"."""

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        """Return the message in the form of the protocol."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Request(Generic[ModelT]):
    """A question to a model.

    Attributes
    ----------
    model : str
        The user's name of the model, including ``openai/``.
    messages : tuple of Message
    schema : type of BaseModel
        The form of the answer.
    settings : mapping
        Other parameters of the request, such as ``temperature``; plain JSON values.
    repair : str or None
        The prompt for a second round, with ``$problem`` in it; None for the client's. Neither the
        answer nor the digest depends on it.
    """

    model: str
    messages: tuple[Message, ...]
    schema: type[ModelT]
    settings: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_SETTINGS))
    repair: str | None = None

    @cached_property
    def json_schema(self) -> dict[str, Any]:
        """The schema in the subset of JSON Schema that servers with structured output accept.

        Every property is required and no other is allowed, as OpenAI's strict mode demands
        (platform.openai.com/docs/guides/structured-outputs, "Supported schemas").
        """
        found: dict[str, Any] = _strict(self.schema.model_json_schema())
        return found

    @cached_property
    def digest(self) -> str:
        """SHA-256, 64 hex digits, of everything that the answer depends on except the server."""
        return canonical_digest(self.model, self.messages, self.json_schema, self.settings)

    def followed_by(self, *messages: Message) -> Request[ModelT]:
        """Return the request with further messages at its end."""
        return replace(self, messages=(*self.messages, *messages))


def canonical_digest(
    model: str,
    messages: tuple[Message, ...],
    json_schema: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> str:
    """Return the SHA-256 (hex) of a request, independent of the order of keys.

    Answers are kept under this digest, so it must not change between releases without need.
    """
    value = {
        "model": model,
        "messages": [message.as_dict() for message in messages],
        "schema": json_schema,
        "settings": dict(settings),
    }
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings of a request as plain values.

    Parameters
    ----------
    settings
        Parameters of a chat completion, such as ``{"temperature": 0.7, "max_tokens": 500}``, in
        addition to a temperature of 0. None leaves a parameter out.

    Raises
    ------
    TypeError
        If they are not a mapping.
    ValueError
        If one of them is not a setting, or not plain JSON.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise TypeError(
            f"settings must be a dictionary such as {{'max_tokens': 500}}, got {settings!r:.100}"
        )
    found = {**DEFAULT_SETTINGS, **(settings or {})}
    if wrong := [name for name in found if name in _RESERVED]:
        raise ValueError(f"settings must not have {wrong[0]!r}: the request sets it")
    found = {name: value for name, value in found.items() if value is not None}
    try:
        text = json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings must be plain JSON values, got {settings!r}: {error}") from None
    plain: dict[str, Any] = json.loads(text)
    return plain


def _strict(schema: Any) -> Any:
    """Keep the structure of a schema; what pydantic checks beyond it is checked when it answers."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: value for name, value in schema.items() if name in _KEPT}
    for name in ("properties", "$defs"):
        if name in kept:
            kept[name] = {key: _strict(value) for key, value in kept[name].items()}
    for name in ("items", "anyOf"):
        if name in kept:
            kept[name] = _strict(kept[name])
    if kept.get("type") == "object":
        kept["required"] = list(kept.get("properties", {}))
        kept["additionalProperties"] = False
    return kept
