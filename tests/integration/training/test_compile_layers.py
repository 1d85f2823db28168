"""``train.compile=true``: losses do not change, nothing is compiled twice, and the break-even point follows from the times."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import run_script
from hydraft.system.heartbeat import Heartbeat
from hydraft.training.callbacks import compile_layers
from hydraft.training.callbacks.compile_layers import EAGER, INTERVAL, TIMED, WARM, CompileCallback, Step, compare

SLOW = Step(9.0, 100)
"""A step that warms up."""


def attempt(eager: float, busy: list[float], calm: float, count: int = TIMED) -> list[Step]:
    """Steps of 100 tokens that take these seconds each."""
    return [
        *[SLOW] * WARM,
        *[Step(eager, 100)] * (EAGER - WARM),
        *[Step(seconds, 100, graphs=3) for seconds in busy],
        *[Step(calm, 100)] * count,
    ]


def test_the_break_even_by_hand() -> None:
    comparison = compare(attempt(1.0, [41.0, 9.0], 0.75))
    assert comparison is not None
    assert (comparison.lost, comparison.eager, comparison.compiled, comparison.compiling) == (48.0, 1.0, 0.75, 2)
    assert comparison.pays_after == EAGER + 2 + 48 / 0.25
    told = comparison.describe(500)
    assert told == "compiled: 48 s, then 25% less a step; pays off after 205 steps; this run has 500"
    # A run that ends right there has taken as long as an eager one.
    steps = comparison.pays_after - EAGER - 2
    assert 41.0 + 9.0 + steps * 0.75 == 2 * 1.0 + steps * 1.0


def test_compiling_that_never_pays_off_is_reported() -> None:
    comparison = compare(attempt(1.0, [11.0], 1.25))
    assert comparison is not None and comparison.pays_after is None
    assert comparison.describe(9) == "compiled: 10 s, then 25% more a step: it never pays off; use train.compile=false"


def test_steps_are_weighted_by_tokens_and_steps_without_tokens_are_ignored() -> None:
    steps = attempt(1.0, [11.0], 0.5)
    longer = [Step(2 * s.seconds, 2 * s.tokens, s.graphs) if n % 2 else s for n, s in enumerate(steps)]
    comparison = compare([*longer, Step(5.0, 0)])
    assert comparison is not None
    assert 1 - comparison.compiled / comparison.eager == pytest.approx(0.5)


def test_too_few_steps_are_no_comparison() -> None:
    assert compare(attempt(1.0, [11.0], 0.5, TIMED - 1)) is None
    assert compare(attempt(1.0, [11.0] * 20, 0.5, 0)) is None  # compiles for ever


def test_layers_compile_after_the_eager_steps_and_only_steps_run_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback alone, with a simulated clock and graph count; short runs report that they are too short."""
    stances: list[str] = []
    clock, graphs = [0.0], [0]
    monkeypatch.setattr(torch.compiler, "set_stance", stances.append)
    monkeypatch.setattr(compile_layers.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(compile_layers, "_graphs", lambda: graphs[0])
    monkeypatch.setattr(compile_layers.dist, "get_world_size", lambda: 1)
    said: list[str] = []
    written: list[dict[str, Any]] = []
    excluded: list[float] = []
    reporter: Any = SimpleNamespace(
        screen=SimpleNamespace(say=said.append, heartbeat=Heartbeat()),
        exclude_from_speed=excluded.append,
        write=lambda step, values: written.append({"step": step, **values}),
    )

    def run(steps: int, first: int = 0) -> list[bool]:
        model = torch.nn.Module()
        model.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
        callback, arguments, control = (
            CompileCallback(model, reporter, torch.device("cpu")),
            SimpleNamespace(),
            SimpleNamespace(),
        )
        callback.trainer = SimpleNamespace(tokens=0)  # type: ignore[assignment]
        state: Any = SimpleNamespace(global_step=first, max_steps=first + steps)
        callback.on_train_begin(arguments, state, control)  # type: ignore[arg-type]
        when = []
        for made in range(steps):
            callback.on_step_begin(arguments, state, control)  # type: ignore[arg-type]
            when.append(all(layer._compiled_call_impl is not None for layer in model.layers))  # type: ignore[union-attr]
            graphs[0] += made == EAGER
            clock[0] += 1.0 if made < EAGER else 5.0 if made == EAGER else 0.5
            callback.trainer.tokens += 100
            state.global_step += 1
            callback.on_step_end(arguments, state, control)  # type: ignore[arg-type]
        callback.on_train_end(arguments, state, control)  # type: ignore[arg-type]
        return when

    assert run(EAGER + INTERVAL, first=7) == [False] * EAGER + [True] * INTERVAL
    assert stances == ["default", "force_eager"] * INTERVAL
    assert said == [
        f"compiled: 4 s, then 50% less a step; pays off after {EAGER + 1 + 8} steps; this run has {EAGER + INTERVAL}"
    ]
    assert [seconds for seconds in excluded if seconds] == [4.0]
    assert written[0]["step"] == 7 + EAGER + INTERVAL and written[0]["compile_pays_after"] == EAGER + 9
    run(EAGER)
    run(EAGER + 2)
    assert said[1].startswith(f"train.compile=true: nothing was compiled in {EAGER} steps")
    assert said[2] == "compiled: 2 steps are too few to tell whether it pays off"


def test_a_run_compiles_once_and_its_losses_are_those_of_an_eager_one(records: Path, tmp_path: Path) -> None:
    """NF4, LoRA, recomputation, evaluation during training; rows of many lengths. fp32: to 1e-4."""
    shared = [
        f"data.train={records}", f"data.eval={records}", "data.eval_limit=2", "train.eval_every=10", "train.eval_loss_only=true",
        "data.eval_max_new_tokens=4", "quant=nf4", "train.gradient_checkpointing=true", "train.micro_batch_size=3",
        "train.log_every=1", f"train.max_steps={EAGER + INTERVAL + 2}", "train.save_minutes=null",
    ]  # fmt: skip
    lines = {}
    for name in ("true", "false"):
        folder = tmp_path / name
        done = run_script("train.py", *shared, f"train.compile={name}", f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr
        lines[name] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        said = [line for line in done.stdout.splitlines() if line.startswith("compiled: ")]
        assert len(said) == (name == "true")
        if said:
            assert re.fullmatch(r"compiled: \d+ s, then \d+% (less|more) a step.+", said[0])
    losses = [[line["loss"] for line in lines[name] if "loss" in line] for name in lines]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    comparison = next(line for line in lines["true"] if "compile_steps" in line)
    assert comparison["compile_steps"] == 1  # in no step after the first was anything compiled
