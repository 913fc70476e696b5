"""The labels of a store: those that came with it, those that were added, and answers that were paid for.

Owns the folder ``labels``. Everything in it is written once and kept; what was made of a label later,
such as a score, is one more record of the same label.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from interp_embed.label import (
    LONGEST,
    SOURCES,
    FeatureLabel,
    best_labels,
    combined,
    said_again,
    utc_now,
)
from interp_embed.store.labels_journal import Journal
from interp_embed.store.layout import LABELS
from interp_embed.store.sealed import digest, seal, unseal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from interp_embed.store.storage import Storage

__all__ = ["Answers", "LabelStore", "Usage", "copy_labels", "has_first_labels", "put_first_labels"]

_FIRST = f"{LABELS}/labels.json"
_RECORDS = f"{LABELS}/records"
_ANSWERS = f"{LABELS}/answers"


def put_first_labels(storage: Storage, labels: Mapping[int, str], source: str) -> bool:
    """Write the labels that a store begins with, unless it has some; return whether this call did.

    Parameters
    ----------
    storage
        Where the store is.
    labels
        Names of features.
    source
        ``"given"`` by a person, or what the ``"sae"`` came with.
    """
    value = {"labels": {str(k): v for k, v in labels.items()}, "source": source}
    return storage.put_if_absent(_FIRST, seal(value))


def has_first_labels(storage: Storage) -> bool:
    """Return whether a store began with labels, which are not written again."""
    return storage.exists(_FIRST)


class _First(NamedTuple):
    """The labels that a store began with, and where they are from."""

    labels: dict[int, str]
    source: str


def _read_first(storage: Storage) -> _First | None:
    try:
        found = unseal(storage.get(_FIRST), f"{_FIRST} in {storage.url}")
    except FileNotFoundError:
        return None
    # A store that does not say where they are from may have them from its user.
    source = found.get("source", "given")
    labels = {int(k): v for k, v in found["labels"].items()}
    return _First(labels, source if source in SOURCES else "import")


def _records(begun: _First, features: Iterable[int]) -> list[FeatureLabel]:
    # Nothing was checked when they were given: one that is odd is not to hide the others.
    return [
        FeatureLabel(feature, begun.labels[feature].lstrip()[:LONGEST], source=begun.source)
        for feature in features
        if feature >= 0 and begun.labels[feature].strip()
    ]


class LabelStore:
    """The labels of one store.

    What is read is kept in memory; `refresh` looks for what others have added.

    Parameters
    ----------
    storage
        Where the store is.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._journal = Journal(storage, _RECORDS)
        self._lock = threading.Lock()
        self._first: _First | None = None
        self._added: dict[str, FeatureLabel] | None = None  # by key
        self._taken: set[str] = set()  # names of the records that are in it
        self._shown: tuple[object, str, int, dict[int, str]] | None = None

    def refresh(self) -> None:
        """Look for labels that other processes have added."""
        self._first = _read_first(self.storage)
        values = self._journal.values(refresh=True)
        with self._lock:
            self._added = {} if self._added is None else self._added
            for name in values.keys() - self._taken:
                self._take(name, FeatureLabel.from_json(values[name]))
            self._shown = None
        self._journal.forget(values)

    def _take(self, name: str, label: FeatureLabel) -> None:
        assert self._added is not None
        before = self._added.get(label.key)
        self._added[label.key] = label if before is None else said_again(before, label)
        self._taken.add(name)

    def _known(self) -> dict[str, FeatureLabel]:
        if self._added is None:
            self.refresh()
        assert self._added is not None
        return self._added

    def first(self) -> dict[int, str]:
        """Return the labels that the store began with; empty where there are none."""
        self._known()
        return {} if self._first is None else dict(self._first.labels)

    def added(self) -> list[FeatureLabel]:
        """Return the labels that were added, each with all its scores; see `combined`."""
        known = self._known()
        with self._lock:
            return combined(known.values())

    def all(
        self, first: Mapping[int, str] | None = None, source: str = "given"
    ) -> list[FeatureLabel]:
        """Return every label: those that there were in the beginning, and those that were added.

        Parameters
        ----------
        first, source
            Names of features in place of those that the store began with, and where they are from.
        """
        added, begun = self.added(), self._begun(first, source)
        return combined([*_records(begun, begun.labels), *added])

    def shown(
        self, first: Mapping[int, str] | None = None, source: str = "given"
    ) -> dict[int, str]:
        """Return the label of each feature that is shown; see `best_labels`. As for `all`."""
        added = self._known()
        known = self._shown
        # A dictionary that has grown since is another one.
        state = (source, -1 if first is None else len(first))
        if known is not None and known[0] is first and known[1:3] == state:
            return dict(known[3])
        begun = self._begun(first, source)
        shown = dict(begun.labels)
        with self._lock:
            labels = list(added.values())
        rivals = _records(begun, shown.keys() & {label.feature for label in labels})
        shown |= {f: label.label for f, label in best_labels([*rivals, *labels]).items()}
        self._shown = (first, *state, shown)
        return dict(shown)

    def _begun(self, first: Mapping[int, str] | None, source: str) -> _First:
        self._known()
        if first is not None:
            return _First({int(k): str(v) for k, v in first.items()}, source)
        return _First({}, source) if self._first is None else self._first

    def add(self, labels: Iterable[FeatureLabel]) -> int:
        """Commit labels, durably; return how many were new.

        One label becomes one small object, several become one together. A label that is there with
        all its scores is not written again; one that was given by a person is, as the newest counts.

        Parameters
        ----------
        labels
            A label without a time gets the present one.
        """
        known = self._known()
        new: dict[str, FeatureLabel] = {}
        for label in labels:
            before = known.get(label.key)
            there = before is not None and set(label.scores) <= set(before.scores)
            if label.source == "given" or not there:
                stamped = label if label.created else replace(label, created=utc_now())
                name = digest(stamped.to_json())
                if name not in self._taken:  # otherwise it is there, to the microsecond
                    new[name] = stamped
        if new:
            self._journal.put_several({name: label.to_json() for name, label in new.items()})
            with self._lock:
                for name, label in new.items():
                    self._take(name, label)
                self._shown = None
            self._journal.forget(new)
        return len(new)

    def pack(self) -> int:
        """Write small objects together; return how many were replaced. See `Journal.pack`."""
        return self._journal.pack()


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
        self._journal = Journal(storage, _ANSWERS)

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


