"""Compare the preference objectives with TRL: each loss and its gradient on one batch, and ten steps of DPO.

    python bench/against_trl.py

The model is the embedded one in fp64 and in fp32, with a LoRA adapter that is not 0; the reference is that adapter as it was before it was changed.
TRL's own trainers compute its side: DPOTrainer, KTOTrainer, and those of ORPO and CPO (SimPO) from ``trl.experimental``.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from bench import equivalence
from hydraft.config.choices import Format
from hydraft.config.objective import ObjectiveConfig, ObjectiveKind
from hydraft.config.schema import Config
from hydraft.data.batch import Padded, PaddingFree
from hydraft.data.examples import mismatch
from hydraft.data.labels import IGNORE
from hydraft.data.preferences import read_pair
from hydraft.data.tokenize import encode_one, prompt_text
from hydraft.launch.verify.configs import EPS
from hydraft.models import attention
from hydraft.models.load import trainable
from hydraft.models.lora import adapter, targets
from hydraft.system.source_tree import ROOT, TINY
from hydraft.training.objectives.registry import make_objective

TEXTS = [
    ("判断情感：菜太咸了", "负面", "正面"),
    ("这家店的服务怎么样？", "很好。", "不知道，没有去过。"),
    ("今天下雨，比赛取消了。比赛怎么了？", "取消了", "今天"),
    ("北京是中国的首都吗？", "是", "不是，是上海。"),
]
"""A prompt, a chosen and a rejected answer, of different lengths. Short ones: a sum of log-probabilities of -200 has errors of 1e-5 in fp32."""

Kind = ObjectiveKind

LOSSES: dict[str, tuple[ObjectiveConfig, Any]] = {
    "dpo": (ObjectiveConfig(Kind.dpo), {"loss_type": ["sigmoid"]}),
    "dpo, length_normalized": (ObjectiveConfig(Kind.dpo, length_normalized=True), {"loss_type": ["sigmoid_norm"]}),
    "dpo, beta=0.3": (ObjectiveConfig(Kind.dpo, beta=0.3), {"loss_type": ["sigmoid"], "beta": 0.3}),
    "ipo": (ObjectiveConfig(Kind.ipo), {"loss_type": ["ipo"]}),
}
"""What DPOTrainer computes, and its settings."""


def model_of(dtype: torch.dtype) -> tuple[Any, Any]:
    """The tokenizer, and the embedded model with an adapter whose B is not 0."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    attention.use(base)
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    )
    _shift(model, 0.02)
    return AutoTokenizer.from_pretrained(TINY), model.to(dtype)  # the same weights in either


