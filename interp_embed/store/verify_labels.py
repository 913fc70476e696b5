"""Checking labels and answers: shares no code with what writes or reads them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interp_embed.store.verify import Verifier

__all__ = ["check_labels"]

_OBJECT = re.compile(r"labels/(records|answers)/(packs/)?([0-9a-f]{64})\.json")


def check_labels(verifier: Verifier) -> None:
    """Check every object below ``labels`` that is part of the format."""
    width = (verifier.attributes or {}).get("d_sae")
    for key in sorted(k for k in verifier.present if k.startswith("labels/")):
        place = _OBJECT.fullmatch(key)
        if key in ("labels/records/packed.json", "labels/answers/packed.json"):
            verifier.sealed(key)
            continue
        if place is None and key != "labels/labels.json":
            continue  # nothing that the format knows: reported with the rest
        document = verifier.sealed(key)
        if document is None:
            continue
        if place is None:
            _check_first(verifier, key, document, width)
            continue
        kind, packed, name = place.groups()
        for what in _odd(kind, bool(packed), name, document, width):
            verifier.error(key, what)


def _check_first(verifier: Verifier, key: str, document: dict[str, Any], width: Any) -> None:
    labels = document.get("labels")
    if not isinstance(labels, dict):
        verifier.error(key, "has no labels")
        return
    for feature, label in labels.items():
        if not feature.isdigit() or not isinstance(label, str):
            verifier.error(key, f"says of feature {feature!r} that it is {label!r:.60}")
        elif width is not None and int(feature) >= width:
            # What a user gave is not checked against the SAE when it is given.
            verifier.note(key, f"names feature {feature} of {width}")


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
    if not isinstance(feature, int) or feature < 0 or (width is not None and feature >= width):
        return f"is of feature {feature!r} of {width}"
    if not isinstance(label, str) or not label.strip():
        return f"has the label {label!r:.60}"
    if not isinstance(record.get("source"), str):
        return f"has the source {record.get('source')!r:.60}"
    for score in record.get("scores", []):
        if not isinstance(score.get("value"), float) or not math.isfinite(score["value"]):
            return f"has the score {score!r:.60}"
    for example in record.get("examples", []):
        if len(example) != 4 or not 0 <= example[1] <= example[2]:
            return f"has the example {example!r:.60}"
    return None


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
