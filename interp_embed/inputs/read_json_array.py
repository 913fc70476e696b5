"""Reading a JSON array item by item. The values equal those of `json`, and so those of JSON Lines.

ijson 3.6 would read most arrays as well, but its fast backend refuses NaN and integers of more than 64
bits, silently turns half a surrogate pair into ``?``, and yields no items if the file holds no array.
The content of a store would then depend on the format in which the same records came.
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
"""This close to the end of what was read, an error or a number may come from reading too little."""
_SPACE = re.compile(r"[ \t\n\r]*")


def json_items(text: IO[str]) -> Iterator[Any]:
    """Yield the items of the array that a file holds. Only one item is in memory at a time.

    Raises
    ------
    ValueError
        If the file is not JSON. The message names the item.
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
        """Read at least as much again as is held; return whether there was more to read."""
        added = self._text.read(max(_READ, len(self._held) - self.at))
        self._held = self._held[self.at :] + added
        self.at = 0
        return bool(added)

    def next_character(self) -> str:
        """Skip spaces and return the next character, or an empty string at the end."""
        while True:
            found = _SPACE.match(self._held, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self._held):
                return self._held[self.at]
            if not self._more():
                return ""

    def value(self, number: int) -> Any:
        """Return the value that starts here."""
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
