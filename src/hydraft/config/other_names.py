"""Names that other trainers and servers have for settings of ours, for "did you mean". No torch.

From the arguments of transformers' TrainingArguments, LLaMA-Factory, Axolotl, ms-swift, TRL, peft, torchrun, vLLM and OpenAI's API.
A name is compared in lower case, with ``_`` for ``-``. ``{}`` is the value that was typed.
"""

import re

from hydraft.config import groups
from hydraft.config.printed import shell_word
from hydraft.system import program

BOTH = {
    "quant={}": "quantization quantization_bit quant_bits quant_method bits",
    "quant=nf4": "load_in_4bit qlora",
    "quant=int8": "load_in_8bit",
    "cluster=1x{}": "nproc_per_node num_processes num_gpus n_gpus ngpus gpus",
}
"""By overrides that were meant: the names for them, of both commands."""

TRAIN_NAMES = {
    "train.learning_rate={}": "lr peak_lr learning_rate",
    "train.epochs={}": "epoch epochs num_epochs n_epochs max_epochs num_train_epochs",
    "train.max_steps={}": "steps train_steps max_train_steps",
    "train.micro_batch_size={}": "bs bsz batch_size train_batch_size micro_batch per_device_batch_size "
    "per_device_train_batch_size train_micro_batch_size_per_gpu",
    "train.gradient_accumulation_steps={}": "grad_accum grad_acc accumulation_steps gradient_accumulation accumulate_grad_batches",
    "train.scheduler={}": "lr_scheduler lr_scheduler_type",
    "optimizer={}": "optim optim_type",
    "optimizer.weight_decay={}": "wd weight_decay",
    "optimizer.lora_plus={}": "loraplus_lr_ratio lora_plus_lr_ratio",
    "train.warmup_steps={}": "warmup_steps num_warmup_steps warmup",
    "train.min_learning_rate={}": "min_lr lr_end",
    "train.neftune_alpha={}": "neftune_noise_alpha neftune",
    "train.label_smoothing={}": "label_smoothing_factor label_smoothing",
    "train.max_grad_norm={}": "grad_clip clip_grad gradient_clipping gradient_clip_val",
    "optimizer.eps={}": "adam_epsilon adam_eps",
    "train.gradient_checkpointing={}": "use_gradient_checkpointing grad_ckpt",
    "train.precision=bf16": "bf16 pure_bf16",
    "train.precision=fp16": "fp16",
    "train.precision=fp32": "fp32",
    "train.precision={}": "dtype torch_dtype compute_dtype mixed_precision amp",
    "train.compile={}": "torch_compile",
    "train.log_every={}": "logging_steps log_steps log_interval",
    "train.save_every={}": "save_steps",
    "train.save={}": "save_strategy",
    "train.keep_last={}": "save_total_limit",
    "train.eval_every={}": "eval_steps eval_strategy evaluation_strategy eval_interval",
    "train.patience={}": "patience early_stopping early_stopping_patience early_stop_patience",
    "train.min_delta={}": "min_delta early_stopping_threshold",
    "train.best_by={}": "metric_for_best_model monitor",
    "train.keep=best": "load_best_model_at_end",
    "hydra.run.dir={}": "output output_dir out_dir save_dir",
    "resume={}": "resume_from_checkpoint resume_from",
    "model=auto model.path={}": "model_id model_path model_name model_name_or_path model_id_or_path "
    "pretrained_model_name_or_path base base_model checkpoint",
    "model.revision={}": "model_revision",
    "model.trust_remote_code={}": "trust_remote_code",
    "model.hub=huggingface": "use_hf",
    "model.hub=modelscope": "use_modelscope",
    "data.train={}": "dataset datasets dataset_name dataset_path dataset_dir data_path data_file data_files "
    "train_data train_file train_files train_path train_dataset training_file training_data",
    "data.eval={}": "eval_data eval_file eval_dataset val_data val_file val_dataset valid_file validation_file "
    "test_file val_size eval_size val_set_size split_dataset_ratio",
    "data.eval_limit={}": "max_eval_samples",
    "data.max_length={}": "max_len max_length max_seq_len max_seq_length model_max_length max_source_length cutoff_len "
    "seq_len seq_length sequence_len block_size context_length",
    "data.template={}": "template chat_template prompt_template",
    "data.packing={}": "sample_packing packing",
    "data.group_by_length={}": "group_by_length",
    "data.train_on=last": "mask_history",
    "data.thinking={}": "enable_thinking",
    "lora.r={}": "lora_r lora_rank rank r",
    "lora.alpha={}": "lora_alpha",
    "lora.dropout={}": "lora_dropout",
    "lora.bias={}": "lora_bias",
    "lora.target_modules=[{}]": "target_modules lora_target lora_modules lora_target_modules",
    "lora=dora": "use_dora",
    "lora=rslora": "use_rslora",
    "lora=pissa": "pissa_init",
    "lora=default": "use_lora use_peft",
    "lora=none": "full_finetune",
    "lora.start={}": "adapter_name_or_path adapters adapter_path lora_model_dir lora_path",
    "lora={}": "adapter peft peft_type train_type tuner_type sft_type finetuning_type",
    "zero={}": "zero_stage deepspeed deepspeed_config",
    "zero=stage2_offload": "offload",
    "zero.nvme_path={}": "nvme_path offload_path",
    "zero.aio.block_size={}": "aio.block_size",
    "zero.aio.queue_depth={}": "aio.queue_depth",
    "zero.aio.single_submit={}": "aio.single_submit",
    "zero.aio.overlap_events={}": "aio.overlap_events",
    "zero.aio.thread_count={}": "aio.thread_count aio.intra_op_parallelism intra_op_parallelism",
    "zero.hpz_partition_size={}": "zero_hpz_partition_size",
    "zero.quantized_weights={}": "zero_quantized_weights",
    "zero.quantized_gradients={}": "zero_quantized_gradients",
    "kernels=unsloth": "use_unsloth",
    "kernels=liger": "use_liger use_liger_kernel enable_liger_kernel liger_kernel",
    "cluster.nodes={}": "nnodes num_nodes num_machines",
    "cluster.hostfile={}": "hostfile",
    "cluster.hosts=[{}]": "hosts",
    "cluster.address={}": "master_addr",
    "cluster.port={}": "master_port",
    "tracker={}": "report_to logger",
    "tracker=wandb": "use_wandb wandb",
    "tracker=swanlab": "use_swanlab",
    "tracker.project={}": "wandb_project project project_name",
    "tracker.group={}": "run_name wandb_run_name wandb_group",
    "objective={}": "stage rlhf_type",
    "objective.beta={}": "pref_beta simpo_beta",
    "objective.gamma={}": "simpo_gamma",
    "objective.sft_weight={}": "pref_ftx rpo_alpha cpo_alpha",
    "objective.label_smoothing={}": "dpo_label_smoothing",
    "objective.desirable_weight={}": "kto_chosen_weight",
    "objective.undesirable_weight={}": "kto_rejected_weight",
    "seed={}": "random_seed data_seed",
    "mode=plan": "dry_run",
}
"""The same for train.py."""

