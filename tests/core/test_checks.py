"""One form of message for the arguments that many functions take."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from interp_embed.core.checks import (
    check_dtype,
    check_feature,
    check_features,
    check_one_of,
    check_positive,
    is_integer,
)


@pytest.mark.parametrize("wrong", [0, -1, 1.0, "1", True, None, np.float32(1), np.int8(-1)])
def test_what_is_no_positive_integer_is_named_with_its_value(wrong: Any) -> None:
    message = f"batch_size must be a positive integer, got {wrong!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_positive(k=1, batch_size=wrong)


def test_integers_of_numpy_are_integers_and_truth_values_are_not() -> None:
    check_positive(k=1, n=np.uint8(3), m=2**70)
    assert [is_integer(v) for v in (1, np.int64(1), True, np.bool_(True), 1.0, "1", None)] == [
        True, True, False, False, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", ["int8", np.int8, "float64", "float", "f5", object])
def test_activations_are_stored_as_one_of_two_dtypes(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"^dtype must be float16 or float32, got "):
        check_dtype(wrong)
    assert check_dtype("float16") == np.float16
    assert check_dtype(np.float32) == np.float32
    with pytest.raises(ValueError, match="dtype must be float16 or float32, got int8"):
        check_dtype("int8")


@pytest.mark.parametrize("wrong", [-1, 4096, np.int64(4096), 2**40])
def test_a_feature_that_the_sae_does_not_have_is_said_with_those_that_it_has(wrong: int) -> None:
    message = rf"^feature {wrong} is not among the 4096 features of the SAE \(0 to 4095\)$"
    with pytest.raises(IndexError, match=message):
        check_feature(wrong, 4096)
    with pytest.raises(IndexError, match=message):
        check_features([0, wrong, 3], 4096)


def test_an_sae_without_features_has_no_range_to_say() -> None:
    with pytest.raises(IndexError, match=r"feature 0 is not among the 0 features of the SAE$"):
        check_feature(0, 0)


def test_features_become_integers() -> None:
    assert type(check_feature(np.uint16(7), 8)) is int
    for given in ([7, 0, 7], (7, 0, 7), np.array([7, 0, 7], np.uint8), iter([7, 0, 7])):
        found = check_features(given, 8)
        assert (found.dtype, found.tolist()) == (np.dtype(np.int64), [7, 0, 7])
    assert check_features([], 8).tolist() == check_features(np.empty(0), 8).tolist() == []


@pytest.mark.parametrize("wrong", [3, [0.5], ["a"], [True], [[1, 2]], [[1], [1, 2]], "12", None])
def test_features_that_are_no_integers_are_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"features must be integers, got {wrong!r}")):
        check_features(wrong, 8)


@pytest.mark.parametrize("wrong", ["x", 1.0, True, None])
def test_one_feature_that_is_no_integer_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"feature must be an integer, got {wrong!r}")):
        check_feature(wrong, 8)


def test_a_name_that_is_not_known_is_said_with_those_that_are() -> None:
    check_one_of("log", "json", ("bar", "json"))
    with pytest.raises(ValueError, match="log must be one of bar, json, got 'x'"):
        check_one_of("log", "x", iter(("bar", "json")))
