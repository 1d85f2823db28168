"""Command lines of other programs, and other wrong ones, are refused with what to type."""

import shlex

import pytest

from hydraft.config import groups, mistakes, other_names, reference
from hydraft.config.typed_text import quote
from hydraft.errors import ConfigError

NAMES = {
    command: {*reference.names(command), *groups.defaults(command), "hydra.run.dir"} for command in reference.SCHEMAS
}

WRONG = {
    "train": {
        "--lr 1e-3": "--lr 1e-3: a setting is typed without dashes: train.learning_rate=1e-3",
        "--learning_rate=1e-3": "train.learning_rate=1e-3",
        "--learning-rate 1e-3 seed=1": "--learning-rate 1e-3: a setting is typed without dashes: train.learning_rate=1e-3",
        "--train.epochs 3": "train.epochs=3",
        "--bf16": "train.precision=bf16",
        "--bf16 --fp16": "train.precision=bf16",
        "--seed 3": "a setting is typed without dashes: seed=3",
        "--deepspeed ds_z3_offload_config.json": "zero=stage3_offload",
        "--model_name_or_path Qwen/Qwen3-8B": "model=auto model.path=Qwen/Qwen3-8B",
        "--nothing_like_it": "python train.py --help lists the settings",
        "-lr 1e-3": "train.learning_rate=1e-3",
        "train.learning_rate 1e-3": "train.learning_rate 1e-3: a setting is typed with an equals sign: train.learning_rate=1e-3",
        "train.learning_rate = 1e-3": "no spaces around the equals sign: train.learning_rate=1e-3",
        "lora.r= 8": "no spaces around the equals sign: lora.r=8",
        "lora.r =8": "no spaces around the equals sign: lora.r=8",
        "lr 1e-3": "train.learning_rate=1e-3",
        "lora.r＝8": "full-width equals sign: lora.r=8",
        "tracker.group=my run": "text with spaces is quoted: tracker.group='my run'",
        "data.only=qa summary": "a list is in brackets: data.only='[qa,summary]'",
        "lora.r=8 ": "an argument is empty: leave it out",
        "my.yaml": "put it there and give experiment=my",
        "my.jsonl": "data.train=my.jsonl",
        "sft": "sft: a setting is typed as name=value",
        "lr=1e-3": "lr=1e-3: no such setting; did you mean train.learning_rate=1e-3?",
        "learning_rate=1e-3": "train.learning_rate=1e-3?",
        "epochs=3": "train.epochs=3?",
        "batch_size=4": "train.micro_batch_size=4?",
        "per_device_train_batch_size=4": "train.micro_batch_size=4?",
        "max_seq_length=4": "data.max_length=4?",
        "lora_target=[q_proj,v_proj]": "lora.target_modules=[q_proj,v_proj]?",
        "report_to=none": "tracker=none?",
        "quantization=gptq": "quant=…?",
        "quant=4bit": "quant=4bit: no such option; did you mean quant=nf4?",
        "quant=qlora": "quant=nf4?",
        "quant=8": "quant=int8?",
        "load_in_4bit=true": "quant=nf4?",
        "zero=3": "zero=stage3?",
        "zero=zero3": "zero=stage3?",
        "zero=ZeRO-2-offload": "zero=stage2_offload?",
        "lora=full": "lora=none?",
        "finetuning_type=full": "lora=none?",
        "model=Qwen/Qwen2.5-7B": "model=auto model.path=Qwen/Qwen2.5-7B?",
        "model=./path": "model=auto model.path=./path?",
        "model=Qwen2.5-7B-Instruct": "model=qwen model.size=2.5-7b?",
        "data=my.json": "data.train=my.json?",
        "data=owner/name": "data.train=owner/name?",
        "cluster=4": "cluster=1x4?",
        "cluster=3x5": "cluster.nodes=3 cluster.ranks_per_node=5?",
        "-m zero=0,stage2": "zero=stage0,stage2?",
        "-m model=Qwen/a,Qwen/b": "model=auto model.path=Qwen/a,Qwen/b?",
        "--model Qwen/a": "model=auto model.path=Qwen/a",
        "--config my.yaml": "put it there and give experiment=my",
        "warmup_steps=100": "train.warmup_steps=100?",
        "--optim adamw_torch": "a setting is typed without dashes: optimizer=adamw",
        "optimizer=paged_adamw_32bit": "optimizer=paged_adamw_8bit?",
        "optim=adamw_bnb_8bit": "optimizer=adamw_8bit?",
        "train.scheduler=warmup_stable_decay": "train.scheduler=wsd?",
    },
    "infer": {
        "prompt=hello world": "text with spaces is quoted: prompt='hello world'",
        "--prompt hello": "prompt=hello",
        "run=x 你好": "did you mean prompt='你好'?",
        "run=x prompt=a system=be brief": "text with spaces is quoted: system='be brief'",
        "--model_name_or_path outputs/x": "run=outputs/x",
        "max_tokens=3": "max_new_tokens=3?",
        "query=hi": "prompt=hi?",
        "quant=4bit": "quant=nf4?",
    },
}  # fmt: skip