INFER_NAMES = {
    "run={}": "model model_path model_name_or_path model_id_or_path checkpoint ckpt ckpt_dir adapters "
    "adapter_path adapter_name_or_path lora lora_path",
    "base={}": "base_model base_model_name_or_path",
    "prompt={}": "query question instruction text",
    "system={}": "system_prompt default_system",
    "max_new_tokens={}": "max_tokens max_length",
    "temperature={}": "temp",
    "top_p={}": "topp",
    "top_k={}": "topk",
    "dtype=bf16": "bf16",
    "dtype=fp16": "fp16",
    "dtype={}": "precision torch_dtype",
    "template={}": "chat_template",
    "input={}": "data file dataset input_file",
    "output={}": "out output_file output_dir output_path export_dir save_path",
    "batch_size={}": "bs per_device_eval_batch_size",
    "serve.max_context={}": "max_model_len",
    "serve.max_running={}": "max_num_seqs",
    "serve.host={}": "host",
    "serve.port={}": "port",
    "serve.api_key_file=…": "api_key",
    "device=cuda:{}": "gpu",
}
"""The same for infer.py."""


def _by_name(table: dict[str, str]) -> dict[str, str]:
    return {name: overrides for overrides, names in table.items() for name in names.split()}


TRAIN = _by_name(BOTH | TRAIN_NAMES)
INFER = _by_name(BOTH | INFER_NAMES)

OF_INFER = {
    "against": f"a server is compared with a trained run by {program.typed('infer')} mode=verify run=last against=…"
}
"""Settings of infer.py that train.py has not, by name: what they are for."""

ABSENT = {
    **dict.fromkeys(("adam_beta1", "adam_beta2"), "both are optimizer.betas=[0.9,0.999]"),
    **dict.fromkeys(
        ("flash_attn", "attn_implementation", "attn_impl", "flash_attention", "use_flash_attn"),
        "it is chosen automatically",
    ),
    **dict.fromkeys(
        (
            "do_train",
            "do_eval",
            "overwrite_output_dir",
            "remove_unused_columns",
            "num_workers",
            "dataloader_num_workers",
            "preprocessing_num_workers",
        ),
        "leave it out",
    ),
}
"""Names without a setting of ours: why."""

