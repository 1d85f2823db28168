"""Response time of commands that do not train: medians of 5 processes each.

    python bench/startup.py [--starts]

The baseline is importing torch, which none of these commands may do. With --starts: the time until a rank has its
imports, if forked from a server that has imported everything, if forked from one that leaves out what uses CUDA, and if
spawned.
"""

import dataclasses
import importlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hydraft.launch.local import elastic, fork_server
from hydraft.system import hardware
from hydraft.training import deepspeed_ops

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "python train.py --help": [sys.executable, "train.py", "--help"],
    "python train.py lora.r=0 (refused)": [sys.executable, "train.py", "lora.r=0"],
    "python train.py mode=plan model=llama3 cluster.gpu_memory=24GiB": [
        *(sys.executable, "train.py", "mode=plan", "model=llama3", "cluster.gpu_memory=24GiB")
    ],
    "python infer.py --help": [sys.executable, "infer.py", "--help"],
    "python -c 'import torch' (baseline)": [sys.executable, "-c", "import torch"],
}
RUNS = 5


STARTS = {
    "all": "forked from a server that has all of it (no GPU)",
    "clean": "forked from a server that has left CUDA alone (GPUs)",
    "spawn": "spawned",
}
"""Ways to start a rank."""


def ready(channel: Any) -> None:
    """Run a rank until its imports are done."""
    importlib.import_module("hydraft.training.worker")
    channel.send(None)


def start(how: str) -> float:
    """Median seconds until a rank has its imports. A process can call this only once, since it has one fork server."""
    machine = hardware.detect()
    gpus = () if how == "all" else machine.gpus or (hardware.Gpu("none", 2**30, 9.0),)
    machine = dataclasses.replace(machine, gpus=gpus)
    if how != "spawn":
        fork_server.start([elastic.LIBRARIES], machine)
        why = fork_server.unusable([elastic.LIBRARIES], machine)
        assert why is None, why
    context: Any = multiprocessing.get_context("spawn" if how == "spawn" else "forkserver")
    seconds = []
    for _ in range(RUNS):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=ready, args=(theirs,))
        started = time.perf_counter()
        process.start()
        ours.recv()
        seconds.append(time.perf_counter() - started)
        process.join()
    return statistics.median(seconds)


def starts() -> None:
    """Print the start times of a rank, each with its own fork server."""
    seconds = {}
    for how in STARTS:
        command = [sys.executable, __file__, "--start", how]
        environment = {**os.environ, **deepspeed_ops.environment(hardware.detect())}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        seconds[how] = float(done.stdout.split()[-1])  # libraries may print before it
    print(f"| a rank | seconds (median of {RUNS}) | of being spawned |\n|---|---|---|")
    for how, label in STARTS.items():
        print(f"| {label} | {seconds[how]:.2f} | {seconds[how] / seconds['spawn']:.2f} |")


def main() -> None:
    """Time the commands in turn and print the medians."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS + 1):  # the first round only fills the file cache
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
            seconds[name].append(time.perf_counter() - start)
    baseline = statistics.median(seconds["python -c 'import torch' (baseline)"][1:])
    print("| command | seconds (median of 5) | of importing torch |\n|---|---|---|")
    for name, times in seconds.items():
        median = statistics.median(times[1:])
        print(f"| `{name}` | {median:.2f} | {median / baseline:.2f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--start"]:
        print(start(sys.argv[2]))
    elif sys.argv[1:] == ["--starts"]:
        starts()
    else:
        main()
