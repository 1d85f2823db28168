"""Sweep folders as real sweeps write them, for cases that would take too long to run."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.equivalence import compose_run
from hydraft.config.schema import Config, save_config
from hydraft.sweep import folder_names
from hydraft.sweep.results import ledger
from hydraft.sweep.results.ledger import Job, Ledger, State

Goal = Callable[[dict[str, Any]], Any]


def loss_of(values: dict[str, Any]) -> float:
    """A held-out loss with a minimum in the learning rate and a small effect of the rank."""
    rate = float(values.get("train.learning_rate", 1e-3))
    rank = float(values.get("lora.r", 8))
    return 0.5 + 0.25 * (math.log10(rate) + 2.7) ** 2 + 0.05 * (4 - math.log2(rank)) ** 2


def make(
    folder: Path,
    jobs: Sequence[dict[str, Any]],
    states: Sequence[State] = (),
    errors: dict[int, str] | None = None,
    about: dict[str, Any] | None = None,
    goal: Goal = loss_of,
    steps: int = 40,
) -> Path:
    """Write a sweep with a ledger: ``jobs`` are values by override key; jobs that ``states`` does not list are done."""
    overrides = [[f"{key}={value}" for key, value in values.items()] for values in jobs]
    keys = list(dict.fromkeys(key for values in jobs for key in values))
    ledger.begin(
        folder,
        {"id": "s1", "name": folder.name, "command": ["train.py", "-m", "…"], "axes": keys, "objective": "held-out loss",
         "direction": "minimize", **(about or {})},
    )  # fmt: skip
    sweep_ledger = Ledger(folder)
    added = sweep_ledger.add(
        [
            Job(f"{index:016x}", name, line)
            for index, (name, line) in enumerate(zip(folder_names.names(overrides), overrides, strict=True))
        ]
    )
    base = compose_run([])
    for index, (job, values) in enumerate(zip(added, jobs, strict=True)):
        state = states[index] if index < len(states) else State.done
        if state is State.pending:
            continue
        sweep_ledger.record(job.key, State.running)
        if state is not State.refused:
            run(folder / job.name, base, values, state, goal(values), steps)
        if state is not State.running:
            more = {"error": (errors or {}).get(index)}
            if state in (State.done, State.pruned):
                more["objective"] = goal(values)
            sweep_ledger.record(job.key, state, **more)
    return folder


def run(folder: Path, base: Config, values: dict[str, Any], state: State, goal: Any, steps: int) -> None:
    """Write a run's folder with the files that a report reads."""
    folder.mkdir(parents=True)
    stage = int(str(values.get("zero", "stage2"))[5])
    config = replace(
        base,
        seed=int(values.get("seed", 42)),
        lora=replace(base.lora, r=int(values.get("lora.r", 8))),
        zero=replace(base.zero, stage=stage),
        train=replace(base.train, learning_rate=float(values.get("train.learning_rate", 1e-3)), max_steps=steps),
        data=replace(base.data, template=str(values.get("data.template", "chat"))),
    )
    save_config(config, folder / "config.yaml")
    (folder / "plan.json").write_text(json.dumps({"steps": steps}))
    (folder / "environment.json").write_text(
        json.dumps({"command": ["train.py", *(f"{k}={v}" for k, v in values.items())]})
    )
    generator, last = random.Random(str(values)), goal[0] if isinstance(goal, list) else goal
    last_step = steps if state is State.done else steps // 2
    lines: list[dict[str, Any]] = [{"step": 0, "eval_loss": 3.0, "eval_exact_match": 0.0}]
    for step in range(1, last_step + 1):
        loss = last + 2.5 * math.exp(-4 * step / steps) + generator.gauss(0, 0.05)
        lines.append(
            {"step": step, "loss": loss, "learning_rate": 1e-3, "tokens": 900 * step, "tokens_per_second": 3000.0}
        )
        if step % 10 == 0:
            lines.append({"step": step, "eval_loss": last + 2 * math.exp(-4 * step / steps)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state in (State.done, State.pruned, State.failed):
        result: dict[str, Any] = {
            "status": "failed" if state is State.failed else "completed",
            "started": 1e9,
            "ended": 1e9 + 30,
        }
        if state is State.done:
            scores = {"loss": last, "exact_match": max(0.0, 1 - last), "empty": 0.0}
            result |= {
                "objective": last, "train_loss": last + 0.1, "before": {"loss": 3.0, "exact_match": 0.0, "empty": 0.0},
                "best": {"step": steps, **scores}, "after": scores, "steps": steps, "tokens": 900 * steps,
                "train_seconds": 12.0 + 3 * stage + generator.random(), "peak_memory_bytes": int((1.2 - 0.2 * stage + 0.05 * generator.random()) * 2**30),
            }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
