"""The demo's documents are what their read-me says, and come with their licence."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.resources import files

from interp_embed.data import load_demo
from tests.support.paths import ROOT


def test_the_demo_has_two_groups_of_clean_distinct_definitions():
    demo = load_demo()
    assert list(demo.columns) == ["text", "group", "word"]
    assert demo["group"].value_counts().to_dict() == {"animal": 200, "food": 200}
    assert demo["text"].is_unique
    assert demo["text"].str.len().min() >= 60
    assert demo["word"].str.fullmatch("[a-z' -]+").all()
    # No trace of a wrong encoding, of markup or of a stray control character.
    wrong = re.compile(r"[^ -~]|&\w+;|&#|\||  |^ | $")
    assert not demo["text"].str.contains(wrong).any()


def test_words_are_those_of_their_definitions():
    word = load_demo().set_index("text")["word"]
    assert word["saffron-flavored dish made of rice with shellfish and chicken"] == "paella"
    assert word["dog trained to assist the deaf by signaling the occurrence of certain sounds"] == (
        "hearing dog"
    )
    assert word['any liquid suitable for drinking; "may I take your beverage order?"'] == "beverage"


def test_the_groups_are_mixed_and_come_in_the_same_order_each_time():
    demo = load_demo()
    assert demo["group"].iloc[:50].nunique() == 2
    assert demo.equals(load_demo())


def test_the_licence_goes_with_the_documents():
    notice = (files("interp_embed.data") / "LICENSE-WordNet.txt").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in notice
    assert "provided that you agree to comply with" in notice
    assert "PROVIDED \"AS IS\"" in notice  # fmt: skip


def test_the_read_me_counts_right():
    demo = load_demo()
    text = (files("interp_embed.data") / "README.md").read_text()
    assert f"{int(demo['text'].str.contains(chr(34)).sum())} of them have an example" in text


def test_other_data_are_not_sampled(tmp_path):
    (tmp_path / "data.noun").write_bytes(b"other")
    script = ROOT / "scripts" / "make_demo_sample.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "expected a data.noun with SHA-256" in done.stderr
