"""Estimates the bytes that a rank sends per optimizer step, and those that a machine sends to others. No torch.

A ring sends (n - 1) / n of a tensor from each of n ranks to gather or to scatter it, and twice that for an all-reduce
(Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002). It leaves each machine once: so a machine sends as much to the next one as a rank
does. The tensors are those of section 7 of ZeRO (arXiv:1910.02054): gradients are reduced and weights gathered: in stage 3 for the forward
pass, for the backward pass, and to recompute activations (``gathered.py``). ZeRO++ (arXiv:2306.10209) changes what stage 3 sends.
"""

from dataclasses import dataclass

from hydraft.config.schema import Config
from hydraft.plan import moments
from hydraft.plan.gathered import gathered
from hydraft.plan.parameters import Layout, Trained
from hydraft.plan.weights import WIDTH, storage_width

QUANTISED_WEIGHT, QUANTISED_GRADIENT = 1, 0.5
"""Bytes per element of ZeRO++'s quantised weights and gradients, without their scales, which are less than a thousandth."""


@dataclass(frozen=True)
class Network:
    """Bytes per optimizer step."""

    gradients: int
    """That each rank sends, with Muon also updates."""
    weights: int
    """That each rank sends."""
    between_gradients: int = 0
    """That each machine sends to other machines."""
    between_weights: int = 0
    """That each machine sends to other machines."""

    @property
    def total(self) -> int:
        """What each rank sends."""
        return self.gradients + self.weights

    @property
    def between(self) -> int:
        """What each machine sends to other machines."""
        return self.between_gradients + self.between_weights


def network(config: Config, layout: Layout, learns: Trained) -> Network:
    """Count one step of a resolved ``config``."""
    ranks, passes, stage = config.world_size, config.train.gradient_accumulation_steps, config.zero.stage
    share = (ranks - 1) / ranks
    moved = learns.count * WIDTH[config.train.precision] * share
    # Muon's updates are summed over the ranks before and after it orthogonalises them.
    muon = 2 * 2 * 4 * sum(moments.hidden(config.optimizer, learns)) * share if stage else 0
    if stage < 2:  # reduced once, at the last micro-batch; stage 1 gathers the weights that each rank updated
        return _ring(config, 2 * moved + muon, moved * stage)
    if stage == 2:  # DeepSpeed all-reduces each micro-batch's gradients (use_multi_rank_bucket_allreduce)
        return _ring(config, 2 * moved * passes + muon, moved)
    sent, between = _weights(config, layout, learns)
    if not config.zero.quantized_gradients:
        return Network(round(moved * passes + muon), round(sent), *_between(config, moved * passes + muon, between))
    gradients, between_gradients = _quantised_gradients(config, layout, learns)
    return Network(
        round(passes * gradients + muon),
        round(sent),
        *_between(config, passes * between_gradients + muon, between),
    )


def _ring(config: Config, gradients: float, weights: float) -> Network:
    return Network(round(gradients), round(weights), *_between(config, gradients, weights))


def _between(config: Config, gradients: float, weights: float) -> tuple[int, int]:
    return (round(gradients), round(weights)) if config.cluster.nodes > 1 else (0, 0)


def _weights(config: Config, layout: Layout, learns: Trained) -> tuple[float, float]:
    """Bytes of stage 3's weights that a rank sends, and that a machine sends to others."""
    ranks, group, smallest = config.world_size, config.hpz_group, config.zero.stage3_param_persistence_threshold
    stored, share = storage_width(config), (ranks - 1) / ranks
    width = QUANTISED_WEIGHT if config.zero.quantized_weights else stored
    stepped = sum(n for n in learns.tensors if n <= smallest) * stored * share  # kept whole on every rank, so sent once
    total = config.train.gradient_accumulation_steps * gathered(config, layout, learns).total * width
    if group == 1:
        return total * share + stepped, total * share + stepped
    # An update makes the second copy of what is trained void until it was gathered once; that of frozen weights stays.
    updated = sum(n for n in learns.tensors if n > smallest) * width
    within = (total - updated) * (group - 1) / group
    crosses = config.cluster.ranks_per_node % group != 0
    everywhere = updated * share + stepped
    return everywhere + within, everywhere + (within if crosses else 0)


def _quantised_gradients(config: Config, layout: Layout, learns: Trained) -> tuple[float, float]:
    """Bytes of a micro-batch's gradients that a rank sends, and that a machine sends to others: all-to-all within machines, and between
    them of what was reduced there. Vectors are reduced as they are."""
    ranks, here, nodes = config.world_size, config.cluster.ranks_per_node, config.cluster.nodes
    vectors = sum(tensor.count for tensor in layout.tensors if len(tensor.shape) < 2) if learns.full else 0
    plain = vectors * WIDTH[config.train.precision] * (ranks - 1) / ranks
    matrices = (learns.count - vectors) * QUANTISED_GRADIENT
    outside = matrices * (nodes - 1) / nodes
    return plain + matrices * (here - 1) / here + outside / here, plain + outside
