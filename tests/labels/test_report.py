"""What is said of labels: why features failed, and which labels show."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp_embed import Dataset
from interp_embed.labels.record import best_labels
from interp_embed.labels.report import NamedFeatures, Shown
from interp_embed.llm.bulk.failure_counts import reasons
from interp_embed.llm.bulk.plan import Estimate
from interp_embed.llm.bulk.result import BulkLabels
from interp_embed.store.storage import LocalStorage
from tests.support.fake_sae import WideSAE
from tests.support.labels import RECORDS, label


def bulk(failed):
    table = pd.DataFrame(
        {
            "feature": list(failed),
            "label": ["" if why else "<b>cats</b>" for why in failed.values()],
            "score": np.nan,
            "failed": list(failed.values()),
            "not_scored": "",
        }
    )
    estimate = Estimate(
        features=9, requests=9, kept=0, prompt_tokens=9, completion_tokens=9, cost=None
    )
    return BulkLabels(table, None, estimate, requests=9, kept=1, tokens=99, cost=float("nan"))


# Many features


def test_the_reasons_of_failures_are_counted_and_their_first_features_named():
    quiet = "feature {} is not active at all in any of the 400 documents"
    failed = {n: quiet.format(n) for n in range(10, 17)}
    failed |= {
        20: "HTTP 400: the prompt\nis too long",
        21: "",
        22: "HTTP 400: the prompt\nis too long",
    }
    assert str(bulk(failed)).splitlines() == [
        "1 feature labelled, 9 failed, 9 requests (1 more were already answered), 99 tokens",
        f"  7 failed: {quiet.format(10)} (features 10, 11, 12, 13, 14, …)",
        "  2 failed: HTTP 400: the prompt is too long (features 20, 22)",
    ]
    assert repr(bulk(failed)) == str(bulk(failed))


def test_many_reasons_are_cut_and_what_is_left_out_is_counted():
    failed = {n: f"reason {chr(97 + n // 2)} {'x' * 999}" for n in range(14)}
    lines = str(bulk(failed)).splitlines()[1:]
    assert len(lines) == 6
    assert lines[-1] == "  4 failed for 2 other reasons: see `failures`"
    assert max(map(len, lines)) < 260
    assert "…" in lines[0]


def test_where_nothing_failed_there_is_one_line():
    assert len(str(bulk({1: ""})).splitlines()) == 1
    assert "<ul>" not in bulk({1: ""})._repr_html_()


def test_a_notebook_shows_the_reasons_and_the_first_rows_escaped():
    html = bulk({1: "", 2: "<script>", **dict.fromkeys(range(3, 40), "")})._repr_html_()
    assert "<li>1 failed: &lt;script&gt; (feature 2)</li>" in html
    assert "&lt;b&gt;cats&lt;/b&gt;" in html
    assert "<script>" not in html
    assert html.count("<tr") == 21
    assert "and 19 more rows" in html


@given(st.lists(st.sampled_from(["", "a 1", "a 2", "b", "b c"]), max_size=30))
def test_every_failure_is_counted_once(failed):
    found = reasons(bulk(dict(enumerate(failed))).table)
    counted = Counter(said.rstrip("12") for said in failed if said)
    assert {r.said.rstrip("12"): len(r.features) for r in found} == counted
    assert sorted(f for r in found for f in r.features) == [
        n for n, said in enumerate(failed) if said
    ]
    assert [len(r.features) for r in found] == sorted(counted.values(), reverse=True)


# Labels that are added


@given(st.lists(RECORDS, max_size=6), st.lists(RECORDS, max_size=6))
def test_each_feature_shows_one_of_the_labels_or_another(known, given_):
    before, after = best_labels(known), best_labels([*known, *given_])
    shown = Shown.of(given_, before, after)
    own = {x.feature for x in given_}
    keys = {x.key for x in given_}
    assert shown.features + sum(shown.others.values()) == len(own)
    assert shown.features == sum(after[f].key in keys for f in own)
    texts = {f: (before[f].label if f in before else None, after[f].label) for f in own}
    assert shown.replaced == sum(
        old not in (None, new) for f, (old, new) in texts.items() if after[f].key in keys
    )
    assert "show" in str(shown)


class Words(WideSAE):
    """Comes with names for all of its features."""

    def feature_labels(self):
        return dict.fromkeys(range(self.d_sae), "of the SAE")


@pytest.mark.parametrize("commit", [True, False])
def test_names_from_tokens_say_that_others_come_before_them(commit, data, tmp_path):
    dataset = Dataset(data, Words(), save_path=tmp_path / "s")
    before = dataset.feature_labels()
    found = dataset.label_features_from_tokens(commit=commit)
    assert isinstance(found, NamedFeatures)
    assert len(found) > 5
    assert dataset.feature_labels() == before
    assert found.shown == Shown(0, 0, {"the SAE's own": len(found)})
    what = f"{len(found)} new labels; " if commit else "not added; in the store, "
    assert str(found) == repr(found) == (
        f"{len(found)} labels made from tokens: {what}0 features show one of them; {len(found)} show "
        f"a label that comes before: the SAE's own ({len(found)})"
    )  # fmt: skip
    assert (found.added is None) == (not commit)
    assert len(dataset.labels()) == len(before) + (len(found) if commit else 0)
    assert found[0].source == "tokens"
    assert [x.label for x in found[:2]] == [found[0].label, found[1].label]


def test_names_from_tokens_that_show_are_counted(data, tmp_path):
    dataset = Dataset(data, WideSAE(), save_path=tmp_path / "s")
    dataset.add_labels([label(3, "mine", source="given")])
    found = dataset.label_features_from_tokens()
    shown = dataset.feature_labels()
    count = sum(shown[x.feature] == x.label for x in found)
    assert 0 < found.shown.features == count < len(found)
    again = dataset.label_features_from_tokens()
    assert (again.added, again.added.same, again.shown.features) == (0, len(found), count)


def test_a_store_that_cannot_be_written_is_noticed_before_names_are_made(
    data, tmp_path, monkeypatch
):
    dataset = Dataset(data, WideSAE(), save_path=tmp_path / "s")

    def refuse(self, key, content):
        raise PermissionError(13, "Permission denied", key)

    def work(*arguments, **more):
        raise AssertionError("work was done")

    monkeypatch.setattr(LocalStorage, "put_if_absent", refuse)
    monkeypatch.setattr(Dataset, "iter_latents", work)
    with pytest.raises(PermissionError):
        dataset.label_features_from_tokens()
    monkeypatch.undo()
    monkeypatch.setattr(LocalStorage, "put_if_absent", refuse)
    assert len(dataset.label_features_from_tokens(commit=False)) > 5
