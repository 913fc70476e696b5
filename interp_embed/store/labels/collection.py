"""The labels of a store: those that it began with, and those that were added.

Owns the folder ``labels``. Everything in it is written once and kept. A later addition to a label, such
as a score, is one more record of the same label.
"""

from __future__ import annotations

import errno
import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from interp_embed.errors import CorruptStoreError
from interp_embed.labels.record import (
    LONGEST,
    SOURCES,
    FeatureLabel,
    best_labels,
    combined,
    said_again,
    utc_now,
)
from interp_embed.labels.report import LabelsAdded
from interp_embed.labels.texts import LightLabel, feature_of, label_text, read_label, words_of
from interp_embed.store.format.layout import LABELS
from interp_embed.store.format.sealed import seal, text_digest, unseal
from interp_embed.store.labels.journal import Journal
from interp_embed.store.labels.paid_answers import ANSWERS, Answers, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from interp_embed.store.storage import Storage

__all__ = ["Answers", "LabelStore", "Usage", "copy_labels", "has_first_labels", "put_first_labels"]

_FIRST = f"{LABELS}/labels.json"
_RECORDS = f"{LABELS}/records"


def put_first_labels(storage: Storage, labels: Mapping[int, str], source: str) -> bool:
    """Write the labels that a store begins with, unless it has such labels; return whether this call did.

    Parameters
    ----------
    storage
        Where the store is.
    labels
        Names of features.
    source
        ``"given"`` for labels by a person, or ``"sae"`` for labels that the SAE came with.
    """
    value = {"labels": {str(k): v for k, v in labels.items()}, "source": source}
    return storage.put_if_absent(_FIRST, seal(value))


def has_first_labels(storage: Storage) -> bool:
    """Return whether a store began with labels. They are not written again."""
    return storage.exists(_FIRST)


class _First(NamedTuple):
    """The labels that a store began with, and their source."""

    labels: dict[int, str]
    source: str


class _Shown(NamedTuple):
    """The labels that are shown, and the labels that they were chosen from."""

    generation: int
    begun: _First
    labels: dict[int, str]


def _read_first(storage: Storage) -> _First | None:
    try:
        found = unseal(storage.get(_FIRST), f"{_FIRST} in {storage.url}")
    except FileNotFoundError:
        return None
    # A store that does not say where they are from may have them from its user.
    source = found.get("source", "given")
    labels = {int(k): v for k, v in found["labels"].items()}
    return _First(labels, source if source in SOURCES else "import")


def _record(begun: _First, feature: int) -> FeatureLabel | None:
    # Nothing was checked when they were given: one that is odd is not to hide the others.
    label = begun.labels.get(feature, "").lstrip()[:LONGEST]
    if feature < 0 or not label:
        return None
    return FeatureLabel(feature, label, source=begun.source)


def _records(begun: _First, features: Iterable[int]) -> list[FeatureLabel]:
    found = (_record(begun, feature) for feature in features)
    return [record for record in found if record is not None]


