"""Time to save a checkpoint, compared with an optimizer step, on one rank.

    python bench/checkpoint.py [--steps 20] [--records FILE]

Two models in fp32 under ZeRO-2 with LoRA r 8: the embedded one and the 31 M-parameter Llama of bench/throughput.py. A
checkpoint is saved after every step. The table shows medians in milliseconds, and the share of the time that saving
takes with the default of train.save_minutes. The first three steps and checkpoints are warm-up.

* gather: copying the adapter and Adam's state to main memory on rank 0
* hash: sha256 of every file, and the manifest
* flush: waiting for the disk (fsync of files and folders)
* rest: writing, reading the adapter back to verify it, the tokenizer, removing old checkpoints
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a run: spinning threads take CPU time from other processes

WARM_UP = 3
PARTS = ("gather", "hash", "flush")


class Clock:
    """Seconds spent in wrapped functions, by part; nested calls count for the outer part."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(("save", *PARTS), 0.0)
        self.inside: set[str] = set()

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Count every call of ``owner.name`` as ``part``."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            if self.inside & set(PARTS) or part in self.inside:
                return inner(*arguments, **named)
            self.inside.add(part)
            started = time.perf_counter()
            try:
                return inner(*arguments, **named)
            finally:
                self.spent[part] += time.perf_counter() - started
                self.inside.discard(part)

        setattr(owner, name, timed)

    def read(self) -> dict[str, float]:
        """Return the seconds since the last call, and reset them."""
        found, self.spent = self.spent, dict.fromkeys(self.spent, 0.0)
        return found


def measure(overrides: list[str], folder: Path) -> dict[str, float]:
    """Train in this process and return median seconds. A process can do this only once."""
    import torch.distributed as dist

    from bench.equivalence import compose_run
    from hydraft.checkpoint import manifest, optimizer_state, weights
    from hydraft.plan import plan
    from hydraft.runs import run_folder
    from hydraft.system import hardware
    from hydraft.training import trainer, worker
    from hydraft.training.callbacks import checkpoint

    clock, steps, saves = Clock(), [], []
    for owner, name, part in (
        (weights, "gather", "gather"), (optimizer_state, "_get", "gather"), (manifest, "seal", "hash"), (run_folder, "sync_folder", "flush"),
        (os, "fsync", "flush"), (checkpoint.CheckpointCallback, "save", "save"),
    ):  # fmt: skip
        clock.wrap(owner, name, part)
    step = trainer.RunTrainer.training_step

    def timed(self: Any, *arguments: Any, **named: Any) -> Any:
        if step_started:
            saves.append(clock.read())
        step_started[:] = [time.perf_counter()]
        return step(self, *arguments, **named)

    save = checkpoint.CheckpointCallback.save

    def stepped(self: Any, *arguments: Any) -> None:
        steps.append(time.perf_counter() - step_started[0])
        save(self, *arguments)

    step_started: list[float] = []
    trainer.RunTrainer.training_step = timed  # type: ignore[method-assign]
    checkpoint.CheckpointCallback.save = stepped  # type: ignore[method-assign, assignment]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    backend = "cpu:gloo,cuda:nccl" if hardware.detect().gpus else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    config = compose_run(overrides)
    records = len(json.loads(Path(config.data.train).read_text()))
    run_folder.create(folder, config, plan.make_plan(config, records), hardware.detect())
    worker.main(folder, os.open(os.devnull, os.O_WRONLY))
    found = {part: statistics.median(save[part] for save in saves[WARM_UP:]) for part in clock.spent}
    size = sum(file.stat().st_size for file in manifest.checkpoints(folder)[-1].rglob("*"))
    return {**found, "step": statistics.median(steps[WARM_UP:-1]), "bytes": size}


def forked(task: Callable[[], Any]) -> Any:
    """Return the result of ``task`` from a forked process, since a process can train only once.

    The parent must not have started threads before.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        os.dup2(2, 1)  # libraries print here, which keeps stdout for the table
        try:
            os.write(writer, json.dumps(task()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as stream:
        output = stream.read()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise RuntimeError("a run failed: see its output above")
    return json.loads(output)


def main() -> None:
    """Measure both models and print the table."""
    from bench import throughput
    from bench.results import card
    from hydraft.checkpoint.interval import SHARE
    from hydraft.config.train import TrainConfig

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=ROOT / "data/zh_tasks.train.json")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    shared = [
        "zero=stage2", "quant=none", "cluster=1x1", "train.precision=fp32", f"data.train={options.records}", "data.eval=null",
        f"train.max_steps={options.steps}", "train.save_every=1",
    ]  # fmt: skip
    print(f"on {card()}\n")
    print("| model | checkpoint | a step | a checkpoint | gather | hash | flush | rest | share of the time |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "outputs" if (ROOT / "outputs").is_dir() else None) as name:
        folder = Path(name)
        forked(lambda: throughput.build(folder / "llama", options.records))
        models: dict[str, list[str]] = {
            "tiny, 1.9 M": [],
            "Llama, 31 M": ["model=auto", f"model.path={folder / 'llama'}"],
        }
        for model, overrides in models.items():
            found = forked(partial(measure, [*shared, *overrides], folder / f"run-{len(overrides)}"))
            rest = found["save"] - sum(found[part] for part in PARTS)
            cells = " | ".join(f"{1000 * seconds:.0f}" for seconds in (*(found[part] for part in PARTS), rest))
            minutes = TrainConfig().save_minutes
            assert minutes is not None
            between = max(60 * minutes, found["save"] / SHARE)
            print(
                f"| {model} | {found['bytes'] / 2**20:.1f} MiB | {1000 * found['step']:.0f} | {1000 * found['save']:.0f} | {cells} "
                f"| {found['save'] / (between + found['save']):.2%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
