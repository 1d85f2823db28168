"""Bytes of a quantised weight: its codes and its constants. No torch.

``tests/unit/plan/test_parameters.py`` compares them with those of bitsandbytes' layers.
"""

from hydraft.config.choices import QuantKind
from hydraft.plan.decoder_layer import Tensor

BLOCK, NESTED_BLOCK = 64, 256
"""Weights per constant in NF4, and constants per constant with double quantisation (``quantize_4bit`` and
``quantize_blockwise`` of bitsandbytes; QLoRA, arXiv:2305.14314, section 3)."""

NF4_TABLE, BYTE_TABLE = 16 * 4, 256 * 4
"""Bytes of the fp32 tables for 4-bit and 8-bit codes, which all layers share."""


def is_quantised(tensor: Tensor, quant: QuantKind) -> bool:
    """Whether ``quant`` changes how ``tensor`` is stored."""
    return {QuantKind.none: False, QuantKind.int8: tensor.linear, QuantKind.nf4: tensor.packs}[quant]


def constants(tensor: Tensor, quant: QuantKind, double: bool) -> int:
    """Bytes of the quantisation constants of ``tensor``.

    NF4: an fp32 per block of 64; with ``double``, a byte per block, an fp32 per 256 blocks, and their fp32 mean. int8: an fp32 per row (LLM.int8(), arXiv:2208.07339, section 2.1).
    """
    if not is_quantised(tensor, quant):
        return 0
    if quant is QuantKind.int8:
        return 4 * tensor.shape[0]
    blocks = -(-tensor.count // BLOCK)
    if not double:
        return 4 * blocks
    return blocks + 4 * -(-blocks // NESTED_BLOCK) + 4


def codes(tensor: Tensor, quant: QuantKind, width: int) -> int:
    """Bytes of ``tensor`` without its constants; unquantised weights have ``width`` bytes, NF4 packs two weights in a byte."""
    if not is_quantised(tensor, quant):
        return width * tensor.count
    if quant is QuantKind.int8:
        return tensor.count
    return (tensor.count + 1) // (2 * width) * width


def payload(tensor: Tensor, double: bool, ranks: int) -> int:
    """Bytes of the one parameter that ZeRO-3 shards for a 4-bit weight: its codes, and behind them its constants (``models/nf4.py``).

    Each part begins at a multiple of 16 bytes. The size is a multiple of the codes of a block for each of the ``ranks``.
    """
    blocks = -(-tensor.count // BLOCK)
    sizes = [-(-tensor.count // 2), blocks * (1 if double else 4)]
    sizes += [4 * -(-blocks // NESTED_BLOCK)] if double else []
    end = 0
    for size in sizes:
        end = _aligned(end, 16) + size
    return _aligned(end, BLOCK // 2 * ranks)


def _aligned(count: int, to: int) -> int:
    return -(-count // to) * to
