"""Silencing libraries that print or warn more than a user needs to know."""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["quiet_bitsandbytes", "quiet_casts", "quiet_saelens"]


@contextlib.contextmanager
def quiet_saelens() -> Iterator[None]:
    """Import SAELens, and load with it, without its warnings.

    Its imports raise deprecation warnings, and its SAEs give advice on how to load the model, which
    `interp_embed.sae.model` follows. Neither concerns the user.
    """
    with warnings.catch_warnings(), quiet_bitsandbytes():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty")
        yield


@contextlib.contextmanager
def quiet_bitsandbytes() -> Iterator[None]:
    """Import bitsandbytes, as TransformerLens does where it is installed, without its remarks.

    They are about kernels for 4 bits, which nothing here uses.
    """
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def quiet_casts() -> Iterator[None]:
    """Run a model in 8 bits without the message of bitsandbytes for each layer of each batch.

    The message describes what LLM.int8 does with any bfloat16.
    """
    logger = logging.getLogger("bitsandbytes.autograd._functions")

    def no_cast(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")

    logger.addFilter(no_cast)  # this call's own: another thread's may end before
    try:
        yield
    finally:
        logger.removeFilter(no_cast)
