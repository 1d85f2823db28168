"""The optimizer of a run: the library's own class for its kind, and the groups of parameters that it steps."""

from collections.abc import Iterator
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer

from hydraft.config.choices import Offload
from hydraft.config.optimizer import OptimizerConfig, OptimizerKind
from hydraft.config.schema import Config
from hydraft.training.muon import Muon

Group = dict[str, Any]
"""Of a torch optimizer: ``params`` and what is theirs alone."""


def is_trainers(config: Config) -> bool:
    """Whether transformers' Trainer creates the optimizer: torch's fused AdamW, with one learning rate."""
    section = config.optimizer
    plain = section.kind is OptimizerKind.adamw and section.lora_plus is None
    return plain and config.zero.offload_optimizer is Offload.none


def build(config: Config, model: torch.nn.Module, decayed: set[str]) -> torch.optim.Optimizer:
    """The optimizer of ``config.optimizer``.

    Args:
        config: of the run.
        model: with its adapter.
        decayed: names of the parameters with weight decay.
    """
    section, rate = config.optimizer, config.train.learning_rate
    groups = _lora_plus(section, model, rate) if section.lora_plus is not None else _groups(section, model, decayed)
    if section.kind is OptimizerKind.muon:
        groups = list(_with_matrices(groups, hidden_matrices(model)))
    groups = [group for group in groups if group["params"]]
    return _create(section, groups, rate, config.zero.offload_optimizer is not Offload.none)


def _create(section: OptimizerConfig, groups: list[Group], rate: float, offloaded: bool) -> torch.optim.Optimizer:
    betas = (section.betas[0], section.betas[1])
    match section.kind:
        case OptimizerKind.adamw if offloaded:
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            return DeepSpeedCPUAdam(groups, lr=rate, betas=betas, eps=section.eps, adamw_mode=True)  # type: ignore[no-any-return]
        case OptimizerKind.adamw:
            return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=section.eps, fused=True)
        case OptimizerKind.muon:
            return Muon(groups, rate, betas, section.eps, section.momentum)
        case OptimizerKind.adafactor:
            return torch.optim.Adafactor(groups, lr=rate)
        case OptimizerKind.lion:
            from bitsandbytes.optim import Lion32bit

            return Lion32bit(groups, lr=rate, betas=betas)  # type: ignore[no-any-return]
        case OptimizerKind.adamw_8bit | OptimizerKind.paged_adamw_8bit:
            from bitsandbytes.optim import AdamW8bit

            paged = section.algorithm.paged
            return AdamW8bit(groups, lr=rate, betas=betas, eps=section.eps, is_paged=paged)  # type: ignore[no-any-return]


def _groups(section: OptimizerConfig, model: torch.nn.Module, decayed: set[str]) -> list[Group]:
    """As the Trainer makes them: the parameters with weight decay, and those without."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": section.weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]


class _Collected(torch.optim.SGD):
    """Takes the groups that peft makes, for an optimizer that it cannot create itself."""

    def __init__(self, groups: list[Group], lr: float) -> None:
        super().__init__([group for group in groups if group["params"]], lr=lr)


def _lora_plus(section: OptimizerConfig, model: Any, rate: float) -> list[Group]:
    """peft's: A with the learning rate, and B and vectors with ``lora_plus`` times that (arXiv:2402.12354)."""
    made = create_loraplus_optimizer(
        model,
        _Collected,
        lr=rate,
        loraplus_lr_ratio=section.lora_plus or 1.0,
        loraplus_weight_decay=section.weight_decay,
    )
    return [{name: group[name] for name in ("params", "lr", "weight_decay")} for group in made.param_groups]


def _with_matrices(groups: list[Group], hidden: set[int]) -> Iterator[Group]:
    """Each group as that of its hidden matrices and that of its other parameters."""
    for group in groups:
        for muon in (True, False):
            yield {**group, "params": [p for p in group["params"] if (id(p) in hidden) is muon], "muon": muon}


def hidden_matrices(model: Any) -> set[int]:
    """The ids of the trained matrices between the embedding and the language-model head, adapters of either left out."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    outside = {id(parameter) for end in ends if end is not None for parameter in end.parameters()}
    return {
        id(parameter)
        for parameter in model.parameters()
        if parameter.requires_grad
        and len(getattr(parameter, "ds_shape", parameter.shape)) == 2
        and id(parameter) not in outside
    }
