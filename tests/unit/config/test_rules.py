"""Each bound and each rule refuses a config that violates it, with a message that names an existing setting."""

import dataclasses
import functools
import re

import pytest
from hydra import compose, initialize_config_dir

from conftest import ROOT
from hydraft.config import benchmark_rules, bounds, cli, machine_rules, rules
from hydraft.config.bounds import Bounds, bounds_of
from hydraft.config.infer import InferConfig
from hydraft.config.rules import COMBINATIONS, check
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.system.hardware import Gpu, Hardware

CPU = Hardware(cpus=2)
T4 = Hardware(gpus=(Gpu("Tesla T4", 16 * 2**30, 7.5),), cpus=8)

VIOLATIONS = [  # overrides that are refused
    "seed=-1", "lora.r=0", "lora.alpha=0", "lora.dropout=1", "lora.bias=some", "lora.target_modules=[]", "lora.exclude_modules=[1]", 'lora.modules_to_save=[""]',
    "lora.layers=[-1]", "lora.rank_pattern={q_proj:0}", "lora.alpha_pattern={q_proj:0}", "zero.stage=4",
    "zero.reduce_bucket_size=0", "zero.allgather_bucket_size=0", "zero.stage3_prefetch_bucket_size=-1",
    "zero.stage3_param_persistence_threshold=-1", "zero.aio.block_size=1024 zero.stage=3", "zero.aio.queue_depth=0", "zero.aio.thread_count=0",
    "zero.hpz_partition_size=0", "zero.offload_optimizer=nvme zero.nvme_path=/var/tmp", "zero=stage3_nvme", "zero.nvme_path=/var/tmp", "zero.aio.single_submit=true",
    "zero=stage3_nvme zero.nvme_path=swap", "zero=stage3_nvme zero.nvme_path=/var/tmp zero.aio.block_size=5000", "zero.hpz_partition_size=2",
    "zero=stage3 zero.hpz_partition_size=3 cluster=2x4", "zero=stage3_hpz", "zero=stage3_hpz cluster=2x4 zero.offload_param=cpu",
    "zero=stage3 zero.quantized_weights=true", "zero=stage3 quant=none zero.quantized_weights=true train.precision=fp32",
    "zero=stage3 zero.quantized_gradients=true train.precision=bf16", "zero=stage3 zero.quantized_gradients=true zero.reduce_scatter=false cluster=2x4",
    "zero=stage3 quant=none train.precision=bf16 zero.quantized_weights=true", "cluster.nodes=0", "cluster.ranks_per_node=0", "cluster.port=0",
    "cluster.link_timeout=1", "cluster.hang_timeout=0", "cluster.max_restarts=-1", "cluster.slurm.cpus_per_rank=0", "+cluster.slurm.options.mem_=1", "data.max_length=8",
    "data.packing=true data.batching=padded", "data.eval_limit=0", "data.eval_seed=-1", "sweep.replicas=0", "sweep.max_replicas=1", "sweep.budget=soon", "sweep.stop_at=0", "data.eval_max_new_tokens=0", "data.template=question", "data.columns={question:instruction}", "train.epochs=0", "train.max_steps=0",
    "train.micro_batch_size=0", "train.gradient_accumulation_steps=0", "train.learning_rate=0", "train.warmup_ratio=1",
    "optimizer.weight_decay=-1", "optimizer.betas=[0.9]", "optimizer.eps=0", "train.max_grad_norm=-1", "train.log_every=0",
    "train.gradient_checkpointing=maybe", "train.compile=true zero=stage3", "train.compile=true", "train.save_every=0", "train.save_minutes=0", "train.keep_last=0", "train.grace=-1", "train.loss_spike=1", "train.zero_grad_steps=0", "train.max_rewinds=0",
    "train.pass_over=[0]", "cluster.launcher=joined train.on_divergence=rewind", "cluster.launcher=joined train.auto_micro_batch=true",
    "train.eval_every=0", "train.eval_every=often", "train.eval_every=epoch data.eval=null", "train.show_answers=-1", "train.show_answers=3 data.eval=null", "train.eval_loss_only=true",
    "train.patience=0", "train.patience=2", "train.keep=best", "train.min_delta=-1 train.patience=2 train.eval_every=5", "train.min_delta=0.1 train.eval_every=5",
    "train.best_by=exact_match data.eval=null", "train.best_by=exact_match train.eval_every=5 train.eval_loss_only=true", "train.best_by=''",
    "train.keep=best train.eval_every=5 train.eval_loss_only=true sweep.objective=[loss,exact_match]",
    "kernels=unsloth", "kernels=liger", "kernels=liger kernels.loss=whole", "kernels.loss=chunked lora=none quant=none",
    "kernels.loss=chunked lora.target_modules=[q_proj,lm_head]", "model.scale=tiny", "cluster.gpu_memory=24GiB", "lora=none",
    "model.dtype=bf16 lora=none quant=none train.precision=fp32", "model.dtype=fp32 train.precision=bf16",
    "model.dtype=bf16 train.precision=fp32 zero=stage3",
    "model.path=owner/name", "lora=loftq quant=none", "lora=eva zero=stage3", "lora=orthogonal lora.r=3", "lora=orthogonal quant=int8", "lora=vera lora.alpha=2",
    "lora=vera lora.bias=all", "lora.modules_to_save=[norm] zero=stage3", "lora=olora lora.modules_to_save=[norm]", "lora=vera lora.rank_pattern={q_proj:2}", "lora.start=x lora.layers=[0]", "lora=none quant=none lora.layers=[0]", "kernels=unsloth lora.layers=[0]", "quant=int8 zero=stage3", "zero.stage=0 zero.offload_optimizer=cpu",
    "tracker.upload=true", "tracker.tags=[a]", "tracker=swanlab", "zero.offload_param=cpu", "train.precision=fp16", "train.precision=fp16 zero=stage0", "train.precision=bf16", "cluster=1x2",
    "kernels=liger data.max_length=64", "train.epochs=1", "model=qwen model.hub=modelscope", "model.cache_quantised=maybe",
    "model.rope=yarn", "model.rope_factor=2", "model.rope_factor=0.5", "kernels=unsloth model.rope=yarn model.rope_factor=2",
    "objective=dpo objective.gamma=1", "objective.beta=0.2", "objective=dpo objective.label_smoothing=0.5", "objective=kto objective.desirable_weight=0",
    "data.benchmark=[cmmlu]", "data.benchmark_limit=0", "data.benchmark_shots=-1", "data.benchmark_chat=true", "sweep.objective=[loss,benchmark/cmmlu]",
    "data.benchmark=[cmmlu] train.keep=best train.eval_every=5", "kernels=unsloth data.benchmark=[cmmlu]",
    "debug.learned_loss=1", "debug.learned_loss=0", "train.profile=[3,5] train.max_steps=4", "train.profile=[3]", "train.profile=[4,3]", "train.profile=[0,3]", "train.profile=[1,60]", "debug=cpu cluster=slurm_1x4",
    "debug.cpu=true cluster.launcher=joined", "cluster=2x1 cluster.hosts=[localhost,localhost]",
    "objective=simpo objective.gamma=-1", "objective=dpo objective.sft_weight=-1", "objective=kto objective.undesirable_weight=0", "objective=dpo objective.beta=0",
    "optimizer=lion optimizer.eps=1e-5", "optimizer=lion zero=stage3_nvme zero.nvme_path=/var/tmp", "optimizer=adafactor", "optimizer=paged_adamw_8bit", "optimizer=paged_adamw_8bit zero=stage2_offload",
    "optimizer.lora_plus=16 lora=none quant=none", "optimizer.lora_plus=0.5", "optimizer.lora_plus=4 lora=lora_fa", "optimizer=muon optimizer.momentum=1",
    "train.warmup_steps=10", "train.warmup_steps=0", "train.warmup_steps=10 train.warmup_ratio=0 train.max_steps=10",
    "train.min_learning_rate=1e-5 train.scheduler=constant", "train.min_learning_rate=1", "train.min_learning_rate=-1", "train.decay_ratio=0.5",
    "train.decay_ratio=0", "train.scheduler=wsd train.decay_ratio=0.99", "train.decay_power=3", "train.decay_power=0",
    "train.neftune_alpha=5", "train.neftune_alpha=0", "kernels=unsloth data.batching=padded train.neftune_alpha=5",
    "train.label_smoothing=0.1 objective=dpo", "kernels=liger train.label_smoothing=0.1", "train.label_smoothing=1",
]  # fmt: skip