class LabelStore:
    """The labels of one store.

    Labels stay in memory once read, with their examples as unparsed text. `refresh` looks for labels
    that other processes have added.

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
        self._loaded = False
        # What was added, by feature: texts as they came, until somebody asks for that feature ...
        self._unread: dict[int, dict[str, str]] = {}  # by name
        # ... and what was read of them.
        self._added: dict[str, LightLabel] = {}  # by key
        self._keys: dict[int, list[str]] = {}
        self._taken: set[str] = set()  # names of the records that are in either
        self._generation = 0  # of what was added
        self._shown: _Shown | None = None

    def refresh(self) -> None:
        """Look for labels that other processes have added."""
        self._first = _read_first(self.storage)
        texts = self._journal.texts(refresh=True)
        with self._lock:
            for name in texts.keys() - self._taken:
                feature = feature_of(text := texts[name])
                if feature is None:
                    self._take(name, self._read(name, text))
                else:
                    self._unread.setdefault(feature, {})[name] = text
                    self._taken.add(name)
            self._generation += 1
            self._loaded = True
        self._journal.forget(texts)

    def _read(self, name: str, text: str) -> LightLabel:
        try:
            return read_label(text)
        except (TypeError, ValueError) as error:
            raise CorruptStoreError(
                f"record {name} in {_RECORDS} of {self.storage.url} is not a label: {error}. "
                "Run 'interp-embed verify' on the store"
            ) from error

    def _take(self, name: str, light: LightLabel) -> None:
        label = light.label
        before = self._added.get(label.key)
        if before is None:
            self._keys.setdefault(label.feature, []).append(label.key)
        else:
            light = LightLabel(said_again(before.label, label), before.examples)
        self._added[label.key] = light
        self._taken.add(name)

    def _known(self, features: Iterable[int] | None = None) -> dict[str, LightLabel]:
        """Return the added labels, by key; if features are given, at least the labels of these."""
        if not self._loaded:
            self.refresh()
        with self._lock:
            for feature in list(self._unread) if features is None else features:
                if texts := self._unread.get(feature):
                    for name, light in [(n, self._read(n, t)) for n, t in texts.items()]:
                        self._take(name, light)
                    del self._unread[feature]
        return self._added

    def begin(self, labels: Mapping[int, str], source: str, *, wrote: bool) -> None:
        """Write the labels that the store begins with, unless it has such labels.

        If nothing was written before (``wrote`` is false), the store may be read-only. Then labels
        that cannot be stored are left out.
        """
        if has_first_labels(self.storage):
            return
        try:
            put_first_labels(self.storage, labels, source)
            self.refresh()
        except OSError as error:
            read_only = isinstance(error, PermissionError) or error.errno == errno.EROFS
            if wrote or not read_only:
                raise

    def first(self) -> dict[int, str]:
        """Return the labels that the store began with; empty if there are none."""
        return dict(self._begun(None, "").labels)

    def added(self) -> list[FeatureLabel]:
        """Return the labels that were added, each with all its scores; see `combined`."""
        return [light.whole() for light in self._lights(_First({}, ""))]

    def all(
        self, first: Mapping[int, str] | None = None, source: str = "given"
    ) -> list[FeatureLabel]:
        """Return every label: those that the store began with, and those that were added.

        Parameters
        ----------
        first, source
            Names of features that replace those that the store began with, and their source.
        """
        return [light.whole() for light in self.lights(first, source)]

    def lights(
        self, first: Mapping[int, str] | None = None, source: str = "given"
    ) -> list[LightLabel]:
        """Return every label without its examples, which take long to read. Parameters as for `all`."""
        return self._lights(self._begun(first, source))

    def _lights(self, begun: _First) -> list[LightLabel]:
        known = self._known()
        with self._lock:
            lights = dict(known)
        found = combined([*_records(begun, begun.labels), *(x.label for x in lights.values())])
        texts = {key: light.examples for key, light in lights.items()}
        return [LightLabel(label, texts.get(label.key, "")) for label in found]

    def shown(
        self, first: Mapping[int, str] | None = None, source: str = "given"
    ) -> dict[int, str]:
        """Return the label shown for each feature; see `best_labels`. Parameters as for `all`."""
        begun = self._begun(first, source)
        known = self._shown
        if known is not None and known[:2] == (self._generation, begun):
            return dict(known.labels)
        shown = dict(begun.labels)
        with self._lock:
            generation = self._generation  # what comes while this is computed may not be in it
            several = list(self._keys)
            for feature, texts in self._unread.items():
                said = {words_of(text) for text in texts.values()}
                # Where all say the same, with other scores, it does not matter which is the best.
                if len(said) > 1 or None in said or feature in shown or feature in self._keys:
                    several.append(feature)
                else:
                    shown[feature] = str(*said)
        shown |= {f: label.label for f, label in self.best(several, first, source).items()}
        shown = dict(sorted(shown.items()))
        self._shown = _Shown(generation, begun, shown)
        return dict(shown)

    def best(
        self,
        features: Iterable[int],
        first: Mapping[int, str] | None = None,
        source: str = "given",
        beside: Iterable[FeatureLabel] = (),
    ) -> dict[int, FeatureLabel]:
        """Return the label shown for each of some features, without its examples.

        Parameters
        ----------
        features
            The features. Those without a label are left out.
        first, source
            As for `all`.
        beside
            Labels that are not in the store, ranked together with those that are.
        """
        wanted = dict.fromkeys(features)
        begun, known = self._begun(first, source), self._known(wanted)
        rivals = _records(begun, begun.labels.keys() & wanted.keys())
        with self._lock:
            own = [known[key].label for f in wanted for key in self._keys.get(f, ())]
        return best_labels([*rivals, *own, *beside])

    def _begun(self, first: Mapping[int, str] | None, source: str) -> _First:
        if not self._loaded:
            self.refresh()
        if first is not None:
            return _First({int(k): str(v) for k, v in first.items()}, source)
        return _First({}, source) if self._first is None else self._first

    def check_writable(self) -> None:
        """Raise OSError if labels cannot be added, before any work is done for them."""
        self.storage.try_writing(_RECORDS)

    def add(self, labels: Iterable[FeatureLabel]) -> LabelsAdded:
        """Commit labels durably; return how many were new and what happened to the others.

        A single label becomes one small object. Several labels become one object together, or a few
        objects if they are many. A label that the store has with all its scores is not written again,
        unless a person gave it and it is not the one shown: the newest label by a person counts.

        Parameters
        ----------
        labels
            A label without a time gets the current time.
        """
        labels = list(labels)
        known = self._known({label.feature for label in labels})
        begun = self._begun(None, "")
        new: dict[str, LightLabel] = {}
        texts: dict[str, str] = {}
        in_call: dict[str, FeatureLabel] = {}  # by key
        counts: Counter[str] = Counter()
        for label in labels:
            stamped = label if label.created else replace(label, created=utc_now())
            text, light = label_text(stamped)
            name = text_digest(text)
            became = "same"
            if name not in self._taken and name not in new:  # else it is there, to the microsecond
                key = light.label.key
                before = in_call.get(key)
                if before is None and key in known:
                    before = known[key].label
                now = not label.created
                became = self._becomes(light.label, before, begun, now=now, twice=key in in_call)
            counts[became] += 1
            if became != "same":
                new[name], texts[name] = light, text
                in_call[key] = light.label if before is None else said_again(before, light.label)
        if new:
            self._journal.put_texts(texts)
            with self._lock:
                for name, light in new.items():
                    self._take(name, light)
                self._generation += 1
            self._journal.forget(new)
        return LabelsAdded(counts["new"], counts["scored"], counts["again"], counts["same"])

    def _becomes(
        self,
        label: FeatureLabel,
        before: FeatureLabel | None,
        begun: _First,
        *,
        now: bool,
        twice: bool,
    ) -> str:
        """Return what adding a label would do: new, scored, again, or same."""
        before = before or _record(begun, label.feature)
        if before is None or before.key != label.key:
            return "new"
        if not set(label.scores) <= set(before.scores):
            return "scored"
        if label.source != "given" or (not now and label.created <= before.created):
            return "same"
        shown = None if twice else self.best([label.feature])[label.feature]
        return "same" if shown is not None and shown.key == label.key else "again"

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
    """Copy the labels and answers of a store to another store with documents from it.

    If the call is interrupted, call it again with the same arguments to continue.

    Parameters
    ----------
    source, target
        The storages of the stores.
    documents
        The documents of ``source`` that the other store has, in order; or, for all of them, the number
        of the first one there. Examples are renumbered; examples from other documents are left out.
    first
        Whether to copy the labels that the store began with.
    """
    found = LabelStore(source)
    if first and (begun := _read_first(source)) is not None:
        put_first_labels(target, begun.labels, begun.source)
    if added := found.added():
        moved = (label_text(renumbered(label, documents))[0] for label in added)
        Journal(target, _RECORDS).put_texts({text_digest(text): text for text in moved})
    if answers := Journal(source, ANSWERS).values():
        Journal(target, ANSWERS).put_several(answers)


def renumbered(label: FeatureLabel, documents: NDArray[np.int64] | int) -> FeatureLabel:
    """Return a label with its examples renumbered for another store; see `copy_labels`."""
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
