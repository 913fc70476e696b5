"""Which excerpts a feature is shown by, against a dense computation over every document."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix, vstack

from interp_embed import Dataset
from interp_embed.llm.samples.choice import Choice, Example, choose, scattered
from interp_embed.llm.samples.neighbours import nearest
from interp_embed.llm.samples.samples import SelectedSamples
from interp_embed.selection.selection import Selection
from tests.support.fake_sae import D_SAE, EMOJI, FAIL, WordSAE, expected, words
from tests.support.hypotheses import examples

WORDS = (
    "the cat sat on mat dogs are loyal pets python is a programming language machine learning "
    f"fascinating end smile one two three four five six seven eight nine {EMOJI}"
).split()
BOS_FEATURE = 31


def samples(dataset):
    return SelectedSamples(dataset.selection, dataset.d_sae)


class BosSAE(WordSAE):
    """Puts a special token in front, on which one feature is always strongest."""

    def tokenize(self, documents, as_tokens=True, padding=False):
        return [["<s>", *words(text)] for text in documents]

    def _one(self, text):
        matrix = super()._one(text)
        bos = np.zeros((1, D_SAE), np.float32)
        bos[0, BOS_FEATURE] = 1000
        bos[0, 7] = 500
        return csr_matrix(vstack([csr_matrix(bos), matrix]))


def texts(n=150, most=40, seed=1):
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most))) for _ in range(n)]


def made(documents, sae=None, **kwargs):
    return Dataset([{"text": text} for text in documents], sae or WordSAE(), **kwargs)


@pytest.fixture(scope="module")
def corpus():
    documents = texts()
    documents[3] = f"the {FAIL} cat"
    documents[4] = ""
    documents[5] = None
    return made(documents)


@pytest.fixture(scope="module")
def highest(corpus):
    """Highest activation of each feature in each document, dense; NaN where there is none."""
    rows = [
        np.full(D_SAE, np.nan)
        if number in (3, 5)
        else expected(text).max(axis=0)
        if words(text)
        else np.zeros(D_SAE)
        for number, text in enumerate(corpus.documents())
    ]
    return np.array(rows)


def chosen(dataset, feature=5, k=10, **kwargs):
    own = samples(dataset)
    return choose(own, own, feature, Choice(**kwargs), n_positive=k, n_negative=k)


def check(example, dataset, feature):
    """An excerpt is a part of its document, with the activations that the SAE gives."""
    text = dataset.documents()[example.position]
    assert example.document == dataset.selection.documents[example.position]
    strings, values = words(text), expected(text)[:, feature]
    assert list(example.tokens) == strings[example.start : example.stop]
    assert example.activations == tuple(values[example.start : example.stop].tolist())
    assert example.text in text
    assert example.cut_before == (example.start > 0)
    assert example.cut_after == any(strings[example.stop :])


@pytest.mark.parametrize("how", ["top", "quantile", "random"])
@pytest.mark.parametrize("negatives", ["random", "hard"])
def test_positive_excerpts_have_the_feature_and_negative_ones_do_not(
    corpus, highest, how, negatives
):
    found = chosen(corpus, examples=how, negatives=negatives)
    assert len(found.positive) == len(found.negative) == 10
    for example in (*found.positive, *found.negative):
        check(example, corpus, 5)
    assert all(highest[e.position, 5] == max(e.activations) > 0 for e in found.positive)
    assert all(highest[e.position, 5] <= 0 for e in found.negative)
    assert not any(any(e.active) for e in found.negative)
    everything = [e.text for e in (*found.positive, *found.negative)]
    assert len(set(everything)) == 20


def test_top_examples_are_of_the_documents_in_which_the_feature_is_strongest(corpus, highest):
    order = np.argsort(-np.nan_to_num(highest[:, 7], nan=-1.0), kind="stable")
    drawn = set()
    for seed in range(20):
        positions = {e.position for e in chosen(corpus, 7, k=5, seed=seed).positive}
        assert positions <= set(order[:15].tolist())
        drawn |= positions
    assert drawn == set(order[:15].tolist())


def test_quantile_examples_are_of_every_strength(corpus, highest):
    active = np.flatnonzero(highest[:, 5] > 0)
    order = active[np.argsort(-highest[active, 5], kind="stable")]
    parts = np.array_split(order, 8)
    for seed in range(5):
        found = chosen(corpus, k=8, examples="quantile", seed=seed).positive
        positions = {e.position for e in found}
        assert [len(positions & set(part.tolist())) for part in parts] == [1] * 8


def test_random_examples_are_any_documents_that_have_the_feature(corpus, highest):
    active = np.flatnonzero(highest[:, 5] > 0)
    drawn = {
        e.position
        for seed in range(40)
        for e in chosen(corpus, k=12, examples="random", seed=seed).positive
    }
    assert drawn <= set(active.tolist())
    assert len(drawn) > 0.9 * len(active)


def test_the_seed_decides_and_nothing_else(corpus):
    for how in ("top", "quantile", "random"):
        for negatives in ("random", "hard"):
            kwargs = {"examples": how, "negatives": negatives}
            assert chosen(corpus, **kwargs, seed=3) == chosen(corpus, **kwargs, seed=3)
            assert chosen(corpus, **kwargs, seed=3) != chosen(corpus, **kwargs, seed=4)


def test_an_index_changes_nothing(tmp_path):
    path = tmp_path / "store.zarr"
    plain = made(texts(), save_path=path)
    before = [chosen(plain, f, negatives="hard") for f in (1, 5, 7)]
    plain.build_index()
    indexed = Dataset.load_from_file(path)
    assert indexed.selection.store.index() is not None
    after = [chosen(indexed, f, negatives="random") for f in (1, 5, 7)]
    assert [c.positive for c in after] == [c.positive for c in before]
    for feature in (1, 5, 7):
        found = chosen(indexed, feature, negatives="hard")
        assert found == chosen(Dataset.load_from_file(path), feature, negatives="hard")
        assert not any(any(e.active) for e in found.negative)


def test_a_view_gives_positions_in_it_and_documents_of_the_store(corpus):
    view = corpus[np.arange(100, 20, -1)]
    found = chosen(view)
    for example in (*found.positive, *found.negative):
        assert example.document == 100 - example.position
        check(example, view, 5)


def test_samples_come_from_the_data_sets_that_are_given(corpus):
    first, second = corpus[:60], corpus[60:]
    found = choose(samples(first), samples(second), 5, Choice(), n_positive=6, n_negative=6)
    assert all(e.document < 60 for e in found.positive)
    assert all(e.document >= 60 for e in found.negative)


# --- windows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 7, 30])
def test_a_window_is_around_the_strongest_token_and_no_longer(corpus, length):
    found = chosen(corpus, window_tokens=length)
    for example in found.positive:
        tokens = words(corpus.documents()[example.position])
        whole = [t for t in example.tokens if t]
        shared = sum(t == "" for t in example.tokens)
        assert len(whole) <= length + shared
        assert len(example.tokens) >= min(length, len(tokens))
        assert (
            max(example.activations) == expected(corpus.documents()[example.position])[:, 5].max()
        )
        if len(tokens) > length and example.cut_before and example.cut_after and not shared:
            peak = int(np.argmax(example.activations))
            assert peak == int(2 / 3 * length)


def test_characters_that_tokens_share_are_not_cut():
    dataset = made([f"one two {EMOJI} cat {EMOJI}{EMOJI} dogs", "no such thing"])
    feature = int(expected(EMOJI)[0].argmax())
    for length in range(1, 9):
        for example in chosen(dataset, feature, k=1, window_tokens=length).positive:
            assert example.tokens[0] != ""
            check(example, dataset, feature)


def test_long_documents_without_the_feature_are_shown_in_part_anywhere():
    dataset = made(["the " * 300 + "cat", *("one two three four " * 50 for _ in range(1))])
    feature = int(expected("cat")[0].argmax())
    assert expected("the one two three four")[:, feature].max() == 0
    starts = {chosen(dataset, feature, k=1, seed=s).negative[0].start for s in range(30)}
    assert len(starts) > 10
    assert max(starts) <= 201 - 64  # the space at the end is a token


def test_special_tokens_are_neither_shown_nor_what_is_active():
    dataset = made(texts(80), BosSAE())
    plain = made(texts(80))
    found = chosen(dataset, 7)
    assert len(found.positive) == 10
    for example in (*found.positive, *found.negative):
        assert "<s>" not in example.tokens
        assert example.start >= 1
        assert not example.cut_before or example.start > 1
    strongest = max(max(e.activations) for e in chosen(plain, 7, k=80, examples="random").positive)
    assert max(max(e.activations) for e in found.positive) <= strongest < 500
    with pytest.raises(ValueError, match="not active outside special tokens in any of the 80"):
        chosen(dataset, BOS_FEATURE)


# --- too few ------------------------------------------------------------------------------------


def test_a_feature_that_is_nowhere_active_is_an_error_that_says_so(corpus, highest):
    silent = int(np.flatnonzero(~(np.nan_to_num(highest) > 0).any(axis=0))[0])
    with pytest.raises(
        ValueError, match=f"feature {silent} is not active at all in any of the 150"
    ):
        chosen(corpus, silent)
    with pytest.raises(IndexError, match="feature 32 is not among the 32"):
        chosen(corpus, 32)


def test_there_are_fewer_where_documents_are_few_or_the_same():
    dataset = made(["cat one", "cat one", "two cat", "dogs", "dogs", "smile"])
    feature = int(expected("cat")[0].argmax())
    assert expected("one two dogs smile")[:, feature].max() == 0
    found = chosen(dataset, feature)
    assert sorted(e.text for e in found.positive) == ["cat one", "two cat"]
    assert sorted(e.text for e in found.negative) == ["dogs", "smile"]


def test_where_every_document_has_the_feature_excerpts_without_it_are_taken():
    rng = random.Random(0)
    quiet = [w for w in WORDS if expected(w)[0, expected("cat")[0].argmax()] <= 0]
    documents = [
        " ".join(["cat", *(rng.choice(quiet) for _ in range(30)), "cat"]) for _ in range(20)
    ]
    dataset, feature = made(documents), int(expected("cat")[0].argmax())
    found = chosen(dataset, feature, window_tokens=12)
    assert len(found.negative) == 10
    for example in found.negative:
        assert not any(example.active)
        assert 8 <= len(example.tokens) <= 13
        check(example, dataset, feature)
    short = made(["cat one two", "cat dogs", "cat"])
    assert chosen(short, feature).negative == ()


def test_hard_negatives_are_like_the_positive_documents_in_other_features():
    rng = random.Random(5)
    alike, different = ["dogs", "are", "pets", "mat"], ["language", "machine", "four", "five"]
    positive = [" ".join(["cat", *rng.choices(alike, k=10)]) for _ in range(20)]
    near = [" ".join(rng.choices(alike, k=10)) for _ in range(15)]
    far = [" ".join(rng.choices(different, k=10)) for _ in range(200)]
    dataset = made([*positive, *far, *near])
    feature = int(expected("cat")[0].argmax())
    hard = chosen(dataset, feature, negatives="hard").negative
    assert {e.position for e in hard} <= set(range(220, 235))
    plain = chosen(dataset, feature, negatives="random").negative
    assert not {e.position for e in plain} <= set(range(220, 235))


def test_nearest_documents_are_those_of_a_dense_computation(corpus, highest):
    lacking = np.flatnonzero(highest[:, 5] <= 0)
    examples = np.array([0, 6, 9])
    own = samples(corpus)
    found = nearest(own, lacking, own, examples, 1000, np.random.default_rng(0))
    assert sorted(found.tolist()) == lacking.tolist()  # few enough that all are compared

    values = np.maximum(highest, 0)
    df = (values[lacking] > 0).sum(axis=0)
    weighted = values * np.log((1 + len(lacking)) / (1 + df))
    unit = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-30)
    alike = unit[lacking] @ unit[examples].T
    ranks = np.argsort(-alike, axis=0, kind="stable")
    best = lacking[ranks[0]].tolist()
    assert found[: len(set(best))].tolist() == list(dict.fromkeys(best))
    at = np.searchsorted(lacking, found)
    place = np.argsort(ranks, axis=0)[at].min(
        axis=1
    )  # each one's best rank for any of the examples
    assert (np.diff(place) >= 0).all()


# --- marks at random ----------------------------------------------------------------------------


@settings(max_examples=examples(300))
@given(
    st.lists(st.tuples(st.sampled_from(["a", " bc", ""]), st.booleans()), min_size=1, max_size=30),
    st.integers(0, 5),
)
def test_scattered_marks_are_as_many_as_the_true_ones_and_elsewhere(tokens, seed):
    activations = tuple(float(active) for _, active in tokens)
    strings = tuple(text for text, _ in tokens)
    example = Example(0, 0, 0, len(tokens), strings, activations, False, False)
    marks = scattered(example, np.random.default_rng(seed))
    starts = [n for n, t in enumerate(strings) if t or n == 0]
    units = [any(activations[a:b]) for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]
    if marks is None:
        assert 2 * sum(units) + max(0, runs(units) - 1) >= len(units) - runs(units)
        return
    assert len(marks) == len(tokens)
    marked = [marks[n] for n in starts]
    assert sum(marked) == sum(units)
    assert runs(marked) == runs(units)
    assert not any(m and u for m, u in zip(marked, units, strict=True))


def runs(flags):
    return sum(flag and not before for flag, before in zip(flags, [False, *flags], strict=False))


def test_long_documents_are_read_one_after_the_other(monkeypatch):
    """What is held at once does not grow with the number of samples."""
    long = [" ".join(random.Random(seed).choices(WORDS, k=4_000)) for seed in range(30)]
    dataset = made(long + texts(30))
    expected = [chosen(dataset, k=10, seed=seed) for seed in range(3)]
    monkeypatch.setattr("interp_embed.llm.samples.choice._TOKENS", 6_000)
    read, sizes = Selection.rows, []

    def counted(selection, positions):
        sizes.append(int(selection.store.n_tokens(selection.documents[positions]).sum()))
        assert sizes[-1] <= 6_000
        return read(selection, positions)

    monkeypatch.setattr(Selection, "rows", counted)
    assert [chosen(dataset, k=10, seed=seed) for seed in range(3)] == expected
    assert max(sizes) > 4_000  # short ones go together with long ones


def test_choosing_from_long_documents_takes_the_memory_of_one(tmp_path):
    words = 250_000
    code = f"""
import random, resource, sys
import numpy as np
from tests.support.fake_sae import WordSAE
from interp_embed import Dataset
from interp_embed.llm.samples.choice import Choice, choose
from interp_embed.llm.samples.samples import SelectedSamples

def samples(dataset):
    return SelectedSamples(dataset.selection, dataset.d_sae)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

if sys.argv[1] == "make":
    texts = [" ".join(random.Random(n).choices({WORDS!r}, k={words})) for n in range(10)]
    Dataset([{{"text": text}} for text in texts], WordSAE(), save_path={str(tmp_path / "s")!r})
else:
    dataset = Dataset.load_from_file({str(tmp_path / "s")!r})
    dataset[:1].latents("max")
    one, all_ = samples(dataset[:1]), samples(dataset)
    choose(one, one, 5, Choice(), n_positive=1, n_negative=1)
    before = peak()
    assert len(choose(all_, all_, 5, Choice(), n_positive=8, n_negative=1).positive) == 8
    print(peak() - before)
"""

    def run(what):
        done = subprocess.run(
            [sys.executable, "-c", code, what], capture_output=True, text=True, check=True
        )
        return done.stdout

    run("make")
    assert float(run("choose")) < 150  # MiB more than for one document; 8 at once take 270
