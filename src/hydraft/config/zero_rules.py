"""Combinations of the ``zero`` section that train.py refuses. No torch."""

from pathlib import Path

from hydraft.config.choices import Offload, Precision, QuantKind
from hydraft.config.rule import Rule, value
from hydraft.config.schema import Config
from hydraft.config.zero import AioConfig


def _zeropp(config: Config) -> bool:
    return config.zero.hpz_partition_size != 1 or _quantises(config)


def _quantises(config: Config) -> bool:
    return config.zero.quantized_weights or config.zero.quantized_gradients


ZERO = [
    value(
        lambda c: c.zero.offload_optimizer is not Offload.none and c.zero.stage == 0,
        "zero.offload_optimizer={c.zero.offload_optimizer.value} needs sharded optimizer state: use zero.stage=1, 2 or 3",
        source="ZeRO-Offload, arXiv:2101.06840; DeepSpeed, runtime/zero/config.py",
    ),
    value(
        lambda c: c.zero.offload_optimizer is Offload.nvme and c.zero.stage != 3,
        "zero.offload_optimizer=nvme needs sharded weights: use zero.stage=3, or zero.offload_optimizer=cpu",
        source="DeepSpeed, runtime/zero/stage3.py alone has an optimizer swapper",
    ),
    value(
        lambda c: c.zero.offload_param is not Offload.none and c.zero.stage != 3,
        "zero.offload_param={c.zero.offload_param.value} needs sharded weights: use zero.stage=3",
        source="ZeRO-Infinity, arXiv:2104.07857; DeepSpeed, runtime/zero/config.py",
    ),
    value(
        lambda c: c.zero.swaps and c.zero.nvme_path is None,
        "zero.nvme_path: nvme needs a folder on a local disk: give zero.nvme_path=/path, or use zero=stage3_offload",
    ),
    value(
        lambda c: c.zero.nvme_path is not None and not c.zero.swaps,
        "zero.nvme_path={c.zero.nvme_path}: nothing is kept on a disk: use zero=stage3_nvme, or leave it out",
    ),
    value(
        lambda c: c.zero.nvme_path is not None and not Path(c.zero.nvme_path).expanduser().is_absolute(),
        "zero.nvme_path={c.zero.nvme_path}: the ranks of all machines use it: give the whole path, from /",
    ),
    # DeepSpeed would read the block, and nothing would use it.
    value(
        lambda c: c.zero.aio != AioConfig() and not c.zero.swaps,
        "zero.aio: nothing is read from or written to a disk: use zero=stage3_nvme zero.nvme_path=/path, or leave zero.aio out",
        source="DeepSpeed, runtime/zero/stage3.py, _configure_tensor_swapping",
    ),
    value(
        lambda c: c.zero.aio.block_size is not None and c.zero.aio.block_size % 4096 != 0,
        "zero.aio.block_size={c.zero.aio.block_size} must be a multiple of 4096, as direct reads and writes of a disk are: use 1048576",
        source="open(2), O_DIRECT",
    ),
    value(
        lambda c: _zeropp(c) and c.zero.stage != 3,
        "zero.hpz_partition_size, zero.quantized_weights and zero.quantized_gradients need sharded weights: use zero.stage=3, or leave them out",
        source="ZeRO++, arXiv:2306.10209",
    ),
    value(
        lambda c: c.hpz_group > 1 and c.world_size % c.hpz_group != 0,
        "zero.hpz_partition_size={c.hpz_group} does not divide the {c.world_size} ranks: use zero.hpz_partition_size=auto",
        source="DeepSpeed, utils/groups.py, _create_zero_param_parallel_group",
    ),
    value(
        lambda c: c.zero.hpz_partition_size != 1 and (c.hpz_group == 1 or c.hpz_group >= c.world_size),
        "zero.hpz_partition_size={c.zero.hpz_partition_size}: a second copy is for machines of several ranks each, and these are {c.cluster.nodes} of {c.cluster.ranks_per_node}: use zero=stage3, or several (cluster=2x4)",
    ),
    value(
        lambda c: c.hpz_group > 1 and c.zero.offload_param is not Offload.none,
        "zero.hpz_partition_size: the second copy is for weights on the GPUs: use zero.offload_param=none, or zero.hpz_partition_size=1",
        source="DeepSpeed, runtime/zero/partition_parameters.py, _partition_param_sec",
    ),
    # It would quantise the packed 4-bit codes as if they were weights.
    value(
        lambda c: c.zero.quantized_weights and c.quant.kind is not QuantKind.none,
        "zero.quantized_weights=true quantises weights again that quant={c.quant.kind.value} has packed: leave it out, or use quant=none",
        source="DeepSpeed, runtime/zero/partition_parameters.py, CUDAQuantizer",
    ),
    value(
        lambda c: _quantises(c) and c.train.precision is Precision.fp32,
        "zero.quantized_weights and zero.quantized_gradients compute with fp16: use train.precision=bf16 or fp16, or leave them out",
        source="DeepSpeed, csrc/quantization/pt_binding.cpp: __half",
    ),
    value(
        lambda c: c.zero.quantized_gradients and c.cluster.nodes == 1,
        "zero.quantized_gradients=true changes nothing on a single machine: leave it out, or use several (cluster=2x4)",
        source="DeepSpeed, runtime/zero/stage3.py, __avg_scatter_grads",
    ),
    value(
        lambda c: c.zero.quantized_gradients and not c.zero.reduce_scatter,
        "zero.quantized_gradients=true replaces the reduce-scatter: use zero.reduce_scatter=true",
        source="DeepSpeed, runtime/zero/stage3.py, __init__",
    ),
    Rule(
        lambda c, h: _quantises(c) and not h.gpus,
        "zero.quantized_weights and zero.quantized_gradients need a GPU, whose kernels quantise, and none was found: use neither",
        source="DeepSpeed, op_builder/quantizer.py",
        here=True,
    ),
]
