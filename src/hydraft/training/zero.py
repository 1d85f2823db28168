"""DeepSpeed's config, made from the zero section. No torch."""

from pathlib import Path
from typing import Any

from hydraft.config.choices import Offload, Precision
from hydraft.config.schema import Config
from hydraft.plan import gathered, swap
from hydraft.plan.parameters import trained_in
from hydraft.plan.plan import known_layout


def deepspeed_config(config: Config, swap_folder: Path | None = None) -> dict[str, Any]:
    """The config for ``deepspeed.initialize``.

    It only has keys that the chosen stage reads. These blocks are left out: ``activation_checkpointing``, since the Trainer does not
    call DeepSpeed's checkpointing (``train.gradient_checkpointing`` replaces it); ``aio`` of a run that keeps nothing on a disk; and
    ``optimizer``, since the Trainer creates the optimizer with its own parameter groups.

    Args:
        swap_folder: this rank's folder for what is kept on a disk.
    """
    train = config.train
    return {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "train_batch_size": config.global_batch_size,
        "gradient_clipping": train.max_grad_norm,
        "bf16": {"enabled": train.precision is Precision.bf16},
        "fp16": {"enabled": train.precision is Precision.fp16},
        "zero_optimization": _zero(config, swap_folder),
        "zero_allow_untested_optimizer": True,  # training/muon.py; those of bitsandbytes step each element by itself
        "zero_force_ds_cpu_optimizer": False,
        **({"aio": _aio(config)} if config.zero.swaps else {}),
        "steps_per_print": 2**31,  # metrics.jsonl has more
        "wall_clock_breakdown": False,
    }


def _zero(config: Config, swap_folder: Path | None) -> dict[str, Any]:
    zero = config.zero
    built: dict[str, Any] = {"stage": zero.stage}
    if zero.stage == 0:
        return built
    built |= {
        "overlap_comm": zero.overlap_comm,
        "contiguous_gradients": zero.contiguous_gradients,
        "reduce_scatter": zero.reduce_scatter,
        "reduce_bucket_size": zero.reduce_bucket_size,
    }
    if zero.stage < 3:
        built |= {
            "allgather_partitions": zero.allgather_partitions,
            "allgather_bucket_size": zero.allgather_bucket_size,
        }
    else:
        limits = gathered.limits(config)
        built |= {
            "stage3_prefetch_bucket_size": limits.prefetch,
            "stage3_param_persistence_threshold": limits.persistent,
            "stage3_max_live_parameters": limits.live,
            "stage3_max_reuse_distance": limits.reuse,
            **_zeropp(config),
        }
    for part, place in (("offload_optimizer", zero.offload_optimizer), ("offload_param", zero.offload_param)):
        if place is not Offload.none:
            built[part] = {"device": place.value, "pin_memory": zero.pin_memory}
        if place is Offload.nvme:
            built[part] |= {"nvme_path": str(swap_folder), **_buffers(config, part)}
    if zero.offload_optimizer is Offload.nvme:
        built["sub_group_size"] = swap.SUB_GROUP
    return built


def _zeropp(config: Config) -> dict[str, Any]:
    """ZeRO++: only what is used."""
    zero, group = config.zero, config.hpz_group
    return {
        **({"zero_hpz_partition_size": group} if group > 1 else {}),
        **({"zero_quantized_weights": True} if zero.quantized_weights else {}),
        **({"zero_quantized_gradients": True} if zero.quantized_gradients else {}),
    }


def _buffers(config: Config, part: str) -> dict[str, int]:
    if part == "offload_optimizer":
        return {"buffer_count": swap.OPTIMIZER_BUFFERS}
    known, _ = known_layout(config)
    size = swap.weight_buffer(config, known, None if known is None else trained_in(known, config))
    return {"buffer_count": swap.WEIGHT_BUFFERS, "buffer_size": size, "max_in_cpu": 0}


def _aio(config: Config) -> dict[str, Any]:
    values = vars(swap.aio(config.zero.aio)).copy()
    return values | {"intra_op_parallelism": values.pop("thread_count")}
