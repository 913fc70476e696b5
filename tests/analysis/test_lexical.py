"""Names of features without a language model: the words that they prefer."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from interp_embed import Dataset
from interp_embed.analysis import diff
from interp_embed.analysis.lexical import strongest_documents
from interp_embed.analysis.lexical_names import log_odds
from interp_embed.data import load_demo
from interp_embed.labels.record import FeatureLabel
from interp_embed.sae import BaseSAE, LocalSAE
from interp_embed.sae.releases.embedded_release import embedded_labels, embedded_sae_folder

FOODS = ("chicken", "beef", "pork")
FILLER = [
    "the",
    "of",
    "a",
    "in",
    "house",
    "river",
    "stone",
    "cloud",
    "table",
    "with",
    "and",
    "small",
    "green",
    "under",
]


class PlantedSAE(BaseSAE):
    """Knows what its features stand for.

    0: foods. 1: the word after "made of". 2: the first word. 3: nothing. 4: everything.
    5: the second half of a word. 6: a word that occurs once. 7: below zero everywhere.
    """

    def load_models(self):
        pass

    def destroy_models(self):
        pass

    def tokenize(self, documents, as_tokens=True, padding=False):
        return [
            [part for word in re.findall(r"\s*\S+", text) for part in self.parts(word)]
            for text in documents
        ]

    @staticmethod
    def parts(word):
        return [word[:-3], word[-3:]] if word.strip() == "custard" else [word]

    def encode(self, texts):
        return [self.one(tokens) for tokens in self.tokenize(texts)]

    @staticmethod
    def one(tokens):
        words = [token.strip().lower() for token in tokens]
        dense = np.zeros((len(words), 8), np.float32)
        for at, word in enumerate(words):
            dense[at, 0] = 3 + len(word) / 10 if word in FOODS else 0
            dense[at, 1] = 2 + at % 5 if words[max(0, at - 2) : at] == ["made", "of"] else 0
            dense[at, 2] = 1 if at == 0 else 0
            dense[at, 4] = 1 + (at * 7) % 3
            dense[at, 5] = 4 if word == "ard" else 0
            dense[at, 6] = 1 if word == "zebra" else 0
            dense[at, 7] = -1
        return csr_matrix(dense)


def sentences(n, seed=0):
    rng = np.random.default_rng(seed)
    texts = []
    for number in range(n):
        words = rng.choice(FILLER, 12).tolist()
        if number % 3 == 0:
            words.insert(int(rng.integers(3, 9)), FOODS[number % 9 // 3].title())
        if number % 4 == 1:
            words[5:5] = ["made", "of", str(rng.choice(["stone", "cloud", "river", "table"]))]
        if number % 10 == 2:
            words.append("custard")
        if number == 7:
            words.append("zebra")
        texts.append(" ".join(words))
    return texts


@pytest.fixture(scope="module")
def planted():
    return Dataset([{"text": text} for text in sentences(120)], PlantedSAE())


def names(found):
    return {label.feature: label.label for label in found}


def test_a_feature_is_named_after_the_words_that_it_prefers(planted):
    found = names(planted.label_features_from_tokens())
    assert set(re.findall(r'"(\w+)"', found[0])) == set(FOODS)
    assert "…" not in found[0]
    assert found[1] == 'the word after "made of"'
    assert found[2] == "the first word"
    assert 3 not in found
    assert 7 not in found
    assert found[4].endswith("…"), "no words are most of it"
    assert found[5] == '"custard"'
    assert found[6] == '"zebra"'


def test_names_are_committed_and_shown_until_there_are_better_ones(planted):
    found = planted.label_features_from_tokens([0, 5], words=2)
    assert [label.feature for label in found] == [0, 5]
    assert planted.feature_labels()[5] == '"custard"'
    assert len(re.findall('"', names(found)[0])) == 4
    planted.add_labels({5: "a dessert"})
    assert planted.feature_labels()[5] == "a dessert"
    record = found[1]
    assert (record.source, record.prompt_version) == ("tokens", "log-odds-1")
    assert "100%" in record.brief_description
    assert '"custard" z = ' in record.detailed_explanation
    for example in record.examples:
        row = planted.rows[example.document]
        assert row.tokenized_document[example.start : example.stop] in (["ard"], [" cust"])
        assert row.activations[example.start, 5] == example.activation > 0


def test_the_same_documents_give_the_same_names_however_they_are_stored(tmp_path):
    texts = [{"text": text} for text in sentences(120)]
    one = Dataset(texts, PlantedSAE(), save_path=tmp_path / "one")
    many = Dataset(
        texts, PlantedSAE(), save_path=tmp_path / "many", batch_size=1, compute_activations=False
    )
    with pytest.raises(ValueError, match="nothing was encoded yet"):
        many.label_features_from_tokens()
    many = Dataset(texts, PlantedSAE(), save_path=tmp_path / "many", batch_size=7)
    many.build_index()
    first = one.label_features_from_tokens(commit=False)
    assert many.label_features_from_tokens(commit=False) == first
    assert many.label_features_from_tokens([4, 1], commit=False) == [
        x for x in first if x.feature in (1, 4)
    ]
    assert one.feature_labels() == {}


def test_features_in_several_passes_are_named_as_in_one(planted, monkeypatch):
    from interp_embed.analysis import token_labels

    expected = names(planted.label_features_from_tokens([0, 1, 5, 6], commit=False))
    monkeypatch.setattr(token_labels, "_PAIRS", 20)  # one feature at a time
    monkeypatch.setattr(token_labels, "_READ_DOCUMENTS", 3)
    found = names(planted.label_features_from_tokens([0, 1, 5, 6], commit=False))
    assert found == expected


def test_a_text_that_is_there_many_times_counts_once():
    texts = [*["zebra made of pork and stone"] * 30, *sentences(60)]
    found = names(
        Dataset([{"text": text} for text in texts], PlantedSAE()).label_features_from_tokens()
    )
    assert set(re.findall(r'"(\w+)"', found[0])) == set(FOODS)
    assert found[1] == 'the word after "made of"'
    assert found[6] == '"zebra"'
    assert "in the 1 document" not in found[0]


def test_a_view_and_failed_and_empty_documents(tmp_path):
    texts = [*sentences(60), "", None, "custard"]
    dataset = Dataset([{"text": text} for text in texts], PlantedSAE())
    found = names(dataset[::-1].label_features_from_tokens(commit=False))
    assert found[5] == '"custard"'
    assert found[1] == 'the word after "made of"'
    assert dataset[60:62].label_features_from_tokens(commit=False) == []


def test_bad_arguments_are_refused_before_work(planted):
    with pytest.raises(IndexError, match="feature 8 is not among the 8 features"):
        planted.label_features_from_tokens([8])
    with pytest.raises(TypeError, match="features must be integers"):
        planted.label_features_from_tokens([0.5])
    with pytest.raises((TypeError, ValueError), match="k"):
        planted.label_features_from_tokens(k=0)


def test_log_odds_are_those_of_the_paper():
    # Monroe et al., equations 16, 19 (without its last two terms) and 22, term by term.
    y1, y2, n1, n2 = 7.0, 3.0, 40.0, 1000.0
    prior = np.array([0.05, 0.2, 9.75])
    alpha, a0 = prior[0], prior.sum()
    delta = np.log((y1 + alpha) / (n1 + a0 - y1 - alpha)) - np.log(
        (y2 + alpha) / (n2 + a0 - y2 - alpha)
    )
    expected = delta / np.sqrt(1 / (y1 + alpha) + 1 / (y2 + alpha))
    np.testing.assert_allclose(log_odds(y1, n1, y2, n2, alpha), expected, rtol=1e-12)
    # A word that is everything on one side, and one that is nowhere, are finite.
    assert np.isfinite(log_odds([40.0, 0.0], 40, [0, 0], 1000, [1e-6, 1e-6])).all()
    # More of the same is surer, and a swap changes the sign.
    assert log_odds(14, 80, 6, 2000, 0.1) > log_odds(7, 40, 3, 1000, 0.1)
    np.testing.assert_allclose(log_odds(3, 50, 3, 50, 0.1), 0, atol=1e-12)


def test_the_strongest_documents_are_those_of_a_sort():
    rng = np.random.default_rng(1)
    dense = rng.integers(-2, 6, (90, 7)).astype(np.float32)
    dense[5] = np.nan
    blocks = [(np.arange(a, a + 9), csr_matrix(dense[a : a + 9])) for a in range(0, 90, 9)]
    for k in (1, 4, 100):
        found = strongest_documents(blocks, 7, k)
        assert (np.diff(found.document) >= 0).all()
        for feature in range(7):
            column = np.where(dense[:, feature] > 0, dense[:, feature], 0)
            order = np.argsort(-column, kind="stable")[: min(k, int((column > 0).sum()))]
            assert sorted(order) == found.document[found.feature == feature].tolist()


def test_the_embedded_sae_has_names():
    labels = embedded_labels()
    assert len(labels) > 3500
    assert all(0 <= feature < 4096 and label.strip() for feature, label in labels.items())
    said = json.loads((embedded_sae_folder() / "labels.json").read_text(encoding="utf-8"))
    assert said["method"].startswith("log-odds-1")
    sae = LocalSAE.embedded()
    sae.load_feature_labels()
    assert sae.feature_labels() == labels
    other = LocalSAE()
    other.load_feature_labels()
    assert other.feature_labels() == {}


@pytest.mark.model
def test_a_store_of_the_embedded_sae_shows_its_names_and_they_are_what_the_texts_give(tmp_path):
    texts = load_demo().head(24)
    dataset = Dataset(texts, LocalSAE.embedded(), save_path=tmp_path / "s")
    shown = Dataset.load_from_file(tmp_path / "s")
    assert shown.feature_labels() == embedded_labels()
    assert set(shown.labels()["source"]) == {"sae"}
    table = diff(shown[texts["group"] == "food"], shown[texts["group"] == "animal"])
    assert (table["label"] != "").mean() > 0.9
    found = dataset.label_features_from_tokens(commit=False)
    assert {label.feature for label in found} <= set(embedded_labels())


def by_the_words(body):
    """A judge who looks for the words that a description quotes, and knows nothing else."""
    lines = body["messages"][1]["content"].split("\n")
    told = [json.loads(line) for line in lines if line.startswith("{")]
    words = set(re.findall(r'"([^"]+)"', told[0]["description"]))
    samples = [
        {
            "sample": sample["sample"],
            "matches": not words.isdisjoint(re.findall(r"\w+", sample["text"].lower())),
        }
        for sample in told[1:]
    ]
    return {"verdicts": samples}


def test_names_are_scored_by_detection_like_those_of_a_language_model(planted, tmp_path):
    pytest.importorskip("openai")
    from interp_embed.llm.label_records import score_record
    from interp_embed.testing import LLMServer

    planted.save_to_file(tmp_path / "s")
    dataset = Dataset.load_from_file(tmp_path / "s")
    (label,) = dataset.label_features_from_tokens([0])
    dataset.add_labels([FeatureLabel(0, '"river"', source="llm")])
    assert dataset.feature_labels()[0] == '"river"', "a language model's, as none is scored"
    with LLMServer(by_the_words) as server:

        async def score(text):
            return await dataset.score_feature(
                0, text, "local/judge", method="detection", base_url=server.url, k=10
            )

        good, bad = asyncio.run(score(label.label)), asyncio.run(score('"river"'))
    assert good["score"] == 1.0
    assert bad["score"] < 0.8
    dataset.add_labels(
        [
            replace(label, scores=(score_record(good),)),
            FeatureLabel(0, '"river"', source="llm", scores=(score_record(bad),)),
        ]
    )
    assert Dataset.load_from_file(tmp_path / "s").feature_labels()[0] == label.label


def test_a_word_without_end_is_cut_and_takes_no_other_name_with_it():
    texts = [
        f"pork {'x' * 70_000} of chicken",
        f"beef {'x' * 70_000} in pork",
        "of beef",
        "chicken",
    ]
    found = Dataset([{"text": text} for text in texts], PlantedSAE()).label_features_from_tokens()
    assert {label.feature for label in found} >= {0, 2, 4}
    assert max(len(label.label) for label in found) < 400
    assert any("x" * 100 + "…" in label.label for label in found)
