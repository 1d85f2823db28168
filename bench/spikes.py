"""How much the losses of runs without divergence exceed recent ones, by three rules, and the time to check each step.

    python bench/spikes.py                         # takes minutes; more arguments of train.py may follow

Each run trains the embedded model on the shipped records. ``train.loss_spike`` is compared with the highest loss of the
last 64 steps, once there are 16. The table also shows the median of the same steps, and standard deviations above their
mean.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.equivalence import compose_run  # noqa: E402
from hydraft.data.mixture import training  # noqa: E402
from hydraft.launch import run as launch  # noqa: E402
from hydraft.plan import plan  # noqa: E402
from hydraft.runs import run_folder  # noqa: E402
from hydraft.system import hardware  # noqa: E402
from hydraft.training.callbacks.divergence import FEWEST, WINDOW  # noqa: E402
from hydraft.training.reductions import reduce_now  # noqa: E402

STEPS = 200
ROUNDS = 500


def losses(overrides: list[str], folder: Path) -> list[float]:
    """The loss of each step of a run."""
    config = compose_run([*overrides, "data.eval=null", f"train.max_steps={STEPS}", "train.log_every=1"])
    priced = plan.make_plan(config, len(training(config.data, config.seed)))
    run_folder.create(folder, config, priced, hardware.detect())
    launch.run(config, folder, quiet=True)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "learning_rate" in line]


def largest_excess(found: list[float]) -> tuple[float, float, float]:
    """The largest excess of any step: relative to the highest and the median, and in deviations above the mean."""
    worst = (0.0, 0.0, 0.0)
    for step in range(FEWEST, len(found)):
        window, loss = found[max(0, step - WINDOW) : step], found[step]
        deviations = (loss - statistics.mean(window)) / statistics.stdev(window)
        worst = (
            max(worst[0], loss / max(window)),
            max(worst[1], loss / statistics.median(window)),
            max(worst[2], deviations),
        )
    return worst


def measure_reduction(rank: int, store: str, ranks: int) -> None:
    """Print the median time of a reduction over ``ranks`` ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    times = []
    for _ in range(ROUNDS):
        before = time.perf_counter()
        reduce_now(torch.ones(4), 1.0, False)
        times.append(time.perf_counter() - before)
    if rank == 0:
        print(f"| {ranks} | {statistics.median(times) * 1e6:,.0f} |")


def main() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as name:
        print("| global batch | times the highest | times the median | deviations above the mean |\n|---|---|---|---|")
        for batch in (1, 2, 4, 8):
            run = [f"train.micro_batch_size={batch}", *sys.argv[1:]]
            cells = " | ".join(f"{value:.1f}" for value in largest_excess(losses(run, Path(name) / str(batch))))
            print(f"| {batch} | {cells} |", flush=True)
        print("\n| ranks (gloo, on the CPU) | time to check a step, microseconds |\n|---|---|", flush=True)
        for ranks in (1, 2):
            mp.spawn(measure_reduction, (f"{name}/store-{ranks}", ranks), nprocs=ranks)  # type: ignore[attr-defined, no-untyped-call]


if __name__ == "__main__":
    main()
