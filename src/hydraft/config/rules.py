"""Combinations of settings that a run cannot have, as one table. No torch.

Each row says when it applies and what to write instead; ``check`` raises the first that does. The bounds of a single setting
are declared with it in the schema.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from hydraft.config import bounds
from hydraft.config.benchmark_rules import BENCHMARKS
from hydraft.config.best_rules import BEST
from hydraft.config.choices import (
    Batching,
    Hub,
    Init,
    Launcher,
    Loss,
    Mode,
    OnDivergence,
    Precision,
    QuantKind,
    Scale,
    TrackerKind,
)
from hydraft.config.debug_rules import DEBUG
from hydraft.config.kernel_packages import PACKAGES
from hydraft.config.lora import LoraMethod
from hydraft.config.lora_rules import LORA
from hydraft.config.machine_rules import MACHINE
from hydraft.config.model_rules import MODEL
from hydraft.config.optimizer_rules import OPTIMIZER
from hydraft.config.rule import Rule, value
from hydraft.config.schedule_rules import SCHEDULE
from hydraft.config.schema import Config
from hydraft.config.zero_rules import ZERO
from hydraft.errors import ConfigError
from hydraft.system import program
from hydraft.system.hardware import Gpu, Hardware
from hydraft.system.source_tree import TINY

NO_MODELSCOPE = f"model.hub=modelscope needs a package that is not installed: {program.install('modelscope')}, or use model.hub=huggingface"

COMBINATIONS = [
    *MACHINE,
    *BEST,
    *BENCHMARKS,
    *DEBUG,
    *MODEL,
    *OPTIMIZER,
    *SCHEDULE,
    *ZERO,
    value(
        lambda c: bool(c.objective.unread),
        "objective.{c.objective.unread[0]} is not read by objective={c.objective.kind.value}: leave it out, or use objective={c.objective.readers}",
    ),
    value(
        lambda c: c.tracker.upload and c.tracker.kind not in (TrackerKind.wandb, TrackerKind.mlflow),
        "tracker.upload=true needs a dashboard that stores files: use tracker=wandb or tracker=mlflow, or tracker.upload=false",
    ),
    value(
        lambda c: (
            bool(c.tracker.group or c.tracker.tags or c.tracker.name or c.tracker.notes)
            and c.tracker.kind in (TrackerKind.none, TrackerKind.tensorboard)
        ),
        "tracker.group, tracker.tags, tracker.name and tracker.notes need a dashboard that has them: use tracker=wandb, mlflow or swanlab",
    ),
    value(
        lambda c: c.tracker.kind is not TrackerKind.none and find_spec(c.tracker.kind.value) is None,
        "tracker={c.tracker.kind.value} needs a package that is not installed: {pip}[{c.tracker.kind.value}]', or use tracker=none",
        here=True,
    ),
    value(
        lambda c: (
            c.model.hub is Hub.modelscope
            and c.model.init is Init.pretrained
            and not Path(c.model.path).expanduser().is_dir()
            and find_spec("modelscope") is None
        ),
        NO_MODELSCOPE,
        here=True,
    ),
    # ZeRO-3 gathers weights in hooks before and after a module's forward pass; a compiled layer does not call them.
    value(
        lambda c: c.train.compile and c.zero.stage == 3,
        "train.compile=true: inside a compiled layer zero=stage3 cannot gather the weights: use zero=stage2, or train.compile=false",
        source="DeepSpeed, runtime/zero/parameter_offload.py: hooks on every module",
    ),
    value(
        lambda c: c.kernels.kind in PACKAGES and find_spec(PACKAGES[c.kernels.kind]) is None,
        "kernels={c.kernels.kind.value} needs a package that is not installed: {pip}[{c.kernels.kind.value}]', or use kernels=torch",
        here=True,
    ),
    # The chunked loss computes a gradient of the hidden states, but none of the head.
    value(
        lambda c: c.kernels.loss is Loss.chunked and c.lora.method is LoraMethod.none,
        "kernels.loss=chunked needs a frozen language-model head, and lora=none trains it: use kernels.loss=whole, or lora=default",
    ),
    value(
        lambda c: c.kernels.loss is Loss.chunked and c.lora.on_head,
        "kernels.loss=chunked needs a frozen language-model head, and lora.target_modules or lora.modules_to_save has lm_head: use kernels.loss=whole",
    ),
    Rule(
        lambda c, h: c.cluster.gpu_memory is not None and c.mode is not Mode.plan and not h.gpus,
        "cluster.gpu_memory={c.cluster.gpu_memory} is for planning with GPUs that this machine does not have: use mode=plan, or cluster.gpu_memory=null",
    ),
    value(
        lambda c: c.model.name == "tiny" and c.model.init is Init.pretrained and c.model.path != str(TINY),
        "model.path={c.model.path}: model=tiny brings training settings that fit no other model: use model=auto model.path={c.model.path}",
    ),
    value(
        lambda c: c.data.packing and c.data.batching is Batching.padded,
        "data.packing=true concatenates the records of a bin, and data.batching=padded keeps them apart: use data.batching=padding_free",
    ),
    value(
        lambda c: c.train.eval_every is not None and c.data.eval is None,
        "train.eval_every={c.train.eval_every} needs held-out records: give data.eval=held_out.json, or use train.eval_every=null",
    ),
    value(
        lambda c: c.train.show_answers > 0 and c.data.eval is None,
        "train.show_answers={c.train.show_answers} needs held-out records: give data.eval=held_out.json, or use train.show_answers=0",
    ),
    value(
        lambda c: c.train.eval_loss_only and c.train.eval_every is None,
        "train.eval_loss_only=true is about evaluation during training, and there is none: use train.eval_every=epoch, or train.eval_loss_only=false",
    ),
    value(
        lambda c: c.cluster.launcher is Launcher.joined and c.train.on_divergence is OnDivergence.rewind,
        "train.on_divergence=rewind must restart the ranks, and an external launcher (cluster.launcher=joined) started them: use train.on_divergence=stop, or {train} without that launcher",
    ),
    value(
        lambda c: c.cluster.launcher is Launcher.joined and c.train.auto_micro_batch,
        "train.auto_micro_batch=true must restart the ranks, and an external launcher (cluster.launcher=joined) started them: use train.auto_micro_batch=false, or {train} without that launcher",
    ),
    # A quantised weight has no gradient: with bitsandbytes only adapters are trained.
    value(
        lambda c: c.quant.kind is not QuantKind.none and c.lora.method is LoraMethod.none,
        "lora=none cannot train quant={c.quant.kind.value} weights: use quant=none, or lora=default",
        source="QLoRA, arXiv:2305.14314, abstract: gradients pass through frozen 4-bit weights into adapters",
    ),
    value(
        lambda c: c.model.scale is Scale.tiny and c.model.init is Init.pretrained,
        "model.scale=tiny shrinks the shape, and published weights do not fit that: use model.init=random too",
    ),
    value(
        lambda c: c.model.dtype not in (Precision.auto, c.train.precision) and c.lora.method is LoraMethod.none,
        "model.dtype={c.model.dtype.value} is for frozen weights, and lora=none trains all weights: use model.dtype=auto",
    ),
    # DeepSpeed casts the whole module to its 16-bit type, and zero.Init creates every shard in the type of the engine.
    value(
        lambda c: c.model.dtype not in (Precision.auto, c.train.precision) and c.train.precision is not Precision.fp32,
        "model.dtype={c.model.dtype.value}: with train.precision={c.train.precision.value} all weights have that type: use model.dtype=auto",
        source="DeepSpeed, runtime/engine.py, _cast_module_mixed_precision",
    ),
    value(
        lambda c: c.model.dtype not in (Precision.auto, c.train.precision) and c.zero.stage == 3,
        "model.dtype={c.model.dtype.value}: zero=stage3 shards all weights in train.precision: use model.dtype=auto, or zero=stage2",
        source="DeepSpeed, runtime/zero/partition_parameters.py, Init",
    ),
    *LORA,
    # ZeRO-3 flattens weights into buffers of the compute dtype, which int8 weights with scales per row cannot be.
    value(
        lambda c: c.quant.kind is QuantKind.int8 and c.zero.stage == 3,
        "quant=int8 cannot be sharded by zero=stage3: use quant=nf4, or zero=stage2",
        source="DeepSpeed, runtime/zero/stage3.py: one flat buffer of one type; LLM.int8(), arXiv:2208.07339",
    ),
    # At stage 0 the loss is not multiplied by the scale that the gradients are divided by, so AdamW's eps dominates them.
    value(
        lambda c: c.train.precision is Precision.fp16 and c.zero.stage == 0,
        "train.precision=fp16: DeepSpeed does not scale the loss under zero=stage0: use zero=stage1, or train.precision=fp32",
        source="DeepSpeed 0.19.8, runtime/engine.py, backward: for a ZeROOptimizer alone; runtime/fp16/unfused_optimizer.py, step",
    ),
]


SUITABLE = Hardware(gpus=(Gpu("not known yet", 0, 9.0),) * 1024)
"""Used for a machine that is not known yet, so that nothing is refused because of it."""


def check(config: Config, hardware: Hardware | None) -> None:
    """Refuse a config that cannot run, before anything is loaded. ``mode=plan`` accepts what only this machine cannot run.

    Raises:
        ConfigError: the first setting out of its bounds, or the first broken rule.
    """
    bounds.check(config)
    for message in refusals(config, hardware or SUITABLE, COMBINATIONS):
        raise ConfigError(message)


def refusals(config: Config, hardware: Hardware, rules: list[Rule]) -> Iterator[str]:
    """The message of each broken rule; with ``mode=plan`` without the rules about this machine and this version."""
    for rule in rules:
        if not (rule.here and config.mode is Mode.plan) and rule.broken(config, hardware):
            yield rule.text(config, hardware)


def refused_here(config: Config, hardware: Hardware | None) -> list[str]:
    """The messages of the broken rules about this machine and this version, each with its source."""
    machine = hardware or SUITABLE
    return [
        rule.text(config, machine) + (f" ({rule.source})" if rule.source else "")
        for rule in COMBINATIONS
        if rule.here and rule.broken(config, machine)
    ]
