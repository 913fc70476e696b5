"""Tokens as character spans of a text, and back: pure functions that know no model.

The spans of a document's ordinary tokens partition the part of its text that was encoded, so that
their strings join to it exactly, whatever the tokenizer did to whitespace or to characters of
several bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from interp_embed.chunk import TokenTable

    Spans = tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.bool_]]

__all__ = ["align_strings", "partition_spans", "token_strings"]

_REPLACEMENT = "\ufffd"
# How byte-level BPE, sentencepiece and wordpiece write whitespace inside a vocabulary entry.
_MARKERS = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r"})


def partition_spans(
    text: str,
    offsets: Sequence[tuple[int, int]] | NDArray[np.integer],
    special: Sequence[bool] | NDArray[np.bool_],
    *,
    complete: bool = True,
) -> Spans:
    """Turn a tokenizer's character offsets into spans that partition the text.

    A gap before a token (whitespace that the tokenizer dropped) is given to it, a gap at the end
    to the last token. Of several tokens that share one character the first has it, and the others
    have empty spans behind it.

    Parameters
    ----------
    text : str
    offsets : array of int, shape (tokens, 2)
        Start and end of each token in characters, as a fast tokenizer reports them: they may
        overlap, leave gaps or be zero for tokens that stand for nothing.
    special : array of bool, shape (tokens,)
        Tokens that stand for no part of the text.
    complete : bool
        Whether the tokens cover the whole text. If not (a truncated document), the partition ends
        where the last token ends.

    Returns
    -------
    start, end : ndarray of uint32
        ``0, 0`` for special tokens.
    special : ndarray of bool
    """
    skip = np.asarray(special, np.bool_).reshape(-1)
    raw = np.asarray(offsets, np.int64).reshape(-1, 2)
    if len(raw) != len(skip):
        raise ValueError(f"{len(raw)} offsets for {len(skip)} tokens")
    start, end = np.zeros(len(raw), np.uint32), np.zeros(len(raw), np.uint32)
    ordinary = np.flatnonzero(~skip)
    if len(ordinary):
        stop = np.maximum.accumulate(np.clip(raw[ordinary, 1], 0, len(text)))
        if complete:
            stop[-1] = len(text)
        end[ordinary] = stop
        start[ordinary[1:]] = stop[:-1]
    return start, end, skip


def token_strings(text: str, table: TokenTable, vocabulary: Mapping[int, str]) -> list[str]:
    """Return a document's tokens as strings.

    Parameters
    ----------
    text : str
        The document's text.
    table : TokenTable
        Its tokens.
    vocabulary : mapping of int to str
        Strings of the special tokens' ids.

    Returns
    -------
    list of str
        Those of the ordinary tokens join to the encoded part of the text.
    """
    return [
        vocabulary.get(number, f"<{number}>") if special else text[start:end]
        for number, start, end, special in zip(
            table.id.tolist(),
            table.start.tolist(),
            table.end.tolist(),
            table.special.tolist(),
            strict=True,
        )
    ]


def align_strings(text: str, strings: Sequence[str]) -> Spans:
    """Find where token strings lie in the text they came from.

    For tokenizers that yield strings and no offsets. The text is sought as one run of tokens,
    later runs first, because a chat template puts its own words before the document. Within the
    run, whitespace that a tokenizer dropped or wrote as a marker is restored, and tokens that hold
    part of a character (U+FFFD) share the characters up to the next token that can be placed.
    Tokens outside the run, and tokens inside it that stand for no part of the text, are special.

    Parameters
    ----------
    text : str
    strings : sequence of str

    Returns
    -------
    start, end : ndarray of uint32
    special : ndarray of bool
        All true if the strings cannot be placed at all.
    """
    n = len(strings)
    if "".join(strings) == text:  # nothing to seek, however long the document
        bounds = np.cumsum([0, *map(len, strings)]).astype(np.uint32)
        return bounds[:-1], bounds[1:], np.zeros(n, np.bool_)
    start, end = np.zeros(n, np.uint32), np.zeros(n, np.uint32)
    special = np.ones(n, np.bool_)
    run = _best_run(text, strings)
    if run is None:
        return start, end, special
    first, ends = run
    previous = 0
    for position, stop in enumerate(ends, first):
        if stop is None:
            continue
        start[position], end[position], special[position] = previous, stop, False
        previous = stop
    return start, end, special


def _best_run(text: str, strings: Sequence[str]) -> tuple[int, list[int | None]] | None:
    """Return the first token of the run that holds the text, and where each of its tokens ends.

    Of several runs the one that leaves the fewest characters to guess, and of those the last.
    """
    for tolerant in (False, True):
        best: tuple[tuple[bool, int], int, list[int | None]] | None = None
        for first in range(len(strings) - 1, -1, -1):
            ends, guessed = _run_from(text, strings, first, tolerant=tolerant)
            placed = [i for i, end in enumerate(ends) if end is not None]
            reached = (ends[placed[-1]] or 0) if placed else 0
            whole = not text[reached:].strip()
            # If the text goes on, the run is good only if it is what a truncation left.
            if not reached or not (whole or first + len(ends) == len(strings)):
                continue
            if whole:
                guessed += len(text) - reached
                ends[placed[-1]] = len(text)
            rank = whole, -guessed if whole else reached - guessed
            if best is None or rank > best[0]:
                best = rank, first, ends
            if whole and not guessed:
                break
        if best is not None:
            return best[1], best[2]
    return None


def _run_from(
    text: str, strings: Sequence[str], first: int, *, tolerant: bool
) -> tuple[list[int | None], int]:
    """Return where each token from ``first`` on ends, up to the last that can be placed.

    Strict placement stops at the first token that does not fit; tolerant placement takes it for a
    special one (None) and goes on. Also returned is the number of characters that no token shows:
    dropped whitespace, and what was given to tokens with parts of characters.
    """
    ends: list[int | None] = []
    position = 0
    waiting = 0  # tokens with a part of a character, not placed yet: the last of `ends`
    guessed = 0
    for string in strings[first:]:
        if position == len(text) and string:
            break
        if _REPLACEMENT in string and not text.startswith(string, position):
            waiting += 1
            ends.append(position)
            continue
        before = strings[first + len(ends) - waiting : first + len(ends)]
        span = _place(text, position, string, gap=sum(map(len, before)))
        if span is None:
            if not (tolerant and ends) or waiting:
                break
            ends.append(None)
            continue
        guessed += span[0] - position
        ends[len(ends) - waiting :] = [span[0]] * waiting
        waiting = 0
        position = span[1]
        ends.append(position)
    if waiting:
        before = strings[first + len(ends) - waiting : first + len(ends)]
        rest = len(text) - position
        stop = position + (rest if rest <= sum(map(len, before)) else 1)
        ends[len(ends) - waiting :] = [stop] * waiting
        guessed += stop - position
    while ends and ends[-1] is None:
        ends.pop()
    return ends, guessed


def _place(text: str, position: int, string: str, *, gap: int) -> tuple[int, int] | None:
    """Return the token's own span if it can follow ``position``, else None.

    Whitespace may lie between, and after tokens with parts of characters up to ``gap`` characters.
    """
    if not string:
        return position, position
    plain = string.translate(_MARKERS)
    for form in dict.fromkeys((string, plain, plain.lstrip(), plain.removeprefix("##"))):
        if not form:
            continue
        if gap:
            begin = text.find(form, position + 1, position + gap + len(form))
        else:
            begin = position
            if not text.startswith(form, begin):
                while begin < len(text) and text[begin].isspace():
                    begin += 1
                begin = begin if text.startswith(form, begin) else -1
        if begin >= 0:
            return begin, begin + len(form)
    return None
