"""Texts to token ids and token tables, with every decision about special tokens in one place.

Both `tokenize` and `encode` of an SAE go through here, so that tokens and activations agree. What
comes out is exactly what the language model is run on.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.core.chunk import TokenTable
from interp_embed.core.spans import align_strings, partition_spans, reason_not_text
from interp_embed.sae.model.template import ChatTemplate, render_chat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from interp_embed.sae.model.template import RenderedDocument

__all__ = [
    "DocumentTokenizer",
    "TokenizedDocument",
    "Window",
    "bos_token_id",
    "require_integer",
    "resolve_overflow",
]

_OVERFLOW = ("truncate", "window", "fail")


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A part of a document that the language model is run on by itself.

    Attributes
    ----------
    id : ndarray of uint32
        Token ids that the model runs on, including BOS.
    skip : int
        Number of tokens at the beginning that give no rows: the previous window has given theirs.
    """

    id: NDArray[np.uint32]
    skip: int


@dataclass(frozen=True, slots=True)
class TokenizedDocument:
    """A document as the language model sees it.

    Attributes
    ----------
    tokens : TokenTable
        Ids and spans; no tokens if the document is empty or failed.
    truncated : bool
        Whether only the beginning was kept.
    reason : str or None
        Why the document cannot be encoded.
    windows : sequence of Window
        How a document longer than the context is run; none for one that is run as it is.
    """

    tokens: TokenTable
    truncated: bool = False
    reason: str | None = None
    windows: Sequence[Window] = ()

    @property
    def runs(self) -> Sequence[Window]:
        """The windows that the language model runs on; none for a document without tokens."""
        if self.windows or not len(self.tokens):
            return self.windows
        return (Window(self.tokens.id, 0),)

    @classmethod
    def failed(cls, reason: str) -> TokenizedDocument:
        """Return a document that cannot be encoded."""
        return cls(TokenTable.empty(), reason=reason)


def resolve_overflow(overflow: str | None, window_overlap: int | None, *, truncate: bool) -> str:
    """Return how documents longer than the context are treated.

    Raises
    ------
    TypeError
        If ``window_overlap`` is not an integer.
    ValueError
        If the arguments contradict each other, or one is out of range.
    """
    if overflow is None:
        overflow = "truncate" if truncate else "fail"
    if overflow not in _OVERFLOW:
        raise ValueError(f"overflow must be one of {', '.join(_OVERFLOW)}, got {overflow!r}")
    if not truncate and overflow != "fail":
        raise ValueError(
            f"truncate=False contradicts overflow={overflow!r}; leave out one of the two"
        )
    if window_overlap is not None and overflow != "window":
        raise ValueError(
            f"overflow must be 'window' with window_overlap={window_overlap}, got {overflow!r}"
        )
    require_integer("window_overlap", window_overlap, 0)
    return overflow


def require_integer(name: str, value: Any, least: int) -> None:
    """Raise unless ``value`` is None or an integer of at least ``least``."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _not_unicode(text: str) -> str | None:
    """Return why no tokenizer takes a text: of a character in two halves it has one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"the text is not Unicode: {text[error.start]!a} at character {error.start} is half "
            "of a surrogate pair"
        )
    return None


def bos_token_id(tokenizer: Any, preferred: int | None = None) -> int:
    """Return the id that a model trained with a beginning-of-sequence token expects first.

    In this order: the one recorded with the SAE, the tokenizer's BOS, its EOS (as TransformerLens
    does for models that have no BOS), and ``<|endoftext|>``.

    Raises
    ------
    ValueError
        If there is none of these.
    """
    if preferred is not None:
        return int(preferred)
    for candidate in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    number = tokenizer.get_vocab().get("<|endoftext|>")
    if number is None:
        raise ValueError(
            "the SAE expects a BOS token, but the tokenizer has neither BOS nor EOS nor "
            "'<|endoftext|>'; set tokenizer.bos_token, or pass prepend_bos=False"
        )
    return int(number)


