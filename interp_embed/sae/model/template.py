"""Chat templates: rendering a document as one message, and finding the document in the result.

A template is applied to whole conversations, may strip the document and may put any words around
it. What lies inside the message is the document; all other tokens are the template's.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.spans import partition_spans

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import tzinfo

    from numpy.typing import NDArray

    from interp_embed.core.spans import Spans

__all__ = ["TEMPLATE_DATE", "ChatTemplate", "RenderedDocument", "render_chat"]

TEMPLATE_DATE = datetime(2024, 7, 26)
"""What day it is in templates: the one that Llama's write where they know no other."""
_DATE_STRING = "26 Jul 2024"
"""The same as Llama's templates are given it, whatever months are called in this locale."""
_ANOTHER_DATE = datetime(2031, 11, 3, 17, 45, 59)

# Private-use characters: no template treats them specially, and no whitespace is stripped off them.
_PROBE = "\ue000\ue001\ue002"


@dataclass(frozen=True, slots=True)
class RenderedDocument:
    """A document inside a rendered template.

    Attributes
    ----------
    text : str
        What the template made of the document.
    begin, end : int
        Where the document lies in ``text``.
    stripped : int
        Number of characters that the template stripped off the document's start.
    length : int
        Number of characters of the document itself.
    """

    text: str
    begin: int
    end: int
    stripped: int
    length: int

    def spans(
        self, offsets: Sequence[tuple[int, int]] | NDArray[np.integer], *, complete: bool = True
    ) -> Spans:
        """Map offsets in the rendered text to spans that partition the document.

        Whitespace that the template stripped goes to the first and the last token inside.

        Parameters
        ----------
        offsets : array of int, shape (tokens, 2)
            Each token's characters in the rendered text.
        complete : bool
            Whether the tokens cover the whole rendered text.

        Returns
        -------
        start, end : ndarray of uint32
            ``0, 0`` for the template's tokens.
        special : ndarray of bool
            True for the template's tokens.
        """
        none = np.zeros(len(offsets), np.bool_)
        start, end, _ = partition_spans(self.text, offsets, none, complete=complete)
        first, last = start.astype(np.int64), end.astype(np.int64)
        inside = (last > self.begin) & (first < self.end)
        # A token with an empty span holds a part of the character before it.
        inside |= (first == last) & (first > self.begin) & (first <= self.end)
        shift = self.stripped - self.begin
        first = np.clip(first, self.begin, self.end) + shift
        last = np.clip(last, self.begin, self.end) + shift
        at = np.flatnonzero(inside)
        if len(at):
            first[at[0]] = 0
            if last[at[-1]] == self.end + shift:
                last[at[-1]] = self.length
        first[~inside] = 0
        last[~inside] = 0
        return first.astype(np.uint32), last.astype(np.uint32), ~inside


def render_chat(
    tokenizer: Any, conversation: Sequence[Mapping[str, str]], now: datetime = TEMPLATE_DATE
) -> str:
    """Apply a tokenizer's chat template to a conversation, on the same day on every day.

    Templates ask transformers for the date by ``strftime_now``, and Llama's are given it as
    ``date_string``. Either is `TEMPLATE_DATE` here, so that the same documents have the same tokens
    whenever they are encoded, those of a run that goes on included.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    conversation : sequence of mapping
    now : datetime
        What the template takes for the present.
    """
    with _templates_at(now):
        return str(
            tokenizer.apply_chat_template(
                list(conversation), tokenize=False, date_string=_DATE_STRING
            )
        )


_now: ContextVar[datetime | None] = ContextVar("now", default=None)
_clock_lock = threading.Lock()


class _Clock(datetime):
    """The clock; where a moment is set, it has stopped then. Other threads see the time as it is."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        stopped = _now.get()
        return datetime.now(tz) if stopped is None else stopped


@contextlib.contextmanager
def _templates_at(now: datetime) -> Iterator[None]:
    """Have transformers tell templates that it is ``now``.

    It takes no function for ``strftime_now`` from its caller: arguments of a template are made plain
    values, so that a function arrives as a string. Its own function reads the ``datetime`` of its
    module. That is replaced for one call, under a lock, by a class that tells other threads the time.
    """
    module: Any = sys.modules.get("transformers.utils.chat_template_utils")
    if module is None:  # no template of transformers, then
        yield
        return
    with _clock_lock:
        clock = module.datetime
        module.datetime = _Clock
        stopped = _now.set(now)
        try:
            yield
        finally:
            _now.reset(stopped)
            module.datetime = clock


class ChatTemplate:
    """A tokenizer's chat template, applied to documents as single messages.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        A tokenizer with a chat template.
    role : {"assistant", "user"}
        Whose message a document is.

    Attributes
    ----------
    date : str or None
        The date, as ``YYYY-MM-DD``, that the template asks for and is given; None where it makes
        nothing of the day.
    """

    def __init__(self, tokenizer: Any, role: str) -> None:
        self._tokenizer = tokenizer
        self.role = role
        before, found, after = self._render(_PROBE).partition(_PROBE)
        self._around = (before, after) if found else None
        today, another = (self._render(_PROBE, now) for now in (TEMPLATE_DATE, _ANOTHER_DATE))
        self.date = None if today == another else TEMPLATE_DATE.date().isoformat()

    def _render(self, content: str, now: datetime = TEMPLATE_DATE) -> str:
        from jinja2 import TemplateError

        try:
            return render_chat(self._tokenizer, [{"role": self.role, "content": content}], now)
        except TemplateError as error:
            raise ValueError(
                f"the chat template refuses a conversation that is one {self.role!r} message "
                f"({error}); try use_assistant_role={self.role != 'assistant'}"
            ) from error

    def render(self, document: str) -> RenderedDocument:
        """Apply the template to a document.

        Raises
        ------
        ValueError
            If the template changed the document by more than stripping whitespace off its ends,
            so that its tokens cannot be told from the template's.
        """
        text = self._render(document)
        begin, content = self._locate(text, document)
        return RenderedDocument(
            text, begin, begin + len(content), document.find(content), len(document)
        )

    def _locate(self, text: str, document: str) -> tuple[int, str]:
        forms = dict.fromkeys((document, document.rstrip(), document.lstrip(), document.strip()))
        if self._around is not None:
            before, after = self._around
            content = text[len(before) : len(text) - len(after)]
            if text.startswith(before) and text.endswith(after) and content in forms:
                return len(before), content
        # The template's own words depend on the message: take the last place it can be.
        for content in forms:
            begin = text.rfind(content) if content else -1
            if begin >= 0:
                return begin, content
        raise ValueError(
            f"the chat template changed the document (role {self.role!r}), so its tokens cannot be "
            "told from the template's; encode it without a template, or under the other role"
        )
