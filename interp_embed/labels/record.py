"""Labels of features as plain records: the text, its source, and its scores.

Knows neither stores nor language models. Code that makes labels makes these records, and code that
keeps or shows labels takes them.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.checks import check_one_of, is_integer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "CHANCE",
    "LONGEST",
    "SOURCES",
    "FeatureLabel",
    "LabelExample",
    "Score",
    "best_labels",
    "combined",
    "key_of_text",
    "said_again",
    "utc_now",
]

SOURCES = ("given", "llm", "import", "sae", "tokens")
"""Sources of labels, in the order in which labels without scores are preferred."""
CHANCE = 0.5
"""The score of guessing in a balanced task. A label that is not surely above it says nothing."""
_METHODS = ("detection", "fuzzing", "reference")
LONGEST = 2**16
"""Maximum number of characters of a text in a record. A longer text is a mistake."""


def utc_now() -> str:
    """Return the current time in the form of records: ISO 8601 in UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True)
class LabelExample:
    """A part of a document that was shown to the maker of a label.

    Attributes
    ----------
    document : int
        Number of the document in its store.
    start, stop : int
        Its tokens ``start:stop``, special ones counted.
    activation : float
        Highest activation of the feature on them; 0 for an example without the feature.
    """

    document: int
    start: int
    stop: int
    activation: float

    def __post_init__(self) -> None:
        _whole(self, "document", "start", "stop")
        _finite(self, "activation")
        if not 0 <= self.start <= self.stop or self.document < 0:
            raise ValueError(
                f"an example must have 0 <= start <= stop and a document of at least 0, got tokens "
                f"{self.start}:{self.stop} of document {self.document}"
            )


@dataclass(frozen=True, slots=True)
class Score:
    """How well a label tells where its feature is active.

    Attributes
    ----------
    method : str
        ``"detection"``, ``"fuzzing"``, ``"reference"``, or another name.
    value : float
        The score; 1 is best.
    low, high : float or None
        Its 95 % interval, if there is one.
    n : int or None
        Number of judgements that it is based on.
    model : str
        Who judged.
    prompt_version : str
        What the judge was asked.
    created : str
        When, ISO 8601 in UTC; empty where that is not known.
    """

    method: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    model: str = ""
    prompt_version: str = ""
    created: str = ""

    def __post_init__(self) -> None:
        _text(self, "method", "model", "prompt_version", "created")
        _finite(self, "value")
        _finite(self, "low", "high", missing=True)
        _whole(self, "n", missing=True)
        if not self.method:
            raise ValueError("method of a score must be a name, got an empty text")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(
                f"low of a score must not be above high, got {self.low} and {self.high}"
            )


_SCORE_FIELDS = tuple(Score.__dataclass_fields__)


