"""SAEs of a user's own: words are tokens, and a word's hash decides which features it activates.

Importable by its path, so that a store finds the class again. No model, no torch.
"""

from __future__ import annotations

import os
import re
import time
from zlib import crc32

import numpy as np
from scipy.sparse import csr_matrix

from interp_embed.sae import BaseSAE

FAIL = "FAIL"
NONE = "NONE"
NAN = "NANS"
INF = "INFS"
BIG = "BIGS"
EMOJI = "\N{GRINNING FACE}"
D_SAE = 32
LOG = "WORD_SAE_LOG"
SLOW = "WORD_SAE_SLOW"
TEXTS = [
    "the cat sat on the mat",
    "dogs are loyal pets",
    "",
    "python is a programming language",
    "machine learning is fascinating",
    "the end",
    "a \N{GRINNING FACE} smile",
    "one",
    "  two  spaces  ",
    "the the the",
    "loyal pets sat on python",
]


def words(text):
    """Words with the whitespace before them; an emoji is cut in two, as byte-level tokens are."""
    pieces = re.findall(rf"\s*{EMOJI}|\s*[^\s{EMOJI}]+|\s+$", text)
    return [part for piece in pieces for part in ([piece, ""] if EMOJI in piece else [piece])]


def word_activations(word):
    """Two features a word: one of 0 to 15 by its letters, and one of 16 to 30 below zero."""
    key = crc32(word.strip().encode(errors="surrogatepass"))
    found = {key % 16: (key >> 8) % 1000 / 64 + 0.1}
    if key % 3 == 0:
        found[16 + key % 15] = -((key >> 20) % 100) / 128 - 0.3
    if word.strip() == BIG:
        found[7] = 1e6
    return found


def expected(text):
    """What the SAE gives for a text, dense, float32."""
    tokens = words(text)
    out = np.zeros((len(tokens), D_SAE), np.float32)
    for row, word in enumerate(tokens):
        for feature, value in word_activations(word).items():
            out[row, feature] = value
    return out


class WordSAE(BaseSAE):
    """A subclass as users wrote them for the original library.

    Parameters
    ----------
    scale : float
        Multiplies every activation.
    slow : float
        Seconds that a document takes.
    """

    loads = 0

    def __init__(self, scale=1.0, slow=0.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
        self.slow = slow
        self.seen = []
        self.mended = False

    def metadata(self):
        return {**super().metadata(), "scale": self.scale}

    def load_models(self):
        type(self).loads += 1

    def load_feature_labels(self):
        self._feature_labels = {0: "zeroth", 7: "<b>seventh</b>"}

    def destroy_models(self):
        pass

    def tokenize(self, documents, as_tokens=True, padding=False):
        tokens = [words(d) for d in documents]
        if as_tokens:
            return tokens
        return {"input_ids": [[crc32(repr(t).encode()) for t in row] for row in tokens]}

    def encode(self, texts):
        if any(FAIL in text for text in texts) and not self.mended:
            raise RuntimeError("this text cannot be encoded")
        return [self._one(text) for text in texts]

    def _one(self, text):
        self.seen.append(text)
        if log := os.environ.get(LOG):
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{text.split(' ', 1)[0]}\n".encode())
            os.close(descriptor)
        if slow := self.slow or float(os.environ.get(SLOW, "0")):
            time.sleep(slow)
        if NONE in text and not self.mended:
            return None
        dense = expected(text) * np.float32(self.scale)
        if NAN in text:
            dense[0, 3] = np.nan
        if INF in text:
            dense[0, 3] = np.inf
        return csr_matrix(dense)


class WideSAE(WordSAE):
    """One that says how many features it has before it encodes anything."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._d_sae = D_SAE
