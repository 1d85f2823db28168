"""Resume runs in every topology and print how much the results differ from those of uninterrupted runs.

    python bench/resume.py                                  # ranks x ZeRO stage x precision x quant: 72 cells
    python bench/resume.py --cells "bf16 none stage2"       # the cells whose names contain all of these values
    python bench/resume.py --kills 20                       # one run, a rank of which is killed repeatedly

Each cell trains 6 steps with dropout, with a checkpoint after step 3, and resumes from it in the same topology.
Adapter, Adam's moments, random states and every line of metrics.jsonl must be bit-equal. Then a run that two ranks
under ZeRO-2 saved, without dropout (its random states belong to a rank), resumes in the cell's topology with the same
global batch of 8. The cell shows the largest absolute difference of any element of the adapter at the end, and the
largest relative difference of a loss.

On a machine with GPUs, cells with more ranks than GPUs are skipped, and with a single GPU the first run has one rank.
Bits may differ there (attention's backward pass sums in no fixed order): such a cell shows the difference, which must
be within the tolerance.
"""

import argparse
import dataclasses
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.equivalence import compose_run, measured_on, too_few_gpus  # noqa: E402
from bench.processes import runs  # noqa: E402
from bench.progress import progress  # noqa: E402
from hydraft.checkpoint import manifest  # noqa: E402
from hydraft.config.schema import Config  # noqa: E402
from hydraft.launch import run as launch  # noqa: E402
from hydraft.plan import plan  # noqa: E402
from hydraft.runs import run_folder  # noqa: E402
from hydraft.system import hardware  # noqa: E402

STAGES = ("stage0", "stage1", "stage2", "stage3", "stage2_offload", "stage3_offload")
RANKS = (1, 2, 4)
STEPS, CUT = 6, 3
WRITTEN = ("stage2", 2)
"""ZeRO stage and ranks of the run that is resumed in other topologies; one rank with a single GPU."""
TOLERANCE = {"fp32": 1e-6, "bf16": 1e-3}
"""Largest accepted difference of an adapter element after resuming in another topology."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A topology, and the precision and quantization of its run."""

    precision: str
    quant: str
    stage: str
    ranks: int

    def __str__(self) -> str:
        return f"{self.precision} {self.quant} {self.stage} 1x{self.ranks}"

    def overrides(self, records: Path, dropout: float) -> list[str]:
        """Overrides with global batches of 8 in every topology; the first of two epochs ends after step 5."""
        return [
            f"zero={self.stage}", f"cluster=1x{self.ranks}", f"quant={self.quant}", f"train.precision={self.precision}",
            f"data.train={records}", "data.eval=null", f"train.max_steps={STEPS}", f"train.save_every={CUT}",
            "train.keep_last=9", "train.log_every=1", "train.micro_batch_size=2",
            f"train.gradient_accumulation_steps={4 // self.ranks}", "train.learning_rate=3e-4", f"lora.dropout={dropout}",
            # with eps 1e-8, elements whose gradient is only rounding error change by a full step in either direction
            "optimizer.eps=1e-5",
        ]  # fmt: skip


def train(config: Config, folder: Path) -> None:
    """Train as train.py does for a config, with the fork server that all runs of this process share."""
    records = len(json.loads(Path(config.data.train).read_text()))
    (run_folder.describe if folder.exists() else run_folder.create)(
        folder, config, plan.make_plan(config, records), hardware.detect()
    )
    launch.run(config, folder, quiet=True)


