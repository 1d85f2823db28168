"""Memory of trained weights, gradients and optimizer state on a rank, by DeepSpeed's ZeRO stage. No torch.

ZeRO: Rajbhandari et al. 2019, arXiv:1910.02054, section 3.1: with 16-bit weights, Adam has 12 bytes per parameter (an fp32 copy and
two moments; ``moments.py`` has those of other optimizers), which stage 1 divides by the ranks; stage 2 divides the gradients too, stage 3 the weights. The rest is from
DeepSpeed 0.19.8 (runtime/zero/stage_1_and_2.py, stage3.py, runtime/fp16/unfused_optimizer.py).
"""

from dataclasses import dataclass

from hydraft.config.choices import Offload
from hydraft.config.schema import Config
from hydraft.plan import moments
from hydraft.plan.memory_parts import Parts
from hydraft.plan.parameters import Trained

FALLBACK_BUCKET = 500_000_000
"""Elements that stage 0 reduces at once (``buffered_allreduce_fallback``)."""


@dataclass(frozen=True)
class States:
    """Bytes of one rank."""

    device: Parts
    host: Parts
    """Offloaded to main memory."""
    step: int
    """Gradients in fp32 on the device during the optimizer step, and matrices that Muon gathers."""


def states(config: Config, learns: Trained, width: int, on_gpu: bool) -> States:
    """The memory of the trained tensors, with ``width`` bytes per element in the compute type.

    ``device.weights`` is left 0 here, for frozen weights; trained tensors of the base are in ``device.adapter``.
    """
    if config.zero.stage == 0:
        return _whole(config, learns, width, on_gpu)
    if config.zero.stage == 3:
        return _stage3(config, learns, width, on_gpu)
    return _stage12(config, learns, width, on_gpu)


def pinned(size: int, config: Config, on_gpu: bool) -> int:
    """Bytes of main memory for ``size`` offloaded bytes: torch pins powers of two (ATen/core/CachingHostAllocator.h)."""
    if not (config.zero.pin_memory and on_gpu and size):
        return size
    return 1 << (size - 1).bit_length()


def _whole(config: Config, learns: Trained, width: int, on_gpu: bool) -> States:
    """Stage 0: nothing is sharded. In fp32 the optimizer updates the weights without a copy."""
    count, ranks = learns.count, config.world_size
    master = 4 * count if width < 4 else 0
    flat = min(count, FALLBACK_BUCKET) * width if ranks > 1 else 0
    made = moments.whole(config.optimizer, learns, on_gpu)
    device = Parts(adapter=count * width, gradients=count * width, optimizer=made.kept + master, buffers=flat)
    return States(device, Parts(optimizer=made.paged), step=master)


def _stage12(config: Config, learns: Trained, width: int, on_gpu: bool) -> States:
    """Stages 1 and 2: flat buffers, and an fp32 copy even of fp32 weights (``single_partition_of_fp32_groups`` is a clone)."""
    zero, count, ranks = config.zero, learns.count, config.world_size
    flat = [  # aligned to 2 elements per rank (nccl_start_alignment_factor)
        (-(-sum(group.tensors) // (2 * ranks)) * 2, group.hidden) for group in moments.groups(config.optimizer, learns)
    ]
    own, made = sum(size for size, _ in flat), moments.flat(config.optimizer, flat, on_gpu)
    gathers = moments.gathered(config.optimizer, learns)
    bucket = zero.reduce_bucket_size * width * (2 if zero.overlap_comm else 1) if zero.contiguous_gradients else 0
    bucket = bucket if on_gpu else min(bucket, count * width)  # a CPU allocates only pages that are written
    accumulates = config.train.gradient_accumulation_steps > 1
    if zero.offload_optimizer is Offload.none:
        gradients = own * width * (2 if accumulates else 1)
        if zero.stage == 1:
            gradients += count * width
        device = Parts(adapter=count * width, gradients=gradients, optimizer=4 * own + made.kept, buffers=bucket)
        return States(device, Parts(optimizer=made.paged), step=4 * own + gathers)
    largest = max(learns.tensors) * width
    device = Parts(adapter=count * width, buffers=bucket + largest)
    kept = sum(pinned(-(-n // ranks) * width, config, on_gpu) for n in learns.tensors) if accumulates else 0
    host = Parts(
        optimizer=pinned(4 * own, config, on_gpu) + made.kept,
        gradients=pinned(4 * own, config, on_gpu) + kept,
        buffers=pinned(own * width, config, on_gpu) + pinned(largest, config, on_gpu),
    )
    return States(device, host, step=gathers)


def _stage3(config: Config, learns: Trained, width: int, on_gpu: bool) -> States:
    """Stage 3: each tensor is sharded; small ones are also kept whole. Shards in fp32 have an fp32 copy too."""
    zero, ranks = config.zero, config.world_size
    flat = [
        (sum(-(-n // ranks) for n in group.tensors), group.hidden) for group in moments.groups(config.optimizer, learns)
    ]
    own, made = sum(size for size, _ in flat), moments.flat(config.optimizer, flat, on_gpu)
    small = sum(n for n in learns.tensors if n <= zero.stage3_param_persistence_threshold) if ranks > 1 else 0
    bucket = zero.reduce_bucket_size * width if zero.contiguous_gradients else 0
    bucket = bucket if on_gpu else min(bucket, learns.count * width)
    scattered = min(zero.reduce_bucket_size, learns.count) * width if ranks > 1 else 0
    offloads, rests = zero.offload_optimizer is not Offload.none, zero.offload_param is not Offload.none
    device = Parts(
        adapter=(small + (0 if rests else own)) * width,
        gradients=0 if offloads else own * width,
        optimizer=0 if offloads else 4 * own + made.kept,
        buffers=bucket + scattered,
    )
    host = Parts(
        adapter=pinned(own * width, config, on_gpu) if rests else 0,
        gradients=pinned(own * width, config, on_gpu) + pinned(4 * own, config, on_gpu) if offloads else 0,
        optimizer=4 * own + made.kept if offloads else made.paged,
    )
    return States(device, host, step=(0 if offloads else 4 * own) + moments.gathered(config.optimizer, learns))
