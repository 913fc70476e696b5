"""What a model said, read as what was asked for; and where answers that were paid for are kept."""

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
    """Where answers are kept, so that no request is paid for twice.

    Both methods are called on threads, several at a time. What `put` is given has been paid for: it
    should be safe when `put` returns. An answer is put before it is known whether it can be read.
    Where there is a method ``check_writable()``, it is called before the first request is sent, and
    may raise OSError.
    """

    def get(self, digest: str) -> str | None:
        """Return the answer to the request of this digest (64 hex digits), or None."""

    def put(self, digest: str, answer: str, usage: Mapping[str, float]) -> object:
        """Keep the answer, and what it took (``prompt_tokens``, ``completion_tokens``, ``cost``)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said.

    Attributes
    ----------
    text : str
        As it came.
    kept : bool
        Whether it was answered before, so that nothing was sent.
    cut : bool
        Whether the server says that it ends at a limit of tokens.
    """

    text: str
    kept: bool = False
    cut: bool = False


class UnreadableAnswerError(ValueError):
    """An answer is not what was asked for; the message says what is wrong, for the model to repair."""


def read_answer(text: str, schema: type[ModelT]) -> ModelT:
    """Return the JSON object in an answer that is what was asked for.

    The answer may be that object alone, or have prose, a code fence or a model's thoughts around it;
    of several objects that would do, it is the last.

    Raises
    ------
    UnreadableAnswerError
        If there is none.
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
