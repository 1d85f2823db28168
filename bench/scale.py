"""What grows with the number of hosts, of jobs and of records; each figure beside the same at a hundredth (hosts: a sixteenth) of the size.

    python bench/scale.py hosts [--hosts 64] [--ranks 8]     # real launcher and agents on this machine, stub ranks
    python bench/scale.py ledger [--jobs 10000]              # a sweep of made-up finished jobs: resume, live table, report
    python bench/scale.py records [--records 100000]         # encoding, the order of an epoch, packing

Seconds are seconds of CPU time where other processes would disturb them, and memory is the peak of anonymous memory.
"""

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.results import write
from bench.stub_hosts import StubHosts
from hydraft.config.schema import Config, saved
from hydraft.sweep.results.ledger import Ledger, begin

Figures = dict[str, float]


def hosts(nodes: int, ranks: int) -> Figures:
    """A run on so many hosts: its start, the launcher while it runs, and its end after different events."""
    found: Figures = {}
    with (
        tempfile.TemporaryDirectory(prefix="hydraft-scale-") as folder,
        StubHosts(Path(folder) / "s", nodes, ranks) as made,
    ):
        last = made.names[-1]
        events: dict[str, Callable[[subprocess.Popen[str]], None]] = {
            "the ranks are done": lambda command: made.tell("finish"),
            "a rank dies": lambda command: made.tell(f"die-{last}", 0),
            "Ctrl-C": lambda command: command.send_signal(signal.SIGINT),
            "half of the links are cut": lambda command: cut_half(made),
        }
        for event, act in events.items():
            began = time.monotonic()
            command = made.launch(grace=30 if event == "Ctrl-C" else 0)
            made.wait(made.started, 300)
            started, launcher = time.monotonic(), psutil.Process(command.pid)
            if event == "the ranks are done":
                found["start, s"] = started - began
                before = sum(launcher.cpu_times()[:2])
                time.sleep(5)
                found["launcher, CPU s per s"] = (sum(launcher.cpu_times()[:2]) - before) / (time.monotonic() - started)
                found["launcher, open files"] = launcher.num_fds()
                found["launcher, MB"] = launcher.memory_info().rss / 2**20
            acted = time.monotonic()
            act(command)
            command.communicate()
            found[f"end, s: {event}"] = time.monotonic() - acted
            made.wait(lambda: not made.left(), 60)
    return found


