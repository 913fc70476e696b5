"""Excerpts as text for a model: marks around active tokens, and a fence around the data.

Data go into a message as JSON objects, one per line, between two lines that no text can contain. A
message therefore has the same parts, whatever a document says.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from interp_embed.llm.ask.request import Message
from interp_embed.selection.row import highlight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interp_embed.llm.ask.prompt_files import Prompts
    from interp_embed.llm.samples.choice import Example

__all__ = ["Marks", "choose_marks", "messages"]

_PAIRS = (("<<", ">>"), ("[[", "]]"), ("{{", "}}"), ("\u27e6", "\u27e7"))
_SURROGATES = re.compile("[\ud800-\udfff]")
_LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x7f\x85\u2028\u2029"}


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks before and after a run of active tokens."""

    left: str
    right: str

    def around(self, example: Example, active: Sequence[bool] | None = None) -> str:
        """Return an excerpt with marks; without any if ``active`` is all False."""
        marked = example.active if active is None else active
        text = highlight(example.tokens, marked, self.left, self.right)
        before, after = "..." * example.cut_before, "..." * example.cut_after
        return f"{before}{text}{after}"


def choose_marks(texts: Sequence[str]) -> Marks:
    """Return marks that no text can forge: no text contains a character of the short ones."""
    for left, right in _PAIRS:
        used = set(left + right)
        if not any(used.intersection(text) for text in texts):
            return Marks(left, right)
    numbers = (n for n in count() if not any(f"mark-{n}>" in text for text in texts))
    number = next(numbers)
    return Marks(f"<mark-{number}>", f"</mark-{number}>")


def messages(
    prompts: Prompts,
    task: str,
    marks: Marks,
    blocks: Mapping[str, Sequence[Mapping[str, Any]]],
    around: Mapping[str, str] | None = None,
) -> tuple[Message, Message]:
    """Return the two messages of a request.

    Parameters
    ----------
    prompts, task
        The prompts, and the task.
    marks
        The marks in the texts.
    blocks
        The data: for each placeholder the objects to put there.
    around
        For placeholders that may be empty, the text before the data if there are some.
    """
    lines = {name: [_line(value) for value in values] for name, values in blocks.items()}
    # The name of the fence follows from all data, so none of them can contain it.
    everything = json.dumps(lines, sort_keys=True).encode()
    fence = f"data-{hashlib.sha256(everything).hexdigest()[:16]}"
    common = {"left": marks.left, "right": marks.right, "fence": fence}
    filled = {}
    for name, part in lines.items():
        block = "\n".join([f"<{fence}>", *part, f"</{fence}>"])
        if around is not None and name in around:
            block = f"\n{around[name]}\n{block}\n" if part else ""
        filled[name] = block
    return (
        Message("system", prompts.template(f"{task}_system").substitute(common)),
        Message("user", prompts.template(f"{task}_user").substitute(common, **filled)),
    )


def _line(value: Mapping[str, Any]) -> str:
    """Return an object as JSON in one line; whatever else ends a line for somebody is escaped."""
    text = json.dumps(dict(value), ensure_ascii=False)
    return _SURROGATES.sub("\ufffd", text).translate(_LINE_ENDS)
