"""Labels and scores for tests: made by hand, and any that hypothesis chooses."""

from __future__ import annotations

from hypothesis import strategies as st

from interp_embed.labels.record import FeatureLabel, LabelExample, Score


def label(feature=0, text="cats", **more):
    return FeatureLabel(feature, text, **more)


def scored(value, low=None, high=None, method="detection", **more):
    return Score(method, value, low, high, **more)


SCORES = st.builds(
    Score,
    st.sampled_from(["detection", "fuzzing", "reference", "other"]),
    st.floats(0, 1),
    st.none() | st.just(0.25) | st.just(0.75),
    st.none(),
    st.none() | st.integers(1, 9),
    created=st.sampled_from(["", "2026-01-01", "2026-02-01"]),
)
RECORDS = st.builds(
    FeatureLabel,
    st.integers(0, 3),
    st.sampled_from(["cats", "dogs", "\ud800 half", "a \N{GRINNING FACE}\n"]),
    source=st.sampled_from(["given", "llm", "import", "sae", "tokens"]),
    seed=st.none() | st.integers(0, 1),
    created=st.sampled_from(["", "2026-01-01", "2026-02-01"]),
    examples=st.lists(st.builds(LabelExample, st.integers(0, 9), st.just(1), st.just(2),
                                st.floats(-9, 9)), max_size=2).map(tuple),
    scores=st.lists(SCORES, max_size=3).map(tuple),
)  # fmt: skip