@dataclass(frozen=True)
class FeatureLabel:
    """One label of one feature. A feature may have any number of them.

    Attributes
    ----------
    feature : int
        Feature index.
    label : str
        A short phrase.
    brief_description, detailed_explanation : str
        One sentence, and a longer text; empty if there is none.
    source : {"given", "llm", "import", "sae", "tokens"}
        ``"given"`` by a person, written by an ``"llm"``, from an ``"import"`` of labels that others
        made, delivered with the ``"sae"``, or made from the ``"tokens"`` that the feature prefers.
    model : str
        The language model that wrote it.
    prompt_version : str
        Version of the prompt of that model, or the method of a label without a model.
    seed : int or None
        Seed of the choice of examples.
    origin : str
        Where an imported label comes from.
    created : str
        When it was made, ISO 8601 in UTC; empty if that is not known.
    examples : tuple of LabelExample
        The examples that were shown to its maker.
    scores : tuple of Score
        Its scores, unique, in order of time.

    Raises
    ------
    TypeError, ValueError
        If a value is invalid. The message names it.
    """

    feature: int
    label: str
    brief_description: str = ""
    detailed_explanation: str = ""
    source: str = "given"
    model: str = ""
    prompt_version: str = ""
    seed: int | None = None
    origin: str = ""
    created: str = ""
    examples: tuple[LabelExample, ...] = ()
    scores: tuple[Score, ...] = ()

    def __post_init__(self) -> None:
        _whole(self, "feature")
        _whole(self, "seed", missing=True)
        _text(
            self, "label", "brief_description", "detailed_explanation", "model",
            "prompt_version", "origin", "created",
        )  # fmt: skip
        if self.feature < 0:
            raise ValueError(f"feature must be at least 0, got {self.feature}")
        if not self.label.strip():
            raise ValueError(f"the label of feature {self.feature} is empty")
        check_one_of("source", self.source, SOURCES)
        for name, kind in (("examples", LabelExample), ("scores", Score)):
            members = tuple(getattr(self, name))
            if bad := [m for m in members if not isinstance(m, kind)]:
                raise TypeError(f"{name} must be {kind.__name__} objects, got {bad[0]!r}")
            object.__setattr__(self, name, members)
        if len(self.scores) > 1:
            unique = {_digest(asdict(score)): score for score in self.scores}
            ordered = sorted(unique, key=lambda name: (unique[name].created, name))
            object.__setattr__(self, "scores", tuple(unique[name] for name in ordered))

    @cached_property
    def key(self) -> str:
        """Digest of the label without its scores. Later scores find the label by it."""
        value = {k: v for k, v in self.to_json().items() if k not in ("scores", "created")}
        return key_of_text(json.dumps(value, sort_keys=True, separators=(",", ":")))

    @property
    def score(self) -> Score | None:
        """The score that counts: the newest by detection, else by fuzzing, else by reference."""
        if not self.scores:
            return None
        order = {method: -rank for rank, method in enumerate(_METHODS)}
        return max(
            self.scores,
            key=lambda s: (order.get(s.method, -len(_METHODS)), s.created, _digest(asdict(s))),
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value that `from_json` reads. Empty fields are left out."""
        value = {k: v for k, v in vars(self).items() if k not in ("examples", "scores", "key")}
        value = {k: v for k, v in value.items() if v not in ("", None)}
        if self.examples:
            value["examples"] = [[e.document, e.start, e.stop, e.activation] for e in self.examples]
        if self.scores:
            value["scores"] = [
                {k: v for k in _SCORE_FIELDS if (v := getattr(score, k)) not in ("", None)}
                for score in self.scores
            ]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FeatureLabel:
        """Read a value of `to_json`. Fields that this release does not know are ignored.

        A source of a later release counts as ``"import"``.

        Raises
        ------
        TypeError, ValueError
            If it is not a label.
        """
        if missing := [name for name in ("feature", "label") if name not in value]:
            raise ValueError(
                f"a label must have the keys 'feature' and 'label'; {missing[0]!r} is missing"
            )
        known = {k: v for k, v in value.items() if k in cls.__dataclass_fields__}
        if isinstance(source := known.get("source"), str) and source not in SOURCES:
            known["source"] = "import"
        examples, scores = value.get("examples", ()), value.get("scores", ())
        if not isinstance(examples, (list, tuple)) or any(
            not isinstance(e, (list, tuple)) or len(e) != 4 for e in examples
        ):
            raise ValueError(
                "examples must be lists [document, start token, stop token, activation], "
                f"got {examples!r:.80}"
            )
        if not isinstance(scores, (list, tuple)) or any(
            not isinstance(s, dict) or not {"method", "value"} <= s.keys() for s in scores
        ):
            raise ValueError(f"scores must be objects with method and value, got {scores!r:.80}")
        known["examples"] = tuple(LabelExample(*e) for e in examples)
        known["scores"] = tuple(
            Score(**{k: v for k, v in s.items() if k in _SCORE_FIELDS}) for s in scores
        )
        return cls(**known)


def combined(labels: Iterable[FeatureLabel]) -> list[FeatureLabel]:
    """Return labels without repetitions, each with all of its scores.

    If the same label occurs twice, the later time counts. Sorted by feature, then by time.
    """
    found: dict[str, FeatureLabel] = {}
    for label in labels:
        before = found.get(label.key)
        found[label.key] = label if before is None else said_again(before, label)
    return sorted(found.values(), key=lambda label: (label.feature, label.created, label.key))


def said_again(before: FeatureLabel, label: FeatureLabel) -> FeatureLabel:
    """Return a label that was recorded twice, with the scores of both and the later time."""
    both = replace(
        before,
        created=max(before.created, label.created),
        scores=(*before.scores, *label.scores),
    )
    vars(both)["key"] = before.key  # neither is part of it
    return both


def key_of_text(text: str) -> str:
    """Return the key of a label that is this JSON text, but for `scores` and `created`."""
    return hashlib.sha256(text.encode()).hexdigest()


def best_labels(labels: Iterable[FeatureLabel]) -> dict[int, FeatureLabel]:
    """Return the label shown for each feature.

    The newest label by a person ranks first. Next is the label whose score is surely highest, that is,
    by the lower end of its interval if that is above `CHANCE`. Next are labels without such a score, by
    source: by a language model, imported, the SAE's own, made from tokens. Among these, the higher
    score without interval wins, then the newer label. Last are labels that were scored and are not
    surely better than guessing.

    Returns
    -------
    dict of int to FeatureLabel
        By feature, ascending.
    """
    found: dict[int, FeatureLabel] = {}
    for label in combined(labels):
        if label.feature not in found or _standing(label) > _standing(found[label.feature]):
            found[label.feature] = label
    return found


def _standing(label: FeatureLabel) -> tuple[Any, ...]:
    score = label.score
    last = (label.created, label.key)
    by_source = -SOURCES.index(label.source)
    if label.source == "given":
        return 3, 0.0, 0, 0.0, *last
    if score is None or score.low is None:
        value = -1.0 if score is None else score.value
        return 1, 0.0, by_source, value, *last
    return 2 if score.low > CHANCE else 0, score.low, by_source, score.value, *last


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _text(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a text, got {value!r:.80}")
        if len(value) > LONGEST:
            raise ValueError(f"{name} must have at most {LONGEST:,} characters, got {len(value):,}")
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, as answers cut in two have
            object.__setattr__(owner, name, value.encode(errors="replace").decode())


def _whole(owner: object, *names: str, missing: bool = False) -> None:
    for name in names:
        value = getattr(owner, name)
        if (value is None and missing) or (type(value) is int and -(2**63) <= value < 2**63):
            continue
        if not is_integer(value):
            raise TypeError(f"{name} must be an integer, got {value!r:.80}")
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} must be an integer of 64 bits, got {value!r:.80}")
        object.__setattr__(owner, name, int(value))


def _finite(owner: object, *names: str, missing: bool = False) -> None:
    for name in names:
        value = getattr(owner, name)
        if (value is None and missing) or (type(value) is float and math.isfinite(value)):
            continue
        number = isinstance(value, (int, float, np.integer, np.floating))
        if isinstance(value, bool) or not number:
            raise TypeError(f"{name} must be a number, got {value!r:.80}")
        try:
            finite = math.isfinite(value)
        except OverflowError:  # an integer that no float can be
            finite = False
        if not finite:
            raise ValueError(f"{name} must be finite, got {value!r:.80}")
        object.__setattr__(owner, name, float(value))
