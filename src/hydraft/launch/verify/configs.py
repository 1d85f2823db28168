"""The two configs of ``mode=verify``: the one to verify, as far as this machine can run it, and the reference. No torch."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from hydraft.config.choices import Batching, Kernels, Launcher, Loss, Mode, OnDivergence, Precision, Save
from hydraft.config.cluster import ClusterConfig
from hydraft.config.optimizer import OptimizerConfig
from hydraft.config.schema import Config, KernelsConfig, TrackerConfig
from hydraft.config.train import AUTO
from hydraft.config.zero import ZeroConfig
from hydraft.data import held_out
from hydraft.system.hardware import Hardware

STEPS = 8
"""Optimizer steps of each run."""
EPS = 1e-5
"""The least ``optimizer.eps``. With 1e-8, an element whose gradient is only rounding error moves by a full step in either direction."""


def comparable(config: Config) -> Config:
    """``config`` with ``STEPS`` steps that do not depend on the topology, and with nothing that is not compared.

    Ranks draw other dropout masks than one rank does, so there is no dropout. A divergence stops the run, and no failure is
    recovered from: either would hide a difference.
    """
    train = dataclasses.replace(
        config.train,
        max_steps=STEPS,
        warmup_ratio=0.0,
        warmup_steps=None,
        neftune_alpha=None,
        compile=False,
        log_every=1,
        eval_every=None,
        eval_loss_only=False,
        save=Save.end,
        save_every=None,
        save_minutes=None,
        on_divergence=OnDivergence.stop,
        pass_over=[],
        auto_micro_batch=False,
    )
    share = held_out.share(config.data) is not None  # decides which records are trained
    data = dataclasses.replace(config.data, eval=config.data.eval if share else None, eval_limit=1 if share else None)
    return dataclasses.replace(
        config, mode=Mode.train, train=train, data=data, tracker=TrackerConfig(), optimizer=_optimizer(config),
        lora=dataclasses.replace(config.lora, dropout=0.0),
    )  # fmt: skip


def _optimizer(config: Config) -> OptimizerConfig:
    """The optimizer of both runs, with at least ``EPS`` if its kind reads that."""
    optimizer = config.optimizer
    if "eps" not in optimizer.algorithm.settings:
        return optimizer
    return dataclasses.replace(optimizer, eps=max(optimizer.eps, EPS))


def held_fixed(config: Config) -> list[str]:
    """Lines about the settings of ``config`` that both runs have differently."""
    lines = []
    if config.lora.dropout:
        lines.append(
            f"lora.dropout=0 in both runs (in the config {config.lora.dropout:g}): ranks draw other masks than one rank"
        )
    if _optimizer(config) != config.optimizer:
        lines.append(
            f"optimizer.eps={EPS:g} in both runs (in the config {config.optimizer.eps:g}): with less, elements whose gradient is only "
            "rounding error move by a full step"
        )
    if config.train.warmup_ratio:
        lines.append(
            f"train.warmup_ratio=0 in both runs (in the config {config.train.warmup_ratio:g}): the rate would be almost 0"
        )
    if config.train.warmup_steps:
        lines.append(f"train.warmup_steps=null in both runs (in the config {config.train.warmup_steps})")
    if config.train.neftune_alpha:
        lines.append(
            f"train.neftune_alpha=null in both runs (in the config {config.train.neftune_alpha:g}): ranks draw other noise than one rank"
        )
    if config.train.pass_over:
        lines.append(f"train.pass_over=[] in both runs (in the config {config.train.pass_over}): no step is skipped")
    return lines


def elsewhere(config: Config) -> bool:
    """Whether the config is for other machines than this one."""
    cluster = config.cluster
    return (
        cluster.nodes > 1 or cluster.launcher is Launcher.slurm or bool(cluster.hosts) or cluster.hostfile is not None
    )


def here(config: Config, machine: Hardware) -> Iterator[Config]:
    """``config`` on this machine alone, with as many ranks as it has GPUs for (CPUs are shared), then with fewer and fewer.

    The global batch is that of ``config``: fewer ranks accumulate more micro-batches.
    """
    most = min(config.world_size, len(machine.gpus)) if machine.gpus else config.world_size
    for ranks in range(most, 0, -1):
        accumulated, rest = divmod(config.train.gradient_accumulation_steps * config.world_size, ranks)
        if not rest:
            yield _on_ranks(config, ranks, accumulated)


def _on_ranks(config: Config, ranks: int, accumulated: int) -> Config:
    cluster = ClusterConfig(nodes=1, ranks_per_node=ranks, hang_timeout=config.cluster.hang_timeout)
    train = dataclasses.replace(config.train, gradient_accumulation_steps=accumulated)
    return dataclasses.replace(config, cluster=cluster, train=train)


def reference(config: Config) -> Config:
    """The plainest config that trains the same: one rank, no sharding or offloading, torch's kernels, the whole loss at once.

    Its batches are padded afterwards (``padded``). fp16 has ZeRO-1, since DeepSpeed does not scale the loss at stage 0.
    """
    one = _on_ranks(config, 1, config.train.gradient_accumulation_steps * config.world_size)
    stage = 1 if config.train.precision is Precision.fp16 else 0
    return dataclasses.replace(
        one,
        zero=ZeroConfig(stage=stage),
        kernels=KernelsConfig(Kernels.torch, Loss.whole),
        train=dataclasses.replace(one.train, gradient_checkpointing=AUTO),
    )


def padded(config: Config) -> Config:
    """``config`` with padded batches. Those of packed data have the same bins, and each record of a bin has a row of its own."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, batching=Batching.padded))


