"""Combinations of the optimizer with other settings that a run cannot have. No torch."""

from hydraft.config.choices import Offload
from hydraft.config.lora import LoraMethod
from hydraft.config.optimizer import OptimizerKind
from hydraft.config.rule import Rule, value

OPTIMIZER = [
    value(
        lambda c: c.zero.offload_optimizer is Offload.nvme and c.optimizer.kind is not OptimizerKind.adamw,
        "optimizer={c.optimizer.kind.value}: zero.offload_optimizer=nvme keeps AdamW's state on a disk: use optimizer=adamw, or zero=stage3",
        source="DeepSpeed, runtime/swap_tensor/optimizer_utils.py: states of the size of their parameter",
    ),
    value(
        lambda c: bool(c.optimizer.unread),
        "optimizer.{c.optimizer.unread[0]} is not read by optimizer={c.optimizer.kind.value}: leave it out, or use optimizer=adamw",
    ),
    # A shard is a flat piece of several tensors: it has neither rows and columns nor the mean square of a whole tensor.
    value(
        lambda c: c.optimizer.algorithm.whole and c.zero.stage > 0,
        "optimizer={c.optimizer.kind.value} needs whole tensors, and zero.stage={c.zero.stage} shards its state: use zero=stage0, or optimizer=adamw",
        source="Adafactor, arXiv:1804.04235, algorithm 4; DeepSpeed, runtime/zero/stage_1_and_2.py: one flat partition for each group",
    ),
    value(
        lambda c: c.optimizer.algorithm.paged and c.zero.offload_optimizer is not Offload.none,
        "optimizer={c.optimizer.kind.value} pages moments of the GPU, and zero.offload_optimizer=cpu keeps them in main memory: use optimizer=adamw_8bit, or zero=stage{c.zero.stage}",
    ),
    Rule(
        lambda c, h: c.optimizer.algorithm.paged and not h.gpus,
        "optimizer={c.optimizer.kind.value} needs a GPU, and this machine has none: use optimizer=adamw_8bit",
        source="bitsandbytes, optim/optimizer.py, get_state_buffer: paged memory is CUDA's",
        here=True,
    ),
    value(
        lambda c: c.optimizer.lora_plus is not None and c.lora.method is LoraMethod.none,
        "optimizer.lora_plus={c.optimizer.lora_plus:g} is a rate of the adapter's matrices B, and lora=none has no adapter: use lora=default, or leave it out",
    ),
    value(
        lambda c: c.optimizer.lora_plus is not None and (c.lora.variant.frozen_down or c.lora.variant.shared),
        "optimizer.lora_plus={c.optimizer.lora_plus:g}: lora={c.lora.method.value} does not train A and B: use lora=default, or leave it out",
        source="LoRA+, arXiv:2402.12354",
    ),
]
"""Joined to the table in ``rules.py``."""
