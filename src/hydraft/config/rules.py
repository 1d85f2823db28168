"""What a run may not be: impossible values and combinations, in one table. No torch here.

Each row says when it applies and what to write instead; ``check`` raises the first that does.
"""

import re
from collections.abc import Iterator
from importlib.util import find_spec

from hydraft.config.choices import (
    Batching,
    Init,
    Launcher,
    LoraMethod,
    Loss,
    Mode,
    Offload,
    OnDivergence,
    Precision,
    QuantKind,
    Scale,
    TrackerKind,
)
from hydraft.config.kernel_packages import PACKAGES
from hydraft.config.machine_rules import MACHINE
from hydraft.config.rule import Rule, value
from hydraft.config.schema import Config
from hydraft.config.train import AUTO
from hydraft.errors import ConfigError
from hydraft.system.hardware import Gpu, Hardware
from hydraft.system.source_tree import TINY


def _is_interval(every: int | str | None) -> bool:
    return every is None or every == "epoch" or (isinstance(every, int) and every >= 1)


VALUES = [
    value(lambda c: c.seed < 0, "seed={c.seed}: a seed is 0 or more"),
    value(lambda c: c.lora.r < 1, "lora.r={c.lora.r}: the rank of a LoRA update is at least 1; for full fine-tuning use lora=none"),
    value(lambda c: c.lora.alpha <= 0, "lora.alpha={c.lora.alpha}: must be above 0"),
    value(lambda c: not 0 <= c.lora.dropout < 1, "lora.dropout={c.lora.dropout}: must be in [0, 1)"),
    value(lambda c: c.lora.bias not in ("none", "all", "lora_only"), "lora.bias={c.lora.bias}: must be none, all or lora_only"),
    value(lambda c: not c.lora.target_modules, "lora.target_modules=[]: name at least one layer, or use lora.target_modules=[all-linear]"),
    value(lambda c: c.zero.stage not in (0, 1, 2, 3), "zero.stage={c.zero.stage}: ZeRO has the stages 0, 1, 2 and 3"),
    value(lambda c: c.zero.reduce_bucket_size < 1, "zero.reduce_bucket_size={c.zero.reduce_bucket_size}: must be at least 1"),
    value(lambda c: c.zero.allgather_bucket_size < 1, "zero.allgather_bucket_size={c.zero.allgather_bucket_size}: must be at least 1"),
    value(lambda c: c.zero.stage3_prefetch_bucket_size < 0, "zero.stage3_prefetch_bucket_size={c.zero.stage3_prefetch_bucket_size}: must be 0 or more"),
    value(lambda c: c.zero.stage3_param_persistence_threshold < 0, "zero.stage3_param_persistence_threshold={c.zero.stage3_param_persistence_threshold}: must be 0 or more"),
    value(lambda c: c.cluster.nodes < 1, "cluster.nodes={c.cluster.nodes}: must be at least 1"),
    value(lambda c: c.cluster.ranks_per_node < 1, "cluster.ranks_per_node={c.cluster.ranks_per_node}: must be at least 1"),
    value(lambda c: c.cluster.port is not None and not 0 < c.cluster.port < 65536, "cluster.port={c.cluster.port}: must be from 1 to 65535, or null for any that is free"),
    value(lambda c: c.cluster.link_timeout < 3, "cluster.link_timeout={c.cluster.link_timeout}: must be at least 3 seconds; hosts speak every second"),
    value(lambda c: c.cluster.max_restarts < 0, "cluster.max_restarts={c.cluster.max_restarts}: must be 0 or more"),
    value(lambda c: c.cluster.hang_timeout <= 0, "cluster.hang_timeout={c.cluster.hang_timeout}: must be above 0 seconds, and above the longest step"),
    value(lambda c: c.cluster.slurm.cpus_per_rank is not None and c.cluster.slurm.cpus_per_rank < 1, "cluster.slurm.cpus_per_rank={c.cluster.slurm.cpus_per_rank}: must be at least 1, or null for whole machines"),
    value(lambda c: not all(re.fullmatch(r"[a-z-]+", name) and "\n" not in str(value) for name, value in c.cluster.slurm.options.items()), "cluster.slurm.options={c.cluster.slurm.options}: must be long names of sbatch's options and values, such as +cluster.slurm.options.mem=200G"),
    value(lambda c: c.data.max_length < 16, "data.max_length={c.data.max_length}: must be at least 16 tokens"),
    value(lambda c: c.data.eval_limit is not None and c.data.eval_limit < 1, "data.eval_limit={c.data.eval_limit}: must be at least 1; for no scores use data.eval=null"),
    value(lambda c: c.data.eval_max_new_tokens < 1, "data.eval_max_new_tokens={c.data.eval_max_new_tokens}: must be at least 1"),
    value(lambda c: c.data.template != "chat" and "{instruction}" not in c.data.template, "data.template={c.data.template!r}: must be chat or a prompt that contains {{instruction}}"),
    value(lambda c: c.train.epochs <= 0, "train.epochs={c.train.epochs}: must be above 0"),
    value(lambda c: c.train.max_steps is not None and c.train.max_steps < 1, "train.max_steps={c.train.max_steps}: must be at least 1, or null for train.epochs"),
    value(lambda c: c.train.micro_batch_size < 1, "train.micro_batch_size={c.train.micro_batch_size}: must be at least 1"),
    value(lambda c: c.train.gradient_accumulation_steps < 1, "train.gradient_accumulation_steps={c.train.gradient_accumulation_steps}: must be at least 1"),
    value(lambda c: not 0 < c.train.learning_rate < 100, "train.learning_rate={c.train.learning_rate}: must be above 0 (usual for LoRA: 1e-4 to 5e-4)"),
    value(lambda c: not 0 <= c.train.warmup_ratio < 1, "train.warmup_ratio={c.train.warmup_ratio}: must be in [0, 1)"),
    value(lambda c: c.train.weight_decay < 0, "train.weight_decay={c.train.weight_decay}: must be 0 or more"),
    value(lambda c: len(c.train.betas) != 2 or not all(0 <= b < 1 for b in c.train.betas), "train.betas={c.train.betas}: must be two numbers in [0, 1)"),
    value(lambda c: c.train.eps <= 0, "train.eps={c.train.eps}: must be above 0"),
    value(lambda c: c.train.max_grad_norm < 0, "train.max_grad_norm={c.train.max_grad_norm}: must be 0 (no clipping) or more"),
    value(lambda c: c.train.save_every is not None and c.train.save_every < 1, "train.save_every={c.train.save_every}: must be at least 1 step, or null for none by their number"),
    value(lambda c: c.train.save_minutes is not None and c.train.save_minutes <= 0, "train.save_minutes={c.train.save_minutes}: must be above 0, or null for no checkpoints by the clock"),
    value(lambda c: c.train.keep_last < 1, "train.keep_last={c.train.keep_last}: must be at least 1"),
    value(lambda c: not 0 <= c.train.grace <= 3600, "train.grace={c.train.grace}: must be from 0 (a signal ends the run at once) to 3600 seconds"),
    value(lambda c: isinstance(c.train.gradient_checkpointing, str) and c.train.gradient_checkpointing != AUTO, "train.gradient_checkpointing={c.train.gradient_checkpointing}: must be auto, true or false"),
    value(lambda c: c.train.log_every < 1, "train.log_every={c.train.log_every}: must be at least 1"),
    value(lambda c: c.train.loss_spike is not None and c.train.loss_spike <= 1, "train.loss_spike={c.train.loss_spike}: must be above 1 (times the highest loss of late), or null for no bound"),
    value(lambda c: c.train.zero_grad_steps is not None and c.train.zero_grad_steps < 1, "train.zero_grad_steps={c.train.zero_grad_steps}: must be at least 1 step, or null for any number"),
    value(lambda c: c.train.max_rewinds < 1, "train.max_rewinds={c.train.max_rewinds}: must be at least 1; for none use train.on_divergence=stop"),
    value(lambda c: any(step < 1 for step in c.train.pass_over), "train.pass_over={c.train.pass_over}: must be optimizer steps, counted from 1"),
    value(lambda c: not _is_interval(c.train.eval_every), "train.eval_every={c.train.eval_every}: must be at least 1 (optimizer steps), or epoch, or null for scores before and after alone"),
]  # fmt: skip

