"""Members of a pack compared with the same runs alone under DeepSpeed: losses, gradient norms and adapters.

    python bench/packs.py [--seed N] [overrides…]

Without ``--seed``, one pack without quantisation and one over NF4, each with every variant of LoRA, ragged ranks and batches,
members that join later, and one that is stopped. With it, packs are drawn at random from that seed. fp32 on a CPU.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
from bench.equivalence import Curve, furthest, prepare_run, read, train, write_data  # noqa: E402
from hydraft.config.schema import load_config  # noqa: E402
from hydraft.launch.local.shutdown import Stopped  # noqa: E402

TOLERANCE = 2e-6
"""Absolute; relative for losses and gradient norms above 1."""

QUANTS = ("none", "nf4")

COMMON = (
    "data.eval=null", "train.log_every=1", "train.warmup_ratio=0", "train.learning_rate=5e-4",
    # Below eps, Adam's update is proportional to the gradient; above it, rounding of a small gradient is a whole step.
    "optimizer.eps=1e-3",
)  # fmt: skip
"""Settings of all members."""

MEMBERS = {
    "lora r 4, batch 4": "lora.r=4 train.micro_batch_size=4 train.max_steps=8 zero=stage1",
    "rslora r 8, 2 x 2": "lora=rslora lora.r=8 train.micro_batch_size=2 train.gradient_accumulation_steps=2 train.max_steps=5 seed=7",
    "dora r 2, batch 1": "lora=dora lora.r=2 train.micro_batch_size=1 train.max_steps=9 zero=stage0 train.max_grad_norm=0",
    "lora r 16 on q and v": "lora.r=16 lora.target_modules=[q_proj,v_proj] train.micro_batch_size=3 train.max_steps=6 train.max_grad_norm=0.1",
    "lora r 3, dropout": "lora.r=3 lora.dropout=0.1 train.micro_batch_size=2 train.max_steps=7 train.scheduler=constant",
    "dora r 4, dropout": "lora=dora lora.r=4 lora.dropout=0.2 train.micro_batch_size=2 train.max_steps=4 seed=3",
    "lora r 1, decay": "lora.r=1 optimizer.weight_decay=0.1 optimizer.betas=[0.8,0.95] train.micro_batch_size=5 train.max_steps=3",
    "rslora r 5, packed": "lora=rslora lora.r=5 data.packing=true train.micro_batch_size=1 train.max_steps=4 train.warmup_ratio=0.3",
}
"""Overrides of each member."""


@dataclass
class Seat:
    """A member in a pack."""

    folder: str
    join: int = 0
    """The turn in which it is added."""
    stop: int | None = None
    """The turn in which it gets SIGTERM, as a job that is pruned does."""


def run_pack(seats: Sequence[Seat]) -> list[str]:
    """Train the runs of ``seats``, whose folders have their config.yaml, in this process; how each ended."""
    from hydraft.training.pack import member
    from hydraft.training.pack.base import Pack
    from hydraft.training.pack.process_state import STATES
    from hydraft.training.pack.scheduler import Scheduler

    pack = Pack()
    scheduler, turn, ended = Scheduler(pack.compute, STATES, pack), 0, [""] * len(seats)
    while "" in ended:
        for number, seat in enumerate(seats):
            if seat.join == turn:
                folder = Path(seat.folder)
                scheduler.add(number, partial(member.train, load_config(folder / "config.yaml"), folder))
            if seat.stop == turn and number in scheduler.members:
                scheduler.members[number].stop(signal.SIGTERM, Stopped(signal.SIGTERM))
        for over in scheduler.turn():
            error = over.error
            ended[over.name] = "stopped" if over.result or isinstance(error, Stopped) else repr(error or "done")
        turn += 1
    return ended


def in_process(seats: Sequence[Seat]) -> list[str]:
    """``run_pack`` in a process of its own."""
    given = json.dumps([asdict(seat) for seat in seats])
    done = subprocess.run(
        [sys.executable, __file__, "--run", given], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


Run = Callable[[Sequence[Seat]], list[str]]
"""``run_pack`` in some process."""


def prepare(overrides: Sequence[str], folder: Path) -> Seat:
    """The seat of a run that is not started."""
    prepare_run(list(overrides), folder)
    return Seat(str(folder))


def apart(found: Curve, reference: Curve) -> tuple[float, float, float]:
    """The largest differences of losses and gradient norms, relative to those above 1, and of weights."""
    assert len(found.losses) == len(reference.losses) > 0 and found.adapter.keys() == reference.adapter.keys()

    def worst(ours: list[float], theirs: list[float]) -> float:
        return max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(ours, theirs, strict=True))

    losses, norms = worst(found.losses, reference.losses), worst(found.grad_norms, reference.grad_norms)
    return losses, norms, furthest(found, reference)


def drawn(seed: int, count: int) -> list[dict[str, Any]]:
    """The members of a random pack: when each joins and, for some, is stopped."""
    chance = random.Random(seed)
    names = chance.sample(sorted(MEMBERS), count)
    return [
        {"name": name, "join": chance.choice([0, 0, chance.randrange(8)]), "stopped": chance.random() < 0.3}
        for name in names
    ]


def compare(
    quant: str, members: list[dict[str, Any]], folder: Path, alone: Callable[[str], Curve], run: Run = in_process
) -> dict[str, Any]:
    """Train a pack of these members over ``quant``; those that are stopped are resumed in a second one.

    Args:
        members: as ``drawn`` makes them.
        folder: for the runs.
        alone: the curve of a member that was trained by itself.
        run: trains a pack.

    Returns:
        By name, how far each is from the run alone.
    """
    data, seats = write_data(folder), []
    for number, member in enumerate(members):
        overrides = [*COMMON, f"quant={quant}", f"data.train={data}", *MEMBERS[member["name"]].split()]
        seat = prepare(overrides, folder / str(number))
        seat.join, seat.stop = member["join"], member["join"] + 4 if member["stopped"] else None
        seats.append(seat)
    ended = run(seats)
    assert set(ended) <= {"'done'", "stopped"}, ended
    if left := [Seat(seat.folder) for seat, how in zip(seats, ended, strict=True) if how == "stopped"]:
        again = run(left)
        assert set(again) == {"'done'"}, again
    return {
        member["name"]: apart(read(Path(seat.folder)), alone(member["name"]))
        for member, seat in zip(members, seats, strict=True)
    }


def main() -> int:
    """Print the table; 1 if a member is further from its run alone than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="draw packs at random")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    if options.run:
        print(json.dumps(run_pack([Seat(**seat) for seat in json.loads(options.run)])))
        return 0
    accepted = True
    print(
        f"| base | member | joins | loss | gradient norm | adapter | within {TOLERANCE:g} |\n|---|---|---|---|---|---|---|"
    )
    for quant in QUANTS:
        if options.seed is not None:
            members = drawn(options.seed, 5)
        else:
            members = [{"name": name, "join": 2 * (n // 3), "stopped": n == 4} for n, name in enumerate(MEMBERS)]
        with tempfile.TemporaryDirectory() as name:
            data = write_data(Path(name))

            def alone(member: str, quant: str = quant, data: Path = data) -> Curve:
                given = [*COMMON, f"quant={quant}", f"data.train={data}", *MEMBERS[member].split(), *overrides]
                return train(given, data.parent / f"alone {member}".replace(" ", "-"))

            found = compare(quant, members, Path(name), alone)
        for member in members:
            differences = found[member["name"]]
            accepted &= max(differences) <= TOLERANCE
            numbers = " | ".join(f"{each:.1e}" for each in differences)
            joins = f"turn {member['join']}{', stopped and resumed' if member['stopped'] else ''}"
            verdict = "yes" if max(differences) <= TOLERANCE else "NO"
            print(f"| {quant} | {member['name']} | {joins} | {numbers} | {verdict} |", flush=True)
    return 0 if accepted else 1


if __name__ == "__main__":
    sys.exit(main())
