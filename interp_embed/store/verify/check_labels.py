"""Checking labels and answers: shares no code with what writes or reads them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interp_embed.store.verify.check_objects import Objects

__all__ = ["check_labels"]

_TEXTS = (
    "brief_description", "detailed_explanation", "model", "prompt_version", "origin", "created",
)  # fmt: skip
_SCORE_TEXTS = ("model", "prompt_version", "created")
_OBJECT = re.compile(r"labels/(records|answers)/(packs/)?([0-9a-f]{64})\.json")


def check_labels(objects: Objects, width: int | None) -> None:
    """Check every object below ``labels`` that is part of the format.

    Parameters
    ----------
    objects
        What reads the objects, and where findings go.
    width
        Number of features, where it is known.
    """
    for key in sorted(k for k in objects.present if k.startswith("labels/")):
        place = _OBJECT.fullmatch(key)
        if key in ("labels/records/packed.json", "labels/answers/packed.json"):
            objects.sealed(key)
            continue
        if place is None and key != "labels/labels.json":
            continue  # nothing that the format knows: reported with the rest
        document = objects.sealed(key)
        if document is None:
            continue
        if place is None:
            _check_first(objects, key, document, width)
            continue
        kind, packed, name = place.groups()
        for what in _odd(kind, bool(packed), name, document, width):
            objects.error(key, what)


def _check_first(objects: Objects, key: str, document: dict[str, Any], width: Any) -> None:
    labels = document.get("labels")
    if not isinstance(labels, dict):
        objects.error(key, "has no labels")
        return
    for feature, label in labels.items():
        if not (feature.isascii() and feature.isdigit()) or not isinstance(label, str):
            objects.error(key, f"says of feature {feature!r} that it is {label!r:.60}")
        elif width is not None and int(feature) >= width:
            # What a user gave is not checked against the SAE when it is given.
            objects.note(key, f"names feature {feature} of {width}")


def _odd(kind: str, packed: bool, name: str, document: dict[str, Any], width: Any) -> Iterator[str]:
    values = document.get("values") if packed else {name: document.get("value")}
    if not isinstance(values, dict) or not values:
        yield "holds no values"
        return
    if packed and _sha256(values) != name:
        yield "is not named after its content"
    for each, value in values.items():
        if not isinstance(value, dict):
            yield f"holds {value!r:.60} under {each}"
        elif kind == "records":
            if _sha256(value) != each:
                yield f"holds a record under {each} that is not named after its content"
            if (what := _odd_record(value, width)) is not None:
                yield f"record {each}: {what}"
        elif not re.fullmatch(r"[0-9a-f]{64}", each) or value.get("answer") is None:
            yield f"holds no answer under {each}"


def _odd_record(record: dict[str, Any], width: Any) -> str | None:
    feature, label = record.get("feature"), record.get("label")
    if not _whole(feature) or feature < 0 or (width is not None and feature >= width):
        return f"is of feature {feature!r} of {width}"
    if not isinstance(label, str) or not label.strip():
        return f"has the label {label!r:.60}"
    if not isinstance(record.get("source"), str):
        return f"has the source {record.get('source')!r:.60}"
    for name in _TEXTS:
        if not isinstance(record.get(name, ""), str):
            return f"has the {name} {record[name]!r:.60}"
    if "seed" in record and not _whole(record["seed"]):
        return f"has the seed {record['seed']!r:.60}"
    for name, odd in (("scores", _odd_score), ("examples", _odd_example)):
        members = record.get(name, [])
        if not isinstance(members, list):
            return f"has the {name} {members!r:.60}"
        if wrong := [member for member in members if odd(member)]:
            return f"has the {name[:-1]} {wrong[0]!r:.60}"
    return None


def _odd_score(score: Any) -> bool:
    if not isinstance(score, dict) or not isinstance(score.get("value"), float):
        return True
    if not isinstance(score.get("method"), str) or not score["method"]:
        return True
    if any(not isinstance(score.get(name, ""), str) for name in _SCORE_TEXTS):
        return True
    numbers = [score[name] for name in ("value", "low", "high") if name in score]
    if not all(isinstance(n, float) and math.isfinite(n) for n in numbers):
        return True
    if "low" in score and "high" in score and score["low"] > score["high"]:
        return True
    return "n" in score and not _whole(score["n"])


def _odd_example(example: Any) -> bool:
    if not isinstance(example, list) or len(example) != 4 or not all(map(_whole, example[:3])):
        return True
    document, start, stop, activation = example
    if not isinstance(activation, float) or not math.isfinite(activation):
        return True
    return document < 0 or not 0 <= start <= stop


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
