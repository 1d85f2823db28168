"""Estimates what a machine reads, and a rank sends, while the model loads, and how long that takes. No torch."""

from dataclasses import dataclass

from hydraft.config.choices import QuantKind
from hydraft.config.schema import Config
from hydraft.models import stored_quant
from hydraft.plan.model_size import ModelSize
from hydraft.plan.quantised_size import BLOCK
from hydraft.plan.weights import WIDTH, model_bytes

READ = 700e6
"""Bytes that a disk reads in a second: 470 to 800 MB were measured on a virtual disk with ``dd iflag=direct``; others are faster."""

QUANTISED = 20e6
"""Weights that bitsandbytes quantises in a second on a CPU core, measured. A GPU quantises faster than a disk reads."""


@dataclass(frozen=True)
class Startup:
    """Loading the model, at the first start of a run with it and at later ones, which read its quantised copy if there is one."""

    read: int
    """Bytes of weights that a machine reads."""
    read_later: int
    sent: int
    """Bytes that a rank sends at a start without a copy: the scales of its share of each weight, to the other ranks."""
    seconds: float
    seconds_later: float


def startup(config: Config, subject: ModelSize, cpus: int | None, copied: bool) -> Startup:
    """Estimate the start of a resolved ``config``.

    Under stage 3 with NF4 a rank reads its share only; otherwise it reads all, and the ranks of a machine share what is read.

    Args:
        config: the run.
        subject: its model.
        cpus: cores of a machine without GPUs, None with GPUs.
        copied: whether a quantised copy is made in the cache.
    """
    ranks, per_machine = config.world_size, config.cluster.ranks_here
    nf4, dtype = config.quant.kind is QuantKind.nf4, WIDTH[config.model.dtype]
    unquantised = subject.layout.count * WIDTH[subject.stored]
    share = per_machine / ranks if nf4 and config.zero.stage == 3 else 1.0
    quantised = round(share * model_bytes(config, subject.layout.tensors, dtype))
    if not nf4:
        return Startup(unquantised, unquantised, 0, unquantised / READ, unquantised / READ)
    known = stored_quant.stored(config.model)
    if known is not None and known.quant is not None:
        return Startup(quantised, quantised, 0, quantised / READ, quantised / READ)
    weights = sum(tensor.count for tensor in subject.layout.tensors if tensor.packs)
    computed = 0.0 if cpus is None else weights / (QUANTISED * cpus)
    if copied:  # a process of its own quantises them, and all ranks read what it has written
        return Startup(unquantised, quantised, 0, unquantised / READ + computed, quantised / READ)
    read = round(unquantised * share)
    seconds = read / READ + computed * (share if config.zero.stage == 3 else per_machine)
    scales = sum(-(-tensor.count // BLOCK) for tensor in subject.layout.tensors if tensor.packs)
    sent = 4 * scales * (ranks - 1) // ranks if config.zero.stage == 3 else 0
    return Startup(read, read, sent, seconds, seconds)
