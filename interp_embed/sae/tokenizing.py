"""Texts to token ids and token tables, with every decision about special tokens in one place.

Both `tokenize` and `encode` of an SAE go through here, so that tokens and activations agree. What
comes out is exactly what the language model is run on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.chunk import TokenTable
from interp_embed.sae.template import ChatTemplate
from interp_embed.sae.tokens import align_strings, partition_spans, reason_not_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from interp_embed.sae.template import RenderedDocument

__all__ = ["DocumentTokenizer", "TokenizedDocument", "bos_token_id"]


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
    """

    tokens: TokenTable
    truncated: bool = False
    reason: str | None = None

    @classmethod
    def failed(cls, reason: str) -> TokenizedDocument:
        """Return a document that cannot be encoded."""
        return cls(TokenTable.empty(), reason=reason)


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
    truncate : bool
        Whether a longer document is cut, or fails.
    role : {"assistant", "user"} or None
        Apply the chat template with the document as this role's message; None for no template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        bos: int | None,
        max_tokens: int | None,
        truncate: bool,
        role: str | None,
    ) -> None:
        self.tokenizer = tokenizer
        self.bos = bos
        self.max_tokens = max_tokens
        self.truncate = truncate
        self._template = None if role is None else ChatTemplate(tokenizer, role)

    def documents(self, texts: Sequence[object]) -> list[TokenizedDocument]:
        """Tokenise each text by itself; what is wrong with one is recorded for that one alone.

        Returns
        -------
        list of TokenizedDocument
            One a text. An empty text, or one in which the tokenizer sees nothing, has no tokens,
            not even BOS.
        """
        done: dict[int, TokenizedDocument] = {}
        wanted: dict[int, str | RenderedDocument] = {}
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                done[number] = TokenizedDocument.failed(reason_not_text(text) or "")
            elif not text:
                done[number] = TokenizedDocument(TokenTable.empty())
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
        texts = [
            str(self.tokenizer.apply_chat_template(list(c), tokenize=False)) for c in conversations
        ]
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
        return {int(i): str(self.tokenizer.decode([int(i)])) for i in ids}

    def _tokenize(self, texts: list[str]) -> list[tuple[list[int], NDArray[np.int64] | None]]:
        """Return ids and offsets of each text, without any special token of the tokenizer's own."""
        if not texts:
            return []
        if self.tokenizer.is_fast:
            batch = self.tokenizer(
                texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            return [
                (ids, np.asarray(offsets, np.int64).reshape(-1, 2))
                for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True)
            ]
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
        truncated = self.max_tokens is not None and length > self.max_tokens
        if truncated and not self.truncate:
            return TokenizedDocument.failed(
                f"the document has {length} tokens, more than the {self.max_tokens} that the model "
                "and the SAE take; use truncate=True to encode its beginning"
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
        return TokenizedDocument(TokenTable(numbers, start, end, special), truncated)

    def _offsets(self, text: str, ids: list[int]) -> NDArray[np.int64]:
        """Return offsets for a tokenizer that reports none."""
        start, end, _ = align_strings(text, [self.tokenizer.decode([i]) for i in ids])
        return np.stack([start, end], axis=1).astype(np.int64)
