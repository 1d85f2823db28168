"""The same records, model and batches as a run, trained without hydraft: tokens/s and peak memory, as JSON.

    python -m bench.gpu.trainer --kind plain|liger|unsloth OUT.json OVERRIDES…

OVERRIDES are those of the run it is compared with. ``plain`` is transformers' Trainer with its defaults (sdpa, padded
batches), ``liger`` the same with ``TrainingArguments(use_liger_kernel=True)``, ``unsloth`` is Unsloth's model in the
same Trainer. The first three steps are warm-up.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydraft.config.schema import Config

WARM_UP = 3
KINDS = ("plain", "liger", "unsloth")


def lora_model(config: "Config", path: str, cuda: bool) -> Any:
    """peft's model over the base model as transformers loads it."""
    import peft
    from transformers import AutoModelForCausalLM

    from hydraft.models.quant import DTYPES, bits_and_bytes

    base = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=DTYPES[config.train.precision],
        quantization_config=bits_and_bytes(config.quant, config.train.precision),
        device_map={"": 0} if cuda else None,
        attn_implementation="sdpa",
    )
    base.config.use_cache = False
    lora = peft.LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(base, lora)


def unsloth_model(config: "Config", path: str) -> Any:
    """Unsloth's own model and adapter."""
    from unsloth import FastLanguageModel

    from hydraft.config.choices import QuantKind
    from hydraft.models.quant import DTYPES

    base, _ = FastLanguageModel.from_pretrained(
        path,
        max_seq_length=config.data.max_length,
        dtype=DTYPES[config.train.precision],
        load_in_4bit=config.quant.kind is QuantKind.nf4,
    )
    return FastLanguageModel.get_peft_model(
        base,
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        use_gradient_checkpointing="unsloth" if config.train.recomputes else False,
    )


def counting(inner: Callable[[Any], Any], tokens: list[int]) -> Callable[[Any], Any]:
    """A collator that records the number of tokens of each batch without padding."""

    def collate(items: Any) -> Any:
        batch = inner(items)
        tokens.append(int(batch["attention_mask"].sum()))
        return batch

    return collate


def measure(kind: str, overrides: list[str]) -> dict[str, Any]:
    """Train the run's steps in this process."""
    if kind == "unsloth":
        import unsloth  # noqa: F401  (it patches transformers, so it comes first)
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from bench.equivalence import compose_run
    from hydraft.config.choices import Precision
    from hydraft.data.batch import Padded
    from hydraft.data.examples import Examples
    from hydraft.data.load import load
    from hydraft.data.tokenize import encode
    from hydraft.models.load import load_tokenizer
    from hydraft.plan.plan import known_layout

    config = compose_run(overrides)
    layout, _ = known_layout(config)
    tokenizer = load_tokenizer(config.model)
    examples, _ = encode(load(config.data.train, "records"), tokenizer, config.data)
    pad, cuda = int(tokenizer.pad_token_id), torch.cuda.is_available()
    path = config.model.path
    model = unsloth_model(config, path) if kind == "unsloth" else lora_model(config, path, cuda)
    clock: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            clock.append(time.perf_counter())

    train = config.train
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch, per_device_train_batch_size=train.micro_batch_size, max_steps=train.max_steps or 14,
            gradient_accumulation_steps=train.gradient_accumulation_steps, learning_rate=train.learning_rate,
            lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
            remove_unused_columns=False, optim="adamw_torch_fused", seed=0, use_cpu=not cuda, dataloader_pin_memory=cuda,
            bf16=train.precision is Precision.bf16, fp16=train.precision is Precision.fp16, use_liger_kernel=kind == "liger",
            gradient_checkpointing=train.recomputes and kind != "unsloth",
            gradient_checkpointing_kwargs={"use_reentrant": False} if train.recomputes else None,
        )  # fmt: skip
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Examples(examples, pad),
            data_collator=counting(Padded(pad), tokens),
            callbacks=[Clock()],
        )
        trainer.train()
    each = [after - before for before, after in zip(clock[WARM_UP:], clock[WARM_UP + 1 :], strict=False)]
    a_step = train.gradient_accumulation_steps * statistics.mean(tokens)
    return {
        "tokens_per_second": a_step / statistics.median(each),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "parameters": layout.count if layout else None,
        "model": path,
        "length": config.data.max_length,
        "recomputes": train.recomputes,
    }


def main() -> None:
    """Measure, print and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    found = {"kind": options.kind, **measure(options.kind, options.overrides)}
    options.out.write_text(json.dumps(found))
    print(json.dumps({name: value for name, value in found.items() if name != "losses"}))


if __name__ == "__main__":
    main()
