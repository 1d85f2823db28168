"""The second copy of the weights that ZeRO++ hpZ shards over the ranks of a machine (arXiv:2306.10209, section 3.2). No torch."""

from hydraft.config.schema import Config
from hydraft.plan.parameters import Layout, Trained
from hydraft.plan.weights import sharded_bytes, storage_width


def second_copy(config: Config, layout: Layout, learns: Trained | None = None) -> int:
    """Bytes of a rank's share of it: of every parameter, as it is loaded, also of those that are whole on each rank.

    Args:
        learns: counts what it is in training: an update makes the copy of what is trained void, and DeepSpeed makes it again as it frees
            the gathered weight, which those that are whole on each rank never are.
    """
    group, ranks, width = config.hpz_group, config.world_size, storage_width(config)
    if config.zero.stage < 3 or group == 1:
        return 0
    base = [sharded_bytes(config, tensor, width, ranks) // width for tensor in layout.tensors]
    trained = list(learns.tensors) if learns is not None else []
    kept = [size for size in trained if size > config.zero.stage3_param_persistence_threshold]
    sizes = kept if learns is not None and learns.full else base + kept
    return sum(-(-size // ranks) * ranks // group for size in sizes) * width
