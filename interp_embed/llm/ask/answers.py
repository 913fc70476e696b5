"""Reading a model's answers in the requested form, and the interface that keeps paid answers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Answer", "Answers", "UnreadableAnswerError", "read_answer"]

ModelT = TypeVar("ModelT", bound=BaseModel)

_FENCE = re.compile(r"```[a-zA-Z]*\s*\n?(.*?)```", re.DOTALL)
_MOST_CHARACTERS = 2**20
_MOST_ATTEMPTS = 1_000
_SHOWN_PROBLEMS = 5


class Answers(Protocol):
    """A place that keeps answers, so that no request is paid for twice.

    Both methods are called on threads, several at a time. An answer has been paid for when `put` gets
    it, and must be safe when `put` returns. It is put before it is known whether it can be read. If
    there is a method ``check_writable()``, it is called before the first request is sent. It may raise
    OSError.
    """

    def get(self, digest: str) -> str | None:
        """Return the answer to the request with this digest (64 hex digits), or None."""

    def put(self, digest: str, answer: str, usage: Mapping[str, float]) -> object:
        """Keep the answer and its usage (``prompt_tokens``, ``completion_tokens``, ``cost``)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer.

    Attributes
    ----------
    text : str
        As it came.
    kept : bool
        Whether the answer was already kept, so that nothing was sent.
    cut : bool
        Whether the server says that a limit of tokens cut the answer.
    """

    text: str
    kept: bool = False
    cut: bool = False


class UnreadableAnswerError(ValueError):
    """An answer is not in the requested form. The message tells the model what to repair."""


def read_answer(text: str, schema: type[ModelT]) -> ModelT:
    """Return the JSON object in an answer that has the requested form.

    The answer may be that object alone, or have prose, a code fence or a model's thoughts around it.
    If several objects have the form, the last one counts.

    Raises
    ------
    UnreadableAnswerError
        If there is no such object.
    """
    problem = ""
    found: ModelT | None = None
    for value in _objects(text[-_MOST_CHARACTERS:]):
        try:
            found = schema.model_validate(value)
        except ValidationError as error:
            problem = _said(error)
    if found is not None:
        return found
    if not problem:
        problem = "there is no complete JSON object in it" if text.strip() else "it is empty"
    raise UnreadableAnswerError(problem)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a text, outermost ones only, as long as it takes little."""
    whole = _parsed(text)
    if isinstance(whole, dict):
        yield whole
        return
    fenced = [value for part in _FENCE.findall(text) if isinstance(value := _parsed(part), dict)]
    if fenced:
        yield from fenced
        return
    decoder = json.JSONDecoder(strict=False)  # line breaks within strings are common
    at = text.find("{")
    for _ in range(_MOST_ATTEMPTS):
        if at < 0:
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield value
        at = text.find("{", end)


def _parsed(text: str) -> object:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def _said(error: ValidationError) -> str:
    """Return what is wrong, without the values: they are in the answer."""
    problems = [
        f"{'.'.join(str(part) for part in problem['loc']) or 'the object'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False)
    ]
    more = len(problems) - _SHOWN_PROBLEMS
    return "; ".join(problems[:_SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
