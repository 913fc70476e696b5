"""Answers of language models in a store, which were paid for: the journal ``labels/answers``."""

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
    """What the answers in a journal have cost.

    Attributes
    ----------
    answers : int
        Number of answers.
    totals : dict of str to float
        The numbers that servers reported with them, added up by name.
    """

    answers: int
    totals: dict[str, float]


class Answers:
    """Answers of language models, by the digest of the request: none is paid for twice.

    An answer is on disk when `put` returns. Of two answers to one request the older one counts.

    Parameters
    ----------
    storage
        Where the store is.
    """

    def __init__(self, storage: Storage) -> None:
        self._journal = Journal(storage, ANSWERS)

    def get(self, digest: str) -> Any:
        """Return the answer to a request; None where there is none yet.

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
            A value for JSON, not None.
        usage
            What it cost: numbers by name, such as ``prompt_tokens``.
        """
        if answer is None:
            raise ValueError("an answer cannot be None, which stands for no answer")
        value: dict[str, Any] = {"answer": answer, "created": utc_now()}
        if usage:
            value["usage"] = dict(usage)
        self._journal.put(digest, value)

    def check_writable(self) -> None:
        """Raise OSError where no answer could be kept, before any is paid for."""
        self._journal.storage.try_writing(self._journal.folder)

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and self._journal.get(digest) is not None

    def __len__(self) -> int:
        return len(self._journal.values(refresh=True))

    def usage(self) -> Usage:
        """Return what all answers have cost."""
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
