"""DeepSpeed's config, made from the zero section. No torch."""

from typing import Any

from hydraft.config.choices import Offload, Precision
from hydraft.config.schema import Config
from hydraft.plan import gathered


def deepspeed_config(config: Config, swap=None) -> dict[str, Any]:
    """The config for ``deepspeed.initialize``.

    It only has keys that the chosen stage reads. These blocks are left out: ``activation_checkpointing``, since the Trainer does not
    call DeepSpeed's checkpointing (``train.gradient_checkpointing`` replaces it); ``aio``, which is only for NVMe offload; and
    ``optimizer``, since the Trainer creates the optimizer with its own parameter groups.
    """
    train = config.train
    return {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "train_batch_size": config.global_batch_size,
        "gradient_clipping": train.max_grad_norm,
        "bf16": {"enabled": train.precision is Precision.bf16},
        "fp16": {"enabled": train.precision is Precision.fp16},
        "zero_optimization": _zero(config, swap),
        "steps_per_print": 2**31,  # metrics.jsonl has more
        "wall_clock_breakdown": False,
    }


def _zero(config: Config, swap) -> dict[str, Any]:
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
        }
    if zero.offload_optimizer is not Offload.none:
        built["offload_optimizer"] = _place(zero.offload_optimizer, zero.pin_memory, swap)
    if zero.offload_param is not Offload.none:
        built["offload_param"] = _place(zero.offload_param, zero.pin_memory, swap)
    if zero.offload_param is Offload.nvme:
        built["offload_param"] |= {"buffer_size": 20_000_000, "max_in_cpu": 0}
    return built

def _place(where, pin, swap):
    return {"device": where.value, "pin_memory": pin, **({"nvme_path": str(swap)} if where is Offload.nvme else {})}
