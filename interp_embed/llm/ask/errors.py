"""The errors between a question and its answer.

Each message is one line: the server, the model, its answer, and what to do. No message contains a
key, and no error holds the request that was sent, whose headers contain the key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "AnswersNotKeptError",
    "LLMAnswerError",
    "LLMAuthenticationError",
    "LLMConnectionError",
    "LLMError",
    "LLMRateLimitError",
    "LLMStatusError",
    "LLMTimeoutError",
]


class LLMError(RuntimeError):
    """A question to a language model got no usable answer."""


class LLMConnectionError(LLMError, ConnectionError):
    """The server cannot be reached, or broke the connection."""

    def __new__(cls, *args: Any) -> Self:
        """Make one as OSError does; RuntimeError's way, which comes first, cannot, and picklers use it."""
        return ConnectionError.__new__(cls, *args)


class LLMTimeoutError(LLMConnectionError, TimeoutError):
    """The server did not answer in time."""


class LLMStatusError(LLMError):
    """The server refused the request, or failed.

    Attributes
    ----------
    status : int or None
        The HTTP status, if there was one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class LLMAuthenticationError(LLMStatusError, PermissionError):
    """There is no key, or the server does not accept it."""

    def __new__(cls, message: str = "", *_: Any) -> Self:
        """Make one as OSError does; see `LLMConnectionError`."""
        return PermissionError.__new__(cls, message)


class LLMRateLimitError(LLMStatusError):
    """The server still answered 429 after every retry, or asked for a pause that is too long.

    Attributes
    ----------
    retry_after : float or None
        Seconds that the server asked to wait, if it did.
    """

    retry_after: float | None = None


class LLMAnswerError(LLMError, ValueError):
    """The model answered in two rounds, but not in the requested form.

    Attributes
    ----------
    raw : str
        The last answer, unchanged.
    first : str
        The previous answer, which the model was asked to repair; empty if there was no second round.
    """

    def __init__(self, message: str, raw: str = "", first: str = "") -> None:
        super().__init__(message)
        self.raw = raw
        self.first = first


class AnswersNotKeptError(OSError):
    """Paid answers could not be kept.

    Attributes
    ----------
    answers : dict of str to str
        The answers, unchanged, by the digests of their requests. ``dataset.answers.put(digest,
        text)`` keeps an answer once that works again.
    """

    def __new__(cls, message: str = "", *_: Any) -> Self:
        """Make one whose second argument is no text of the system's."""
        return OSError.__new__(cls, message)

    def __init__(self, message: str, answers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.answers = dict(answers or {})
