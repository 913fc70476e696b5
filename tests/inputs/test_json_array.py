"""A JSON array gives the values that the same records give as JSON Lines."""

from __future__ import annotations

import io
import json
import re

import pytest

from interp_embed.inputs.read_json_array import json_items


@pytest.mark.parametrize(
    "text",
    [
        '[{"v": NaN}, {"v": -Infinity}, {"v": 1e400}]',
        f"[{'9' * 100}, -{'9' * 30}, {2**63}, {2**64}]",
        r'["\ud800", "\udfff x", "\ud83d\ude00", "\u0000"]',
        '[{"a": 1, "a": 2}]',
        "[1.5, 2.0, 1E2, 0.1, 12345678901234567890.5, -0.0]",
        ' [ true , null , {} , [ ] , "" ] \n',
        "[]",
    ],
)
@pytest.mark.parametrize("step", [1, 7, 2**20])
def test_values_are_those_of_json(text: str, step: int) -> None:
    class Slow(io.StringIO):
        def read(self, size: int | None = -1, /) -> str:
            return super().read(step)

    found = list(json_items(Slow(text)))
    assert json.dumps(found) == json.dumps(json.loads(text))


def test_long_strings_are_read_whole() -> None:
    records = [{"text": letter * 2_000_000} for letter in "abé\N{GRINNING FACE}"]
    assert list(json_items(io.StringIO(json.dumps(records)))) == records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2] x", "unexpected data after the end of the JSON array"),
        ("[1, 2][3]", "unexpected data after the end of the JSON array"),
        ("[1 2]", "expected ',' or ']' after record 1"),
        ("[1, 2", "expected ',' or ']' after record 2"),
        ("[1, ]", "record 2: Expecting value"),
        ('[1, {"a": }]', "record 2: Expecting value"),
        ('[1, "a', "record 2: Unterminated string"),
        (r'["\x"]', r"record 1: Invalid \escape"),
        ("[01]", "expected ',' or ']' after record 1"),
        (f"[{'9' * 5000}]", "record 1: Exceeds the limit"),
        ('{"a": 1}', "expected a list of objects"),
        ("5", "expected a list of objects"),
        ("", "expected a list of objects"),
    ],
)
def test_an_error_says_which_record(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        list(json_items(io.StringIO(text)))


def test_records_before_an_error_are_given() -> None:
    items = json_items(io.StringIO("[1, 2, oops]"))
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="record 3: Expecting value"):
        next(items)