MISSING = ("lm_eval", "swanlab", "liger_kernel", "modelscope")


@pytest.fixture(autouse=True)
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which some packages are not installed."""
    monkeypatch.setattr(rules, "find_spec", lambda name: None if name in MISSING else True)
    monkeypatch.setattr(benchmark_rules, "find_spec", lambda name: None if name in MISSING else True)
    monkeypatch.setattr(machine_rules, "which", lambda name: None)  # no compiler either
    monkeypatch.setattr(machine_rules, "has_headers", lambda: False)  # nor the headers that it needs


OLD_DRIVER = dataclasses.replace(T4, driver="550.54.15", driver_cuda="12.4", torch="2.13.0", torch_cuda="13.0")

ELSEWHERE = {  # settings that are not checked on the CPU
    "train.precision=bf16": T4,
    "cluster=1x2": T4,
    "cluster=2x1 cluster.hosts=[localhost,localhost]": T4,
    "kernels=liger data.max_length=64": T4,
    "train.epochs=1": OLD_DRIVER,
}


@functools.cache
def compose_unchecked(overrides: str) -> Config:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return cli.typed(compose("train", overrides.split()), Config)


@pytest.mark.parametrize("overrides", VIOLATIONS)
def test_a_refusal_names_the_override(overrides: str) -> None:
    config = compose_unchecked(overrides)
    hardware = ELSEWHERE.get(overrides, CPU)
    with pytest.raises(ConfigError) as refusal:
        check(config, hardware)
    message = str(refusal.value)
    assert "\n" not in message
    assert overrides.lstrip("+").split("=")[0].split(".")[0] in message
    assert re.search(r"(must|use|is|has) ", message)


def test_every_rule_of_the_table_is_violated_by_one_of_the_cases() -> None:
    hit = set()
    for overrides in VIOLATIONS:
        config = compose_unchecked(overrides)
        hardware = ELSEWHERE.get(overrides, CPU)
        hit |= {index for index, rule in enumerate(COMBINATIONS) if rule.broken(config, hardware)}
    assert hit == set(range(len(COMBINATIONS)))


def bounded(schema: type, prefix: str = "") -> set[str]:
    """Names of the settings with bounds."""
    found = set()
    for declared in dataclasses.fields(schema):
        name = f"{prefix}{declared.name}"
        if dataclasses.is_dataclass(declared.type):
            found |= bounded(declared.type, f"{name}.")
        elif bounds_of(declared) != Bounds(unit=bounds_of(declared).unit, effect=bounds_of(declared).effect):
            found.add(name)
    return found


def test_every_bound_is_violated_by_one_of_the_cases() -> None:
    refused = {
        message.partition("=")[0]
        for overrides in VIOLATIONS
        for message in bounds.violations(compose_unchecked(overrides))
    }
    assert refused == bounded(Config)


def test_every_bound_of_infer_is_checked() -> None:
    refused_values = {
        "cluster.nodes": 2, "cluster.ranks_per_node": 0, "batch_size": 0, "device": "tpu", "benchmark_shots": -1, "benchmark_limit": 0, "template": "question", "columns": {"question": "instruction"}, "max_new_tokens": 0,
        "temperature": -1, "top_p": 0, "top_k": -1, "repetition_penalty": 0.5, "seed": -1, "serve.port": 65536, "serve.max_context": 1,
        "serve.max_tokens": 0, "serve.max_running": 0, "serve.max_waiting": -1, "serve.max_body": 999, "serve.cache_tokens": 255,
        "serve.batch_tokens": 0, "serve.client_timeout": 0, "serve.drain": -1, "against": "ftp://host", "verify.records": 0, "verify.timeout": 0,
        "export.license": "Apache 2.0", "export.push": "mine",
        "export.weights": [1.0, 0.0], "export.density": 0, "export.calibration": 0,
    }  # fmt: skip
    assert set(refused_values) == bounded(InferConfig)
    for name, value in refused_values.items():
        options = InferConfig(run="x")
        section, _, leaf = name.rpartition(".")
        setattr(getattr(options, section) if section else options, leaf, value)
        assert [message.partition("=")[0] for message in bounds.violations(options)] == [name]


def test_precision_auto_depends_on_the_gpu() -> None:
    from hydraft.plan.plan import resolve

    config = compose_unchecked("train.precision=auto")
    a100 = Hardware(gpus=(Gpu("A100", 80 * 2**30, 8.0),))
    assert [resolve(config, machine).train.precision.value for machine in (CPU, T4, a100)] == ["fp32", "fp16", "bf16"]
