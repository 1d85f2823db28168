"""The memory of a rank while the model loads, on its GPU and in main memory. No torch."""

from hydraft.config.choices import Init, Offload, QuantKind
from hydraft.config.schema import Config
from hydraft.models import fp32_weights
from hydraft.plan import hpz, swap
from hydraft.plan.memory_parts import Parts
from hydraft.plan.model_size import ModelSize
from hydraft.plan.optimizer_states import pinned
from hydraft.plan.parameters import Layout
from hydraft.plan.quantised_size import BLOCK, payload
from hydraft.plan.weights import WIDTH, model_bytes, share_bytes, whole_bytes

PIECE, PIECE_WIDTH = 1 << 22, 24
"""Weights that are quantised at a time (``models/nf4.py``), and the bytes that bitsandbytes takes for each on a CPU: measured."""


def loading(config: Config, subject: ModelSize, on_gpu: bool) -> tuple[Parts, Parts]:
    """The memory while the model loads: on the GPU, and in main memory.

    Stage 3 shards each weight as it is read. Other stages hold all of them: unquantised ones are read into main memory, where those that
    keep their type stay pages of the mapped file; quantised ones are moved to the GPU one by one.
    """
    layout, dtype = subject.layout, WIDTH[config.model.dtype]
    adapter = (
        sum((*subject.learns.adapter, *subject.learns.frozen, *subject.learns.copies)) + subject.learns.shared
    ) * dtype
    if config.zero.stage == 3 and config.quant.kind is not QuantKind.int8:
        shares, host = sharded_weights(config, layout, dtype, on_gpu)
        if config.quant.kind is QuantKind.none:
            working = max(tensor.count for tensor in layout.tensors) * dtype
        else:
            working = quantising(config, layout, on_gpu)
            host += _converted(config, subject, dtype)
        return Parts(weights=shares, adapter=adapter, buffers=working), Parts(weights=host)
    whole = model_bytes(config, layout.tensors, dtype)
    flat = (
        subject.learns.count * dtype if config.zero.stage in (1, 2) else 0
    )  # a second copy while the flat buffer is made
    if config.quant.kind is not QuantKind.none:
        temporary = layout.largest_linear * dtype
        if config.quant.kind is QuantKind.nf4 and not on_gpu:
            temporary = min(PIECE, layout.largest_linear) * PIECE_WIDTH + _converted(config, subject, dtype)
        return Parts(weights=whole, adapter=adapter, buffers=max(flat, temporary)), Parts()
    device = Parts(weights=whole, adapter=adapter, buffers=flat)
    if not on_gpu:
        return device, Parts()
    converted = fp32_weights.elements(config.model) * dtype if config.model.init is not Init.random else 0
    return device, Parts(weights=converted if config.model.dtype is subject.stored else whole)


def sharded_weights(config: Config, layout: Layout, width: int, on_gpu: bool) -> tuple[int, int]:
    """Bytes of a rank's shares of the weights under stage 3 with what is whole on each rank, on its device; and in main memory."""
    shares = [share_bytes(config, tensor, width) for tensor in layout.tensors]
    whole = whole_bytes(config, layout.tensors) + hpz.second_copy(config, layout)
    if config.zero.offload_param is Offload.none:
        return sum(shares) + whole, 0
    return whole, sum(pinned(share, config, on_gpu) for share in shares if not swap.on_disk(config, share))


def quantising(config: Config, layout: Layout, on_gpu: bool) -> int:
    """The most bytes on a rank's device besides ``sharded_weights`` while it quantises and shards a weight.

    A rank quantises its share, in pieces. Then the device has the scales of all ranks, the codes of the share, the share with its
    constants, and the whole payload, which DeepSpeed takes a share of (``models/sharded_load.py``).
    """
    whole = payload(
        max(layout.tensors, key=lambda tensor: tensor.count * tensor.packs),
        config.quant.double_quant,
        config.world_size,
    )
    share, blocks = whole // config.world_size, layout.largest_linear // BLOCK
    sharding = whole + 2 * share + 4 * blocks * (1 + 2 / config.world_size) + blocks
    pieces = min(PIECE, -(-layout.largest_linear // config.world_size)) * (
        WIDTH[config.model.dtype] if on_gpu else PIECE_WIDTH
    )
    return round(max(sharding, share + pieces))


def _converted(config: Config, subject: ModelSize, dtype: int) -> int:
    """Bytes of the largest tensor in main memory, where it is converted as a whole if the checkpoint has another data type."""
    differs = config.model.dtype is not subject.stored or fp32_weights.elements(config.model)
    if config.model.init is Init.random or not differs:
        return 0
    return max(tensor.count for tensor in subject.layout.tensors) * dtype
