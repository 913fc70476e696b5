"""Labels as JSON texts, and labels whose examples are not parsed.

Examples make up nearly all of a record, and few questions need them; which label is shown does not. So
a record is read without them, and they stay unparsed text until they are requested.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import NamedTuple

from interp_embed.labels.record import FeatureLabel, LabelExample, key_of_text

__all__ = ["LightLabel", "feature_of", "label_text", "read_label", "words_of"]

_decoder = json.JSONDecoder()
_FEATURE_AND_LABEL = re.compile(r'"feature":([0-9]{1,18}),"label":"')
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode
_BEGIN = '"examples":'
_STAND_IN = f"{_BEGIN}0"
"""Where a text has no examples but a 0. No value can hold it: quotes in one have a backslash before."""


class LightLabel(NamedTuple):
    """A label apart from its examples.

    Attributes
    ----------
    label : FeatureLabel
        Without its examples, and with the key of the label that has them.
    examples : str
        These as a JSON text; empty where there are none.
    """

    label: FeatureLabel
    examples: str

    @property
    def n_examples(self) -> int:
        """How many examples there are."""
        return max(0, self.examples.count("[") - 1)

    def whole(self) -> FeatureLabel:
        """Return the label with its examples.

        Raises
        ------
        TypeError, ValueError
            If they are not examples.
        """
        if not self.examples:
            return self.label
        examples = tuple(LabelExample(*example) for example in json.loads(self.examples))
        return _keyed(replace(self.label, examples=examples), self.label.key)


def label_text(label: FeatureLabel) -> tuple[str, LightLabel]:
    """Return a label as a JSON text with sorted keys and no space, and the label apart from examples."""
    light = replace(label, examples=())
    value = light.to_json()
    examples = ""
    if label.examples:
        examples = _encode([[e.document, e.start, e.stop, e.activation] for e in label.examples])
        value["examples"] = 0
    text = _with_examples(_encode(value), examples)
    return text, LightLabel(_keyed(light, _key(value, examples)), examples)


def read_label(text: str) -> LightLabel:
    """Read what `label_text` returned; as `FeatureLabel.from_json`, the examples aside.

    Raises
    ------
    TypeError, ValueError
        If it is not a label.
    """
    begin = text.find(f"{_BEGIN}[[")
    if begin < 0:
        return LightLabel(FeatureLabel.from_json(json.loads(text)), "")
    begin += len(_BEGIN)
    end = text.index("]]", begin) + 2
    value = json.loads(f"{text[:begin]}0{text[end:]}")
    if value.pop("examples", None) != 0:  # those of something within the record
        label = FeatureLabel.from_json(json.loads(text))
        return label_text(label)[1]
    light, examples = FeatureLabel.from_json(value), text[begin:end]
    _keyed(light, _key({**light.to_json(), "examples": 0}, examples))
    return LightLabel(light, examples)


def feature_of(text: str) -> int | None:
    """Return the feature of a record without parsing it; None if parsing is needed."""
    found = _FEATURE_AND_LABEL.search(text, max(0, text.rfind('"feature":')))
    return None if found is None else int(found[1])


def words_of(text: str) -> str | None:
    """Return the label of a record without parsing it; None if parsing is needed."""
    found = _FEATURE_AND_LABEL.search(text, max(0, text.rfind('"feature":')))
    words = "" if found is None else _decoder.raw_decode(text, found.end() - 1)[0]
    return words if words.strip() else None


def _key(value: dict[str, object], examples: str) -> str:
    value.pop("scores", None)
    value.pop("created", None)
    return key_of_text(_with_examples(_encode(value), examples))


def _with_examples(text: str, examples: str) -> str:
    return text.replace(_STAND_IN, _BEGIN + examples, 1) if examples else text


def _keyed(label: FeatureLabel, key: str) -> FeatureLabel:
    vars(label)["key"] = key  # as the property keeps it
    return label
