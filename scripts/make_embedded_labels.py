"""Make the names of the embedded SAE's features anew: interp_embed/sae/releases/embedded/labels.json.

Encodes the texts that come with the package, and names each feature that is active in them by the words
that it prefers (interp_embed.analysis.lexical). The same texts, SAE and model give the same names.

    python scripts/make_embedded_labels.py [STORE]

STORE is where the texts are encoded, or have been; by default a temporary folder. Then says how well
names that are made from one half of the texts tell where features are active in the other half.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from interp_embed import Dataset
from interp_embed.analysis.lexical_names import METHOD
from interp_embed.data import load_demo
from interp_embed.sae import LocalSAE
from interp_embed.sae.releases.embedded_release import embedded_sae_folder

DOCUMENTS, WORDS = 20, 3


def main(store: str) -> None:
    """Encode the texts, unless they are, and write the names."""
    dataset = Dataset(load_demo(), LocalSAE.embedded(), save_path=store)
    found = dataset.label_features_from_tokens(k=DOCUMENTS, words=WORDS, commit=False)
    value = {
        "method": f"{METHOD}, {DOCUMENTS} documents a feature, {WORDS} words",
        "texts": "interp_embed/data/demo.jsonl.gz: 400 definitions from WordNet 3.0",
        "labels": {str(label.feature): label.label for label in found},
    }
    target = embedded_sae_folder() / "labels.json"
    target.write_text(json.dumps(value, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    print(f"{target}: {len(found)} names")
    measure(dataset)


def measure(dataset: Dataset) -> None:
    """Print the balanced accuracy of "has a word of the name" for "the feature is active"."""
    made, other = dataset[::2], dataset[1::2]
    active = other.latents("max") > 0
    words = [set(re.findall(r"\w[\w'-]*\w|\w|[^\w\s]+", t.lower())) for t in other.documents()]
    accuracies = []
    for label in made.label_features_from_tokens(k=DOCUMENTS, words=WORDS, commit=False):
        there = active[:, label.feature]
        if not 10 <= there.sum() <= len(there) - 10 or not label.label.startswith('"'):
            continue
        named = re.findall(r'"([^"]+)"', label.label)
        said = np.array([any(word in text for word in named) for text in words])
        accuracies.append((said[there].mean() + (~said[~there]).mean()) / 2)
    found = np.array(accuracies)
    print(
        f"{len(found)} features: balanced accuracy {np.median(found):.3f} (median), above 0.5 for "
        f"{np.mean(found > 0.5):.0%}"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(str(Path(folder) / "definitions.zarr"))