class DocumentTokenizer:
    """Tokenise documents as an SAE's language model is to see them.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    bos : int or None
        Id to put before each document, once; None for no such token.
    max_tokens : int or None
        The longest document in tokens, special ones included.
    overflow : {"truncate", "window", "fail"}
        Whether a longer document is cut, run in windows that overlap, or fails.
    role : {"assistant", "user"} or None
        Apply the chat template with the document as this role's message; None for no template.
    window_overlap : int, optional
        Number of tokens that a window shares with the previous one, not counting BOS. The default is
        a quarter of ``max_tokens``.

    Raises
    ------
    ValueError
        If windows overlap so much that they would not advance.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        bos: int | None,
        max_tokens: int | None,
        overflow: str,
        role: str | None,
        window_overlap: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.bos = bos
        self.max_tokens = max_tokens
        self.overflow = overflow
        self.window_overlap = 0
        if overflow == "window" and max_tokens is not None:
            room = max_tokens - (bos is not None)
            self.window_overlap = max_tokens // 4 if window_overlap is None else window_overlap
            if self.window_overlap >= room:
                raise ValueError(
                    f"window_overlap must be less than the {room} tokens of text in a window, got "
                    f"{self.window_overlap}"
                )
        # Tokenizers are called on one thread while another asks for the strings of special tokens.
        self._lock = threading.Lock()
        self._strings: dict[int, str] = {}
        self._template = None if role is None else ChatTemplate(tokenizer, role)

    @property
    def template_date(self) -> str | None:
        """The date that the chat template uses; None if it uses none."""
        return None if self._template is None else self._template.date

    def documents(self, texts: Sequence[object]) -> list[TokenizedDocument]:
        """Tokenise each text by itself; a failure is recorded for the text concerned alone.

        Returns
        -------
        list of TokenizedDocument
            One per text. An empty text, or one in which the tokenizer finds no tokens, has no tokens,
            not even BOS.
        """
        done: dict[int, TokenizedDocument] = {}
        wanted: dict[int, str | RenderedDocument] = {}
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                done[number] = TokenizedDocument.failed(reason_not_text(text) or "")
            elif not text:
                done[number] = TokenizedDocument(TokenTable.empty())
            elif (broken := _not_unicode(text)) is not None:
                done[number] = TokenizedDocument.failed(broken)
            elif self._template is None:
                wanted[number] = text
            else:
                try:
                    wanted[number] = self._template.render(text)
                except ValueError as error:
                    done[number] = TokenizedDocument.failed(str(error))
        sources = list(wanted.values())
        inputs = [s if isinstance(s, str) else s.text for s in sources]
        for number, source, (ids, offsets) in zip(
            wanted, sources, self._tokenize(inputs), strict=True
        ):
            done[number] = self._document(source, ids, offsets)
        return [done[number] for number in range(len(texts))]

    def conversations(
        self, conversations: Sequence[Sequence[Mapping[str, str]]]
    ) -> list[TokenizedDocument]:
        """Tokenise conversations through the chat template.

        Spans are those of the rendered text; there is no other.
        """
        texts = [render_chat(self.tokenizer, c) for c in conversations]
        return [
            self._document(text, ids, offsets, rendered=True)
            for text, (ids, offsets) in zip(texts, self._tokenize(texts), strict=True)
        ]

    def vocabulary(self, documents: Sequence[TokenizedDocument]) -> dict[int, str]:
        """Return the strings of the special tokens' ids."""
        ids = np.unique(
            np.concatenate(
                [np.empty(0, np.uint32), *(d.tokens.id[d.tokens.special] for d in documents)]
            )
        )
        for number in ids.tolist():
            if number not in self._strings:
                with self._lock:
                    self._strings[number] = str(self.tokenizer.decode([number]))
        return {number: self._strings[number] for number in ids.tolist()}

    def _tokenize(self, texts: list[str]) -> list[tuple[list[int], NDArray[np.int64] | None]]:
        """Return ids and offsets of each text, without any special token of the tokenizer's own."""
        if not texts:
            return []
        if self.tokenizer.is_fast:
            with self._lock:
                batch = self.tokenizer(
                    texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
                )
            return [
                (ids, np.asarray(offsets, np.int64).reshape(-1, 2))
                for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True)
            ]
        with self._lock:
            batch = self.tokenizer(texts, add_special_tokens=False, verbose=False)
        return [(ids, None) for ids in batch["input_ids"]]

    def _document(
        self,
        source: str | RenderedDocument,
        ids: list[int],
        offsets: NDArray[np.int64] | None,
        *,
        rendered: bool = False,
    ) -> TokenizedDocument:
        if not ids:
            return TokenizedDocument(TokenTable.empty())
        text = source if isinstance(source, str) else source.text
        if offsets is None:
            offsets = self._offsets(text, ids)
        # A rendered template may begin with BOS already.
        templated = rendered or not isinstance(source, str)
        add_bos = self.bos is not None and not (templated and ids[0] == self.bos)
        length = len(ids) + add_bos
        too_long = self.max_tokens is not None and length > self.max_tokens
        truncated = too_long and self.overflow == "truncate"
        if too_long and self.overflow == "fail":
            return TokenizedDocument.failed(
                f"the document has {length} tokens, more than the {self.max_tokens} that the model "
                "and the SAE take; use overflow='truncate' to encode its beginning, or "
                "overflow='window' to encode it in windows"
            )
        if truncated and self.max_tokens is not None:
            ids = ids[: self.max_tokens - add_bos]
            offsets = offsets[: len(ids)]
        if isinstance(source, str):
            none = np.zeros(len(ids), np.bool_)
            start, end, special = partition_spans(source, offsets, none, complete=not truncated)
        else:
            start, end, special = source.spans(offsets, complete=not truncated)
            if not truncated and special.all():  # nothing but whitespace, and it was stripped
                return TokenizedDocument(TokenTable.empty())
        numbers = np.asarray(ids, np.uint32)
        if self.bos is not None and add_bos:
            numbers = np.insert(numbers, 0, self.bos)
            start, end = np.insert(start, 0, 0), np.insert(end, 0, 0)
            special = np.insert(special, 0, True)
        windows = self._windows(numbers) if too_long and not truncated else ()
        return TokenizedDocument(TokenTable(numbers, start, end, special), truncated, None, windows)

    def _windows(self, ids: NDArray[np.uint32]) -> list[Window]:
        """Cut a document into windows of the context's length, each beginning with BOS.

        A token that two windows have belongs to the first of them, where more text stands before it.
        """
        bos = ids[: int(self.bos is not None)]
        body = ids[len(bos) :]
        room = (self.max_tokens or 0) - len(bos)
        windows = [Window(ids[: len(bos) + room], 0)]
        done = room
        while done < len(body):
            begin = done - self.window_overlap
            window = np.concatenate([bos, body[begin : begin + room]])
            windows.append(Window(window, len(bos) + self.window_overlap))
            done = begin + room
        return windows

    def _offsets(self, text: str, ids: list[int]) -> NDArray[np.int64]:
        """Return offsets for a tokenizer that reports none."""
        start, end, _ = align_strings(text, [self.tokenizer.decode([i]) for i in ids])
        return np.stack([start, end], axis=1).astype(np.int64)
