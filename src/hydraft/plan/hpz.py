"""The second copy of the weights that ZeRO++ hpZ shards over the ranks of a machine (arXiv:2306.10209, section 3.2). No torch."""

from hydraft.config.schema import Config
from hydraft.plan.parameters import Layout
from hydraft.plan.weights import sharded_bytes, storage_width


def second_copy(config: Config, layout: Layout, adapter: tuple[int, ...] = ()) -> int:
    """Bytes of a rank's share of it: of every parameter, since DeepSpeed copies those too that are whole on each rank."""
    group, ranks, width = config.hpz_group, config.world_size, storage_width(config)
    if config.zero.stage < 3 or group == 1:
        return 0
    sizes = [sharded_bytes(config, tensor, width, ranks) // width for tensor in layout.tensors] + list(adapter)
    return sum(-(-size // ranks) * ranks // group for size in sizes) * width
