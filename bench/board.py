"""Time the board with many runs: python bench/board.py [RUN] [--runs 500] [--repeat 5]

With ``--picture FILE`` it takes a picture of the board of outputs/ and multirun/ instead, with the three newest runs chosen.

The folders are copies of the files of a real run (the newest below outputs/ by default), each with other settings; a fifth are jobs
of a sweep. Printed are medians: the first answer of a new board, which reads every folder; a poll when nothing, and when one run
has logged a step; and in headless Chromium the time from the request of the page until its table is there.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.browser import Browser, missing  # noqa: E402

COPIED = (
    "config.yaml",
    "plan.json",
    "environment.json",
    "metrics.jsonl",
    "train.log",
    "rank-0.log",
    "result.json",
    "answers.jsonl",
)
"""Files of a run that are copied; weights are not read by the board."""


def make(run: Path, folder: Path, count: int) -> None:
    """``count`` runs in outputs/ and multirun/ below ``folder``, a fifth of them jobs of a sweep."""
    config = (run / "config.yaml").read_text(encoding="utf-8")
    for index in range(count):
        rank, rate = 2 ** (index % 6), f"{1e-4 * (1 + index // 6):.6g}"
        job = index % 5 == 0
        place = (
            folder
            / ("multirun/grid" if job else f"outputs/2026-01-{1 + index % 28:02}")
            / (f"r={rank},learning_rate={rate}" if job else f"12-00-00-{index:06}")
        )
        place.mkdir(parents=True)
        for name in COPIED:
            if (run / name).is_file():
                shutil.copyfile(run / name, place / name)
        changed = re.sub(r"^  r: .*$", f"  r: {rank}", config, flags=re.MULTILINE)
        changed = re.sub(r"^  learning_rate: .*$", f"  learning_rate: {rate}", changed, flags=re.MULTILINE)
        (place / "config.yaml").write_text(changed, encoding="utf-8")
    if count:
        (folder / "multirun/grid/multirun.yaml").write_text("hydra: {}\n", encoding="utf-8")


class Served:
    """A board of its own, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        command = [sys.executable, "-m", "hydraft", "board", "--port", "0"]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)

    def get(self, path: str) -> tuple[Any, float]:
        """What the API answers, and the seconds until it is read."""
        start = time.perf_counter()
        with urllib.request.urlopen(self.address + path) as response:
            body = response.read()
        return json.loads(body), time.perf_counter() - start


def of_api(folder: Path, repeat: int) -> dict[str, list[float]]:
    """Seconds of the first answer, of a poll without news, and of one with news."""
    found: dict[str, list[float]] = {
        "first answer of a new board": [],
        "poll, nothing new": [],
        "poll, one run has logged": [],
    }
    for _ in range(repeat):
        with Served(folder) as served:
            board, seconds = served.get("api/board")
            found["first answer of a new board"].append(seconds)
            time.sleep(0.6)  # what was read half a second ago is not read again
            found["poll, nothing new"].append(served.get(f"api/board?since={board['version']}")[1])
            metrics = next(folder.glob("outputs/*/*/metrics.jsonl"))
            with metrics.open("a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"step": time.time_ns() % 10**9, "loss": 1.0, "tokens": 1, "tokens_per_second": 1.0})
                    + "\n"
                )
            time.sleep(0.6)
            news, seconds = served.get(f"api/board?since={board['version']}")
            assert len(news["runs"]) == 1, len(news["runs"])
            found["poll, one run has logged"].append(seconds)
    return found


def of_page(folder: Path, repeat: int, count: int) -> list[float]:
    """Seconds from the request of the page until the table has every run, each time of a new board and without a cache."""
    browser, found = Browser(), []
    try:
        browser.set_display()
        browser.driver.get("about:blank")
        for _ in range(repeat):
            with Served(folder) as served:
                browser.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
                browser.driver.get(served.address)
                while not browser.run("return document.documentElement.dataset.ready"):
                    time.sleep(0.01)
                assert browser.run("return document.querySelectorAll('#runs tr[data-run]').length") == count
                found.append(browser.run("return performance.getEntriesByName('ready')[0].startTime") / 1000)
    finally:
        browser.close()
    return found


def picture(target: Path) -> None:
    """The board of the working directory, with the three newest runs outside of sweeps chosen."""
    with Served(Path.cwd()) as served:
        runs = [run for run in served.get("api/board")[0]["runs"] if run["sweep"] is None and run["loss"] is not None]
        newest = sorted(runs, key=lambda run: -run["started"])[:3]
        browser = Browser()
        try:
            browser.set_display(1360)
            browser.driver.get(f"{served.address}#view=runs&" + "&".join(f"run={run['id']}" for run in newest))
            while not browser.run("return document.querySelectorAll('.js-line').length"):
                time.sleep(0.2)
            time.sleep(2)  # until the page has its size
            browser.driver.save_screenshot(str(target))
        finally:
            browser.close()


def main() -> None:
    """Make the folders, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="folder of a finished run (the newest below outputs/)")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--picture", type=Path, help="write a picture of the board to this file")
    given = parser.parse_args()
    if given.picture:
        picture(given.picture)
        return
    from hydraft.runs import run_folder

    run = run_folder.find(given.run or "last", "run").resolve()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(run, folder, given.runs)
        rows = of_api(folder, given.repeat)
        if missing() is None:
            rows["page in Chromium, until the table is there"] = of_page(folder, given.repeat, given.runs)
    print(f"| {given.runs} runs | median, ms | highest, ms |\n|---|---:|---:|")
    for name, seconds in rows.items():
        print(f"| {name} | {1000 * statistics.median(seconds):,.0f} | {1000 * max(seconds):,.0f} |")


if __name__ == "__main__":
    main()