def control(reference: Config) -> Config | None:
    """The reference with smaller micro-batches, so that it sums in another order: what rounding alone does. None if they have one record."""
    train = reference.train
    parts = next((count for count in (2, 3, train.micro_batch_size) if train.micro_batch_size % count == 0), 1)
    if parts == 1:
        return None
    smaller = dataclasses.replace(
        train,
        micro_batch_size=train.micro_batch_size // parts,
        gradient_accumulation_steps=train.gradient_accumulation_steps * parts,
    )
    return dataclasses.replace(reference, train=smaller)


def not_covered(requested: Config, tested: Config, machine: Hardware) -> list[str]:
    """Lines about what ``requested`` has and the runs on this machine have not."""
    cluster, lines = requested.cluster, []
    wanted, found = requested.world_size, tested.world_size
    if cluster.nodes > 1:
        lines.append(f"the network between {cluster.nodes} machines: all ranks run on this one")
    if cluster.launcher is Launcher.slurm:
        lines.append("cluster.launcher=slurm: the job and its script; the ranks start on this machine")
    elif elsewhere(requested):
        lines.append("the start of ranks over ssh, and whether all hosts have the same files and packages")
    if found < wanted:
        why = (
            f"this machine has {machine.count} GPUs"
            if machine.gpus and len(machine.gpus) < wanted
            else "more do not fit into memory"
        )
        lines.append(f"{wanted} ranks: here {found}, with accumulation so that the global batch is the same ({why})")
    if not machine.gpus and elsewhere(requested):
        lines.append("GPUs: this machine has none, so neither CUDA's kernels nor NCCL ran")
    if requested.train.precision is Precision.auto and elsewhere(requested):
        lines.append(f"train.precision=auto on other machines: here it is {tested.train.precision.value}")
    if requested.train.compile:
        lines.append("train.compile=true: layers are compiled after more steps than are compared")
    return lines


def differs(tested: Config, plain: Config) -> str:
    """What distinguishes the two runs, in a line; empty if nothing does."""
    pairs: list[tuple[str, Any, Any]] = [
        ("ZeRO stage", tested.zero.stage, plain.zero.stage),
        ("optimizer on", tested.zero.offload_optimizer.value, plain.zero.offload_optimizer.value),
        ("weights on", tested.zero.offload_param.value, plain.zero.offload_param.value),
        ("ranks", tested.world_size, plain.world_size),
        ("kernels", tested.kernels.kind.value, plain.kernels.kind.value),
        ("loss", tested.kernels.loss.value, plain.kernels.loss.value),
        ("batches", "packed" if tested.data.packing else tested.data.batching.value, plain.data.batching.value),
        ("recomputation", tested.train.recomputes, plain.train.recomputes),
    ]
    return ", ".join(f"{name} {ours} and {theirs}" for name, ours, theirs in pairs if ours != theirs)
