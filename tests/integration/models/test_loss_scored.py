"""The evaluation loss equals that of transformers on padded batches, without all logits at once."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import ROOT, config_of, run_script
from families import FAMILIES
from hydraft.data.batch import Padded
from hydraft.data.labels import IGNORE
from hydraft.data.tokenize import Example
from hydraft.models import loss, loss_scored, prepare
from hydraft.models.load import load_trainable
from unit.plan.test_activations import Live

LENGTHS, PROMPT = (9, 30, 21), 5
"""Tokens of three documents, and the number of tokens at the start of each that are not trained."""


def examples_of(vocabulary: int, lengths: tuple[int, ...] = LENGTHS, prompt: int = PROMPT) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(9, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": row, "labels": [IGNORE] * prompt + row[prompt:]} for row in rows]


def loaded(*overrides: str) -> Any:
    """The model of a run with ``overrides`` in eval mode, with an adapter that is not zero."""
    config = config_of(*overrides)
    model = load_trainable(dataclasses.replace(config, model=prepare.native(config.model, config.seed)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    return model.eval()


def ours(model: Any, examples: list[Example], rows: int, extra: int = 0) -> float:
    """The mean loss, ``rows`` at a time, if another rank has ``extra`` more chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "ROWS", rows)
        found, tokens = loss_scored.summed_loss(
            model, Padded(0)([[one] for one in examples]), loss_scored.chunks_of(examples) + extra
        )
    return float(found) / tokens


@torch.no_grad()
def theirs(model: Any, examples: list[Example]) -> float:
    return float(model(**Padded(0)([[one] for one in examples])).loss)


TINY = "model.init=random model.scale=tiny"
CASES = {
    **{family: f"{overrides} {TINY} quant=none" for family, overrides in FAMILIES.items()},
    "in chunks in training too": "model=tiny quant=none kernels.loss=chunked",
    "an adapter on the head": "model=tiny quant=none lora.target_modules=[q_proj,lm_head]",
    "full": "model=tiny quant=none lora=none",
    "nf4": "model=tiny quant=nf4",
    "int8": "model=tiny quant=int8",
}


@pytest.mark.parametrize("case", CASES)
def test_the_loss_equals_that_of_transformers(case: str) -> None:
    model = loaded(*CASES[case].split())
    examples = examples_of(model.config.vocab_size)
    expected = theirs(model, examples)
    for rows, extra in ((512, 0), (16, 0), (7, 2), (1, 0)):
        assert ours(model, examples, rows, extra) == pytest.approx(expected, rel=1e-6), rows
    assert theirs(model, examples) == expected  # the head is unchanged


def test_the_loss_is_bit_equal_for_any_number_of_ranks() -> None:
    model = loaded("model=tiny", "quant=none")
    examples = examples_of(99)
    assert ours(model, examples, 16, 0) == ours(model, examples, 16, 5)


