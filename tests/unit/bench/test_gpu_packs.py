"""The sweeps of the part ``packs``: they compose, and their figures are computed from the files of a sweep."""

import json
from pathlib import Path

import pytest

from bench.equivalence import compose_run
from bench.gpu import packs
from bench.gpu.parts import Machine
from hydraft.plan.plan import make_plan
from hydraft.system.hardware import Gpu, Hardware


def test_the_sweeps_compose_and_share_what_members_share(tmp_path: Path) -> None:
    card = Hardware((Gpu("NVIDIA H100 80GB HBM3", 81559 << 20, 9.0),), cpus=16, memory=128 << 30)
    made = {step.name: step.command for step in packs.packs(Machine(tmp_path, 80 << 30)).steps}
    shapes = set()
    for name in ("packs-one", "packs-packed", "packs-halving"):
        words = [word for word in made[name][3:] if not word.lstrip("+").startswith("hydra")]
        config = compose_run([word.partition(",")[0] if "=" in word else word for word in words], card)
        plan = make_plan(config, 128, card)
        assert plan.fits and config.train.micro_batch_size == 1
        assert plan.cost is not None
        shapes.add((plan.cost.parameters, config.data.max_length, config.train.max_steps))
    assert len(shapes) == 1
    assert 4e8 < next(iter(shapes))[0] < 6e8


def test_figures_are_those_of_the_results(tmp_path: Path) -> None:
    """Two runs alone at 100 tokens/s; eight in a pack that takes twice as long as one; halving in 25 s, with two of its jobs done."""
    assert packs.figures(tmp_path) == {}

    def result(sweep: str, name: str, **values: object) -> None:
        (tmp_path / f"packs-{sweep}" / name).mkdir(parents=True)
        common = {"status": "completed", "tokens": 1000, "started": 0.0, "ended": 12.0, "peak_memory_bytes": 1000}
        (tmp_path / f"packs-{sweep}" / name / "result.json").write_text(json.dumps({**common, **values}))

    for number in range(8):
        result("packed", f"r={number}", train_seconds=20.0 - number, peak_memory_bytes=1200)
        done = number < 2
        result("halving", f"r={number}", status="completed" if done else "pruned", train_seconds=9.0)
    for number in range(2):
        result("one", f"r={number}", train_seconds=10.0)
    events = [("pending", 1.0), ("running", 5.0), ("pending", 9.0), ("running", 11.0), ("done", 30.0)]
    lines = [json.dumps({"state": state, "time": time}) for state, time in events]
    (tmp_path / "packs-halving" / "ledger.jsonl").write_text("\n".join(lines))
    found = packs.figures(tmp_path)
    assert found["times_as_fast"] == pytest.approx(8000 / 20 / 100)
    assert found["times_the_memory"] == pytest.approx(1.2)
    assert found["times_as_fast_with_halving"] == pytest.approx(8 * 12 / 25)