def cut_half(made: StubHosts) -> None:
    """Cut the links to half of the hosts."""
    for name in made.names[: made.nodes // 2]:
        made.cut(name)


def make_sweep(folder: Path, jobs: int) -> None:
    """A sweep whose jobs are done, as far as its files tell."""
    axes = ["train.learning_rate", "lora.r", "seed"]
    begin(folder, {"name": folder.name, "command": "python train.py -m", "axes": axes, "objective": ["loss"]})
    text, draw, now = saved(Config()), random.Random(1), time.time()
    with (folder / "ledger.jsonl").open("w") as ledger:
        for number in range(jobs):
            rate, r, loss = f"{10 ** draw.uniform(-5, -2):.6g}", draw.choice([4, 8, 16, 32]), 3 + draw.random()
            name, common = f"lr={rate},r={r},seed={number}", {"job": f"{number:016x}", "host": "here", "pid": 1}
            overrides = [f"train.learning_rate={rate}", f"lora.r={r}", f"seed={number}"]
            for seconds, more in (
                (0, {"state": "pending", "overrides": overrides}),
                (number, {"state": "running"}),
                (number + 60, {"state": "done", "objective": loss}),
            ):
                ledger.write(json.dumps({"time": now + seconds, "name": name, **common, **more}) + "\n")
            run = folder / name
            run.mkdir()
            config = text.replace("seed: 42", f"seed: {number}").replace(
                "learning_rate: 0.0001", f"learning_rate: {rate}"
            )
            (run / "config.yaml").write_text(config)
            scores = {"before": {"loss": 9.0}, "after": {"loss": loss}, "objective": loss, "train_loss": loss}
            cost = {"steps": 60, "tokens": 10**5, "train_seconds": 50.0, "peak_memory_bytes": 10**9}
            (run / "result.json").write_text(json.dumps({**scores, **cost, "status": "completed"}))
            lines = ({"step": step, "loss": 9 - step / 10, "tokens": step * 1000} for step in range(1, 61))
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def ledger(jobs: int) -> Figures:
    """What a resume, the live table and the report take, with so many jobs that are done."""
    from rich.console import Console

    from hydraft.sweep import folder_names
    from hydraft.sweep.results import html, outcome, table
    from hydraft.sweep.results.live_table import Live

    found: Figures = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = work()
        found[f"{name}, CPU s"] = time.process_time() - began
        return result

    with tempfile.TemporaryDirectory(prefix="hydraft-scale-") as name:
        folder = Path(name) / "sweep"
        make_sweep(folder, jobs)
        book = Ledger(folder)
        known = timed("resume reads the ledger", book.jobs)
        timed("again, for each state", book.jobs)
        timed("names of the folders", lambda: folder_names.names([job.overrides for job in known.values()]))
        live = Live(folder, console=Console(file=io.StringIO(), force_terminal=True, width=150, height=50))
        live.follower.read()
        timed("the live table, each time", live.refresh)
        sweep = timed("the report reads the jobs", lambda: outcome.read(folder))
        timed("summary.csv", lambda: table.write(sweep))
        page = timed("report.html", lambda: html.write(sweep))
        found["report.html, MB"] = page.stat().st_size / 2**20
        found["memory, MB"] = peak_memory()
        found |= opening(page)
    return found


def opening(page: Path) -> Figures:
    """What the report takes to open, if there is a browser."""
    from bench import browser

    if browser.missing():
        return {}
    window, me = browser.Browser(), psutil.Process()
    try:
        began = sum(sum(one.cpu_times()[:2]) for one in me.children(recursive=True))
        window.open(page)
        return {
            "opened in a browser, CPU s": sum(sum(one.cpu_times()[:2]) for one in me.children(recursive=True)) - began
        }
    finally:
        window.close()


def records(count: int) -> Figures:
    """Encoding so many short records, and what training needs of them."""
    from transformers import AutoTokenizer

    from bench.equivalence import compose_run
    from hydraft.data import batch, cache

    found: Figures = {}
    with tempfile.TemporaryDirectory(prefix="hydraft-scale-", dir=os.environ.get("TMPDIR")) as name:
        source = Path(name) / "records.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for number in range(count):
                file.write(f'{{"instruction": "What is {number} plus one?", "output": "It is {number + 1}."}}\n')
        os.environ["HYDRAFT_CACHE"] = str(Path(name) / "cache")
        config = compose_run([f"data.train={source}", "data.eval=null"])
        tokenizer = AutoTokenizer.from_pretrained(config.model.path)
        before, began = peak_memory(), time.process_time()
        encoded = cache.training(config.data, config.seed, tokenizer, True, lambda done, total: None)
        found["encoding, CPU s"] = time.process_time() - began
        found["encoding, MB more"] = peak_memory() - before
        began = time.process_time()
        order = batch.EpochOrder(encoded.lengths, 8, 64, 42)
        middle = iter(order)
        for _ in range(count // 2):
            next(middle)
        found["to the middle of an epoch, CPU s"] = time.process_time() - began
        found["lengths and order, MB more"] = peak_memory() - before
        began = time.process_time()
        batch.pack(encoded.lengths, config.data.max_length)
        found["packing, CPU s"] = time.process_time() - began
        found["packing, MB more"] = peak_memory() - before
    return found


def peak_memory() -> float:
    """The highest anonymous memory of this process so far in MB, as a thread has sampled it; files that are mapped do not count."""
    global _peak
    status = Path("/proc/self/status").read_text()
    _peak = max(_peak, next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024)
    return _peak


_peak = 0.0


def sample_memory() -> None:
    """Have a thread call ``peak_memory`` ten times a second."""

    def sample() -> None:
        while True:
            peak_memory()
            time.sleep(0.1)

    threading.Thread(target=sample, daemon=True).start()


def in_its_own_process(part: str, size: int, ranks: int) -> Figures:
    """The figures of one size, whose memory is not that of another."""
    command = [sys.executable, __file__, part, "--only", str(size), "--ranks", str(ranks)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("hosts", "ledger", "records"))
    for name, size in (("hosts", 64), ("jobs", 10_000), ("records", 100_000), ("ranks", 8), ("only", 0)):
        parser.add_argument(f"--{name}", type=int, default=size)
    options = parser.parse_args()
    if options.only:
        sample_memory()
        part: dict[str, Callable[[], Figures]] = {
            "hosts": lambda: hosts(options.only, options.ranks),
            "ledger": lambda: ledger(options.only),
            "records": lambda: records(options.only),
        }
        print(json.dumps(part[options.part]()))
        return
    size = {"hosts": options.hosts, "ledger": options.jobs, "records": options.records}[options.part]
    small = max(2, size // (16 if options.part == "hosts" else 100))
    figures = {count: in_its_own_process(options.part, count, options.ranks) for count in (small, size)}
    print(f"| {options.part} | {small:,} | {size:,} | ratio |\n|---|---|---|---|")
    for name, value in figures[size].items():
        base = figures[small][name]
        print(f"| {name} | {base:.3g} | {value:.3g} | {value / base if base > 0 else float('nan'):.1f} |")
    print(write(f"scale-{options.part}", {str(count): found for count, found in figures.items()}, "cpu"))


if __name__ == "__main__":
    main()