def cut(folder: Path, target: Path, step: int) -> Path:
    """Copy a finished run to ``target``, in its state after ``step``."""
    shutil.copytree(folder, target)
    for checkpoint in manifest.checkpoints(target):
        if manifest.step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)
    for name in ("adapter", "model"):
        shutil.rmtree(target / name, ignore_errors=True)
    (target / "result.json").unlink()
    return target


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run has trained."""
    return load_file(next(iter([*folder.glob("adapter/*.safetensors"), *folder.glob("model/*.safetensors")])))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without the measured times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def differs(ours: Path, theirs: Path) -> str | None:
    """The first difference between two finished runs; None if they are bit-equal."""
    before, after = weights(theirs), weights(ours)
    if before.keys() != after.keys() or not all(torch.equal(before[name], after[name]) for name in before):
        return "weights"
    if metrics(ours) != metrics(theirs):
        return "metrics.jsonl"
    sealed = []
    for folder in (ours, theirs):
        listed = json.loads((manifest.checkpoints(folder)[-1] / manifest.NAME).read_text())
        sealed.append({name: entry for name, entry in listed.items() if name.endswith(".safetensors")})
    return next((name for name in sealed[0] if sealed[0][name] != sealed[1].get(name)), None)


def apart(ours: Path, theirs: Path) -> tuple[float, float]:
    """How much two finished runs differ: adapter (absolute) and losses (relative)."""
    before, after = weights(theirs), weights(ours)
    losses = [[line["loss"] for line in metrics(folder)] for folder in (ours, theirs)]
    return (
        max(float((before[name].float() - after[name].float()).abs().max()) for name in before),
        max(abs(a - b) / b for a, b in zip(*losses, strict=True)),
    )


def resume_same(cell: Cell, records: Path, folder: Path) -> str | None:
    """Train a cell, resume from its middle, and return the first difference; None if bit-equal."""
    config = compose_run(cell.overrides(records, dropout=0.1))
    train(config, folder / "whole")
    train(config, cut(folder / "whole", folder / "cut", CUT))
    return differs(folder / "cut", folder / "whole")


def resume_elsewhere(cell: Cell, records: Path, folder: Path, written: Path) -> tuple[float, float]:
    """Resume ``written`` in a cell's topology, and return how much it differs."""
    resumed = cut(written, folder / "moved", CUT)
    train(compose_run(cell.overrides(records, dropout=0)), resumed)
    return apart(resumed, written)