COMBINATIONS = [
    *MACHINE,
    value(
        lambda c: c.tracker.upload and c.tracker.kind not in (TrackerKind.wandb, TrackerKind.mlflow),
        "tracker.upload=true needs a dashboard that keeps files: use tracker=wandb or tracker=mlflow, or tracker.upload=false",
    ),
    value(
        lambda c: (
            bool(c.tracker.group or c.tracker.tags) and c.tracker.kind in (TrackerKind.none, TrackerKind.tensorboard)
        ),
        "tracker.group and tracker.tags are for a dashboard that has them: use tracker=wandb, mlflow or swanlab",
    ),
    value(
        lambda c: c.tracker.kind is not TrackerKind.none and find_spec(c.tracker.kind.value) is None,
        "tracker={c.tracker.kind.value} needs a package that is not installed: pip install 'hydraft[{c.tracker.kind.value}]', or use tracker=none",
        here=True,
    ),
    # A gathered weight is there from a hook before a module's forward pass to one after it; a compiled layer has no such moments.
    value(
        lambda c: c.train.compile and c.zero.stage == 3,
        "train.compile=true: a compiled layer does not stop for zero=stage3 to gather its weights: use zero=stage2, or train.compile=false",
        source="DeepSpeed, runtime/zero/parameter_offload.py: hooks on every module",
    ),
    value(
        lambda c: c.kernels.kind in PACKAGES and find_spec(PACKAGES[c.kernels.kind]) is None,
        "kernels={c.kernels.kind.value} needs a package that is not installed: pip install 'hydraft[{c.kernels.kind.value}]', or use kernels=torch",
        here=True,
    ),
    # Chunks give the hidden states a gradient, and the head none.
    value(
        lambda c: c.kernels.loss is Loss.chunked and c.lora.method is LoraMethod.none,
        "kernels.loss=chunked is for a head that is frozen, and lora=none trains it: use kernels.loss=whole, or lora=default",
    ),
    value(
        lambda c: c.kernels.loss is Loss.chunked and c.lora.on_head,
        "kernels.loss=chunked is for a head that is frozen, and lora.target_modules has lm_head: use kernels.loss=whole",
    ),
    Rule(
        lambda c, h: c.cluster.gpu_memory is not None and c.mode is not Mode.plan and not h.gpus,
        "cluster.gpu_memory={c.cluster.gpu_memory} is for planning with cards that are not here: use mode=plan, or cluster.gpu_memory=null",
    ),
    value(
        lambda c: c.model.name == "tiny" and c.model.init is Init.pretrained and c.model.path != str(TINY),
        "model.path={c.model.path}: model=tiny brings training settings that are too hot for any other model: use model=auto model.path={c.model.path}",
    ),
    value(
        lambda c: c.data.packing and c.data.batching is Batching.padded,
        "data.packing=true lays a bin's records end to end, which data.batching=padded does not: use data.batching=padding_free",
    ),
    value(
        lambda c: c.train.eval_every is not None and c.data.eval is None,
        "train.eval_every={c.train.eval_every} has no records to score: give data.eval=held_out.json, or use train.eval_every=null",
    ),
    value(
        lambda c: c.train.eval_loss_only and c.train.eval_every is None,
        "train.eval_loss_only=true is about scores in mid-training, and there are none: use train.eval_every=epoch, or train.eval_loss_only=false",
    ),
    value(
        lambda c: c.cluster.launcher is Launcher.joined and c.train.on_divergence is OnDivergence.rewind,
        "train.on_divergence=rewind starts the ranks again, and another launcher than hydraft's own (cluster.launcher=joined) has started these: use train.on_divergence=stop, or type python train.py without it",
    ),
    value(
        lambda c: c.cluster.launcher is Launcher.joined and c.train.auto_micro_batch,
        "train.auto_micro_batch=true starts the ranks again, and another launcher than hydraft's own (cluster.launcher=joined) has started these: use train.auto_micro_batch=false, or type python train.py without it",
    ),
    # A quantised weight has no gradient: bitsandbytes trains adapters only.
    value(
        lambda c: c.quant.kind is not QuantKind.none and c.lora.method is LoraMethod.none,
        "lora=none cannot train quant={c.quant.kind.value} weights: use quant=none, or lora=default",
        source="QLoRA, arXiv:2305.14314, abstract: gradients pass through frozen 4-bit weights into adapters",
    ),
    value(
        lambda c: c.model.scale is Scale.tiny and c.model.init is Init.pretrained,
        "model.scale=tiny shrinks a shape, which published weights do not fit: use model.init=random too",
    ),
    value(
        lambda c: c.model.dtype not in (Precision.auto, c.train.precision) and c.lora.method is LoraMethod.none,
        "model.dtype={c.model.dtype.value} is for weights that are frozen, and lora=none trains them: use model.dtype=auto",
    ),
    # DeepSpeed casts the whole module to its 16-bit type, and zero.Init makes every shard in the engine's.
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
    # PiSSA takes the singular vectors of the weight itself (peft: "under float32, float16 or bfloat16").
    value(
        lambda c: c.lora.method is LoraMethod.pissa and c.quant.kind is not QuantKind.none,
        "lora=pissa needs unquantised weights: use quant=none, or lora=default",
        source="PiSSA, arXiv:2404.02948; peft, tuners/lora/layer.py, pissa_init",
    ),
    value(
        lambda c: c.lora.method is LoraMethod.pissa and c.zero.stage == 3,
        "lora=pissa needs whole weights on each rank: use zero=stage2, or lora=default",
        source="peft, tuners/lora/layer.py, pissa_init: svd of the weight",
    ),
    # ZeRO-3 flattens weights into buffers of the compute dtype; int8 weights with their row scales do not survive that.
    value(
        lambda c: c.quant.kind is QuantKind.int8 and c.zero.stage == 3,
        "quant=int8 cannot be sharded by zero=stage3: use quant=nf4, or zero=stage2",
        source="DeepSpeed, runtime/zero/stage3.py: one flat buffer of one type; LLM.int8(), arXiv:2208.07339",
    ),
    # DoRA reads the quantised weight inside the layer, where ZeRO-3 has not gathered it.
    value(
        lambda c: c.lora.method is LoraMethod.dora and c.quant.kind is not QuantKind.none and c.zero.stage == 3,
        "lora=dora with quant={c.quant.kind.value} cannot be sharded by zero=stage3: use zero=stage2, or quant=none",
        source="peft, tuners/lora/dora.py, dequantize_module_weight",
    ),
    value(
        lambda c: c.zero.offload_optimizer is not Offload.none and c.zero.stage == 0,
        "zero.offload_optimizer=cpu needs sharded optimizer state: use zero.stage=1, 2 or 3",
        source="ZeRO-Offload, arXiv:2101.06840; DeepSpeed, runtime/zero/config.py",
    ),
    value(
        lambda c: c.zero.offload_param is not Offload.none and c.zero.stage != 3,
        "zero.offload_param=cpu needs sharded weights: use zero.stage=3",
        source="ZeRO-Infinity, arXiv:2104.07857; DeepSpeed, runtime/zero/config.py",
    ),
    # There the loss is not multiplied with the scale that its gradients are then divided by; they drown in AdamW's eps.
    value(
        lambda c: c.train.precision is Precision.fp16 and c.zero.stage == 0,
        "train.precision=fp16: DeepSpeed does not scale the loss under zero=stage0: use zero=stage1, or train.precision=fp32",
        source="DeepSpeed 0.19.8, runtime/engine.py, backward: for a ZeROOptimizer alone; runtime/fp16/unfused_optimizer.py, step",
    ),
]


SUITABLE = Hardware(gpus=(Gpu("the one to come", 0, 9.0),) * 1024)
"""Stands for a machine that is not known yet: nothing is refused for what it may not have."""


def check(config: Config, hardware: Hardware | None) -> None:
    """Refuse a run that cannot be, before anything is loaded. What cannot be here alone may still be planned.

    Raises:
        ConfigError: the first rule that is broken.
    """
    for message in refusals(config, hardware or SUITABLE, VALUES + COMBINATIONS):
        raise ConfigError(message)


def refusals(config: Config, hardware: Hardware, rules: list[Rule]) -> Iterator[str]:
    """What each broken rule says; for ``mode=plan`` without those about this machine and this version."""
    for rule in rules:
        if not (rule.here and config.mode is Mode.plan) and rule.broken(config, hardware):
            yield rule.message.format(c=config, h=hardware)


def refused_here(config: Config, hardware: Hardware | None) -> list[str]:
    """What keeps a run that could be elsewhere from running on this machine with this version, each with its source."""
    machine = hardware or SUITABLE
    return [
        rule.message.format(c=config, h=machine) + (f" ({rule.source})" if rule.source else "")
        for rule in COMBINATIONS
        if rule.here and rule.broken(config, machine)
    ]
