"""Differences between two data sets agree with counting by hand and with published intervals."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse import random as random_sparse

from interp_embed.analysis import diff, newcombe_interval
from tests.support.hypotheses import examples


class Documents:
    """A data set as `diff` knows one: document-level maxima, and labels."""

    def __init__(self, maxima, labels=None, failed=()) -> None:
        self.maxima = np.asarray(maxima, np.float64)
        self.labels = labels or {}
        self.failed = list(failed)

    def latents(self, aggregation_method="max", *, compress=False, activated_threshold=0.0):
        assert aggregation_method == "binarize"
        assert compress
        active = (self.maxima > activated_threshold).astype(np.float64)
        active[self.failed] = np.nan
        return csr_matrix(active)

    def feature_labels(self):
        return self.labels


# Newcombe (1998), Table II, method 10: x1, n1, x2, n2, low, high.
PUBLISHED = [
    (56, 70, 48, 80, 0.0524, 0.3339),
    (9, 10, 3, 10, 0.1705, 0.8090),
    (6, 7, 2, 7, 0.0582, 0.8062),
    (5, 56, 0, 29, -0.0381, 0.1926),
    (0, 10, 0, 20, -0.1611, 0.2775),
    (0, 10, 0, 10, -0.2775, 0.2775),
    (10, 10, 0, 20, 0.6791, 1.0000),
    (10, 10, 0, 10, 0.6075, 1.0000),
]


@pytest.mark.parametrize(("x1", "n1", "x2", "n2", "low", "high"), PUBLISHED)
def test_intervals_are_the_published_ones(x1, n1, x2, n2, low, high):
    np.testing.assert_allclose(newcombe_interval(x1, n1, x2, n2), (low, high), atol=5.1e-5)
    swapped = newcombe_interval(x2, n2, x1, n1)
    np.testing.assert_allclose(swapped, (-high, -low), atol=5.1e-5)


def test_intervals_of_arrays_are_those_of_their_elements():
    x1, n1, x2, n2, low, high = np.array(PUBLISHED).T
    found = newcombe_interval(x1, n1, x2, n2)
    np.testing.assert_allclose(found, (low, high), atol=5.1e-5)


def test_a_higher_confidence_gives_a_wider_interval():
    narrow, wide = newcombe_interval(5, 10, 3, 10, 0.5), newcombe_interval(5, 10, 3, 10, 0.99)
    assert wide[0] < narrow[0] < 0.2 < narrow[1] < wide[1]


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    for p1, p2, n1, n2 in [(0.02, 0.05, 200, 300), (0.5, 0.4, 80, 60), (0.9, 0.99, 100, 100)]:
        x1, x2 = rng.binomial(n1, p1, 20_000), rng.binomial(n2, p2, 20_000)
        low, high = newcombe_interval(x1, n1, x2, n2)
        assert 0.94 < np.mean((low <= p1 - p2) & (p1 - p2 <= high)) < 0.98


def brute_force(a, b, threshold, min_difference, k):
    rows = []
    for feature in range(a.maxima.shape[1]):
        parts = []
        for dataset in (a, b):
            values = [
                bool(v > threshold)
                for i, v in enumerate(dataset.maxima[:, feature])
                if i not in dataset.failed
            ]
            parts.append((sum(values), len(values)))
        (x1, n1), (x2, n2) = parts
        if x1 + x2 == 0:
            continue
        if (x1, x2) == (n1, n2):
            p_value = 1.0
        else:
            table = [[x1, n1 - x1], [x2, n2 - x2]]
            p_value = scipy.stats.chi2_contingency(table, correction=False).pvalue
        low, high = newcombe_interval(x1, n1, x2, n2)
        rows.append((feature, x1 / n1, x2 / n2, x1 / n1 - x2 / n2, low, high, p_value, n1, n2))
    # Benjamini and Hochberg's step-up: the least p * m / rank over this rank and those above.
    ranked = sorted(rows, key=lambda row: row[6])
    q_values, least = {}, 1.0
    for rank, row in reversed(list(enumerate(ranked, 1))):
        least = min(least, row[6] * len(ranked) / rank)
        q_values[row[0]] = least
    kept = [r for r in rows if abs(r[3]) >= min_difference - 1e-12]
    kept.sort(key=lambda row: (-round(abs(row[3]), 9), row[0]))
    return [(*row[:7], q_values[row[0]], *row[7:]) for row in kept[:k]]


@settings(max_examples=examples(150))
@given(st.data())
def test_diff_agrees_with_counting_by_hand(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    d_sae = data.draw(st.integers(1, 30))
    datasets = []
    for _ in range(2):
        n = data.draw(st.integers(1, 12))
        maxima = rng.integers(-1, 3, (n, d_sae)) * (rng.random(d_sae) < 0.7)
        failed = data.draw(st.lists(st.integers(0, n - 1), max_size=n - 1, unique=True))
        datasets.append(Documents(maxima, failed=failed))
    options = {
        "threshold": data.draw(st.sampled_from([0.0, 1.0, -2.0])),
        "min_difference": data.draw(st.sampled_from([0.0, 0.03, 0.25, 0.5])),
        "k": data.draw(st.sampled_from([1, 5, 200, None])),
    }
    found = diff(*datasets, **options)
    expected = brute_force(*datasets, **options)
    columns = ["feature", "share_a", "share_b", "difference", "low", "high", "p_value", "q_value"]
    assert found["feature"].tolist() == [row[0] for row in expected]
    if expected:
        np.testing.assert_allclose(
            found[[*columns, "n_a", "n_b"]].to_numpy(float), np.array(expected, float), atol=1e-12
        )
    assert (found["low"] <= found["difference"]).all()
    assert (found["difference"] <= found["high"]).all()


def test_failed_documents_count_neither_as_active_nor_as_documents():
    a = Documents([[1.0, 0.0], [1.0, 5.0], [9.0, 9.0]], failed=[2])
    b = Documents([[0.0, 0.0], [1.0, 0.0]])
    found = diff(a, b).set_index("feature")
    assert found["n_a"].tolist() == [2, 2]
    assert found.loc[0, ["share_a", "share_b"]].tolist() == [1.0, 0.5]
    assert found.loc[1, ["share_a", "share_b"]].tolist() == [0.5, 0.0]


def test_ties_go_by_feature_and_labels_of_the_first_win():
    a = Documents(np.eye(4)[[0, 1]], {0: "cats", 1: "dogs"})
    b = Documents(np.eye(4)[[2, 3]], {1: "hounds", 2: "birds"})
    found = diff(a, b)
    assert found["feature"].tolist() == [0, 1, 2, 3]
    assert found["label"].tolist() == ["cats", "dogs", "birds", ""]
    assert found["difference"].tolist() == [0.5, 0.5, -0.5, -0.5]
    assert list(found.columns) == [
        "feature", "label", "share_a", "share_b", "difference", "low", "high",
        "p_value", "q_value", "n_a", "n_b",
    ]  # fmt: skip


def test_swapping_the_two_turns_every_sign():
    rng = np.random.default_rng(0)
    a, b = Documents(rng.standard_normal((30, 9))), Documents(rng.standard_normal((20, 9)))
    forth, back = diff(a, b, min_difference=0), diff(b, a, min_difference=0)
    assert forth["feature"].tolist() == back["feature"].tolist()
    np.testing.assert_allclose(forth["difference"], -back["difference"])
    np.testing.assert_allclose(forth["low"], -back["high"])
    np.testing.assert_allclose(forth["p_value"], back["p_value"])


def test_features_active_nowhere_are_no_hypotheses():
    few, many = np.zeros((20, 3)), np.zeros((20, 3000))
    few[:8, 0] = many[:8, 0] = 1
    expected = diff(Documents(few), Documents(np.zeros((20, 3))))
    pd.testing.assert_frame_equal(diff(Documents(many), Documents(np.zeros((20, 3000)))), expected)
    assert expected["q_value"].tolist() == expected["p_value"].tolist()


def test_the_false_discovery_rate_is_held_where_nothing_differs():
    rng = np.random.default_rng(0)
    shares = rng.uniform(0.05, 0.6, 2000)
    a, b = (Documents(rng.random((300, 2000)) < shares) for _ in range(2))
    found = diff(a, b, min_difference=0, k=None)
    assert (found["p_value"] < 0.05).sum() > 50
    assert (found["q_value"] < 0.05).sum() == 0


def test_nothing_to_compare_is_an_error_and_no_difference_an_empty_table():
    one = Documents(np.ones((2, 3)))
    with pytest.raises(ValueError, match="3 features in the first and 4 in the second"):
        diff(one, Documents(np.ones((2, 4))))
    with pytest.raises(ValueError, match="the second data set has no encoded documents"):
        diff(one, Documents(np.ones((2, 3)), failed=[0, 1]))
    for other in (one, Documents(np.zeros((2, 3)))):
        found = diff(other, other)
        assert len(found) == 0
        assert list(found.columns)[:2] == ["feature", "label"]


def test_what_is_no_data_set_is_named():
    documents = Documents(np.ones((1, 2)))
    with pytest.raises(TypeError, match="b must be a Dataset, got int: 5"):
        diff(documents, 5)
    with pytest.raises(TypeError, match="a must be a Dataset, got NoneType"):
        diff(None, documents)


def test_wide_saes_are_compared_quickly():
    class Wide:
        def __init__(self, seed) -> None:
            matrix = random_sparse(5000, 65_536, density=0.005, format="csr", rng=seed)
            matrix.data[:] = 1
            self.matrix = csr_matrix(matrix)

        def latents(self, *args, **kwargs):
            return self.matrix

        def feature_labels(self):
            return {}

    a, b = Wide(0), Wide(1)
    start = time.perf_counter()
    found = diff(a, b, min_difference=0, k=None)
    assert len(found) > 65_000
    assert time.perf_counter() - start < 5
