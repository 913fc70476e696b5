"""`DatasetRow`, made by hand as the reference documents it."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from interp_embed import Dataset, DatasetRow
from interp_embed.aggregate.reductions import REDUCTIONS
from interp_embed.selection.row import highlight
from interp_embed.testing import random_chunk, store_from_chunk

TOKENS = ["The", " cat", " sat", " on", " the", " mat"]
TEXT = "The cat sat on the mat"
DENSE = np.array(
    [
        [0.0, 0.0, -1.0, 0.0],
        [2.5, 0.0, -2.0, 0.0],
        [0.5, 0.0, -1.5, 0.0],
        [0.0, 0.0, -1.0, 0.0],
        [0.0, 0.0, -1.0, 0.0],
        [1.5, 0.0, -1.0, -3.0],
    ],
    np.float32,
)
METHODS = ["max", "mean", "sum", "binarize", "count"]


def row(**kwargs):
    given = {"row": {"text": TEXT, "n": 1}, "tokenized_document": TOKENS, **kwargs}
    return DatasetRow(activations=csr_matrix(DENSE), **given)


def test_entries_given_twice_count_as_their_sum():
    twice = csr_matrix((np.array([1.0, 2.0, 3.0], np.float32), [1, 1, 0], [0, 3]), shape=(1, 4))
    found = DatasetRow({"text": "a"}, ["a"], twice)
    for method, want in [("max", 3), ("sum", 3), ("count", 1), ("mean", 3)]:
        assert found.latents(method)[0].tolist() == [1 if method == "count" else 3, want, 0, 0]
    assert twice.data.tolist() == [1, 2, 3]
    assert twice.indices.tolist() == [1, 1, 0]
    sparse = csr_matrix(DENSE)
    assert DatasetRow({"text": TEXT}, TOKENS, sparse).activations is sparse


REQUIRED = inspect.Parameter.empty
SIGNATURES = {
    "__init__": [
        ("row", REQUIRED),
        ("tokenized_document", REQUIRED),
        ("activations", REQUIRED),
        ("truncate_chat_template", False),
        ("aggregate_activations", None),
        ("field", "text"),
        ("low_memory", False),
    ],
    "row_record": [],
    "latents": [("activation_type", "max"), ("compress", False), ("activated_threshold", 0)],
    "token_activations": [
        ("feature", REQUIRED),
        ("as_string", True),
        ("left_marker", "<<"),
        ("right_marker", ">>"),
    ],
    "document": [],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_parameters_have_the_names_order_and_defaults_of_the_reference(name):
    parameters = inspect.signature(getattr(DatasetRow, name)).parameters.values()
    found = [
        (p.name, p.default)
        for p in parameters
        if p.name != "self" and p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert found == SIGNATURES[name]


def test_attributes_are_those_of_the_reference():
    made = row()
    assert made.data == made.document() == TEXT
    assert made.field == "text"
    assert made.row == made.row_record() == {"text": TEXT, "n": 1}
    assert made.tokenized_document == TOKENS
    assert made.n_tokens == 6
    assert type(made.activations) is csr_matrix
    assert set(made.aggregate_activations) == {"max", "sum"}
    assert all(type(m) is csr_matrix for m in made.aggregate_activations.values())
    assert repr(made) == f"DatasetRow({TEXT!r}, n_tokens=6)"


def test_aggregates_count_absent_features_as_zero():
    made = row()
    assert made.latents().tolist() == [[2.5, 0, -1, 0]]
    assert made.latents("sum").tolist() == [[4.5, 0, -7.5, -3]]
    np.testing.assert_allclose(made.latents("mean"), [[0.75, 0, -1.25, -0.5]])
    assert made.latents("binarize").tolist() == [[1, 0, 0, 0]]
    assert made.latents("count").tolist() == [[3, 0, 0, 0]]
    assert made.latents("count", activated_threshold=0.5).tolist() == [[2, 0, 0, 0]]
    assert made.latents("binarize", activated_threshold=2.5).tolist() == [[0, 0, 0, 0]]
    np.testing.assert_array_equal(made.latents("all"), DENSE)
    np.testing.assert_array_equal(made.latents("nnz")[0], (DENSE != 0).sum(axis=0))
    np.testing.assert_allclose(made.latents("var")[0], np.var(DENSE, axis=0), rtol=1e-6)


@pytest.mark.parametrize("method", list(REDUCTIONS))
def test_a_row_has_every_reduction_that_a_dataset_has(tmp_path, method):
    store_from_chunk(tmp_path / "a.zarr", random_chunk(7, 20, d_sae=30))
    dataset = Dataset.load_from_file(tmp_path / "a.zarr")
    for row, expected in zip(dataset.rows, dataset.latents(method), strict=True):
        if row is not None:
            np.testing.assert_allclose(row.latents(method)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [*METHODS, "all"])
def test_dense_and_sparse_agree_without_explicit_zeros(method):
    made = row()
    dense, sparse = made.latents(method), made.latents(method, compress=True)
    assert type(dense) is np.ndarray
    assert type(sparse) is csr_matrix
    assert dense.dtype == sparse.dtype == np.float32
    assert dense.shape == sparse.shape == ((6, 4) if method == "all" else (1, 4))
    np.testing.assert_array_equal(sparse.toarray(), dense)
    assert (sparse.data != 0).all()


@pytest.mark.parametrize("method", [*METHODS, "all"])
def test_what_is_returned_can_be_changed_without_harm(method):
    made = row()
    before = made.latents(method)
    made.latents(method)[:] = 9
    made.latents(method, compress=True).data[:] = 9
    np.testing.assert_array_equal(made.latents(method), before)


@pytest.mark.parametrize("low_memory", [True, False])
def test_low_memory_keeps_no_aggregates_and_changes_no_number(low_memory):
    made = row(low_memory=low_memory)
    kept = made.aggregate_activations["max"] is made.aggregate_activations["max"]
    assert kept is not low_memory
    assert made.latents().tolist() == [[2.5, 0, -1, 0]]


def test_given_aggregates_are_used_and_missing_ones_computed():
    given = csr_matrix([[9.0, 0, 0, 0]], dtype=np.float32)
    made = row(aggregate_activations={"max": given})
    assert made.latents("max").tolist() == [[9, 0, 0, 0]]
    assert made.latents("sum").tolist() == [[4.5, 0, -7.5, -3]]


def test_a_document_without_tokens_is_all_zero():
    empty = DatasetRow({"text": ""}, [], csr_matrix((0, 4), dtype=np.float32))
    for method in METHODS:
        assert empty.latents(method).tolist() == [[0, 0, 0, 0]]
    assert empty.latents("all").shape == (0, 4)
    assert empty.token_activations(1) == ""
    assert empty.token_activations(1, as_string=False) == []
    assert "<" in empty._repr_html_()


def test_runs_of_active_tokens_stand_between_the_markers():
    made = row()
    assert made.token_activations(0) == "The<< cat sat>> on the<< mat>>"
    assert made.token_activations(1) == TEXT
    assert made.token_activations(2) == TEXT, "below zero is not active"
    assert made.token_activations(0, left_marker="[", right_marker="]") == (
        "The[ cat sat] on the[ mat]"
    )
    assert made.token_activations(0, True, "", "|") == "The cat sat| on the mat|"


def test_token_activations_as_data_have_every_token():
    assert row().token_activations(0, as_string=False) == [
        {"token": token, "activation": float(value)}
        for token, value in zip(TOKENS, DENSE[:, 0], strict=True)
    ]
    assert row().token_activations(2, as_string=False)[1]["activation"] == -2


def test_special_tokens_are_hidden_on_request():
    special = [True, False, False, False, False, True]
    shown = row(special_tokens=special)
    assert shown.token_activations(0) == " cat sat on the mat".replace(
        " cat sat", "<< cat sat>>"
    ).replace(" mat", "<< mat>>")
    assert len(shown.token_activations(0, as_string=False)) == 6
    hidden = row(special_tokens=special, truncate_chat_template=True)
    assert hidden.token_activations(0) == "<< cat sat>> on the"
    assert len(hidden.token_activations(0, as_string=False)) == 4
    assert hidden.latents("sum").tolist() == [[3.0, 0, -5.5, 0]]
    assert hidden.latents("mean").tolist() == [[0.75, 0, -1.375, 0]]
    assert hidden.latents("all").shape == (4, 4)
    assert hidden.n_tokens == 6
    assert "mat" not in hidden.html(0).split("</style>")[-1].replace(TEXT, "")


def test_an_emoji_in_two_tokens_is_marked_whole():
    tokens = ["a ", "\N{GRINNING FACE}", "", " b"]
    for active in ([0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]):
        found = highlight(tokens, np.array(active, bool), "<<", ">>")
        assert found == "a <<\N{GRINNING FACE}>> b"


@given(
    st.lists(st.tuples(st.text(st.sampled_from("ab🙂 "), min_size=1, max_size=2), st.booleans()))
)
def test_highlights_add_nothing_but_balanced_markers(tokens):
    found = highlight([t for t, _ in tokens], [a for _, a in tokens], "<", ">")
    assert found.replace("<", "").replace(">", "") == "".join(t for t, _ in tokens)
    markers = [c for c in found if c in "<>"]
    assert markers == ["<", ">"] * (len(markers) // 2)
    marked = "".join(part.split(">")[0] for part in found.split("<")[1:])
    assert marked == "".join(t for t, active in tokens if active)


@pytest.mark.parametrize("feature", [-1, 4, 10**9])
def test_features_that_do_not_exist_are_an_index_error(feature):
    with pytest.raises(IndexError, match=f"feature {feature} is not among the 4 features"):
        row().token_activations(feature)


@pytest.mark.parametrize("feature", [1.5, "1", None])
def test_features_are_integers(feature):
    with pytest.raises(TypeError):
        row().token_activations(feature)
    assert row().token_activations(np.int64(0)) == row().token_activations(0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"row": [("text", TEXT)]}, TypeError, "row must be a dictionary, got list"),
        ({"activations": DENSE}, TypeError, "csr_matrix, got ndarray"),
        ({"field": "body"}, ValueError, r"field must be a key of row, one of \['text'.*got 'body'"),
        ({"tokenized_document": TOKENS[:-1]}, ValueError, "got 6 rows for 5 tokens"),
        ({"special_tokens": [True]}, ValueError, r"special_tokens must have .* got shape \(1,\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, error, message):
    parts = {
        "row": {"text": TEXT},
        "tokenized_document": TOKENS,
        "activations": csr_matrix(DENSE),
        **changes,
    }
    with pytest.raises(error, match=message):
        DatasetRow(**parts)


def test_bad_questions_are_refused():
    with pytest.raises(ValueError, match="got 'median'"):
        row().latents("median")
    with pytest.raises(ValueError, match="0 or more, got -1"):
        row().latents("count", activated_threshold=-1)


def test_html_shades_the_strongest_feature_and_escapes():
    nasty = "<script>x</script>"
    made = DatasetRow(
        {"text": nasty, "<i>": "<u>"}, [nasty], csr_matrix([[0, 3.0]], dtype=np.float32)
    )
    assert "Feature 1" in made._repr_html_()
    assert "Feature 0: &lt;em&gt;" in made.html(0, "<em>")
    for html in (made._repr_html_(), made.html(0, "<em>")):
        assert not any(tag in html for tag in ("<script>", "<u>", "<i>", "<em>"))
