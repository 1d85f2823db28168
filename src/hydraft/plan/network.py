"""Estimates the bytes that a rank sends per optimizer step. No torch.

A ring sends (n - 1) / n of a tensor from each of n ranks to gather or to scatter it, and twice that for an all-reduce
(Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002). The tensors are those of section 7 of ZeRO (arXiv:1910.02054): gradients
are reduced and weights gathered: in stage 3 for the forward pass, for the backward pass, and to recompute activations (``gathered.py``).
"""

from dataclasses import dataclass

from hydraft.config.schema import Config
from hydraft.plan import moments
from hydraft.plan.gathered import gathered
from hydraft.plan.parameters import Layout, Trained
from hydraft.plan.weights import WIDTH, storage_width


@dataclass(frozen=True)
class Network:
    """Bytes that each rank sends per optimizer step."""

    gradients: int
    """And updates, with Muon."""
    weights: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.gradients + self.weights


def network(config: Config, layout: Layout, learns: Trained) -> Network:
    """Count one step of a resolved ``config``."""
    ranks, passes, stage = config.world_size, config.train.gradient_accumulation_steps, config.zero.stage
    width = WIDTH[config.train.precision]
    share = (ranks - 1) / ranks
    moved = learns.count * width * share
    # Muon's updates are summed over the ranks before and after it orthogonalises them.
    muon = round(2 * 2 * 4 * sum(moments.hidden(config.optimizer, learns)) * share) if stage else 0
    if stage < 2:  # reduced once, at the last micro-batch; stage 1 gathers the weights that each rank updated
        return Network(round(2 * moved) + muon, round(moved) * stage)
    if stage == 2:  # DeepSpeed all-reduces each micro-batch's gradients (use_multi_rank_bucket_allreduce)
        return Network(round(2 * moved * passes) + muon, round(moved))
    smallest = config.zero.stage3_param_persistence_threshold
    weights = passes * gathered(config, layout, learns).total * storage_width(config)
    stepped = sum(n for n in learns.tensors if n <= smallest) * width  # kept whole on every rank, so sent once
    return Network(round(moved * passes) + muon, round((weights + stepped) * share))
