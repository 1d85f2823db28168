"""Exports are equivalent to the trained model, usable without this project, and complete or absent."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import run_script, wait_for
from hydraft.config.choices import ExportKind, Precision, QuantKind
from hydraft.config.data import DataConfig
from hydraft.config.infer import InferConfig
from hydraft.config.model import ModelConfig
from hydraft.data.records import Conversation, Turn, ask
from hydraft.data.tokenize import prompt_ids
from hydraft.errors import ConfigError
from hydraft.infer.export import compare, merge, native_layout, published_layout
from hydraft.infer.export.chat_template import jinja
from hydraft.infer.export.run import run
from hydraft.infer.generate import answer
from hydraft.infer.load import load
from hydraft.infer.resolve import find
from hydraft.infer.source import ADAPTER
from hydraft.models import prepare
from hydraft.system.source_tree import TINY
from published import CHATGLM2, as_shard, chatglm2_tensors, save, sentencepiece_model
from using import adapter, start

PROMPTS = [[1, 5, 9, 300, 17, 4], [1, 40, 41, 42]]

# Run by an interpreter without this project on its path.
PLAIN = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
merged, adapter, base = sys.argv[1:]
over = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
answers = []
for folder, model in ((merged, AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)), (adapter, over)):
    chat = [{"role": "user", "content": "1加一等于几？"}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.eval().generate(**ids, max_new_tokens=16, do_sample=False)
    answers.append(answer[0, ids["input_ids"].shape[1]:].tolist())
assert not [name for name in sys.modules if name.startswith("hydraft")]
print(json.dumps(answers))
"""


def answers_without_hydraft(merged: Path, alone: Path) -> list[list[int]]:
    """Greedy answers of plain transformers and peft in another process: merged model, and adapter on its base."""
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(merged), str(alone), str(TINY)], capture_output=True, text=True, cwd="/", check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def answers_of_hydraft(options: InferConfig) -> list[int]:
    """The same with infer.py's own loading."""
    loaded = load(find(options), options)
    selected = loaded.select()
    return answer(loaded, selected, prompt_ids(ask("1加一等于几？"), selected.tokenizer, selected.data), options)


