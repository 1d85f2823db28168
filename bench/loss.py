"""Compare time and memory of the loss with all logits at once (whole) and in chunks of trained tokens (chunked).

    python bench/loss.py [--rounds 5] [--vocabularies 32000,152064] [--rows 128]

Forward and backward from the last hidden states through a frozen head, in bf16 on a GPU if there is one, otherwise in
fp32 on the CPU. On a CPU the time is the CPU time of one thread, not wall-clock time, since other processes may use the
machine. The two variants alternate in one process, the first round is not timed, and medians are compared. Memory is
the peak that each adds: on a GPU torch.cuda.max_memory_allocated; on a CPU the highest resident memory of a new
process, in which the C library returns freed memory at once. A ratio above 1 means that chunked is slower or takes more
memory. --rows sets another chunk size than the package's default; with the default, the figures are also written to
bench/results/loss-<card or cpu>.json.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from bench.results import write  # noqa: E402
from hydraft.models import loss  # noqa: E402
from hydraft.models.loss_chunked import summed_loss  # noqa: E402

VOCABULARIES = (2_000, 8_000, 32_000, 65_000, 128_000, 152_064)
TOKENS = (256, 1024, 4096)
HIDDEN, LARGE_HIDDEN = 512, 4096
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
MOST_ON_CPU = 4 << 30
"""Bytes of the largest case on a CPU; larger ones are left out."""
CLOCK = time.perf_counter if DEVICE.type == "cuda" else time.process_time
SHORT = 0.05
"""Seconds; a shorter pass is repeated within a round."""


def whole(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss as transformers computes it (ForCausalLMLoss)."""
    logits = torch.nn.functional.linear(hidden, weight).float()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


VARIANTS: dict[str, Callable[..., torch.Tensor]] = {"whole": whole, "chunked": summed_loss}


def inputs(vocabulary: int, tokens: int, hidden: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, head weight and targets."""
    torch.manual_seed(0)
    weight = torch.empty(vocabulary, hidden, device=DEVICE, dtype=DTYPE).normal_(std=0.02)
    states = torch.randn(tokens, hidden, device=DEVICE, dtype=DTYPE)
    return states, weight, torch.randint(0, vocabulary, (tokens,), device=DEVICE)


def timed(variant: str, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, times: int = 1) -> float:
    """Seconds of one forward and backward pass."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    started = CLOCK()
    for _ in range(times):
        leaf = states.detach().requires_grad_()
        (VARIANTS[variant](leaf, weight, targets) / len(targets)).backward()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return (CLOCK() - started) / times


def seconds(vocabulary: int, tokens: int, hidden: int, rounds: int) -> dict[str, float]:
    """Median seconds of each variant."""
    made = inputs(vocabulary, tokens, hidden)
    first = max(timed(variant, *made) for variant in VARIANTS)
    times = max(1, round(SHORT / first))
    taken: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(rounds):
        for variant in VARIANTS:
            taken[variant].append(timed(variant, *made, times))
    return {variant: statistics.median(found) for variant, found in taken.items()}


def peak(variant: str, vocabulary: int, tokens: int, hidden: int) -> int:
    """Peak memory in bytes that a variant adds, in a process that does nothing else."""
    small = inputs(16, 16, hidden)
    timed(variant, *small)  # loads and allocates what torch needs only once
    made = inputs(vocabulary, tokens, hidden)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        timed(variant, *made)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _status("VmRSS")
    timed(variant, *made)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def measured(vocabulary: int, tokens: int, hidden: int, rounds: int) -> dict[str, Any]:
    """Both variants of a case, and the ratio of chunked to whole."""
    peaks = {}
    for variant in VARIANTS:
        command = [
            sys.executable,
            __file__,
            "--rows",
            str(loss.ROWS),
            "--peak",
            variant,
            *map(str, (vocabulary, tokens, hidden)),
        ]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks[variant] = int(done.stdout.splitlines()[-1])
    taken = seconds(vocabulary, tokens, hidden, rounds)
    return {
        "vocabulary": vocabulary, "tokens": tokens, "hidden": hidden, "seconds": taken, "peak_bytes": peaks,
        "time": taken["chunked"] / taken["whole"], "memory": peaks["chunked"] / peaks["whole"],
    }  # fmt: skip


def main() -> None:
    """Measure, print a Markdown table, and write the file."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each variant")
    parser.add_argument("--vocabularies", default=",".join(map(str, VOCABULARIES)))
    parser.add_argument("--rows", type=int, default=loss.ROWS, help="trained tokens per chunk")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    default_rows, loss.ROWS = loss.ROWS, arguments.rows
    if arguments.peak:
        variant, *sizes = arguments.peak
        print(peak(variant, *map(int, sizes)))
        return
    vocabularies = [int(number) for number in arguments.vocabularies.split(",")]
    cases = [(vocabulary, tokens, HIDDEN) for vocabulary in vocabularies for tokens in TOKENS]
    cases.append((max(vocabularies), TOKENS[0], LARGE_HIDDEN))
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    print(f"{name}, {DTYPE}; chunked over whole: time (seconds of each), memory (MiB of each)\n")
    print("| vocabulary | trained tokens | hidden | time | whole | chunked | memory | whole | chunked |")
    print("|---" * 9 + "|")
    figures = []
    for vocabulary, tokens, hidden in cases:
        if DEVICE.type == "cpu" and vocabulary * (12 * tokens + 4 * hidden) > MOST_ON_CPU:
            print(f"| {vocabulary:,} | {tokens:,} | {hidden:,} | more than {MOST_ON_CPU >> 30} GiB |" + " |" * 5)
            continue
        row = measured(vocabulary, tokens, hidden, arguments.rounds)
        figures.append(row)
        took, peaks = row["seconds"], row["peak_bytes"]
        cells = [
            f"{vocabulary:,}", f"{tokens:,}", f"{hidden:,}", f"{row['time']:.2f}", *(f"{took[variant]:.4f}" for variant in VARIANTS),
            f"{row['memory']:.2f}", *(f"{peaks[variant] / 2**20:,.0f}" for variant in VARIANTS),
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)
    if default_rows == loss.ROWS:
        print(f"\n{write('loss', figures, DEVICE.type)}")


if __name__ == "__main__":
    main()
