"""The part ``packs``: eight adapters over one frozen base of 0.5 B shape, one by one, packed, and packed with halving.

The commands are those of a sweep, and the figures are those of its result.json files. The last step measures the ways to add the
updates of the members to a layer. Uses the standard library only.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.gpu.steps import Part, Step

if TYPE_CHECKING:
    from bench.gpu.parts import Machine

MEMBERS = 8
AXES = ("lora.r=4,8", "train.learning_rate=1e-4,2e-4,4e-4,8e-4")
HALVING = (
    "hydra/sweeper=search", "hydra.sweeper.sampler=grid", "hydra.sweeper.pruner=successive_halving",
    "+hydra.sweeper.pruner_options.reduction_factor=2", "train.eval_loss_only=true", "data.eval_limit=4", "data.eval_max_new_tokens=1",
)  # fmt: skip
PREFIX = "packs-"


def packs(machine: "Machine") -> Part:
    """Sweeps over a random model of 0.5 B shape, with a micro-batch of one record."""
    steps, length = (8, 64) if machine.rehearse else (64, 256)
    model = [
        "model=qwen",
        "model.size=2.5-0.5b",
        "model.init=random",
        *(["model.scale=tiny"] if machine.rehearse else []),
    ]
    run = [
        *model, "quant=none", "zero=stage0", f"data.train={machine.records}", f"data.max_length={length}", "lora.dropout=0",
        "train.micro_batch_size=1", "train.log_every=1", f"train.max_steps={steps}", "train.loss_spike=null",
        "train.save_minutes=null", "train.gradient_checkpointing=false",
    ]  # fmt: skip
    held_out = (f"data.eval={machine.records}", f"train.eval_every={steps // 8}", *HALVING)
    kinds = {
        "one": (["hydra.launcher.jobs=1", "hydra.launcher.pack=off"], ("lora.r=8", "train.learning_rate=1e-4,2e-4"), ("data.eval=null",)),
        "packed": (["hydra.launcher.jobs=1", f"hydra.launcher.pack={MEMBERS}"], AXES, ("data.eval=null",)),
        "halving": (["hydra.launcher.jobs=1", f"hydra.launcher.pack={MEMBERS}"], AXES, held_out),
    }  # fmt: skip
    made = [
        Step(
            f"{PREFIX}{name}",
            120,
            (machine.python, "train.py", "-m", *axes, *run, *more, *launcher, f"hydra.sweep.dir={machine.scratch / f'{PREFIX}{name}'}"),
            replaces=machine.scratch / f"{PREFIX}{name}",
        )
        for name, (launcher, axes, more) in kinds.items()
    ]  # fmt: skip
    records = Step(
        "records-packs",
        30,
        machine.module("bench.gpu.records", str(machine.records), "--count", "128", "--characters", "4000"),
    )
    tiny = ("--tiny",) if machine.rehearse else ()
    ways = Step(
        "packs-products", 60, machine.module("bench.gpu.products", str(machine.scratch / "packs-products.json"), *tiny)
    )
    return Part("packs", (records, *made, ways))


def _results(folder: Path) -> list[dict[str, Any]]:
    """The results of a sweep's jobs that are complete or were pruned."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*/result.json"))]
    return [one for one in found if one.get("status") in ("completed", "pruned")]


def figures(scratch: Path) -> dict[str, float]:
    """What the sweeps of this part have in common with the goals; empty if one of them did not run.

    Tokens per second of a pack are those of all members in the time of the one that trained longest. With halving the time
    is that from the first start to the last end; one by one, eight runs take eight times the mean of those that were timed.
    """
    alone, packed, halved = (_results(scratch / f"{PREFIX}{name}") for name in ("one", "packed", "halving"))
    alone, packed = ([one for one in group if one["status"] == "completed"] for group in (alone, packed))
    if not (alone and packed and any(one["status"] == "completed" for one in halved)):
        return {}
    single = sum(one["tokens"] for one in alone) / sum(one["train_seconds"] for one in alone)
    together = sum(one["tokens"] for one in packed) / max(one["train_seconds"] for one in packed)
    one_by_one = MEMBERS * sum(one["ended"] - one["started"] for one in alone) / len(alone)
    peak = max(one["peak_memory_bytes"] for one in packed) / max(one["peak_memory_bytes"] for one in alone)
    return {
        "members": len(packed),
        "tokens_per_second_alone": single,
        "tokens_per_second_packed": together,
        "times_as_fast": together / single,
        "times_the_memory": peak,
        "halving_seconds": halving_seconds(scratch / f"{PREFIX}halving"),
        "one_by_one_seconds": one_by_one,
        "times_as_fast_with_halving": one_by_one / halving_seconds(scratch / f"{PREFIX}halving"),
    }


def halving_seconds(folder: Path) -> float:
    """Seconds from the first start of a sweep's jobs to the last end, from its ledger: a job that is resumed starts again."""
    events = [json.loads(line) for line in (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    started = [event["time"] for event in events if event["state"] == "running"]
    return float(max(event["time"] for event in events) - min(started))
