"""Bytes of a weight as a rank stores it, whole or sharded. No torch."""

from hydraft.config.choices import Precision, QuantKind
from hydraft.config.schema import Config
from hydraft.plan.decoder_layer import Tensor
from hydraft.plan.quantised_size import BYTE_TABLE, NF4_TABLE, codes, constants, payload

WIDTH = {Precision.fp32: 4, Precision.bf16: 2, Precision.fp16: 2}
"""Bytes per element."""


def storage_width(config: Config) -> int:
    """Bytes per element of frozen weights in training; 4-bit weights are packed into elements of this width."""
    precision = config.train.precision
    return WIDTH[precision if precision is not Precision.fp32 else config.model.dtype]


def stored_bytes(config: Config, tensor: Tensor, width: int) -> tuple[int, int]:
    """Bytes of a ``tensor`` that is whole on a rank, and of its quantisation constants."""
    quant = config.quant
    return codes(tensor, quant.kind, width), constants(tensor, quant.kind, quant.double_quant)


def model_bytes(config: Config, tensors: tuple[Tensor, ...], width: int) -> int:
    """Bytes of all ``tensors``, whole on a rank."""
    return tables(config, tensors) + sum(sum(stored_bytes(config, tensor, width)) for tensor in tensors)


def tables(config: Config, tensors: tuple[Tensor, ...]) -> int:
    """Bytes of the tables that all 4-bit weights share."""
    if not any(_packed(config, tensor) for tensor in tensors):
        return 0
    return NF4_TABLE + (BYTE_TABLE if config.quant.double_quant else 0)


def sharded_bytes(config: Config, tensor: Tensor, width: int, ranks: int) -> int:
    """Bytes of the parameter that stage 3 shards over ``ranks``: with NF4 it has the quantisation constants too."""
    if _packed(config, tensor):
        return payload(tensor, config.quant.double_quant, ranks)
    return codes(tensor, config.quant.kind, width)


def share_bytes(config: Config, tensor: Tensor, width: int) -> int:
    """Bytes of a rank's share of ``sharded_bytes``: DeepSpeed pads it to the same number of elements on each rank."""
    ranks = config.world_size
    return -(-sharded_bytes(config, tensor, width, ranks) // (width * ranks)) * width


def whole_bytes(config: Config, tensors: tuple[Tensor, ...]) -> int:
    """Bytes that stage 3 leaves whole on each rank: with double quantisation, the mean of each weight's constants; and the tables."""
    means = sum(4 for tensor in tensors if _packed(config, tensor) and config.quant.double_quant)
    return means + tables(config, tensors)


def _packed(config: Config, tensor: Tensor) -> bool:
    return tensor.packs and config.quant.kind is QuantKind.nf4
