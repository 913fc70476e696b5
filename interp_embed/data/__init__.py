"""The documents that the demo and the examples run on.

Owns one small file of real text; where it comes from and under what terms is in the README.md
beside it. Knows nothing of models or stores.
"""

from __future__ import annotations

import gzip
import json
from importlib.resources import files

import pandas as pd

__all__ = ["load_demo"]


def load_demo() -> pd.DataFrame:
    """Return 400 sentences: 200 from film reviews and 200 from newspaper editorials.

    Returns
    -------
    DataFrame
        ``text``, at least 40 characters; ``group``, "film review" or "newspaper editorial";
        ``sentiment``, the mean rating that people gave it, from -4 (extremely negative) to 4
        (extremely positive). The groups are shuffled.

    Notes
    -----
    Drawn from the evaluation data of C. J. Hutto and E. Gilbert, "VADER: a parsimonious rule-based
    model for sentiment analysis of social media text", ICWSM 2014.
    """
    content = gzip.decompress((files(__name__) / "demo.jsonl.gz").read_bytes()).decode()
    return pd.DataFrame([json.loads(line) for line in content.split("\n") if line])
