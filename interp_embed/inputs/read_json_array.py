"""A JSON array, item by item, with the values that `json` gives and that JSON Lines therefore has.

ijson 3.6 would read most arrays as well, but its fast backend refuses NaN and integers of more than 64
bits, turns half a surrogate pair into ``?`` without a word, and gives no items for what is no array.
A store would then depend on which of two formats the same records came in.
"""

from __future__ import annotations

import json
import re
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["json_items"]

_READ = 2**20
_NEAR = 16
"""So close to the end of what was read, an error or a number may be one of reading too little."""
_SPACE = re.compile(r"[ \t\n\r]*")


def json_items(text: IO[str]) -> Iterator[Any]:
    """Yield the items of the array that a file holds; no more than one of them is in memory.

    Raises
    ------
    ValueError
        If it is no JSON, naming the item.
    """
    parser = _Parser(text)
    if parser.next_character() != "[":
        raise ValueError("expected a list of objects")
    parser.at += 1
    number = 0
    if parser.next_character() == "]":
        parser.at += 1
    else:
        end = ""
        while end != "]":
            number += 1
            parser.next_character()
            yield parser.value(number)
            end = parser.next_character()
            if end not in ("]", ","):
                raise ValueError(f"expected ',' or ']' after record {number}")
            parser.at += 1
    if parser.next_character():
        raise ValueError("unexpected data after the end of the JSON array")


class _Parser:
    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self._held = ""
        self._decoder = json.JSONDecoder()
        self.at = 0

    def _more(self) -> bool:
        """Read as much again as is held; return whether there was anything."""
        added = self._text.read(max(_READ, len(self._held) - self.at))
        self._held = self._held[self.at :] + added
        self.at = 0
        return bool(added)

    def next_character(self) -> str:
        """Skip spaces and return what comes then, or nothing at the end."""
        while True:
            found = _SPACE.match(self._held, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self._held):
                return self._held[self.at]
            if not self._more():
                return ""

    def value(self, number: int) -> Any:
        """Return the value that begins here."""
        while True:
            try:
                found, end = self._decoder.raw_decode(self._held, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._held) - _NEAR
                if not cut or not self._more():
                    raise ValueError(f"record {number}: {error.msg}") from None
            except (ValueError, RecursionError) as error:  # too many digits, or too deep
                raise ValueError(f"record {number}: {error}") from None
            else:
                size = end - self.at
                # A number may go on: "1." is cut off from "1.5".
                if end > len(self._held) - _NEAR and self._more():
                    continue
                self.at += size
                return found