VALUES: dict[str, dict[str, str]] = {
    "quant": {
        **dict.fromkeys(
            ("4", "4bit", "int4", "fp4", "qlora", "bnb4", "bnb_4bit", "bitsandbytes", "bnb", "true"), "quant=nf4"
        ),
        **dict.fromkeys(("8", "8bit", "bnb8", "bnb_8bit", "llm_int8"), "quant=int8"),
        **dict.fromkeys(("0", "16", "32", "no", "false", "off", "16bit", "bf16", "fp16", "fp32"), "quant=none"),
    },
    "zero": {
        **dict.fromkeys(("ddp", "none", "no", "false", "off"), "zero=stage0"),
        **dict.fromkeys(("fsdp", "full_shard"), "zero=stage3"),
    },
    "lora": {
        **dict.fromkeys(("full", "freeze", "no", "false", "off", "fft"), "lora=none"),
        **dict.fromkeys(("lora", "true", "yes", "on"), "lora=default"),
        "qlora": "lora=default quant=nf4",
    },
    "kernels": dict.fromkeys(("none", "default", "false", "no", "off", "eager", "sdpa"), "kernels=torch"),
    "optimizer": {
        **dict.fromkeys(
            (
                "adam",
                "adamw_torch",
                "adamw_torch_fused",
                "adamw_hf",
                "adamw_apex_fused",
                "adamw_anyprecision",
                "adamw_bnb",
            ),
            "optimizer=adamw",
        ),
        **dict.fromkeys(("adamw_bnb_8bit", "adamw8bit", "adam_8bit", "adam8bit", "8bit_adam"), "optimizer=adamw_8bit"),
        **dict.fromkeys(
            ("paged_adamw", "paged_adamw_32bit", "pagedadamw8bit", "paged_adam_8bit"), "optimizer=paged_adamw_8bit"
        ),
        **dict.fromkeys(("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"), "optimizer=lion"),
    },
    "tracker": {
        "tb": "tracker=tensorboard",
        **dict.fromkeys(("no", "false", "off"), "tracker=none"),
        "all": "tracker=wandb",
    },
    "train.scheduler": {
        **dict.fromkeys(("constant_with_warmup", "none"), "train.scheduler=constant"),
        **dict.fromkeys(("cosine_with_min_lr", "cosine_annealing"), "train.scheduler=cosine"),
        **dict.fromkeys(("warmup_stable_decay",), "train.scheduler=wsd"),
    },
    "train.precision": {
        **dict.fromkeys(("bfloat16", "bf16_mixed", "bf16_true"), "train.precision=bf16"),
        **dict.fromkeys(("float16", "half", "16", "16_mixed"), "train.precision=fp16"),
        **dict.fromkeys(("float32", "float", "32", "full", "no", "none"), "train.precision=fp32"),
    },
}
"""By group or setting, and value: the overrides that were meant."""


def meant(command: str, name: str, value: str) -> str | None:
    """The overrides that ``name=value`` was meant as; None if the name is not known from elsewhere."""
    table = TRAIN if command == "train" else INFER
    found = table.get(name.lower().replace("-", "_"))
    if found is None or "{}" not in found:
        return found
    group, options = found.partition("=")[0], groups.groups()
    inner = value.strip("[]") if "[{}]" in found else value
    if group in options and found == f"{group}={{}}" and value not in options[group]:
        return option(group, value) or f"{group}=…"
    return found.replace("{}", shell_word(inner) if inner else "…")


def option(group: str, value: str) -> str | None:
    """The overrides that ``group=value`` was meant as; None if the value is an option, or is not known from elsewhere."""
    if value in groups.groups().get(group, []) or not re.fullmatch(r"[\w.+-]+", value):
        return None
    plain = value.lower().replace("-", "_")
    if group == "zero" and (stage := re.fullmatch(r"(?:|.*(?:zero|z|stage|s)_?)([0-3])(?:\D.*)?", plain)):
        if "nvme" in plain and stage[1] == "3":
            return "zero=stage3_nvme zero.nvme_path=…"
        offload = "_offload" if "offload" in plain and stage[1] in "23" else ""
        return f"zero=stage{stage[1]}{offload}"
    if group == "cluster" and (shape := re.fullmatch(r"(?:(\d+)[x*_])?(\d+)", plain)):
        nodes, ranks = (str(int(number)) for number in (shape[1] or "1", shape[2]))
        if "0" in (nodes, ranks):
            return None
        named = f"{nodes}x{ranks}"
        return (
            f"cluster={named}"
            if named in groups.groups()[group]
            else f"cluster.nodes={nodes} cluster.ranks_per_node={ranks}"
        )
    if group == "lora" and re.fullmatch(r"r?[1-9]\d{0,4}", plain):
        return f"lora.r={plain.removeprefix('r')}"
    return VALUES.get(group, {}).get(plain)
