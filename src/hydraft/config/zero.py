"""Schema of the ``zero`` section: DeepSpeed's sharding, offloading and ZeRO++. No torch."""

from dataclasses import dataclass, field

from hydraft.config.bounds import Effect, setting
from hydraft.config.choices import Offload
from hydraft.config.train import AUTO


@dataclass
class AioConfig:
    """How ``nvme`` reads and writes its files: DeepSpeed's ``aio`` block, on Linux's libaio."""

    block_size: int | None = setting(None, at_least=4096, at_most=2**30, unit="bytes")
    """Bytes of a request to the disk. Tensors with fewer bytes on a rank, or fewer than 1 MiB, are not swapped. null: 1 MiB."""
    queue_depth: int | None = setting(None, at_least=1, at_most=4096, unit="requests")
    """Requests in flight at once. null: 8."""
    single_submit: bool | None = None
    """Submit requests one by one instead of as many as fit into the queue. null: false."""
    overlap_events: bool | None = None
    """Submit further requests while others are in flight. null: true."""
    thread_count: int | None = setting(None, at_least=1, at_most=64, unit="threads")
    """Threads that share the bytes of one tensor (DeepSpeed's ``intra_op_parallelism``). null: 1."""


@dataclass
class ZeroConfig:
    """ZeRO, DeepSpeed's sharding over ranks, and offloading to main memory or to a disk."""

    stage: int = setting(2, one_of=(0, 1, 2, 3), refusal="ZeRO has the stages 0, 1, 2 and 3")
    """What is sharded over the ranks: 0 nothing, 1 the optimizer state, 2 also the gradients, 3 also the weights."""
    offload_optimizer: Offload = Offload.none
    """Where the optimizer state is kept. ``cpu``: main memory, where the optimizer then steps; needs stage 1, 2 or 3. ``nvme``: a disk (``nvme_path``),
    from where it is read and written at each step; needs stage 3."""
    offload_param: Offload = Offload.none
    """Where sharded weights are kept between uses. ``cpu``: main memory; ``nvme``: a disk (``nvme_path``). Both need stage 3."""
    nvme_path: str | None = setting(None, effect=Effect.acts)
    """Folder on a local disk of each machine that ``nvme`` swaps to. Each rank has a folder of its own in it, which is removed when the
    run ends; those of killed runs are removed by the next run."""
    aio: AioConfig = field(default_factory=AioConfig)
    pin_memory: bool = True
    """Keep offloaded tensors in page-locked main memory: copies are faster, but the memory cannot be swapped out."""
    overlap_comm: bool = True
    """Reduce gradients during the backward pass."""
    contiguous_gradients: bool = True
    """Copy gradients into one contiguous buffer as they are computed, which avoids fragmentation."""
    reduce_scatter: bool = True
    """Reduce gradients with reduce-scatter instead of all-reduce."""
    reduce_bucket_size: int = setting(50_000_000, at_least=1, unit="elements")
    """Gradient elements that are reduced together."""
    allgather_partitions: bool = True
    """Stages 1 and 2: collect the updated weights with all-gather instead of broadcasts."""
    allgather_bucket_size: int = setting(50_000_000, at_least=1, unit="elements")
    """Stages 1 and 2: elements that are gathered together."""
    stage3_prefetch_bucket_size: int = setting(50_000_000, at_least=0, unit="elements")
    """Stage 3: elements that are prefetched together. Quantised weights are prefetched one at a time, or not at all with 0."""
    stage3_param_persistence_threshold: int = setting(100_000, at_least=0, unit="elements")
    """Stage 3: a weight with fewer elements is not sharded."""
    hpz_partition_size: int | str = setting(
        1,
        valid=lambda size: size == AUTO or (isinstance(size, int) and size >= 1),
        allowed="at least 1, or auto",
        unit="ranks",
    )
    """Stage 3, ZeRO++ hpZ: the backward pass gathers weights from a second copy that is sharded over this many consecutive ranks, instead
    of from all ranks. ``auto``: the ranks of a machine, so that these weights are not sent between machines. 1: no second copy."""
    quantized_weights: bool = False
    """Stage 3, ZeRO++ qwZ: gather weights in 8 bits, which sends half of 16. Needs a GPU."""
    quantized_gradients: bool = False
    """Stage 3, ZeRO++ qgZ: reduce gradients in 4 bits, with all-to-all in two steps, within machines and between them. Needs a GPU."""

    @property
    def swaps(self) -> bool:
        """Whether anything is kept on a disk."""
        return Offload.nvme in (self.offload_optimizer, self.offload_param)
