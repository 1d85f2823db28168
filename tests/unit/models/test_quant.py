"""int8 layers do not write to the log in each pass."""

import logging

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt

from hydraft.config.choices import Precision, QuantKind
from hydraft.config.schema import QuantConfig
from hydraft.models.quant import bits_and_bytes


@pytest.mark.parametrize("silenced", [False, True])
def test_a_matmul_in_int8_logs_nothing(
    silenced: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The matmul of int8 layers on a GPU, with and without the silencing that a run sets up before it loads a model."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    if silenced:
        assert bits_and_bytes(QuantConfig(QuantKind.int8), Precision.bf16) is not None
    weight = bnb.nn.Int8Params(torch.randn(16, 32), requires_grad=False)
    with caplog.at_level(logging.WARNING):
        MatMul8bitLt.apply(torch.randn(4, 32, dtype=torch.bfloat16), weight, None, None, bnb.MatmulLtState())
    assert ["cast" in record.getMessage() for record in caplog.records] == ([] if silenced else [True])