@pytest.mark.parametrize("supports_logits_to_keep", [True, False])
def test_logits_that_are_changed_after_the_head_come_from_the_model(
    supports_logits_to_keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that changes its logits after the head, as Gemma 2 does by capping them."""
    model = loaded("model=tiny", "quant=none", "lora=none")
    whole = model.forward
    kept: list[Any] = []

    def capped(input_ids: Any = None, attention_mask: Any = None, logits_to_keep: Any = 0) -> Any:
        output = whole(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=logits_to_keep)
        kept.append(logits_to_keep)
        output.logits = 2 * torch.tanh(output.logits / 2)
        return output

    model.forward = (
        capped if supports_logits_to_keep else lambda input_ids, attention_mask: capped(input_ids, attention_mask)
    )
    model.config.model_type = "gemma2"
    examples = examples_of(99)
    batch = Padded(0)([[one] for one in examples])
    labels = batch.pop("labels")
    logits = capped(**batch).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
    for rows in (512, 16):
        assert ours(model, examples, rows) == pytest.approx(float(expected), rel=1e-6)
    assert isinstance(kept[-1], torch.Tensor) == supports_logits_to_keep
    if supports_logits_to_keep:
        assert len(kept[-1]) == max(LENGTHS) - PROMPT  # the positions of any record's trained tokens


LIGER = """
from integration.models.test_loss_scored import CASES, examples_of, loaded, ours, theirs
for family in ("llama3", "qwen2.5", "qwen3", "chatglm2"):
    model = loaded(*CASES[family].split(), "kernels=liger")
    assert "liger" in type(model.get_base_model().model.norm).forward.__module__ + repr(model)[:9999].lower()
    examples = examples_of(model.config.vocab_size, (7, 14, 11))
    print("found", *(ours(model, examples, rows) for rows in (512, 7)), theirs(model, examples))
"""


def test_the_loss_with_ligers_kernels_is_the_same() -> None:
    """In Triton's interpreter and a separate process, since the kernels patch transformers globally."""
    pytest.importorskip("liger_kernel")
    paths = [str(ROOT / place) for place in ("tests/support/interpreter", "src", "tests", "tests/support", ".")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", LIGER], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("found ")]
    assert len(lines) == 4
    for line in lines:
        whole, chunks, expected = map(float, line)
        assert whole == pytest.approx(expected, rel=1e-6) and chunks == pytest.approx(expected, rel=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["torch", "liger", "unsloth"])
def test_on_a_gpu_memory_is_limited_to_the_chunks(kernels: str, tmp_path: Path) -> None:
    """In a run: before training, with 2,048 tokens and a vocabulary of 128,256."""
    pytest.importorskip({"torch": "torch", "liger": "liger_kernel", "unsloth": "unsloth"}[kernels])
    file = tmp_path / "records.json"
    file.write_text(json.dumps([{"instruction": "?", "input": "", "output": "word " * 4000}] * 4), encoding="utf-8")
    folder = tmp_path / "run"
    done = run_script(
        "train.py", "model=llama3", "model.size=3.2-1b", "model.init=random", f"kernels={kernels}", f"data.train={file}",
        f"data.eval={file}", "data.max_length=2048", "train.micro_batch_size=2", "train.max_steps=1",
        "data.eval_max_new_tokens=2", "train.gradient_checkpointing=true", f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text())
    planned = json.loads((folder / "plan.json").read_text())["cost"]["memory"]["scoring"]
    assert result["peak_memory_scoring_bytes"] < 1.15 * (sum(planned.values()) - planned["overhead"])


def test_ranks_with_different_numbers_of_chunks_stay_synchronized(tmp_path: Path) -> None:
    """Under ZeRO-3, with an adapter on the head, whose weights are gathered for each chunk."""
    records = [{"instruction": "?", "input": "", "output": text} for text in ("yes", "no " * 700, "a " * 300)]
    file = tmp_path / "records.json"
    file.write_text(json.dumps(records * 2), encoding="utf-8")
    found = []
    for name, topology in (
        ("one", ["zero=stage2"]),
        ("two", ["zero=stage3", "zero.stage3_param_persistence_threshold=0", "cluster=1x2"]),
    ):
        done = run_script(
            "train.py", "quant=none", "lora.target_modules=[q_proj,lm_head]", f"data.train={file}", f"data.eval={file}",
            "data.max_length=1600", "data.eval_limit=3", "train.micro_batch_size=1", "train.max_steps=1",
            "data.eval_max_new_tokens=2", "train.learning_rate=1e-9", f"hydra.run.dir={tmp_path / name}", *topology,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / name / "result.json").read_text()))
    one, two = found
    assert two["before"]["loss"] == pytest.approx(one["before"]["loss"], rel=1e-6)
    assert two["after"]["loss"] == pytest.approx(one["after"]["loss"], rel=1e-6)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model whose vocabulary is much larger than its other sizes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    shape = LlamaConfig(
        vocab_size=8192, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    yield folder


def test_all_logits_are_never_in_memory_at_once(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak does not grow with the number of tokens, except for the hidden states."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(wide).eval()
    model.config.use_cache = False
    monkeypatch.setattr(loss, "ROWS", 64)

    def most(length: int) -> int:
        examples = examples_of(8192, (length,) * 4)
        batch = Padded(0)([[one] for one in examples])
        with Live() as live:
            loss_scored.summed_loss(model, batch, loss_scored.chunks_of(examples))
        return live.most

    chunk = 64 * 8192 * 8  # logits and log-probabilities in fp32
    short, long = most(64), most(256)
    assert 0.9 * chunk < short < 1.1 * chunk
    assert long - short < 0.1 * (256 - 64) * 4 * 8192 * 4
