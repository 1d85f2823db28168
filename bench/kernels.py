"""Tokens per second and peak memory of the same run with each kind of kernels, and with variants of the torch kernels.

    python bench/kernels.py [--rounds 3] [--steps 40] [key=value …]

On a GPU: Llama 3.1 8B in its published shape with random weights, QLoRA r 32, 2 records x 4 accumulated, each long
enough to fill 2,048 tokens (bench/gpu/records.py; with the shipped records of about 70 tokens, a GPU would wait for
kernel launches). On a CPU: a Llama of 31 M parameters (bench/throughput.py), LoRA r 8, and only the variants that a CPU
supports. The variants alternate, and each is a ``python train.py`` with the same records; the first two lines of its
metrics.jsonl are warm-up. Every figure and the losses are compared with those of the first variant. The results are
written to bench/results/kernels-<card or cpu>.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.gpu import records as long_records  # noqa: E402
from bench.results import device, write  # noqa: E402
from bench.throughput import RECORDS, build  # noqa: E402

VARIANTS = {
    "torch, all logits": "kernels=torch kernels.loss=whole",
    "torch": "kernels=torch kernels.loss=chunked",
    "torch, compiled": "kernels=torch train.compile=true",
    "liger": "kernels=liger",
    "unsloth": "kernels=unsloth",
}
ON_A_GPU = {"liger": "liger_kernel", "unsloth": "unsloth"}
"""Variants that need a GPU, and the package they use."""
LLAMA = "model=llama3 model.init=random quant=nf4 zero=stage2 lora.r=32 train.gradient_accumulation_steps=4 data.max_length=2048"
SMALL = "model=auto quant=none zero=stage0"
EVERY = 2
"""Steps between two lines of metrics.jsonl."""


def common(scratch: Path, gpu: bool) -> list[str]:
    """Overrides shared by all variants: the model, and records long enough for the device."""
    if gpu:
        return [*LLAMA.split(), f"data.train={long_records.write(scratch / 'records.json', 256)}"]
    build(scratch / "model", RECORDS)
    return [*SMALL.split(), f"model.path={scratch}/model", f"data.train={RECORDS}"]


def run(overrides: list[str], folder: Path) -> dict[str, Any]:
    """Run once; return tokens per second after the warm-up, peak memory in bytes, and losses."""
    command = [sys.executable, str(ROOT / "train.py"), *overrides, f"hydra.run.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "learning_rate" in line]
    result = json.loads((folder / "result.json").read_text())
    return {
        "speed": statistics.median(line["tokens_per_second"] for line in trained[2:]),
        "memory": result["peak_memory_bytes"],
        "losses": [line["loss"] for line in trained],
    }


def main() -> None:
    """Run the variants in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps per run")
    options, overrides = parser.parse_known_args()
    gpu = device() == "cuda"
    available = [name for name in VARIANTS if name not in ON_A_GPU or (gpu and find_spec(ON_A_GPU[name]) is not None)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in available}
    with tempfile.TemporaryDirectory() as scratch:
        shared = [
            *common(Path(scratch), gpu), "data.eval=null", "train.micro_batch_size=2", "lora.dropout=0", f"train.max_steps={options.steps}",
            f"train.log_every={EVERY}", "train.save_minutes=null", *overrides,
        ]  # fmt: skip
        for turn in range(1, options.rounds + 1):
            for number, name in enumerate(available):
                folder = Path(scratch, f"{turn}-{number}")
                found[name].append(run([*shared, *VARIANTS[name].split()], folder))
                print(f"round {turn}: {name}, {found[name][-1]['speed']:,.0f} tokens/s", file=sys.stderr)
    first = found[available[0]]
    speed = {name: statistics.median(one["speed"] for one in runs) for name, runs in found.items()}
    memory = {name: statistics.median(one["memory"] for one in runs) for name, runs in found.items()}
    print(
        "| kernels | tokens/s | against the first | peak memory | against the first | loss apart |\n|---|---|---|---|---|---|"
    )
    for name, runs in found.items():
        difference = max(abs(a - b) / b for a, b in zip(runs[0]["losses"], first[0]["losses"], strict=True))
        print(
            f"| {name} | {speed[name]:,.0f} | {speed[name] / speed[available[0]]:.2f} | {memory[name] / 2**30:.2f} GiB "
            f"| {memory[name] / memory[available[0]]:.2f} | {difference:.1e} |"
        )
    for name in VARIANTS.keys() - found.keys():
        print(f"\n{name}: skipped, it needs a GPU and its package")
    print(
        f"\n{write('kernels', {name: {'tokens_per_second': speed[name], 'peak_memory_bytes': memory[name]} for name in available})}"
    )


if __name__ == "__main__":
    main()