def run_killed(overrides: list[str], folder: Path, kills: int, report: Any = lambda done: None) -> list[float]:
    """Run train.py on two ranks that save each step, and kill one of them at random ``kills`` times.

    Returns:
        Seconds from each kill to the next checkpoint.
    """
    generator = random.Random(0)
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    command += [f"cluster.max_restarts={kills}", f"hydra.run.dir={folder}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    logs = {str(folder / f"rank-{rank}.log") for rank in range(2)}
    killed_at, seconds = 0.0, []

    def last_step() -> int:
        return max([0, *map(manifest.step_of, manifest.checkpoints(folder))])

    for kill in range(kills):
        before = last_step()
        goal = before + generator.randint(1, 3)
        ranks: list[psutil.Process] = []
        while last_step() < goal or len(ranks) < 2:
            if process.poll() is not None:
                raise RuntimeError(process.communicate()[0])
            if killed_at and last_step() > before:
                seconds.append(time.monotonic() - killed_at)
                killed_at = 0.0
            if last_step() >= goal:  # a search of all processes costs as much as a step
                below = psutil.Process(process.pid).children(recursive=True)
                ranks = [child for child in below if _output(child) in logs]
            time.sleep(0.02)
        if killed_at:
            seconds.append(time.monotonic() - killed_at)
        killed_at = time.monotonic()
        generator.choice(ranks).kill()
        while any(map(runs, ranks)):
            time.sleep(0.01)
        report(kill + 1)
    output, _ = process.communicate(timeout=300)
    if process.returncode != 0 or output.count("restarting from step-") != kills:
        raise RuntimeError(output)
    return seconds


def _output(process: psutil.Process) -> str:
    try:
        return str(Path(f"/proc/{process.pid}/fd/1").readlink())
    except OSError:
        return ""


def write_records(folder: Path) -> Path:
    """Write the first 40 records that ship with the project: five global batches."""
    records = json.loads((ROOT / "data" / "zh_tasks.train.json").read_text())[:40]
    file = folder / "records.json"
    file.write_text(json.dumps(records, ensure_ascii=False))
    return file


def check_cell(cell: Cell, records: Path, scratch: Path, first: Path) -> tuple[str, bool]:
    """The text of a cell of the table, and whether its differences are accepted."""
    difference = resume_same(cell, records, scratch)
    adapter, loss = resume_elsewhere(cell, records, scratch, first)
    same, accepted = ("bit-equal", True) if difference is None else (f"{difference} DIFFER", False)
    if difference is not None and hardware.detect().gpus:  # differences from rounding are accepted
        off, _ = apart(scratch / "cut", scratch / "whole")
        same, accepted = f"within {off:.0e}", off <= TOLERANCE[cell.precision]
    accepted &= adapter <= TOLERANCE[cell.precision]
    return f"{same}; {adapter:.0e}, {loss:.0e}{'' if accepted else ' TOO FAR'}", accepted


def matrix(chosen: list[Cell], folder: Path) -> bool:
    """Run the cells and print the table, one row for each stage; return whether all are accepted."""
    records, all_accepted, machine = write_records(folder), True, hardware.detect()
    counts = sorted({cell.ranks for cell in chosen})
    print("| precision | quant | zero | " + " | ".join(f"{n} rank{'s' * (n > 1)}" for n in counts) + " |")
    print("|---" * (3 + len(counts)) + "|", flush=True)
    rows: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in chosen:
        rows.setdefault((cell.precision, cell.quant, cell.stage), []).append(cell)
    with progress() as bar:
        task = bar.add_task("", total=len(chosen))
        for (precision, quant, stage), cells in rows.items():
            shown = dict.fromkeys(counts, "")
            for cell in cells:
                bar.update(task, description=str(cell))
                if reason := too_few_gpus(cell.ranks, machine):
                    shown[cell.ranks] = f"skipped: {reason}"
                    bar.advance(task)
                    continue
                scratch = folder / "cell"
                first = folder / f"{precision}-{quant}"
                if not first.exists():
                    writer = Cell(precision, quant, WRITTEN[0], 1 if too_few_gpus(WRITTEN[1], machine) else WRITTEN[1])
                    train(compose_run(writer.overrides(records, dropout=0)), first)
                shown[cell.ranks], accepted = check_cell(cell, records, scratch, first)
                shutil.rmtree(scratch)
                all_accepted &= accepted
                bar.advance(task)
            print(f"| {precision} | {quant} | {stage} | " + " | ".join(shown.values()) + " |", flush=True)
    print(f"\n{measured_on(machine)}")
    return all_accepted


def kill(kills: int, folder: Path) -> bool:
    """Kill a run's ranks repeatedly, and print how it ended.

    Raises:
        SystemExit: there are too few GPUs for two ranks.
    """
    if reason := too_few_gpus(2, hardware.detect()):
        sys.exit(f"--kills={kills}: {reason}")
    records = write_records(folder)
    overrides = [
        *Cell("fp32", "nf4", "stage2", 2).overrides(records, dropout=0.1),
        f"train.max_steps={5 * kills}",
        "train.save_minutes=null",
    ]
    train(compose_run([*overrides, "train.save_every=null"]), folder / "whole")
    started = time.monotonic()
    with progress() as bar:
        task = bar.add_task("kills", total=kills)
        seconds = run_killed(
            [*overrides, "train.save_every=1"], folder / "killed", kills, lambda done: bar.update(task, completed=done)
        )
    difference = differs(folder / "killed", folder / "whole")
    took = time.monotonic() - started
    print(
        f"{kills} kills in {5 * kills} steps, {took:.0f} s: {'bit-equal' if difference is None else f'{difference} DIFFER'}; from a kill "
        f"to the next checkpoint {min(seconds):.1f} to {max(seconds):.1f} s"
    )
    return difference is None


def main() -> int:
    """Return 1 if a cell is not accepted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cells", default="", help='run only the cells whose names contain these values, such as "fp32 nf4 1x2"'
    )
    parser.add_argument(
        "--kills", type=int, default=0, help="kill a rank this many times instead of printing the table"
    )
    options = parser.parse_args()
    cells = [
        Cell(precision, quant, stage, ranks)
        for precision in TOLERANCE
        for quant in ("none", "nf4")
        for stage in STAGES
        for ranks in RANKS
    ]
    chosen = [cell for cell in cells if set(options.cells.split()) <= set(str(cell).split())]
    if not chosen:
        parser.error(f"--cells {options.cells!r}: matches no cell; the first is {cells[0]}")
    with tempfile.TemporaryDirectory() as name:
        all_accepted = kill(options.kills, Path(name)) if options.kills else matrix(chosen, Path(name))
    return 0 if all_accepted else 1


if __name__ == "__main__":
    sys.exit(main())
