"""8-bit moments have the same bits after a checkpoint as before it."""

import pytest
import torch
from bitsandbytes.functional import create_dynamic_map, dequantize_blockwise, quantize_blockwise

from hydraft.checkpoint import moments
from hydraft.config.optimizer import BLOCK


@pytest.mark.parametrize("signed", [True, False])
def test_dequantised_values_are_quantised_to_the_same_bits(signed: bool) -> None:
    table = create_dynamic_map(signed=signed)
    value = torch.randn(40 * BLOCK + 100, generator=torch.Generator().manual_seed(0)) * 1e-3
    value[: 2 * BLOCK] = 0
    codes, state = quantize_blockwise(value if signed else value.square(), code=table, blocksize=BLOCK)
    before = dequantize_blockwise(codes, state)
    again, scales = moments.quantised(before, table)
    assert torch.equal(dequantize_blockwise(again, absmax=scales, code=table, blocksize=BLOCK), before)
    if signed:  # bitsandbytes' own scales are smaller where the largest value is negative
        other, smaller = quantize_blockwise(before, code=table, blocksize=BLOCK)
        assert not torch.equal(dequantize_blockwise(other, smaller), before)
