"""What other libraries say is hidden while something is loaded or run, and not longer."""

from __future__ import annotations

import logging

import pytest

from interp_embed.sae.quiet import quiet_casts

SAID = "MatMul8bitLt: inputs will be cast from torch.bfloat16 to float16 during quantization"


@pytest.fixture
def logger():
    return logging.getLogger("bitsandbytes.autograd._functions")


def test_what_is_said_for_each_batch_is_hidden_while_it_runs_and_all_else_is_not(logger, caplog):
    before = list(logger.filters)
    with quiet_casts():
        logger.warning(SAID)
        logger.warning("another")
    assert caplog.messages == ["another"]
    logger.warning(SAID)
    assert caplog.messages == ["another", SAID]
    assert logger.filters == before


def test_one_run_that_ends_leaves_another_its_own(logger, caplog):
    with quiet_casts():
        with quiet_casts():
            pass
        logger.warning(SAID)
    assert caplog.messages == []
