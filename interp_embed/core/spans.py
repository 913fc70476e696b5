"""Tokens as character spans of a text, and back: pure functions that know no model.

The spans of a document's ordinary tokens partition the part of its text that was encoded, so that
their strings join to it exactly, whatever the tokenizer did to whitespace or to characters of
several bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from interp_embed.core.chunk import TokenTable

    Spans = tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.bool_]]

__all__ = ["align_strings", "partition_spans", "reason_not_text", "token_strings"]

_REPLACEMENT = "\ufffd"
# Tokens that may be placed one by one in a search, beside a few for each token there is.
_EFFORT = 2**18
_STARTS, _LONG = 64, 4096
# How byte-level BPE, sentencepiece and wordpiece write whitespace inside a vocabulary entry.
_MARKERS = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r"})


def reason_not_text(value: object) -> str | None:
    """Return why ``value`` cannot be encoded as text, or None if it can."""
    if isinstance(value, str):
        return None
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "the text is missing"
    return f"the text must be a string, got {type(value).__name__}: {value!r:.80}"


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
    joined = "".join(strings)
    offsets = np.cumsum([0, *map(len, strings)])
    start, end = np.zeros(n, np.uint32), np.zeros(n, np.uint32)
    special = np.ones(n, np.bool_)
    exact = (0, n) if joined == text else _exact_run(text, joined, offsets)
    if exact is not None:  # nothing is lost or added, as mostly, so that no token has to be sought
        first, stop = exact
        start[first:stop] = offsets[first:stop] - offsets[first]
        end[first:stop] = offsets[first + 1 : stop + 1] - offsets[first]
        special[first:stop] = False
        return start, end, special
    run = _best_run(text, strings, joined, offsets)
    if run is None:
        return start, end, special
    first, ends = run
    previous = 0
    for position, place in enumerate(ends, first):
        if place is None:
            continue
        start[position], end[position], special[position] = previous, place, False
        previous = place
    return start, end, special


def _exact_run(text: str, joined: str, offsets: NDArray[np.int64]) -> tuple[int, int] | None:
    """Return the last run of tokens whose strings join to the text: its first token and its stop."""
    begin = joined.rfind(text) if text and text in joined else -1
    while begin >= 0:
        first, stop = np.searchsorted(offsets, (begin, begin + len(text)), side="right") - 1
        if offsets[first] == begin and offsets[stop] == begin + len(text):
            return int(first), int(stop)
        begin = joined.rfind(text, 0, begin + len(text) - 1)
    return None


def _best_run(
    text: str, strings: Sequence[str], joined: str, offsets: NDArray[np.int64]
) -> tuple[int, list[int | None]] | None:
    """Return the first token of the run that holds the text, and where each of its tokens ends.

    Of several runs the one that leaves the fewest characters to guess, and of those the last. The
    work is limited to a multiple of the number of tokens; beyond it the best run so far counts.
    """
    # A run holds the whole text only if it has a character for each of the text that is not white.
    shown = np.array([len(s) if _REPLACEMENT in s else _visible(s) for s in strings], np.int64)
    behind = np.cumsum(shown[::-1])[::-1]
    wholes = int(np.searchsorted(-behind, -_visible(text), side="right"))
    bounds = offsets.tolist()
    for tolerant in (False, True):
        effort = _EFFORT + 4 * len(strings)
        best: tuple[tuple[bool, int], int, list[int | None]] | None = None
        # Runs that may hold the whole text, last first; then what may be left of a truncated one,
        # longest first. A long document is sought from the front, since not all can be tried.
        order = 1 if wholes > _STARTS and len(strings) > _LONG else -1
        for first in (*range(wholes)[::order], *range(wholes, len(strings))):
            if first >= wholes and best is not None:
                whole, score = best[0]
                if whole or score > bounds[-1] - bounds[first]:
                    break
            ends, guessed, steps = _run_from(
                text, strings, first, joined=joined, bounds=bounds, tolerant=tolerant
            )
            effort -= 1 + steps + len(ends) // 16
            reached = (ends[-1] or 0) if ends else 0
            whole = _is_blank(text, reached)
            # If the text goes on, the run is good only if it is what a truncation left.
            if reached and (whole or first + len(ends) == len(strings)):
                if whole:
                    guessed += len(text) - reached
                    ends[-1] = len(text)
                rank = whole, -guessed if whole else reached - guessed
                if best is None or rank > best[0] or (rank == best[0] and first > best[1]):
                    best = rank, first, ends
                if whole and not guessed:
                    break
            if effort < 0:
                break
        if best is not None:
            return best[1], best[2]
    return None


def _run_from(
    text: str,
    strings: Sequence[str],
    first: int,
    *,
    joined: str,
    bounds: list[int],
    tolerant: bool,
) -> tuple[list[int | None], int, int]:
    """Return where each token from ``first`` on ends, up to the last that can be placed.

    Strict placement stops at the first token that does not fit; tolerant placement takes it for a
    special one (None) and goes on. Also returned are the number of characters that no token shows
    (dropped whitespace, and what was given to tokens with parts of characters), and the number of
    tokens that were placed one by one.
    """
    ends: list[int | None] = []
    position = 0
    waiting = 0  # tokens with a part of a character, not placed yet: the last of `ends`
    guessed = 0
    steps = 0
    exact = True  # the next tokens may be exactly what follows in the text
    while (token := first + len(ends)) < len(strings):
        if exact:
            same = _common_length(joined, bounds[token], text, position)
            stop = bisect_right(bounds, bounds[token] + same) - 1
            ends.extend(b - bounds[token] + position for b in bounds[token + 1 : stop + 1])
            position += bounds[stop] - bounds[token]
            exact = False
            continue
        steps += 1
        string = strings[token]
        if position == len(text) and string:
            break
        if _REPLACEMENT in string and not text.startswith(string, position):
            waiting += 1
            ends.append(position)
            continue
        gap = bounds[token] - bounds[token - waiting]
        span = _place(text, position, string, gap=gap)
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
        exact = token + 1 < len(strings) and text.startswith(strings[token + 1], position)
    if waiting:
        token = first + len(ends)
        rest = len(text) - position
        stop = position + (rest if rest <= bounds[token] - bounds[token - waiting] else 1)
        ends[len(ends) - waiting :] = [stop] * waiting
        guessed += stop - position
    while ends and ends[-1] is None:
        ends.pop()
    return ends, guessed, steps


def _is_blank(text: str, start: int) -> bool:
    """Return whether nothing but whitespace follows ``start``."""
    return not text[start : start + 64].strip() and not text[start:].strip()


def _visible(string: str) -> int:
    return len("".join(string.translate(_MARKERS).split()))


def _common_length(a: str, i: int, b: str, j: int) -> int:
    """Return how many characters of ``a`` from ``i`` on and of ``b`` from ``j`` on are the same."""
    same, step = 0, 16
    while (piece := a[i + same : i + same + step]) and b.startswith(piece, j + same):
        same += len(piece)
        step *= 2
    while step > 1:
        step //= 2
        piece = a[i + same : i + same + step]
        if len(piece) == step and b.startswith(piece, j + same):
            same += step
    return same


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
