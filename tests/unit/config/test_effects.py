"""Every setting of train.py is decided: whether a config in another user's folder may set it."""

import dataclasses

from hydraft.config import foreign
from hydraft.config.bounds import Effect, bounds_of
from hydraft.config.model import ShapeConfig
from hydraft.config.schema import Config

DATA = {
    "": "mode resume seed",
    "kernels": "loss",
    "model": "name size sizes init scale dtype cache_quantised rope rope_factor",
    "quant": "kind double_quant",
    "lora": "method r alpha dropout bias target_modules exclude_modules layers rank_pattern alpha_pattern modules_to_save",
    "zero": "stage offload_optimizer offload_param pin_memory overlap_comm contiguous_gradients reduce_scatter reduce_bucket_size "
    "allgather_partitions allgather_bucket_size stage3_prefetch_bucket_size stage3_param_persistence_threshold hpz_partition_size "
    "quantized_weights quantized_gradients",
    "zero.aio": "block_size queue_depth single_submit overlap_events thread_count",
    "cluster": "nodes ranks_per_node gpu_memory port link_timeout hang_timeout max_restarts",
    "cluster.slurm": "cpus_per_rank",
    "data": "name only format train_on template max_length batching packing group_by_length shuffle eval_limit task eval_max_new_tokens "
    "thinking columns labels on_bad_record eval_seed benchmark_shots benchmark_limit benchmark_chat",
    "tracker": "tags",
    "objective": "kind beta label_smoothing length_normalized gamma sft_weight desirable_weight undesirable_weight",
    "optimizer": "kind weight_decay betas eps momentum lora_plus",
    "train": "epochs max_steps micro_batch_size gradient_accumulation_steps learning_rate scheduler min_learning_rate warmup_ratio "
    "warmup_steps decay_ratio decay_power neftune_alpha label_smoothing max_grad_norm precision gradient_checkpointing compile profile log_every eval_every eval_loss_only patience min_delta best_by keep save save_every "
    "save_minutes grace keep_last on_divergence loss_spike zero_grad_steps max_rewinds pass_over auto_micro_batch show_answers",
    "sweep": "name resume retry_failed skip_invalid objective replicas decide max_replicas budget stop_at",
    "debug": "kind cpu learned_loss",
}
"""By section: the settings that only describe the run. They name no program, machine, account or file, and no code: a new setting
belongs either here, or gets ``setting(..., effect=…)`` in the schema."""


def names(schema: type, effects: set[Effect], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for declared in dataclasses.fields(schema):
        name = f"{prefix}{declared.name}"
        if dataclasses.is_dataclass(declared.type):
            assert isinstance(declared.type, type)
            found |= names(declared.type, effects, f"{name}.")
        elif bounds_of(declared).effect in effects:
            found.add(name)
    return found


def test_every_setting_is_decided() -> None:
    data = {f"{section}.{name}".lstrip(".") for section, listed in DATA.items() for name in listed.split()}
    assert names(Config, {Effect.none}) == data
    assert {
        f"model.sizes.x.{one.name}"
        for one in dataclasses.fields(ShapeConfig)
        if bounds_of(one).effect is not Effect.none
    } == set()


def test_what_is_marked_is_found_in_a_config() -> None:
    config = Config()
    config.cluster.slurm.options = {"mem": "1G"}
    found = {one.name for one in foreign.marked(config)} - {"cluster.slurm.options.mem"}
    assert found == names(Config, set(Effect) - {Effect.none}) - {"cluster.slurm.options"}
