"""Time to the best of 64 candidates: a grid in full, packed and with a process each, and the same candidates with successive halving.

    python bench/halving.py [key=value …]

64 points of LoRA rank, learning rate and warm-up; the held-out loss is that of 32 records. Takes some 15 minutes on two idle cores.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.results import write
from bench.sweep import timed
from hydraft.sweep.results.ledger import Ledger, State

SPACE = [
    "lora.r=2,4,8,16",
    "train.learning_rate=1e-4,2e-4,4e-4,8e-4,1.6e-3,3.2e-3,6.4e-3,1.28e-2",
    "train.warmup_ratio=0,0.1",
]
RUN = [
    "quant=none", "train.max_steps=48", "train.eval_every=4", "train.eval_loss_only=true", "train.micro_batch_size=2",
    "data.eval_limit=32", "data.eval_max_new_tokens=1", "train.save_minutes=null",
]  # fmt: skip
GRID = ["hydra/sweeper=search", "hydra.sweeper.sampler=grid"]
HALVING = "hydra.sweeper.pruner=successive_halving"
"""With rungs at 4 and 12 of 48 steps: 64 candidates, 21, 7."""
COMMANDS = {
    "grid, a process each": ["hydra.launcher.pack=off"],
    "grid, packed": ["hydra.launcher.pack=auto"],
    "halving, packed": [HALVING, "hydra.launcher.pack=auto"],
}


def measured(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Time of a sweep in seconds, its best held-out loss, and the steps of all its jobs."""
    seconds = timed("train.py", "-m", *GRID, *SPACE, *arguments, f"hydra.sweep.dir={folder}")
    jobs, steps = Ledger(folder).jobs().values(), 0
    for job in jobs:
        lines = (folder / job.name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps += max(json.loads(line)["step"] for line in lines)
    done = {job.name: job.objective for job in jobs if job.state is State.done}
    best = min(done, key=lambda name: done[name])  # type: ignore[arg-type, return-value]
    return {"seconds": seconds, "loss": done[best], "best": best, "steps": steps, "jobs": len(jobs), "done": len(done)}


def main() -> None:
    """Measure, and print a table."""
    overrides = [*RUN, *sys.argv[1:]]
    folder = Path(tempfile.mkdtemp(prefix="hydraft-halving-"))
    try:
        found = {}
        print(
            "| 64 candidates | seconds | steps | at full length | best held-out loss | its job |\n|---|---|---|---|---|---|"
        )
        for number, (name, arguments) in enumerate(COMMANDS.items()):
            one = found[name] = measured(folder / str(number), [*overrides, *arguments])
            cells = [
                name,
                f"{one['seconds']:.0f}",
                f"{one['steps']:,}",
                one["done"],
                f"{one['loss']:.4f}",
                f"`{one['best']}`",
            ]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
        print(write("halving", found))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
