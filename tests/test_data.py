"""The demo's documents are what their read-me says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from interp_embed.data import load_demo


def test_the_demo_has_two_groups_of_clean_distinct_sentences():
    demo = load_demo()
    assert list(demo.columns) == ["text", "group", "sentiment"]
    assert demo["group"].value_counts().to_dict() == {
        "film review": 200,
        "newspaper editorial": 200,
    }
    assert demo["text"].is_unique
    assert demo["text"].str.len().min() >= 40
    assert demo["sentiment"].dtype == float
    assert demo["sentiment"].between(-4, 4).all()
    assert demo["sentiment"].nunique() > 100
    # No trace of a wrong encoding, an unresolved entity or a stray control character.
    wrong = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffd]|Ã|â€|&\w+;|&#|  ")
    assert not demo["text"].str.contains(wrong).any()
    assert demo["text"].str.contains("Amélie").any()


def test_ratings_are_those_of_their_sentences():
    ratings = load_demo().set_index("text")["sentiment"]
    assert ratings["This feature is about as necessary as a hole in the head"] == -3.2963
    assert ratings["Move over Bond; this girl deserves a sequel."] == 2.45
    assert ratings["It must be driving traditional Kremlin watchers batty."] == -0.75


def test_the_groups_are_mixed_and_come_in_the_same_order_each_time():
    demo = load_demo()
    assert demo["group"].iloc[:50].nunique() == 2
    assert demo.equals(load_demo())


def test_a_changed_archive_is_not_sampled(tmp_path):
    (tmp_path / "vaderSentiment-3.3.2.tar.gz").write_bytes(b"other")
    script = Path(__file__).parent.parent / "docs" / "make_demo_sample.py"
    command = [sys.executable, script, tmp_path / "vaderSentiment-3.3.2.tar.gz"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "expected the archive with SHA-256 5d7c06e0" in done.stderr
