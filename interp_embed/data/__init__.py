"""The documents that the demo and the examples run on.

Owns one small file of real text; where it comes from is in the README.md beside it, and its terms in
LICENSE-WordNet.txt. Knows nothing of models or stores.
"""

from __future__ import annotations

import gzip
import json
from importlib.resources import files

import pandas as pd

__all__ = ["load_demo"]


def load_demo() -> pd.DataFrame:
    """Return 400 dictionary definitions: 200 of animals and 200 of foods.

    Returns
    -------
    DataFrame
        ``text``, the definition, at least 60 characters; ``group``, "animal" or "food"; ``word``,
        what it defines. The groups are shuffled.

    Notes
    -----
    Drawn from WordNet 3.0, Copyright 2006 by Princeton University, all rights reserved; distributed
    under the WordNet licence.
    """
    content = gzip.decompress((files(__name__) / "demo.jsonl.gz").read_bytes()).decode()
    return pd.DataFrame([json.loads(line) for line in content.split("\n") if line])
