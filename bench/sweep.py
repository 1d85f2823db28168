"""Time of a sweep: 8 short jobs in packs, in processes of their own, as separate commands, and with Hydra's own launcher.

    python bench/sweep.py [--trivial 200] [key=value …]

Also measures packs with documents of 16 tokens and with successive halving, the time of the pool for a job that does nothing, and
of the ledger for an event. Takes about six minutes on two idle cores.
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
HALVED = [
    "hydra/sweeper=search", "hydra.sweeper.sampler=grid", "hydra.sweeper.pruner=successive_halving",
    "+hydra.sweeper.pruner_options.reduction_factor=2", "train.eval_every=10", "train.eval_loss_only=true",
    "data.eval=data/zh_tasks.test.json", "data.eval_limit=16", "data.eval_max_new_tokens=1",
]  # fmt: skip
"""Of the 8 jobs, 4 train on from step 10 and 2 from step 20."""
DOCUMENT = 16
"""Tokens of a short document."""
TRIVIAL = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def task(config):
    return 0

if __name__ == "__main__":
    task()
"""
"""A program whose jobs return at once."""

LABELS = {
    "pool": "a process each, two at a time (`hydra.launcher.pack=off`)",
    "basic": "Hydra's basic launcher",
    "one by one": "`python train.py`, one after another",
}


def output(*command: str, folder: Path = ROOT) -> str:
    """Output of a command, which must succeed."""
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def timed(*command: str) -> float:
    """Time of a command in seconds."""
    started = time.perf_counter()
    output(*command)
    return time.perf_counter() - started


def sweep(folder: Path, overrides: list[str], *launcher: str) -> float:
    """Time of the whole sweep in seconds."""
    space = [f"{key}={','.join(values)}" for key, values in SPACE.items()]
    return timed("train.py", "-m", *space, *overrides, *launcher, f"hydra.sweep.dir={folder}")


def short_documents(folder: Path) -> list[str]:
    """Overrides for a file of documents that are cut to ``DOCUMENT`` tokens each."""
    folder.mkdir(exist_ok=True)
    records = [{"instruction": f"{n}", "input": "", "output": "春眠不觉晓，处处闻啼鸟。" * 4} for n in range(1000)]
    (folder / "short.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return [f"data.train={folder / 'short.json'}", f"data.max_length={DOCUMENT}"]


def separate_commands(folder: Path, overrides: list[str]) -> float:
    """Time of the same jobs as separate commands, one after another."""
    jobs: list[list[str]] = [[]]
    for key, values in SPACE.items():
        jobs = [[*job, f"{key}={value}"] for job in jobs for value in values]
    return sum(timed("train.py", *job, *overrides, f"hydra.run.dir={folder / str(n)}") for n, job in enumerate(jobs))


def overhead(folder: Path) -> list[float]:
    """Time of each job of a sweep that was not training."""
    found = []
    for job in Ledger(folder).jobs().values():
        result = json.loads((folder / job.name / "result.json").read_text())
        found.append(job.time - (job.started or 0) - result["train_seconds"])
    return found


def trivial(folder: Path, jobs: int, launcher: str) -> float:
    """Seconds per job of a launcher whose jobs do nothing.

    The time is measured from the launcher's first line, which it prints once the sweeper has checked all jobs.
    """
    folder.mkdir()
    (folder / "app.py").write_text(TRIVIAL)
    lines = output("app.py", "-m", *launcher.split(), f"+a=range({jobs})", folder=folder)
    started = re.search(r"\[([-\d]+ [:\d]+,\d+)\]\[HYDRA\] Launching", lines)
    assert started is not None, lines
    return (time.time() - datetime.strptime(started[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()) / jobs


def event(folder: Path, jobs: int) -> float:
    """Seconds per event in a ledger of ``jobs`` jobs."""
    ledger.begin(folder, {})
    found = Ledger(folder)
    started = time.perf_counter()
    found.add([Job(str(n), f"job-{n}", [f"a={n}"]) for n in range(jobs)])
    for number in range(jobs):
        Ledger(folder).record(str(number), State.running)  # as a job does, which first reads the ledger
    return (time.perf_counter() - started) / (2 * jobs)


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trivial", type=int, default=200, help="jobs that do nothing")
    options, overrides = parser.parse_known_args()
    overrides = [*SHORT, *overrides]
    folder = Path(tempfile.mkdtemp(prefix="hydraft-sweep-"))
    try:
        short = [*overrides, *short_documents(folder)]
        alone, packed = "hydra.launcher.pack=off", "hydra.launcher.pack=auto"
        pool = sweep(folder / "pool", overrides, alone)
        extra = overhead(folder / "pool")
        whole = {
            "packed": sweep(folder / "packed", overrides, packed),
            "packed, with halving": sweep(folder / "halved", [*overrides, *HALVED], packed),
            "pool": pool,
            "basic": sweep(folder / "basic", overrides, "hydra/launcher=basic"),
            "one by one": separate_commands(folder / "commands", overrides),
            f"packed, {DOCUMENT}-token documents": sweep(folder / "packed-short", short, packed),
            f"one by one, {DOCUMENT}-token documents": separate_commands(folder / "commands-short", short),
        }
        print("| 8 jobs | seconds | one by one takes |\n|---|---|---|")
        for name, seconds in whole.items():
            kind = f", {DOCUMENT}-token documents" if "documents" in name else ""
            print(f"| {LABELS.get(name, name)} | {seconds:.1f} | {whole[f'one by one{kind}'] / seconds:.1f} times |")
        print(f"\na job in the pool takes {statistics.median(extra):.1f} s in addition to its training (median of 8)")
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
        event_ms = 1000 * event(folder / "ledger", options.trivial)
        print(f"an event in the ledger: {event_ms:.1f} ms")
        whole["beyond training"] = statistics.median(extra)
        print(write("sweep", {"seconds": whole, "milliseconds": {**nothing, "event": event_ms}}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