@pytest.mark.parametrize(
    ("quant", "lora", "tolerance"),
    [
        ("none", {}, 1e-4),
        ("nf4", {}, 1e-4),
        ("nf4", {"use_dora": True}, 1e-4),
        ("nf4", {"use_rslora": True}, 1e-4),
        ("int8", {}, 1.0),  # LLM.int8() also rounds the inputs of layers, which merged weights cannot reproduce
    ],
)
def test_merged_weights_are_equivalent_to_the_trained_model(
    quant: str, lora: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    """For NF4, an adapter on unquantised published weights would differ by two orders of magnitude more."""
    made = adapter(tmp_path / "run", f"quant={quant}", **lora)
    options = InferConfig(run=str(made))
    (source,) = find(options)
    trained = load([source], options).model
    section = prepare.native(source.model, source.seed)
    merged = merge.merged(trained, source, section, Precision.fp32)
    native_layout.write(merged, torch.float32, tmp_path, Console(quiet=True))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    difference = compare.difference(compare.logits(trained, PROMPTS), compare.logits(plain, PROMPTS))
    assert difference["logit_max"] <= tolerance
    if quant == "nf4" and not lora:
        options = InferConfig(run=str(made))
        (source,) = find(options)
        source.quant.kind = QuantKind.none
        published = compare.difference(
            compare.logits(trained, PROMPTS), compare.logits(load([source], options).model, PROMPTS)
        )
        assert published["logit_max"] > 100 * tolerance


def test_exports_are_used_without_this_project(tmp_path: Path) -> None:
    made, target, alone = adapter(tmp_path / "run", "quant=nf4", r=12), tmp_path / "out", tmp_path / "alone"
    done = run_script("infer.py", "mode=export", f"run={made}", f"output={target}", "export.dtype=fp32")
    assert done.returncode == 0, done.stderr
    assert "the same likeliest token at 100.0%" in done.stdout
    assert f"vllm serve {target}" in done.stdout and "mode=export export.kind=ollama" in done.stdout
    card = (target / "README.md").read_text()
    for word in ("## Data", "zh_tasks.train.json", "## Config", "lora, r 8", "differ by at most", "vllm serve out"):
        assert word in card
    assert str(tmp_path) not in card
    assert {file.suffix for file in target.iterdir()} == {".json", ".jinja", ".md", ".safetensors"}
    options = InferConfig(run=str(made), output=str(alone))
    options.export.kind = ExportKind.adapter
    run(find(options), options)
    assert "--max-lora-rank 16 --lora-modules alone=alone" in (alone / "README.md").read_text()
    assert (alone / ADAPTER).read_bytes() == (made / "adapter" / ADAPTER).read_bytes()
    unquantised = InferConfig(run=str(made), max_new_tokens=16)
    unquantised.quant.kind = QuantKind.none
    assert answers_without_hydraft(target, alone) == [
        answers_of_hydraft(InferConfig(run=str(made), max_new_tokens=16)),
        answers_of_hydraft(unquantised),
    ]
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []
    with pytest.raises(ConfigError, match="exists; name a folder"):
        run(find(options), options)


def test_a_killed_export_leaves_no_target_and_the_next_removes_its_files(tmp_path: Path) -> None:
    made = adapter(tmp_path / "run", "quant=none")
    target = tmp_path / "out"
    arguments = ["mode=export", f"run={made}", f"output={target}"]
    process = start(tmp_path / "streams", *arguments)
    wait_for(lambda: any(tmp_path.glob(".out.*/config.json")), 120, "the first file")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not target.exists()
    options = InferConfig(run=str(made), output=str(target))
    run(find(options), options)
    assert (target / "model.safetensors").is_file()
    assert list(tmp_path.glob(".out.*")) == []


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = adapter(tmp_path / "run", "quant=none")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**30, 2**30, 2**20))
    options = InferConfig(run=str(made), output=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"takes 0\.00 GiB, and 0\.00 GiB are free"):
        run(find(options), options)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    "template", ["{instruction}\n{input}\n", "问：'{instruction}\"\\{{x}}\n答：", "### {instruction}"]
)
def test_a_plain_template_becomes_a_chat_template(template: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    turns = (
        Turn("system", "系统"),
        Turn("user", "一"),
        Turn("assistant", "二"),
        Turn("user", "三"),
        Turn("assistant", ""),
    )
    expected = prompt_ids(Conversation(turns), tokenizer, DataConfig(template=template))
    tokenizer.chat_template = jinja(template, "", str(tokenizer.eos_token))
    chat = [{"role": turn.role, "content": turn.content} for turn in turns[:-1]]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected


@pytest.mark.parametrize(("suffix", "count"), [("bin", 3), ("safetensors", 1)])
def test_chatglm2_is_converted_and_exported_bit_for_bit(suffix: str, count: int, tmp_path: Path) -> None:
    tensors = chatglm2_tensors()
    source = save(tmp_path / "published", CHATGLM2, tensors, sentencepiece_model(), suffix, count)
    (source / "tokenization_chatglm.py").write_text("# theirs\n")
    native = Path(prepare.native(ModelConfig(name="glm", path=str(source)), 42).path)
    back = tmp_path / "back"
    back.mkdir()
    found = {name: tensor for file in native.glob("*.safetensors") for name, tensor in load_file(file).items()}
    published_layout.publish(as_shard(found), source, back)
    repeated = {name: tensor for file in back.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert repeated.keys() == tensors.keys()
    assert all(
        torch.equal(repeated[name], tensor) and repeated[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    assert json.loads((back / "config.json").read_text()) == CHATGLM2
    assert (back / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    assert (back / "tokenization_chatglm.py").is_file()
    assert not list(back.glob("*.bin"))
    twice = Path(prepare.native(ModelConfig(name="glm", path=str(back)), 42).path)
    assert (twice / "config.json").read_bytes() == (native / "config.json").read_bytes()


def test_an_adapter_of_chatglm2_is_merged_into_its_published_layout(tmp_path: Path) -> None:
    source = save(
        tmp_path / "published", CHATGLM2, chatglm2_tensors(dtype=torch.float32), sentencepiece_model(), count=2
    )
    native = Path(prepare.native(ModelConfig(name="glm", path=str(source)), 42).path)
    made = adapter(
        tmp_path / "run", "model=chatglm2", f"model.path={source}", "model.size=null", "quant=nf4", base=native
    )
    target = tmp_path / "out"
    done = run_script("infer.py", "mode=export", f"run={made}", f"output={target}", "export.layout=published")
    assert done.returncode == 0, done.stderr
    assert "the same likeliest token at 100.0%" in done.stdout
    options = InferConfig(run=str(made))
    trained = load(find(options), options).model
    options = InferConfig(run=str(Path(prepare.native(ModelConfig(name="glm", path=str(target)), 42).path)))
    difference = compare.difference(
        compare.logits(trained, PROMPTS), compare.logits(load(find(options), options).model, PROMPTS)
    )
    assert difference["logit_max"] < 1e-3


def test_impossible_exports_are_refused_before_torch_is_imported(tmp_path: Path) -> None:
    made = adapter(tmp_path / "run", "quant=nf4")
    refused = [
        (["export.layout=published"], "needs a published checkpoint of ChatGLM2-6B"),
        (["quant=nf4"], "quant=nf4: adapters are merged into unquantised weights"),
        (["export.layout=published", "export.kind=adapter"], "is for whole models"),
    ]
    for overrides, message in refused:
        done = run_script("infer.py", "mode=export", f"run={made}", f"output={tmp_path / 'out'}", *overrides)
        assert (done.returncode, message in done.stderr, done.stderr.count("\n")) == (2, True, 1), done.stderr
    assert not (tmp_path / "out").exists()
