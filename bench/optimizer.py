"""Time of AdamW's step: torch's default implementation (a loop of kernels over all tensors) and its fused kernel.

    python bench/optimizer.py [--rounds 7] [--device cpu]

Runs on the GPU if there is one. The tensors are those of a run: separate ones as under ZeRO-0, or one flat fp32
partition as under ZeRO-1 and 2 (under ZeRO-3, one per parameter group). The two alternate on the same state; the table
shows medians, and how often the fused kernel is faster.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from bench.results import card, write  # noqa: E402
from bench.results import device as found_device  # noqa: E402

Shapes = Sequence[tuple[int, ...]]

ADAPTER: Shapes = [(8, 512), (512, 8)] * 32 + [(8, 1408), (512, 8)] * 8
"""LoRA r 8 on a model of 31 M parameters."""
MODEL: Shapes = [(8192, 512), *([(512, 512)] * 4 + [(1408, 512)] * 2 + [(512, 1408), (512,), (512,)]) * 8, (512,)]
"""All weights of that model."""


def state(shapes: Shapes, flat: bool, fused: bool, device: torch.device) -> Callable[[], object]:
    """The step function of an optimizer for tensors of these shapes, after a first step."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    if flat:
        tensors = [torch.cat([tensor.flatten() for tensor in tensors])]
    parameters = [tensor.to(device).requires_grad_() for tensor in tensors]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=fused)
    optimizer.step()
    return optimizer.step


def seconds(step: Callable[[], object], times: int, device: torch.device) -> float:
    """Mean time of one step in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


def main() -> None:
    """Run both in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default=found_device(), help="default: the GPU if there is one"
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    print(f"on {card() if options.device == 'cuda' else 'cpu'}\n")
    print("| state | parameters | tensors | default, ms | fused, ms | times as fast | fused faster |")
    print("|---|---|---|---|---|---|---|")
    figures = []
    for name, shapes in {"adapter": ADAPTER, "model": MODEL}.items():
        for flat in (False, True):
            steps = [state(shapes, flat, fused, device) for fused in (False, True)]
            count = sum(torch.Size(shape).numel() for shape in shapes)
            times = max(2, 8_000_000 // count)
            turns = [[seconds(step, times, device) for step in steps] for _ in range(options.rounds)]
            default, fused = (statistics.median(turn[index] for turn in turns) for index in (0, 1))
            won = sum(turn[1] < turn[0] for turn in turns)
            figures.append({"state": name, "flat": flat, "default_seconds": default, "fused_seconds": fused})
            print(
                f"| {name}{', flat' if flat else ''} | {count:,} | {1 if flat else len(shapes)} | {default * 1e3:.2f} "
                f"| {fused * 1e3:.2f} | {default / fused:.1f} | {won} of {options.rounds} |",
                flush=True,
            )
    print(f"\n{write('optimizer', figures, options.device)}")


if __name__ == "__main__":
    main()
