"""Paid answers of language models in a store: the journal ``labels/answers``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp_embed.labels.record import utc_now
from interp_embed.store.format.layout import LABELS
from interp_embed.store.labels.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interp_embed.store.storage import Storage

__all__ = ["ANSWERS", "Answers", "Usage"]

ANSWERS = f"{LABELS}/answers"


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of the answers in a journal.

    Attributes
    ----------
    answers : int
        Number of answers.
    totals : dict of str to float
        Sums, by name, of the numbers that servers reported with the answers.
    """

    answers: int
    totals: dict[str, float]


class Answers:
    """Answers of language models, by the digest of the request. No request is paid for twice.

    An answer is on disk when `put` returns. If there are two answers to one request, the older counts.

    Parameters
    ----------
    storage
        Where the store is.
    """

    def __init__(self, storage: Storage) -> None:
        self._journal = Journal(storage, ANSWERS)

    def get(self, digest: str) -> Any:
        """Return the answer to a request; None if there is none yet.

        Parameters
        ----------
        digest
            SHA-256 of the request, 64 lower-case hexadecimal digits.
        """
        found = self._journal.get(digest)
        return None if found is None else found["answer"]

    def put(self, digest: str, answer: Any, usage: Mapping[str, Any] | None = None) -> None:
        """Keep an answer.

        Parameters
        ----------
        digest
            SHA-256 of the request, 64 lower-case hexadecimal digits.
        answer
            A JSON value, not None.
        usage
            The cost of the answer: numbers by name, such as ``prompt_tokens``.
        """
        if answer is None:
            raise ValueError("answer must be a JSON value, got None, which stands for no answer")
        value: dict[str, Any] = {"answer": answer, "created": utc_now()}
        if usage:
            value["usage"] = dict(usage)
        self._journal.put(digest, value)

    def check_writable(self) -> None:
        """Raise OSError if answers cannot be kept, before any is paid for."""
        self._journal.storage.try_writing(self._journal.folder)

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and self._journal.get(digest) is not None

    def __len__(self) -> int:
        return len(self._journal.values(refresh=True))

    def usage(self) -> Usage:
        """Return the cost of all answers."""
        totals: dict[str, float] = {}
        found = self._journal.values(refresh=True)
        for value in found.values():
            for name, number in value.get("usage", {}).items():
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    totals[name] = totals.get(name, 0) + number
        return Usage(len(found), totals)

    def pack(self) -> int:
        """Write small objects together; return how many were replaced. See `Journal.pack`."""
        return self._journal.pack()
