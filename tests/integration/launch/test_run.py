"""The default run, as a user starts it, and its files."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT, run_script
from forks import run_forks
from hydraft.config.infer import InferConfig
from hydraft.config.schema import load_config
from hydraft.data import mixture
from hydraft.evaluation import answers
from hydraft.evaluation.batches import BatchSizes
from hydraft.evaluation.label_scores import LabelScorer, is_choice
from hydraft.infer.load import load
from hydraft.infer.resolve import find

FILES = {
    "adapter", "answers.jsonl", "config.yaml", "environment.json", "loss.png", "metrics.jsonl", "plan.json", "rank-0.log", "result.json",
    "train.log",
}  # fmt: skip

# Run by a clean interpreter that knows nothing of this project: plain transformers, peft and bitsandbytes. A line of its stdin is an
# adapter's folder and how its base is quantised; a line of its stdout is the answer.
PLAIN_PEFT = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import torch
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
for line in sys.stdin:
    adapter, quant = json.loads(line)
    probe = json.loads((Path(adapter) / "probe.json").read_text())
    options = {}
    if quant == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
        )
    elif quant == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, **options)
    for module in model.modules():  # bitsandbytes' inference kernel for AVX512-BF16 computes in bf16
        module.support_avx512bf16_for_cpu = False
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([probe["input_ids"]])).logits[0, -1].float()
    assert AutoTokenizer.from_pretrained(adapter).chat_template
    assert not [name for name in sys.modules if name.startswith("hydraft")]
    print((logits[probe["top_ids"]] - torch.tensor(probe["top_logits"])).abs().max().item(), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """``python train.py`` with no override, and what it printed."""
    folder = tmp_path_factory.mktemp("main") / "run"
    done = run_script("train.py", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_default_run_learns(default_run: tuple[Path, str]) -> None:
    """The margins are well within the results of a run, and far above those of the untrained model."""
    result = json.loads((default_run[0] / "result.json").read_text())
    before, after = result["before"], result["after"]
    assert before["sentiment_accuracy"] <= 0.1
    assert before["exact_match"] <= 0.05
    assert after["sentiment_accuracy"] >= 0.7
    assert after["exact_match"] >= before["exact_match"] + 0.5
    assert after["loss"] < 0.4 * before["loss"]


def test_the_run_folder_is_complete(default_run: tuple[Path, str]) -> None:
    folder = default_run[0]
    assert {entry.name for entry in folder.iterdir()} >= FILES
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "completed"
    assert result["objective"] == result["after"]["loss"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 0
    assert "eval_loss" in lines[0]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert all(line["grad_norm"] > 0 for line in lines if "grad_norm" in line)
    assert json.loads((folder / "plan.json").read_text())["steps"] == result["steps"] == lines[-1]["step"]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"]


def test_the_screen_shows_the_run_and_no_messages_of_libraries(default_run: tuple[Path, str]) -> None:
    said = default_run[1]
    for word in ("held-out sentiment accuracy", "held-out exact match", "tokens/s", "before", "after", "infer.py run="):
        assert word in said
    assert "Warning" not in said
    assert "DeepSpeed deepspeed" in (default_run[0] / "rank-0.log").read_text()  # it went to the log


def test_labels_are_chosen_as_answers_are_generated(default_run: tuple[Path, str], tmp_path: Path) -> None:
    """On the held-out reviews of the trained model: the label with the highest likelihood, and the answer in answers.jsonl."""
    generated = answers.read(default_run[0])
    last = {line.record: line for line in generated[max(generated)]}
    options = InferConfig(run=str(default_run[0]))
    source = load(find(options), options)
    config = load_config(default_run[0] / "config.yaml")
    data = replace(config.data, labels=["正面", "负面"], thinking=source.select().data.thinking)
    reviews = [
        (index, record.conversations[0])
        for index, record in enumerate(mixture.held_out(config.data, config.seed))
        if is_choice(record.conversations[0], data)
    ]
    conversations = [review for _, review in reviews]
    scorer = LabelScorer(conversations, source.select().tokenizer, data, source.device, BatchSizes.of(data, 4))

    def choose(_: int) -> list[str]:
        torch.set_num_threads(1)  # a fork has no other threads
        return scorer.choices(source.model, lambda _: None).answers

    (chosen,) = run_forks(choose, tmp_path, 1)
    same = [answer == last[index].answer.strip() for answer, (index, _) in zip(chosen, reviews, strict=True)]
    assert len(same) >= 40 and sum(same) >= 0.98 * len(same)


def test_infer_answers_from_the_run(default_run: tuple[Path, str]) -> None:
    prompt = "判断这条评论的情感，回答正面或负面。\n房间很干净，服务也很热情。"
    done = run_script("infer.py", f"run={default_run[0]}", f"prompt={prompt}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "正面"


def test_infer_stops_after_max_new_tokens(default_run: tuple[Path, str]) -> None:
    one = run_script("infer.py", f"run={default_run[0]}", "prompt=把这句话翻译成英文：我喜欢苹果。", "max_new_tokens=1")
    assert len(one.stdout.strip()) <= len("正面") + 3


Loader = Callable[[Path, str], float]


@pytest.fixture(scope="module")
def loaded_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    """Largest difference of 16 logits between the trained model in memory and plain peft in another process."""
    said = tmp_path_factory.mktemp("elsewhere") / "said"
    command = [sys.executable, "-c", PLAIN_PEFT, str(ROOT / "src/hydraft/models/tiny")]
    with (
        said.open("w") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd="/"
        ) as process,
    ):
        assert process.stdin and process.stdout
        questions, answers = process.stdin, process.stdout

        def difference(folder: Path, quant: str) -> float:
            questions.write(json.dumps([str(folder / "adapter"), quant]) + "\n")
            questions.flush()
            answer = answers.readline()
            assert answer, said.read_text()
            return float(answer)

        yield difference


def test_plain_peft_gives_the_same_logits(default_run: tuple[Path, str], loaded_elsewhere: Loader) -> None:
    assert loaded_elsewhere(default_run[0], "nf4") <= 1e-4


def loaded(folder: Path) -> torch.nn.Module:
    """The model as infer.py loads it."""
    options = InferConfig(run=str(folder))
    return load(find(options), options).model


def test_infer_loads_the_model_that_was_in_memory(default_run: tuple[Path, str]) -> None:
    model = loaded(default_run[0])
    probe = json.loads((default_run[0] / "adapter/probe.json").read_text())
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([probe["input_ids"]])).logits[0, -1]
    assert (logits[probe["top_ids"]] - torch.tensor(probe["top_logits"])).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("overrides", "quant", "tolerance"),
    [
        (["lora=pissa", "quant=none"], "none", 1e-3),
        (["lora=dora", "quant=nf4"], "nf4", 1e-4),
        (["lora=rslora", "quant=none", "zero=stage3", "cluster=1x2"], "none", 1e-4),
        (["quant=nf4", "zero=stage3_offload", "cluster=1x2"], "nf4", 1e-4),
        (["quant=int8", "zero=stage2"], "int8", 1e-2),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else str(value),
)
def test_every_kind_of_adapter_loads_elsewhere(
    overrides: list[str], quant: str, tolerance: float, tmp_path: Path, records: Path, loaded_elsewhere: Loader
) -> None:
    done = run_script(
        "train.py", *overrides, f"data.train={records}", "data.eval=null", "train.max_steps=3", "train.learning_rate=2e-3",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert loaded_elsewhere(tmp_path / "run", quant) <= tolerance


def test_full_fine_tuning_saves_a_model_that_loads(tmp_path: Path, records: Path) -> None:
    done = run_script(
        "train.py", "lora=none", "quant=none", "zero=stage3", "cluster=1x2", f"data.train={records}", f"data.eval={records}",
        "data.eval_limit=4", "data.eval_max_new_tokens=4", "train.max_steps=3", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = run_script("infer.py", f"run={tmp_path / 'run'}", "prompt=你好", "max_new_tokens=4")
    assert answer.returncode == 0, answer.stderr


def test_a_checkpoint_is_saved_every_epoch(tmp_path: Path, records: Path) -> None:
    done = run_script(
        "train.py", f"data.train={records}", "data.eval=null", "train.epochs=2", "train.micro_batch_size=8",
        "train.save=epoch", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept = sorted(entry.name for entry in (tmp_path / "run/checkpoints").iterdir())
    assert kept == ["step-000003", "step-000006"]  # the last one is there for more epochs to go on from
    assert (tmp_path / "run/checkpoints/step-000003/adapter_model.safetensors").is_file()


@pytest.mark.parametrize("zero", ["stage2", "stage3"])
def test_evaluation_before_training_does_not_change_the_training(zero: str, tmp_path: Path, records: Path) -> None:
    """bitsandbytes repacks 4-bit weights in eval mode on some CPUs, and their gradients are lost from then on."""
    curves = []
    for held_out in (str(records), "null"):
        folder = tmp_path / Path(held_out).stem
        done = run_script(
            "train.py", "quant=nf4", f"zero={zero}", f"data.train={records}", f"data.eval={held_out}", "train.max_steps=3",
            "train.log_every=1", "data.eval_limit=2", "data.eval_max_new_tokens=2", f"hydra.run.dir={folder}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        curves.append([(line["loss"], line["grad_norm"]) for line in lines if "grad_norm" in line])
    for scored, plain in zip(*curves, strict=True):
        assert scored == pytest.approx(plain, rel=1e-5)


def test_a_base_in_bf16_leaves_the_adapter_in_fp32(tmp_path: Path, records: Path) -> None:
    """Half the frozen bytes for a loss that stays within bf16's rounding; loaded again, the model is the same."""
    losses = {}
    for dtype in ("fp32", "bf16"):
        folder = tmp_path / dtype
        done = run_script(
            "train.py", f"data.train={records}", "data.eval=null", "quant=none", f"model.dtype={dtype}",
            "train.precision=fp32", "train.epochs=2", "train.log_every=1", f"hydra.run.dir={folder}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        losses[dtype] = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        adapter = load_file(folder / "adapter/adapter_model.safetensors")
        assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2)
    assert losses["bf16"] != losses["fp32"]
    model = loaded(tmp_path / "bf16")
    assert {p.dtype for name, p in model.named_parameters() if "lora_" not in name} == {torch.bfloat16}
    found = {name: p for name, p in model.named_parameters() if "lora_" in name}
    for name, parameter in found.items():
        assert torch.equal(parameter, adapter[name.replace(".default", "")])
