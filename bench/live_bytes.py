"""Count the bytes of weights on each rank at every moment of a QLoRA run under ZeRO-3, with this project and with its libraries alone.

    python bench/live_bytes.py               # 1, 2 and 4 CPU ranks (about ten minutes on two cores)
    python bench/live_bytes.py --ranks 2

Each rank is a process with DeepSpeed's ZeRO-3 over gloo and bitsandbytes' NF4; it counts every tensor storage from the operation that
makes it until it is freed (``storages.py``). A cell is the most bytes of weights that any rank had at once in a phase, as a share of the
4-bit model (codes, constants, unquantised weights in bf16). They include shares, gathered and dequantised copies, what an autograd node
keeps, and the trained adapter with its optimizer. The activations of 8 tokens are in "with activations", and what bitsandbytes' CPU kernel
takes to quantise: its GPU kernel takes none. Tensors that are pages of a mapped file are not counted: on a CPU, both stacks read
unquantised weights so until DeepSpeed shards them.

DeepSpeed's caches are off in both, and the pieces that are quantised at a time are smaller: they would hold a model this small whole.
Exits with 1 if a rank of this project has more than the bound, or if a loss or gradient norm differs between the stacks.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

PHASES = ("loading", "between passes", "forward", "backward", "optimizer", "evaluation", "generation")
RANKS = (1, 2, 4)
TOKENS, STEPS, GENERATED = 8, 2, 2
PIECE = 1 << 14
"""Weights that are quantised at a time: of the largest weight an eighth, which 4 M are of one of 33 M."""
SLACK = 0.02
"""Of the model: what a rank may have beyond the bound (padding, tables, the masks of attention)."""
TOLERANCE = 1e-5
"""Largest accepted relative difference between the stacks, of the loss of a step, of evaluation, and of a gradient norm."""


def count(stack: str, folder: Path, ranks: int) -> dict[str, Any]:
    """What this rank counts: bytes of each phase, losses and gradient norms."""
    import deepspeed
    import torch
    import torch.distributed as dist
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    from bench import stacks
    from bench.storages import Storages
    from hydraft.models import nf4
    from hydraft.models.load import trainable

    config = stacks.settings(folder, ranks)
    made = stacks.deepspeed_settings(config)
    active = HfDeepSpeedConfig(made)  # from_pretrained reads it while it exists
    nf4.PIECE = PIECE
    losses, norms = [], []
    with Storages() as storages:
        storages.phase("loading")
        model = stacks.STACKS[stack](config)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        declare_batches(model, storages)
        optimizer = torch.optim.AdamW(list(trainable(model).values()), lr=1e-2)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=made)
        storages.phase("between passes")
        engine.train()
        for step in range(STEPS):
            torch.manual_seed(100 * step + dist.get_rank())
            ids = torch.randint(9, 99, (1, TOKENS))  # (B, T)
            storages.phase("forward")
            loss = engine(input_ids=ids, labels=ids).loss
            storages.phase("backward")
            engine.backward(loss)
            losses.append(loss.item())
            del loss
            storages.phase("optimizer")
            engine.step()
            norms.append(float(engine.get_global_grad_norm()))
            storages.settle()
        model.eval()
        storages.phase("evaluation")
        losses.append(stacks.evaluate(stack, model, ids))
        storages.phase("generation")
        stacks.generate(model, ids, GENERATED)
    del active
    return {"losses": losses, "norms": norms, "peaks": {name: vars(peak) for name, peak in storages.peaks.items()}}


def declare_batches(model: Any, storages: Any) -> None:
    """Declare the tensors that the model is called with as batches."""

    def declare(_: Any, args: Any, named: dict[str, Any]) -> None:
        storages.of_batch(*(one for one in (*args, *named.values()) if hasattr(one, "untyped_storage")))

    model.get_base_model().register_forward_pre_hook(declare, with_kwargs=True)


def rank(stack: str, folder: Path, ranks: int) -> None:
    """Run this rank in its process group; rank 0 prints what all have counted, as JSON."""
    import deepspeed
    import torch
    import torch.distributed as dist
    import transformers

    from hydraft.system import hardware
    from hydraft.training import deepspeed_ops

    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    machine = hardware.detect()
    os.environ.update(deepspeed_ops.environment(machine))
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    every: list[Any] = [None] * ranks
    dist.all_gather_object(every, count(stack, folder, ranks))
    if dist.get_rank() == 0:
        print(json.dumps(every))
    dist.destroy_process_group()


def run(stack: str, folder: Path, ranks: int) -> list[dict[str, Any]]:
    """Start the ranks of a stack; what each has counted."""
    from bench.ranks import run

    command = [sys.executable, __file__, "--rank", stack, "--model", str(folder), "--ranks", str(ranks)]
    found: list[dict[str, Any]] = run(command, ranks)
    return found


def most(found: list[dict[str, Any]], phase: str, kind: str = "weights") -> int:
    """The most bytes of any rank in a phase."""
    return max(int(one["peaks"][phase][kind]) for one in found)


def apart(found: list[dict[str, Any]], reference: list[dict[str, Any]]) -> float:
    """The largest relative difference of a loss or gradient norm of any rank."""
    pairs: list[tuple[float, float]] = [
        pair
        for ours, theirs in zip(found, reference, strict=True)
        for name in ("losses", "norms")
        for pair in zip(ours[name], theirs[name], strict=True)
    ]
    return max(abs(a - b) / abs(b) for a, b in pairs)


def compare(folder: Path, ranks: int, name: str) -> tuple[bool, dict[str, Any]]:
    """Run both stacks and print their rows; whether ours keeps the bounds and the losses are equal, and the figures."""
    from bench.stacks import Sizes

    sizes = Sizes.of(folder)
    found = {stack: run(stack, folder, ranks) for stack in ("ours", "plain")}
    good, figures = True, []
    for phase in PHASES:
        bound = sizes.bound(phase, ranks) + SLACK * sizes.model
        cells = [most(found[stack], phase, kind) for kind in ("weights", "everything") for stack in ("ours", "plain")]
        held = cells[0] <= bound
        good &= held
        shares = [cell / sizes.model for cell in (bound, *cells)]
        figures.append({"model": name, "ranks": ranks, "phase": phase, "bytes": cells, "bound": round(bound)})
        print(
            f"| {name} | {ranks} | {phase} | "
            + " | ".join(f"{one:.0%}" for one in shares)
            + f" | {'yes' if held else 'NO'} |",
            flush=True,
        )
    difference = apart(found["ours"], found["plain"])
    equal = difference <= TOLERANCE
    figures.append({"model": name, "ranks": ranks, "difference": difference, "losses": found["ours"][0]["losses"]})
    print(
        f"| {name} | {ranks} | losses and gradient norms: {difference:.0e} apart | | | | | | {'yes' if equal else 'NO'} |",
        flush=True,
    )
    return good and equal, {"bytes of the 4-bit model": sizes.model, "rows": figures}


def main() -> int:
    """Print the table; return 1 if a bound is exceeded or the stacks differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", choices=("ours", "plain"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(options.rank, options.model, options.ranks[0])
        return 0
    from bench.results import write
    from bench.stacks import write_model

    print(
        "| model | ranks | phase | bound | ours | plain | with activations: ours | plain | kept |\n" + "|---" * 9 + "|"
    )
    good, figures = True, []
    with tempfile.TemporaryDirectory() as name:
        for tied in (False, True):
            folder = Path(name, "tied" if tied else "untied")
            write_model(folder, tied)
            for ranks in [ranks for ranks in options.ranks if not tied or ranks == 2]:
                kept, found = compare(folder, ranks, folder.name)
                good &= kept
                figures.append(found)
    print(f"\n{write('live-bytes', figures, 'cpu')}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
