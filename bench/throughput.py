"""Training samples per second, compared with transformers' Trainer with its defaults on the same records.

    python bench/throughput.py [--records FILE] [--steps 25] [--rounds 3] [--device cpu]

On a CPU: a Llama of 31 M parameters with random weights in fp32, batch 4, at most 512 tokens of the shipped records. On
a GPU: one of 0.9 B parameters in bf16 (autocast over fp32 weights, except for hydraft-bf16), batch 4, records of 200 to
2,048 tokens. LoRA r 8 on q, k, v, o. Each variant runs in its own process; the variants alternate, and the table shows
the medians.

* recipe: transformers' Trainer, every record padded to 512 (on a GPU 2,048) tokens
* trainer: transformers' Trainer, dynamic padding (the baseline)
* hydraft: padding-free batches, logits only for labelled tokens
* hydraft-bf16: the same with the frozen base in bf16 and the adapter in fp32
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from bench.gpu import records as long_records  # noqa: E402
from bench.results import card, device, write  # noqa: E402

VARIANTS = ("recipe", "trainer", "hydraft", "hydraft-bf16")
BATCH = 4
LENGTH = {"cpu": 512, "cuda": 2048}
"""Maximum tokens of a record."""
RECORDS = ROOT / "data/zh_tasks.train.json"
SMALL: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
LARGE: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
"""31 M parameters, and 0.9 B for a GPU, which would wait for kernel launches with a smaller model."""
SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices that the matmul rate is measured with."""


def build(folder: Path, records: Path, sizes: dict[str, Any] = SMALL) -> None:
    """Write the model of every variant, with a tokenizer of 8,192 tokens trained on the records."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = [str(text) for record in json.loads(records.read_text(encoding="utf-8")) for text in record.values()]
    embedded = AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny")
    words = (
        ByteLevelBPETokenizer()
    )  # whole words, as in large models; the embedded model's tokens are single characters
    words.train_from_iterator(texts, vocab_size=8192 - 8, show_progress=False)
    specials = [str(token) for token in embedded.all_special_tokens]
    words.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words._tokenizer,
        pad_token=embedded.pad_token,
        eos_token=embedded.eos_token,
        additional_special_tokens=specials,
        chat_template=embedded.chat_template,
    )
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=8192, **sizes, max_position_embeddings=2048, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(variant: str, model_folder: Path, records: Path, steps: int, where: str) -> dict[str, Any]:
    """Train in this process on ``where``; return samples and tokens per second, losses, and peak memory in bytes."""
    import resource

    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

    sys.path.insert(0, str(ROOT))
    from bench.equivalence import compose_run
    from hydraft.data.batch import Padded, PaddingFree
    from hydraft.data.examples import Examples
    from hydraft.data.load import load
    from hydraft.data.tokenize import encode
    from hydraft.models import attention

    cuda, length = where == "cuda", LENGTH[where]
    config = compose_run([f"data.max_length={length}"])
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    examples, _ = encode(load(str(records), "records")[:1000], tokenizer, config.data)
    ours = variant.startswith("hydraft")
    dtype = torch.bfloat16 if variant.endswith("bf16") else torch.float32
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype)
    base.config.use_cache = False
    pad = int(tokenizer.pad_token_id)
    collate: Any = Padded(pad)
    if ours:
        attention.register()
        base.set_attn_implementation(attention.NAME)
        collate = PaddingFree()
    elif variant == "recipe":
        collate = _padded_to(length, pad)
    torch.manual_seed(0)
    lora = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base, lora)  # the adapter stays fp32 over a bf16 base
    clock: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            clock.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch, use_cpu=not cuda, bf16=cuda, per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=1e-4,
            lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=False, seed=0,
        )  # fmt: skip
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Examples(examples, pad),
            data_collator=collate,
            callbacks=[Clock()],
        )
        trainer.train()
    seconds = clock[-1] - clock[4]  # the first steps are warm-up
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "samples": BATCH * (steps - 5) / seconds,
        "losses": losses,
        "memory": torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "tokens": statistics.mean(len(example["input_ids"]) for example in examples),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _padded_to(length: int, pad: int) -> Any:
    from hydraft.data.batch import Padded
    from hydraft.data.labels import IGNORE
    from hydraft.data.tokenize import Example

    def collate(items: list[list[Example]]) -> Any:
        ruler: Example = {"input_ids": [pad] * length, "labels": [IGNORE] * length}
        return {key: value[:-1] for key, value in Padded(pad)([*items, [ruler]]).items()}

    return collate


def matmul_rate(where: str | None = None) -> float:
    """FLOP/s of a matrix product, best of several rounds: bf16 8,192 x 8,192 on a GPU, fp32 1,024 x 1,024 on a CPU."""
    import torch

    where = where or device()
    side, dtype = SIDE[where], torch.bfloat16 if where == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=where, dtype=dtype) for _ in range(2))
    best, times = float("inf"), 5 if where == "cuda" else 1  # several launches at once, so that a GPU does not wait
    for _ in range(20):
        if where == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            a @ b
        if where == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / times)
    return 2 * side**3 / best


def main() -> None:
    """Run the variants in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--records", type=Path, help="default: the shipped ones; on a GPU, long ones made from their text"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default=device(), help="default: the GPU if there is one")
    parser.add_argument("--steps", type=int, default=25, help="optimizer steps per variant; the first 5 are warm-up")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options.variant, options.model, options.records, options.steps, options.device)))
        return
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as name:
        cuda = options.device == "cuda"
        records = options.records or (
            long_records.write(Path(name, "records.json"), 400, 3000, vary=True) if cuda else RECORDS
        )
        build(Path(name, "model"), records, LARGE if cuda else SMALL)
        for turn in range(1, options.rounds + 1):
            for variant in VARIANTS:
                command = [
                    sys.executable, __file__, "--variant", variant, "--model", f"{name}/model", "--records", str(records),
                    "--steps", str(options.steps), "--device", options.device,
                ]  # fmt: skip
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
                found[variant].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"round {turn}: {variant} {found[variant][-1]['samples']:.2f} samples/s", file=sys.stderr)
    lengths = found["trainer"][0]["tokens"]
    print(
        f"on {card() if options.device == 'cuda' else 'cpu'}: {lengths:.0f} tokens per record on average, {BATCH} records per "
        f"batch, at most {LENGTH[options.device]} tokens\n"
    )
    rate = matmul_rate(options.device)
    median = {v: statistics.median(run["samples"] for run in runs) for v, runs in found.items()}
    print(
        "| variant | samples/s | against trainer | against recipe | tokens/s | of matmul rate | peak memory | loss apart |"
    )
    print("|---|---|---|---|---|---|---|---|")
    reference = found["trainer"][0]["losses"]
    for variant, runs in found.items():
        first = runs[0]
        tokens = median[variant] * first["tokens"]
        share = 4 * first["parameters"] * tokens / rate  # frozen base: 2N forward, 2N for the gradient of activations
        difference = max(abs(a - b) / b for a, b in zip(first["losses"], reference, strict=True))
        print(
            f"| {variant} | {median[variant]:.2f} | {median[variant] / median['trainer']:.2f} "
            f"| {median[variant] / median['recipe']:.2f} | {tokens:,.0f} | {share:.0%} | {first['memory'] / 2**30:.2f} GiB | {difference:.1e} |"
        )
    print(f"\n{write('throughput', {'samples a second': median, 'matmul FLOP/s': rate}, options.device)}")


if __name__ == "__main__":
    main()
