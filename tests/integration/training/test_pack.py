"""Packs that are drawn at random, whose members join, are stopped and are resumed: each beside its run alone under DeepSpeed."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from bench import packs
from bench.equivalence import Curve, read, train, write_data
from conftest import run_script


def _run(seats: Sequence[packs.Seat]) -> list[str]:
    done = run_script("bench/packs.py", "--run", json.dumps([asdict(seat) for seat in seats]))
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> "Alone":
    return Alone(tmp_path_factory.mktemp("alone"))


class Alone:
    """Runs alone, each trained once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[tuple[str, str], Curve] = {}

    def __call__(self, quant: str, member: str) -> Curve:
        if (quant, member) not in self.known:
            target = self.folder / f"{len(self.known)}"
            target.mkdir()
            given = [
                *packs.COMMON,
                f"quant={quant}",
                f"data.train={write_data(target)}",
                *packs.MEMBERS[member].split(),
            ]
            self.known[quant, member] = train(given, target / "run")
        return self.known[quant, member]


@pytest.mark.parametrize(("quant", "seed"), [("nf4", 3), ("none", 20)])
def test_members_of_a_random_pack_train_as_they_do_alone(quant: str, seed: int, alone: Alone, tmp_path: Path) -> None:
    """The two packs have each member once; in both, members join later, and one is stopped and resumed."""
    members = packs.drawn(seed, 4)
    assert any(member["join"] for member in members) and any(member["stopped"] for member in members)
    found = packs.compare(quant, members, tmp_path, lambda name: alone(quant, name), _run)
    for member in members:
        assert max(found[member["name"]]) < packs.TOLERANCE, (member, found)


def test_a_member_that_diverges_ends_alone(alone: Alone, tmp_path: Path) -> None:
    data = write_data(tmp_path)
    names = ["lora r 4, batch 4", "lora r 1, decay"]
    common = [*packs.COMMON, "quant=none", f"data.train={data}"]
    seats = [packs.prepare([*common, *packs.MEMBERS[name].split()], tmp_path / str(n)) for n, name in enumerate(names)]
    hot = [
        "train.learning_rate=90",
        "optimizer.eps=1e-8",
        "train.max_grad_norm=0",
        "lora.r=2",
        "train.micro_batch_size=2",
    ]
    seats.insert(1, packs.prepare([*common, *hot, "train.max_steps=60"], tmp_path / "hot"))
    first, diverged, second = _run(seats)
    assert diverged.startswith("Diverged("), diverged
    assert json.loads((tmp_path / "hot/result.json").read_text())["divergence"]["step"] > 0
    assert (first, second) == ("'done'", "'done'")
    for number, name in enumerate(names):
        found = packs.apart(read(tmp_path / str(number)), alone("none", name))
        assert max(found) < packs.TOLERANCE, (name, found)
