"""Draw the demo's documents again from the source distribution they come from.

Get the archive, then run this from the repository's root::

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python docs/make_demo_sample.py vaderSentiment-3.3.2.tar.gz
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html
import io
import json
import random
import tarfile
from pathlib import Path

SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
RESOURCES = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
GROUPS = {
    "film review": "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "newspaper editorial": "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
}
SEED = 0
PER_GROUP = 200
SHORTEST = 40
TARGET = Path(__file__).parent.parent / "interp_embed" / "data" / "demo.jsonl.gz"


def clean(text: str) -> str:
    """Resolve HTML entities (some are escaped twice) and collapse white space."""
    while (resolved := html.unescape(text)) != text:
        text = resolved
    return " ".join(text.split())


def read_group(archive: tarfile.TarFile, name: str) -> list[tuple[str, float]]:
    """Return the distinct texts of a file that are long enough, and their mean ratings."""
    member = archive.extractfile(name)
    if member is None:
        raise FileNotFoundError(f"{name} is not a file in the archive")
    rows = [line.split("\t") for line in member.read().decode("utf-8-sig").split("\r\n") if line]
    texts: dict[str, float] = {}
    for _, rating, text in rows:
        texts.setdefault(clean(text), float(rating))
    return [(text, rating) for text, rating in texts.items() if len(text) >= SHORTEST]


def main() -> None:
    """Write the sample."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="vaderSentiment-3.3.2.tar.gz")
    content = parser.parse_args().archive.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise SystemExit(f"expected the archive with SHA-256 {SHA256}, got {found}")
    documents = []
    with tarfile.open(fileobj=io.BytesIO(content)) as outer:
        resources = outer.extractfile(RESOURCES)
        with tarfile.open(fileobj=resources) as inner:
            for group, name in GROUPS.items():
                eligible = read_group(inner, name)
                drawn = random.Random(SEED).sample(eligible, PER_GROUP)
                documents += [
                    {"text": text, "group": group, "sentiment": round(rating, 4)}
                    for text, rating in drawn
                ]
                print(f"{group}: {len(drawn)} of {len(eligible)}")
    random.Random(SEED).shuffle(documents)
    lines = "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in documents)
    TARGET.write_bytes(gzip.compress(lines.encode(), compresslevel=9, mtime=0))
    print(f"{TARGET}: {len(documents)} documents, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
