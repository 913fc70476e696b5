"""Draw the demo's documents again from the WordNet files they come from.

Get WordNet 3.0, on Debian for instance, then run this from the repository's root::

    apt-get download wordnet-base
    dpkg -x wordnet-base_*.deb wordnet
    python scripts/make_demo_sample.py wordnet/usr/share/wordnet
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import re
from pathlib import Path

SHA256 = "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"  # of data.noun
GROUPS = {"animal": 5, "food": 13}  # numbers of noun.animal and noun.food, see lexnames(5WN)
SEED = 0
PER_GROUP = 200
SHORTEST = 60
TARGET = Path(__file__).parent.parent / "interp_embed" / "data" / "demo.jsonl.gz"


def read_group(lines: list[str], number: int) -> list[tuple[str, str]]:
    """Return the definitions of a lexicographer file that are eligible, and their words.

    A line is ``offset file type count lemma ... | gloss``. A synset's first lemma stands for it;
    those that are not plain lower-case words (names, genera, families) are left out.
    """
    found: dict[str, str] = {}
    for line in lines:
        if line.startswith("  "):  # the licence, at the top
            continue
        synset, _, gloss = line.partition(" | ")
        fields = synset.split(" ")
        word = fields[4].replace("_", " ")
        text = " ".join(gloss.split())
        if int(fields[1]) == number and len(text) >= SHORTEST and re.fullmatch("[a-z' -]+", word):
            found.setdefault(text, word)
    return list(found.items())


def main() -> None:
    """Write the sample."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="WordNet's folder, the one with data.noun")
    content = (parser.parse_args().folder / "data.noun").read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise SystemExit(f"expected a data.noun with SHA-256 {SHA256}, got {found}")
    lines = content.decode("ascii").splitlines()
    documents = []
    for group, number in GROUPS.items():
        eligible = read_group(lines, number)
        drawn = random.Random(SEED).sample(eligible, PER_GROUP)
        documents += [{"text": text, "group": group, "word": word} for text, word in drawn]
        print(f"{group}: {len(drawn)} of {len(eligible):,}")
    random.Random(SEED).shuffle(documents)
    records = "".join(json.dumps(d) + "\n" for d in documents)
    TARGET.write_bytes(gzip.compress(records.encode(), compresslevel=9, mtime=0))
    print(f"{TARGET}: {len(documents)} documents, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
