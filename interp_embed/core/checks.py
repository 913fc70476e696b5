"""Checks of arguments that many functions take, each with one form of message.

Owns the checks that concern neither data nor language models: numbers, features, dtypes, choices.
"""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import DTypeLike, NDArray

__all__ = [
    "check_dtype",
    "check_feature",
    "check_features",
    "check_one_of",
    "check_positive",
    "is_integer",
]


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer of Python or numpy. A boolean is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_positive(**numbers: object) -> None:
    """Check that every number is a positive integer.

    Raises
    ------
    ValueError
        With the name and the value of the first number that is not.
    """
    for name, number in numbers.items():
        if not is_integer(number) or number < 1:
            raise ValueError(f"{name} must be a positive integer, got {number!r:.80}")


def check_one_of(name: str, value: object, known: Iterable[str]) -> None:
    """Check that an argument is one of the known names.

    Raises
    ------
    ValueError
        With the name, the known names, and the value.
    """
    known = tuple(known)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r:.80}")


def check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the dtype of stored activations that an argument names.

    Raises
    ------
    ValueError
        If it is neither float16 nor float32.
    """
    import numpy as np  # not where the command line is only asked for help

    try:
        found = np.dtype(dtype)
    except TypeError:  # a name that numpy does not know
        raise ValueError(f"dtype must be float16 or float32, got {dtype!r:.80}") from None
    if found not in (np.dtype(np.float16), np.dtype(np.float32)):
        raise ValueError(f"dtype must be float16 or float32, got {found}")
    return found


def check_feature(feature: object, width: int) -> int:
    """Return a feature's number as an int.

    Parameters
    ----------
    feature
        The number.
    width
        Number of features of the SAE.

    Raises
    ------
    TypeError
        If it is not an integer.
    IndexError
        If the SAE has no such feature.
    """
    if not is_integer(feature):
        raise TypeError(f"feature must be an integer, got {feature!r:.80}")
    if not 0 <= feature < width:
        raise _unknown_feature(int(feature), width)
    return int(feature)


def check_features(features: Iterable[int], width: int) -> NDArray[np.int64]:
    """Return the numbers of features as an array, which may be empty.

    Parameters
    ----------
    features
        The numbers.
    width
        Number of features of the SAE.

    Raises
    ------
    TypeError
        If they are not integers.
    IndexError
        If the SAE does not have one of them.
    """
    import numpy as np

    try:
        columns = features if isinstance(features, np.ndarray) else np.asarray([*features])
    except (TypeError, ValueError):  # no iterable, or one of lists of unequal length
        columns = np.empty((0, 0))
    if columns.ndim != 1 or (len(columns) and columns.dtype.kind not in "iu"):
        raise TypeError(f"features must be integers, got {features!r:.80}")
    if len(unknown := columns[(columns < 0) | (columns >= width)]):
        raise _unknown_feature(int(unknown[0]), width)
    return columns.astype(np.int64, copy=False)


def _unknown_feature(feature: int, width: int) -> IndexError:
    known = f" (0 to {width - 1})" if width else ""
    return IndexError(f"feature {feature} is not among the {width} features of the SAE{known}")