def copy_labels(
    source: Storage,
    target: Storage,
    documents: NDArray[np.int64] | int,
    *,
    first: bool = True,
) -> None:
    """Copy the labels and answers of a store to another one that has documents of it.

    Cut off, the same call goes on.

    Parameters
    ----------
    source, target
        Where the stores are.
    documents
        Which documents of ``source`` the other one has, in order; or all of them, from that number on.
        Examples are renumbered, and those from other documents left out.
    first
        Whether to copy the labels that the store began with.
    """
    found = LabelStore(source)
    if first and (begun := _read_first(source)) is not None:
        put_first_labels(target, begun.labels, begun.source)
    if added := found.added():
        moved = [renumbered(label, documents).to_json() for label in added]
        Journal(target, _RECORDS).put_several({digest(value): value for value in moved})
    if answers := Journal(source, _ANSWERS).values():
        Journal(target, _ANSWERS).put_several(answers)


def renumbered(label: FeatureLabel, documents: NDArray[np.int64] | int) -> FeatureLabel:
    """Return a label whose examples are numbered as in another store; see `copy_labels`."""
    if not label.examples:
        return label
    if isinstance(documents, int):
        moved = tuple(replace(e, document=e.document + documents) for e in label.examples)
        return replace(label, examples=moved)
    order = np.argsort(documents, kind="stable")
    wanted = np.array([e.document for e in label.examples])
    at = np.searchsorted(documents, wanted, sorter=order)
    kept = []
    for example, place in zip(label.examples, at.tolist(), strict=True):
        if place < len(order) and documents[order[place]] == example.document:
            kept.append(replace(example, document=int(order[place])))
    return replace(label, examples=tuple(kept))
