"""For tests of many features: the word "w17" activates feature 17 alone, and a model that sees that."""

from __future__ import annotations

import random
import re
from zlib import crc32

import numpy as np
from scipy.sparse import csr_matrix

from interp_embed.sae import BaseSAE
from interp_embed.testing import samples_of

MODEL = "local/model"


class NumberedSAE(BaseSAE):
    """One feature a word, as strong as the word is long.

    Parameters
    ----------
    width : int
        Number of features.
    """

    def __init__(self, width=2048, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self._d_sae = width

    def metadata(self):
        return {**super().metadata(), "width": self.width}

    def load_models(self):
        pass

    def load_feature_labels(self):
        self._feature_labels = {}

    def destroy_models(self):
        pass

    def tokenize(self, documents, as_tokens=True, padding=False):
        tokens = [re.findall(r"\s*\S+", d) for d in documents]
        if as_tokens:
            return tokens
        return {"input_ids": [[crc32(t.encode()) for t in row] for row in tokens]}

    def encode(self, texts):
        found = []
        for row in self.tokenize(texts):
            columns = [int(token.strip()[1:]) for token in row]
            values = np.array([1 + at / 8 for at in range(len(row))], np.float32)
            where = (np.arange(len(row)), columns)
            found.append(csr_matrix((values, where), shape=(len(row), self.width)))
        return found


def numbered_documents(features, *, times=4, words=12, seed=0):
    """Return documents in which each feature occurs so many times, shuffled."""
    rng = random.Random(seed)
    every = [f"w{feature}" for feature in features for _ in range(times)]
    rng.shuffle(every)
    return [{"text": " ".join(every[at : at + words])} for at in range(0, len(every), words)]


def marked(body):
    """Return the feature that a request for a label is about: the one word that is always marked."""
    positive = samples_of(body)[0]
    found = {s["text"].split("<<")[1].split(">>")[0].split()[0] for s in positive}
    assert len(found) == 1
    return int(found.pop()[1:])


def judge(body):
    """Name a feature after its word, and find a word where it is."""
    if body["response_format"]["json_schema"]["name"] == "FeatureLabelResponse":
        feature = marked(body)
        return {"label": f"w{feature}", "brief_description": f"The word w{feature}."}
    shown, samples = samples_of(body)
    word = shown[0]["description"]
    fuzzing = any("<<" in sample["text"] for sample in samples)

    def matches(text):
        return f"{word}>>" in text if fuzzing else word in text.split()

    return {"verdicts": [{"sample": s["sample"], "matches": matches(s["text"])} for s in samples]}