def _shift(model: torch.nn.Module, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in trainable(model).values():
        shifted = parameter.data.float() + torch.randn(parameter.shape, generator=generator) * scale
        parameter.data = shifted.to(parameter)


def items_of(rows: Any) -> list[list[Any]]:
    """The items of rows that TRL has tokenized: pairs."""
    found = []
    for number, row in enumerate(rows):
        sides = [_example(row["prompt_ids"], row[f"{side}_ids"]) for side in ("chosen", "rejected")]
        found.append([{**example, "index": 2 * number + side} for side, example in enumerate(sides)])
    return found


def _example(prompt: list[int], answer: list[int]) -> Any:
    return {"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer}


def gradients(model: torch.nn.Module, loss: torch.Tensor, keep: bool = False) -> dict[str, torch.Tensor]:
    """The gradients of a loss, by parameter. ``keep``: the graph, for another loss of the same logits."""
    found = torch.autograd.grad(loss, list(trainable(model).values()), retain_graph=keep)
    return dict(zip(trainable(model), found, strict=True))


Result = tuple[float, dict[str, torch.Tensor]]


def ours(config: ObjectiveConfig, model: Any, reference: torch.Tensor, items: list[Any], collate: Any) -> Result:
    """The loss of this package and its gradients."""
    objective: Any = make_objective(config)
    objective.prepare(model, True)
    objective.reference = reference
    loss = objective.loss(model, collate(items), None).value
    return float(loss.detach()), gradients(model, loss)


def reference_of(model: Any, documents: list[Any]) -> torch.Tensor:
    """Log-probabilities of documents by the published definition: from all logits, in fp64."""
    found = []
    for document in documents:
        ids, labels = torch.tensor([document["input_ids"]]), torch.tensor(document["labels"])
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
        kept = (labels[1:] != IGNORE).nonzero()[:, 0]
        found.append(log_p[kept, labels[1:][kept]].sum())
    return torch.stack(found)


def apart(one: Result, other: Result) -> tuple[float, float]:
    """The difference of two losses, relative to those above 1, and the largest of a gradient, relative to the largest gradient."""
    largest = max(float(value.abs().max()) for value in other[1].values())
    furthest = max(float((one[1][name] - value).abs().max()) for name, value in other[1].items())
    return abs(one[0] - other[0]) / max(1.0, abs(other[0])), furthest / largest


def losses(dtype: torch.dtype) -> Iterator[tuple[str, Result, Result]]:
    """For each objective: its name, its loss and gradients, and TRL's."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _of_dpo_trainer(folder, dtype)
        yield from _of_kto_trainer(folder, dtype)
        yield from _of_experimental(dtype)


def _of_dpo_trainer(folder: str, dtype: torch.dtype) -> Iterator[tuple[str, Result, Result]]:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    tokenizer, model = model_of(dtype)
    rows = datasets.Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in TEXTS])
    settings = DPOConfig(
        folder,
        per_device_train_batch_size=len(TEXTS),
        report_to=[],
        use_cpu=True,
        disable_dropout=True,
        max_length=None,
    )
    trainer: Any = DPOTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer)
    items = items_of(trainer.train_dataset)
    reference = reference_of(model, [example for item in items for example in item])
    trainable_names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(".default." in name for name in trainable_names), "the copy is not trained"
    _shift(model, 0.01)
    batch = trainer.data_collator(list(trainer.train_dataset))
    for name, (config, given) in LOSSES.items():
        trainer.loss_types, trainer.loss_weights, trainer.beta = given["loss_type"], [1.0], given.get("beta", 0.1)
        loss = trainer._compute_loss(model, batch, False)
        theirs = float(loss.detach()), gradients(model, loss)
        for form, collate in (("padded", Padded(0)), ("padding-free", PaddingFree())):
            yield f"{name}, {form}", ours(config, model, reference, items, collate), theirs


def _of_kto_trainer(folder: str, dtype: torch.dtype) -> Iterator[tuple[str, Result, Result]]:
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    tokenizer, model = model_of(dtype)
    answers = [
        (prompt, answer, good) for prompt, *both in TEXTS for answer, good in zip(both, (True, False), strict=True)
    ]
    rows = datasets.Dataset.from_list(
        [dict(zip(("prompt", "completion", "label"), row, strict=True)) for row in answers]
    )
    settings = KTOConfig(
        folder, per_device_train_batch_size=len(answers), report_to=[], use_cpu=True, disable_dropout=True, desirable_weight=1.3,
        max_length=None,
    )  # fmt: skip
    trainer: Any = KTOTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer)
    own = [_example(row["prompt_ids"], row["completion_ids"]) for row in trainer.train_dataset]
    pairs = [(each, mismatch(each, own[number - 1], 1000)) for number, each in enumerate(own)]
    good = [row["label"] for row in trainer.train_dataset]
    items = [
        [{**document, "index": 2 * number + side, "desirable": good[number]} for side, document in enumerate(pair)]
        for number, pair in enumerate(pairs)
    ]
    reference = reference_of(model, [example for item in items for example in item])
    _shift(model, 0.01)
    batch = trainer.data_collator(list(trainer.train_dataset))
    loss = trainer._compute_loss(model, batch, False)
    theirs = float(loss.detach()), gradients(model, loss)
    config = ObjectiveConfig(Kind.kto, desirable_weight=1.3)
    for form, collate in (("padded", Padded(0)), ("padding-free", PaddingFree())):
        yield f"kto, {form}", _kto(config, model, reference, items, collate), theirs


def _kto(config: ObjectiveConfig, model: Any, reference: torch.Tensor, items: list[Any], collate: Any) -> Result:
    objective: Any = make_objective(config)
    objective.prepare(model, True)
    objective.reference = reference
    own, others = ([item[side::2] for item in items] for side in (0, 1))
    batch = {**collate(own), "others": collate(others)}
    objective.divergence = objective.estimate(model, [batch["others"]])
    loss = objective.loss(model, batch, None).value
    return float(loss.detach()), gradients(model, loss)


def _of_experimental(dtype: torch.dtype) -> Iterator[tuple[str, Result, Result]]:
    """ORPO and SimPO: TRL's functions of log-probabilities, which are taken from all logits."""
    from types import SimpleNamespace

    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    tokenizer, model = model_of(dtype)
    encode: Callable[[str], list[int]] = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    items = [[_example(encode(p), [*encode(a), tokenizer.eos_token_id]) for a in both] for p, *both in TEXTS]
    items = [[{**each, "index": 0} for each in item] for item in items]
    rows = [item[side] for side in (0, 1) for item in items]
    batch = Padded(0)([rows])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    here = SimpleNamespace(device=torch.device("cpu"))
    for name, config in (
        ("orpo", ObjectiveConfig(Kind.orpo)),
        ("simpo", ObjectiveConfig(Kind.simpo, beta=2.0, gamma=1.0)),
    ):
        kind: Any = ORPOTrainer if name == "orpo" else CPOTrainer
        trainer = object.__new__(kind)
        trainer.beta, trainer.accelerator, trainer.label_smoothing = config.beta, here, 0.0
        trainer.loss_type, trainer.simpo_gamma, trainer.alpha = "simpo", config.gamma, 0.0
        means = kind.get_batch_logps(logits, batch["labels"], average_log_prob=True).chunk(2)
        found = -trainer.odds_ratio_loss(*means)[0].mean() if name == "orpo" else trainer.cpo_loss(*means)[0].mean()
        theirs = float(found.detach()), gradients(model, found, keep=True)
        for form, collate in (("padded", Padded(0)), ("padding-free", PaddingFree())):
            yield f"{name}, {form}", ours(config, model, torch.zeros(1), items, collate), theirs


STEPS, BATCH = 10, 4


@dataclasses.dataclass(frozen=True)
class Trained:
    """What ten steps of DPO gave."""

    losses: list[float]
    rewards: list[tuple[float, float]]
    """Of each step: the mean reward of the chosen and of the rejected answers."""
    adapter: dict[str, torch.Tensor]


def here(folder: Path) -> Trained:
    """``python train.py objective=dpo …``."""
    run = folder / "run"
    curve = equivalence.train(_overrides(folder), run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rewards = [(line["chosen_reward"], line["rejected_reward"]) for line in lines if "chosen_reward" in line]
    return Trained(curve.losses, rewards, curve.adapter)


def _overrides(folder: Path) -> list[str]:
    """Of a run over the first pairs that ship with the project, in their order."""
    file = folder / "pairs.json"
    pairs = json.loads((ROOT / "data" / "zh_preferences.train.json").read_text())[: STEPS * BATCH]
    file.write_text(json.dumps(pairs, ensure_ascii=False))
    return [
        "objective=dpo", f"data.train={file}", "data.eval=null", "data.shuffle=false", "quant=none", "zero=stage0", "cluster=1x1",
        "train.precision=fp32", f"train.micro_batch_size={BATCH}", "train.gradient_accumulation_steps=1", f"train.max_steps={STEPS}",
        "train.learning_rate=1e-3", "train.scheduler=linear", "train.warmup_ratio=0", "train.log_every=1", "lora.dropout=0",
        f"optimizer.eps={EPS:g}",
    ]  # fmt: skip


def by_trl(folder: Path) -> Trained:
    """The same ten steps with TRL's DPOTrainer, from the same weights and over the same texts."""
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    config = equivalence.compose_run(_overrides(folder))
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    settings = adapter(config.lora, targets(config.lora, base))
    set_seed(config.seed)
    model = peft.get_peft_model(base, settings)
    pairs = [read_pair(row, Format.auto, "pairs.json", 0) for row in json.loads(Path(config.data.train).read_text())]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    # As texts: of a chat, TRL would also train the line break that the template writes after the answer.
    rows = datasets.Dataset.from_list([_texts(pair, tokenizer, config) for pair in pairs])
    train = config.train
    arguments = DPOConfig(
        str(folder / "trl"), per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=train.learning_rate,
        lr_scheduler_type=train.scheduler.value, weight_decay=config.optimizer.weight_decay, adam_beta1=config.optimizer.betas[0],
        adam_beta2=config.optimizer.betas[1], adam_epsilon=config.optimizer.eps, max_grad_norm=train.max_grad_norm, logging_steps=1, report_to=[], use_cpu=True, disable_dropout=True,
        save_strategy="no", max_length=None, train_sampling_strategy="sequential", disable_tqdm=True, gradient_checkpointing=False, bf16=False,
    )  # fmt: skip
    trainer: Any = DPOTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    _same_tokens(trainer.train_dataset, pairs, tokenizer, config)
    trainer.train()
    history = [line for line in trainer.state.log_history if "rewards/chosen" in line]
    weights = {name.replace(".default", ""): value.detach() for name, value in trainable(model).items()}
    return Trained(
        [line["loss"] for line in history],
        [(line["rewards/chosen"], line["rewards/rejected"]) for line in history],
        weights,
    )


def _texts(pair: Any, tokenizer: Any, config: Config) -> dict[str, str]:
    prompt = prompt_text(pair.chosen, tokenizer, config.data)
    return {"prompt": prompt, "chosen": pair.chosen.reference, "rejected": pair.rejected.reference}


def _same_tokens(rows: Any, pairs: list[Any], tokenizer: Any, config: Config) -> None:
    for row, pair in zip(rows, pairs, strict=True):
        for name, each in zip(("chosen", "rejected"), pair.conversations, strict=True):
            (example,) = encode_one(each, tokenizer, config.data)
            assert example["input_ids"] == row["prompt_ids"] + row[f"{name}_ids"]


def ten_steps(folder: Path) -> tuple[float, float, float]:
    """The largest differences of losses, rewards and adapter from TRL's after ten steps of DPO."""
    one, other = here(folder), by_trl(folder)
    assert len(one.losses) == len(other.losses) == STEPS and one.adapter.keys() == other.adapter.keys()
    losses = max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))
    rewards = max(
        abs(a - b) for x, y in zip(one.rewards, other.rewards, strict=True) for a, b in zip(x, y, strict=True)
    )
    return losses, rewards, max(float((one.adapter[name] - value).abs().max()) for name, value in other.adapter.items())


def main() -> int:
    """Print the table."""
    print("| objective | loss, fp64 | gradients | loss, fp32 | gradients | from fp64: ours | TRL's |")
    print("|---|---|---|---|---|---|---|")
    for (name, *exact), (_, *single) in zip(losses(torch.float64), losses(torch.float32), strict=True):
        rounded = [apart(one, other)[1] for one, other in zip(single, exact, strict=True)]
        figures = (*apart(*exact), *apart(*single), *rounded)
        print(f"| {name} | {' | '.join(f'{value:.1e}' for value in figures)} |")
    with tempfile.TemporaryDirectory() as folder:
        found = ten_steps(Path(folder))
    names = ("losses", "rewards", "adapter")
    print(
        f"\nTen steps of DPO, the largest difference of {', '.join(f'{n} {v:.1e}' for n, v in zip(names, found, strict=True))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
