"""The loss, the gradients and the steps are those of a plain torch loop written here, to 1e-6 after 10 steps."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.equivalence import train as run_hydraft
from conftest import ROOT, config_of

STEPS, GLOBAL_BATCH, RATE = 10, 8, 1e-4
EPS = 1e-5  # with AdamW's 1e-8, an element whose gradient is all rounding moves by a whole step, this way or that
TINY = ROOT / "src/hydraft/models/tiny"


def reference(records: list[dict[str, str]], seed: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and adapter of 10 AdamW steps on whole batches of 8 records in the file's order, one record at a time.

    Nothing of hydraft's data or training code is used: the labels are made from the chat template's text.
    """
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    torch.manual_seed(seed)  # the adapter's first weights
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.999), eps=EPS, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        batch = [records[(step * GLOBAL_BATCH + i) % len(records)] for i in range(GLOBAL_BATCH)]
        total, tokens = torch.zeros(()), 0
        for record in batch:
            user = "\n".join(filter(None, [record["instruction"], record["input"]]))
            asked = tokenizer.apply_chat_template(
                [{"role": "user", "content": user}], add_generation_prompt=True, tokenize=False
            )
            prompt = tokenizer(asked, add_special_tokens=False)["input_ids"]
            answer = tokenizer(record["output"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
            log_probabilities = logits.log_softmax(-1)
            for offset, token in enumerate(answer):
                total = total - log_probabilities[len(prompt) + offset - 1, token]
            tokens += len(answer)
        loss = total / tokens  # the mean over tokens of the global batch
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, {name: tensor.detach() for name, tensor in peft.get_peft_model_state_dict(model).items()}


@pytest.fixture(scope="module")
def records() -> list[dict[str, str]]:
    """80 records whose answers differ in length, so that weighing micro-batches alike would show."""
    found = json.loads((ROOT / "data/zh_tasks.train.json").read_text(encoding="utf-8"))[: STEPS * GLOBAL_BATCH]
    assert len({len(record["output"]) for record in found}) > 10
    return found  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def expected(records: list[dict[str, str]]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """What the plain loop gives, which knows neither ranks nor micro-batches."""
    return reference(records, config_of().seed)


@pytest.mark.parametrize(("ranks", "micro", "accumulation"), [(1, 8, 1), (1, 2, 4), (2, 2, 2)])
def test_ten_steps_are_those_of_a_plain_loop(
    records: list[dict[str, str]],
    expected: tuple[list[float], dict[str, torch.Tensor]],
    ranks: int,
    micro: int,
    accumulation: int,
    tmp_path: Path,
) -> None:
    file = tmp_path / "records.json"
    file.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    overrides = [
        f"cluster=1x{ranks}", f"train.micro_batch_size={micro}", f"train.gradient_accumulation_steps={accumulation}",
        f"data.train={file}", "data.eval=null", "data.shuffle=false", "data.max_length=512", "quant=none", "zero=stage2",
        f"train.max_steps={STEPS}", f"train.learning_rate={RATE}", "train.scheduler=constant", "train.log_every=1",
        "optimizer.weight_decay=0", "train.warmup_ratio=0", "lora.r=8", "lora.alpha=16", "lora.dropout=0",
        f"optimizer.eps={EPS}",
    ]  # fmt: skip
    losses, adapter = expected
    curve = run_hydraft(overrides, tmp_path / "run")
    assert curve.losses == pytest.approx(losses, rel=1e-6)
    ours = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert ours.keys() == adapter.keys()
    for name, tensor in adapter.items():
        assert (ours[name] - tensor).abs().max() <= 1e-6, name
