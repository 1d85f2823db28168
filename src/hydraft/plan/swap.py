"""The swap files of a rank, and their buffers in main memory: what ZeRO-3 keeps on a disk (``zero=stage3_nvme``). No torch.

As DeepSpeed 0.19.8 writes them (runtime/swap_tensor): of weights a file for each large enough share of a parameter; of the optimizer, for
each large enough sub-group of parameters, the fp32 weights and the two moments, and its large gradients one by one.
``tests/integration/plan/test_swap.py`` compares this with the files.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from hydraft.config.choices import Offload, QuantKind
from hydraft.config.schema import Config
from hydraft.config.zero import AioConfig
from hydraft.plan.memory_parts import Parts
from hydraft.plan.optimizer_states import States, pinned
from hydraft.plan.parameters import HEAD, Layout, Trained
from hydraft.plan.weights import share_bytes, storage_width

SMALLEST = 1 << 20
"""Bytes that a file has at least (``MIN_AIO_BYTES``)."""

ALIGNED = 1024
"""Bytes that a file's size is a multiple of, for each thread (``AIO_ALIGNED_BYTES``)."""

SUB_GROUP = 100_000_000
"""Elements of a rank's share from which on a sub-group is full. The optimizer's buffers hold four of them, of 1.6 GB together; DeepSpeed's
own value is ten times as large."""

WEIGHT_BUFFERS, OPTIMIZER_BUFFERS = 5, 4
"""Buffers for weights, and for what Adam reads of a sub-group: fp32 weights, gradients and two moments. Both are DeepSpeed's own values."""

UNKNOWN = 100_000_000
"""Elements of a buffer for weights where the model's sizes are not known: DeepSpeed's own value."""

DEFAULTS = AioConfig(block_size=1 << 20, queue_depth=8, single_submit=False, overlap_events=True, thread_count=1)
"""Those of DeepSpeed (runtime/swap_tensor/constants.py)."""


@dataclass(frozen=True)
class Swap:
    """Bytes of one rank."""

    weights: int = 0
    """Of its share of the weights, on the disk."""
    optimizer: int = 0
    """Of the fp32 weights, both moments and gradients, on the disk."""
    buffers: int = 0
    """In main memory, page-locked."""
    trained: int = 0
    """Elements of trained parameters whose optimizer state is on the disk."""

    @property
    def total(self) -> int:
        """Bytes on the disk."""
        return self.weights + self.optimizer


def aio(zero_aio: AioConfig) -> AioConfig:
    """The values, with DeepSpeed's in place of null."""
    return AioConfig(
        **{
            name: default if (own := getattr(zero_aio, name)) is None else own
            for name, default in vars(DEFAULTS).items()
        }
    )


def swap(config: Config, layout: Layout, learns: Trained) -> Swap:
    """What a resolved ``config`` swaps."""
    zero, width = config.zero, storage_width(config)
    weights = optimizer = buffers = trained = 0
    groups = list(_sub_groups(config, layout, learns))
    if zero.offload_param is Offload.nvme:
        shares = _shares(config, layout, learns) + _untied(config, layout)
        weights = sum(_aligned(config, size) for size in shares if on_disk(config, size))
        buffers += WEIGHT_BUFFERS * _aligned(config, weight_buffer(config, layout, learns) * width)
        largest = max(groups, key=lambda group: sum(map(_of_ranks(config), group)))
        buffers += sum(
            _aligned(config, count * width) for count in largest
        )  # where the updated weights are written from
    if zero.offload_optimizer is Offload.nvme:
        share = _of_ranks(config)
        counts = [sum(map(share, group)) for group in groups]
        buffers += OPTIMIZER_BUFFERS * _aligned(config, 4 * max(counts))
        for group, count in zip(groups, counts, strict=True):
            if 4 * count < _least(config):
                continue
            trained += count
            optimizer += 3 * _aligned(config, 4 * count) + sum(_gradient(config, 4 * share(one)) for one in group)
    return Swap(weights, optimizer, buffers, trained)


def in_memory(config: Config, layout: Layout, learns: Trained, kept: States, on_gpu: bool) -> States:
    """The memory of the trained tensors without what is on the disk, and with the buffers that it is read to."""
    found, share, width = swap(config, layout, learns), _of_ranks(config), storage_width(config)
    host, own = kept.host, sum(map(share, learns.tensors))
    if config.zero.offload_param is Offload.nvme:
        shares = [share(count) * width for count in learns.tensors]
        host = replace(host, adapter=sum(pinned(one, config, on_gpu) for one in shares if not on_disk(config, one)))
    if config.zero.offload_optimizer is Offload.nvme:
        gradients = host.gradients - pinned(4 * own, config, on_gpu) + pinned(4 * (own - found.trained), config, on_gpu)
        host = replace(host, optimizer=host.optimizer - 12 * found.trained, gradients=gradients)
    return replace(kept, host=host + Parts(buffers=found.buffers))


def on_disk(config: Config, size: int) -> bool:
    """Whether a rank's share of a weight, of ``size`` bytes, is on the disk between uses."""
    return config.zero.offload_param is Offload.nvme and size >= _least(config)


def weight_buffer(config: Config, layout: Layout | None, learns: Trained | None) -> int:
    """Elements of a buffer for weights: those of the largest share of a parameter."""
    if layout is None or learns is None:
        return UNKNOWN
    return max(_shares(config, layout, learns)) // storage_width(config)


def _shares(config: Config, layout: Layout, learns: Trained) -> list[int]:
    """Bytes of a rank's share of each parameter, trained or not."""
    width, share = storage_width(config), _of_ranks(config)
    return [share_bytes(config, tensor, width) for tensor in layout.tensors] + [
        share(n) * width for n in (*learns.adapter, *learns.frozen)
    ]


def _untied(config: Config, layout: Layout) -> list[int]:
    """Bytes of a rank's share of a head that is the embedding: transformers shards it before it ties the two, and its file stays."""
    if config.quant.kind is not QuantKind.none or any(tensor.module == HEAD for tensor in layout.tensors):
        return []
    return [_of_ranks(config)(layout.vocabulary * layout.hidden) * storage_width(config)]


def _sub_groups(config: Config, layout: Layout, learns: Trained) -> Iterator[list[int]]:
    """The elements of the parameters of each sub-group: of those with weight decay and of those without, as the Trainer groups them."""
    vectors = {n for n, tensor in enumerate(layout.tensors) if len(tensor.shape) < 2} if learns.full else set()
    count = len(learns.tensors)
    for numbers in ([n for n in range(count) if n not in vectors], sorted(vectors)):
        group, size = list[int](), 0
        for number in numbers:
            group.append(learns.tensors[number])
            size += _of_ranks(config)(group[-1])
            if size >= SUB_GROUP:
                yield group
                group, size = [], 0
        if group:
            yield group


def _of_ranks(config: Config) -> Callable[[int], int]:
    """A function from a parameter's elements to those of a rank's share."""
    return lambda count: -(-count // config.world_size)


def _least(config: Config) -> int:
    return max(SMALLEST, aio(config.zero.aio).block_size or 0)


def _aligned(config: Config, size: int) -> int:
    unit = ALIGNED * (aio(config.zero.aio).thread_count or 1)
    return -(-size // unit) * unit


def _gradient(config: Config, size: int) -> int:
    """Bytes on the disk of a share's gradients: what is beyond the last multiple stays in memory."""
    unit = ALIGNED * (aio(config.zero.aio).thread_count or 1)
    whole = size // unit * unit
    return whole if size >= _least(config) and whole >= _least(config) else 0