RIGHT = [
    "lora.r=8 zero=stage3 quant=nf4 model=auto model.path=a/b data.train=x.json", "-m lora.r=4,8 sweep=rank_lr", "--help lora.r",
    "--cfg job lora.r=8", "--info all", "--config-dir conf experiment=x", "-h", "~tracker.group", "+cluster.slurm.options.mem=1G",
    "--multirun zero=stage0,stage1", "--hydra-help", "cluster=2x4", "zero=[stage0]", "zero=glob(stage*)", "resume=last", "prompt=",
]  # fmt: skip


@pytest.mark.parametrize(("command", "typed"), [(command, typed) for command in WRONG for typed in WRONG[command]])
def test_a_wrong_command_is_refused_with_the_right_one(command: str, typed: str) -> None:
    with pytest.raises(ConfigError) as refused:
        mistakes.refuse(typed.split(" "), command)
    message = str(refused.value)
    assert WRONG[command][typed] in message and "\n" not in message


@pytest.mark.parametrize("typed", RIGHT)
def test_a_right_command_is_not_refused(typed: str) -> None:
    mistakes.refuse(typed.split(" "), "train")


@pytest.mark.parametrize("command", WRONG)
def test_what_is_suggested_is_a_setting_and_no_setting_is_a_mistake(command: str) -> None:
    table = other_names.TRAIN if command == "train" else other_names.INFER
    assert not set(table) & NAMES[command]
    for name, overrides in table.items():
        for override in overrides.replace("{}", "value").split(" "):
            key, _, value = override.partition("=")
            assert key in NAMES[command], name
            options = groups.groups().get(key, [])
            assert not options or value in options or "{}" in overrides, name
    for group, values in other_names.VALUES.items():
        for value in values.values():
            assert all(one.partition("=")[0] in NAMES["train"] for one in value.split(" ")), group


@pytest.mark.parametrize("group", ["zero", "quant", "lora", "cluster", "model", "data", "kernels", "tracker"])
def test_every_option_is_right(group: str) -> None:
    for option in groups.groups()[group]:
        mistakes.refuse([f"{group}={option}"], "train")


def test_a_ready_made_sweep_needs_m() -> None:
    with pytest.raises(ConfigError, match=r"sweep=rank_lr: is for a sweep: add -m"):
        mistakes.refuse_sweep(["lora.r=8", "sweep=rank_lr"], has_params=True)
    mistakes.refuse_sweep(["sweep=grid"], has_params=False)


def test_a_suggested_quotation_is_the_text_that_was_meant() -> None:
    with pytest.raises(ConfigError) as refused:
        quote("tracker.group=a, b")
    assert shlex.split(str(refused.value).rpartition("as one text it is ")[2]) == ['tracker.group="a, b"']
