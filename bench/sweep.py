"""What a sweep costs beside its training: 8 short jobs in the pool, one by one as commands, and by Hydra's own launcher.

    python bench/sweep.py [--trivial 200] [key=value …]

Then how long the pool takes for a job that does nothing, and the ledger for an event. Some three minutes on two idle cores.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.results import write
from hydraft.sweep.results import ledger
from hydraft.sweep.results.ledger import Job, Ledger, State

ROOT = Path(__file__).parents[1]
SPACE = {"lora.r": ["2", "4"], "zero": ["stage1", "stage2"], "train.learning_rate": ["1e-3", "2e-3"]}
SHORT = ["quant=none", "data.eval=null", "train.max_steps=60", "train.micro_batch_size=4"]
TRIVIAL = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def task(config):
    return 0

if __name__ == "__main__":
    task()
"""
"""A program whose jobs return at once."""


def printed(*command: str, folder: Path = ROOT) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def timed(*command: str) -> float:
    """Seconds that a command takes."""
    begun = time.perf_counter()
    printed(*command)
    return time.perf_counter() - begun


def sweep(folder: Path, overrides: list[str], launcher: str) -> float:
    """Seconds of the whole sweep."""
    space = [f"{key}={','.join(values)}" for key, values in SPACE.items()]
    return timed("train.py", "-m", *space, *overrides, f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder}")


def one_by_one(folder: Path, overrides: list[str]) -> float:
    """Seconds of the same jobs as commands of their own, one after another."""
    jobs: list[list[str]] = [[]]
    for key, values in SPACE.items():
        jobs = [[*job, f"{key}={value}"] for job in jobs for value in values]
    return sum(timed("train.py", *job, *overrides, f"hydra.run.dir={folder / str(n)}") for n, job in enumerate(jobs))


def beyond_training(folder: Path) -> list[float]:
    """Of each job of a sweep, the seconds that were not training."""
    found = []
    for job in Ledger(folder).jobs().values():
        result = json.loads((folder / job.name / "result.json").read_text())
        found.append(job.time - (job.started or 0) - result["train_seconds"])
    return found


def trivial(folder: Path, jobs: int, launcher: str) -> float:
    """Seconds that a launcher takes for a job that does nothing: from its first line, when the sweeper has checked all jobs, to the end."""
    folder.mkdir()
    (folder / "app.py").write_text(TRIVIAL)
    lines = printed("app.py", "-m", *launcher.split(), f"+a=range({jobs})", folder=folder)
    begun = re.search(r"\[([-\d]+ [:\d]+,\d+)\]\[HYDRA\] Launching", lines)
    assert begun is not None, lines
    return (time.time() - datetime.strptime(begun[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()) / jobs


def event(folder: Path, jobs: int) -> float:
    """Seconds an event in a ledger of so many jobs."""
    ledger.begin(folder, {})
    found = Ledger(folder)
    begun = time.perf_counter()
    found.add([Job(str(n), f"job-{n}", [f"a={n}"]) for n in range(jobs)])
    for number in range(jobs):
        Ledger(folder).record(str(number), State.running)  # as a job does, which begins by reading it
    return (time.perf_counter() - begun) / (2 * jobs)


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trivial", type=int, default=200, help="jobs that do nothing")
    options, overrides = parser.parse_known_args()
    overrides = [*SHORT, *overrides]
    folder = Path(tempfile.mkdtemp(prefix="hydraft-sweep-"))
    try:
        pool = sweep(folder / "pool", overrides, "pool")
        beyond = beyond_training(folder / "pool")
        basic = sweep(folder / "basic", overrides, "basic")
        commands = one_by_one(folder / "commands", overrides)
        print("| 8 jobs | seconds | beside the pool |\n|---|---|---|")
        for name, seconds in (
            ("the pool", pool),
            ("Hydra's basic launcher", basic),
            ("`python train.py`, one by one", commands),
        ):
            print(f"| {name} | {seconds:.1f} | {seconds / pool:.1f} |")
        print(f"\na job of the pool takes {statistics.median(beyond):.1f} s beyond its training (median of 8)")
        nothing = {
            name: 1000 * trivial(folder / f"nothing-{name}", options.trivial, launcher)
            for name, launcher in {
                "pool": "hydra/launcher=pool hydra.launcher.preload=[]",
                "basic": "hydra/launcher=basic",
            }.items()
        }
        print(
            f"a job that does nothing: {nothing['pool']:.0f} ms in the pool, {nothing['basic']:.0f} ms with the basic launcher"
        )
        told_ms = 1000 * event(folder / "ledger", options.trivial)
        print(f"an event in the ledger: {told_ms:.1f} ms")
        whole = {"pool": pool, "basic": basic, "one by one": commands, "beyond training": statistics.median(beyond)}
        print(write("sweep", {"seconds": whole, "milliseconds": {**nothing, "event": told_ms}}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
