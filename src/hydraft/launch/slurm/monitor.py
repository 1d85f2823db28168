"""A Slurm job from its submission to its end: its place in the queue, its screen, and how it went. No torch here."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hydraft.config.schema import Config
from hydraft.errors import ConfigError, RankFailed
from hydraft.launch.local.shutdown import Preempted, Stopped, Wish
from hydraft.launch.slurm import job_script

POLL_SECONDS = 2.0
"""Between two questions to Slurm's controller."""
SCREEN_SECONDS = 0.3
CANCEL_SECONDS = 60
UNKNOWN_SECONDS = 120
"""How long the controller may be away, or not know the job, until it counts as gone."""
WAITING = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "RESIZING", "SIGNALING", "STAGE_OUT")  # fmt: skip


class Followed:
    """A job that was submitted from here."""

    def __init__(self, number: str, folder: Path, quiet: bool) -> None:
        self.number = number
        self.folder = folder
        self.screen = -1 if quiet else 1
        """Where its output goes; -1 for nowhere."""
        self.shown = 0
        """Bytes of its output so far."""
        self.state = self.told = ""
        self.known = time.monotonic()
        self.before = _read(folder / "result.json")
        """How an earlier attempt ended."""
        self.asked = 0
        """A signal that is still to be passed on."""

    def wait(self) -> None:
        """Show its place in the queue, then its output, until it ends."""
        asked = 0.0
        while not self.ended():
            if time.monotonic() - asked > POLL_SECONDS:
                asked = time.monotonic()
                self.look()
            if self.asked:
                self.preempt()
            self.show()
            time.sleep(SCREEN_SECONDS)
        self.show()

    def ask(self, number: int) -> bool:
        """Have the job save and end; False as long as it does not run."""
        self.asked = number
        return self.state == "RUNNING"

    def preempt(self) -> None:
        """Hand the signal to what runs on the job's first machine, which asks the ranks."""
        name = signal.Signals(self.asked).name
        self.asked = 0
        self.say(f"job {self.number}: asking it to save and end ({name}); once more cancels it")
        subprocess.run(["scancel", "--batch", f"--signal={name.removeprefix('SIG')}", self.number], check=False)

    def ended(self) -> bool:
        """Whether it is over, as far as is known."""
        return bool(self.state) and self.state not in WAITING

    def look(self) -> None:
        """Ask Slurm for its state, and tell a change."""
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", self.number], capture_output=True, text=True, check=False
        )
        found = dict(re.findall(r"(JobState|Reason|NodeList)=(\S+)", done.stdout))
        if "JobState" not in found:
            if time.monotonic() - self.known > UNKNOWN_SECONDS:
                self.state = f"unknown to Slurm ({done.stderr.strip()})"
            return
        self.known, self.state = time.monotonic(), found["JobState"]
        why = f" ({found['Reason']})" if self.state == "PENDING" and found.get("Reason", "None") != "None" else ""
        where = f" on {found['NodeList']}" if self.state == "RUNNING" else ""
        if self.told != self.state + why and not self.ended():
            self.told = self.state + why
            self.say(f"job {self.number}: {self.state.lower()}{where}{why}")

    def say(self, text: str) -> None:
        """A line on the screen."""
        if self.screen >= 0:
            print(text, flush=True)

    def show(self) -> None:
        """What the job has printed since, as it is."""
        try:
            with (self.folder / "slurm.log").open("rb") as log:
                log.seek(self.shown)
                new = log.read()
        except FileNotFoundError:
            return
        self.shown += len(new)
        if new and self.screen >= 0:
            sys.stdout.flush()
            os.write(self.screen, new)

    def cancel(self) -> None:
        """Have Slurm end it, and wait for that."""
        self.say(f"job {self.number}: cancelling it")
        subprocess.run(["scancel", self.number], check=False)
        begun = time.monotonic()
        while not self.ended() and time.monotonic() - begun < CANCEL_SECONDS:
            time.sleep(SCREEN_SECONDS)
            self.look()

    def judge(self) -> None:
        """How it went, from what it wrote down itself, else from Slurm.

        Raises:
            RankFailed: it failed, or left no word of its end.
            Preempted: a signal asked it to end, or it came near its time limit, and all is saved.
            Stopped: the same, and it ended at once.
        """
        told = _read(self.folder / "result.json")
        result: dict[str, Any] = json.loads(told) if told not in (None, self.before) else {}
        status, error = result.get("status"), result.get("error") or {}
        if status == "completed":
            return
        number = signal.Signals[result.get("signal", "SIGTERM")]
        if status == "preempted":
            raise Preempted(result["step"], number)
        if status == "interrupted":
            raise Stopped(number, f"job {self.number} was stopped by {number.name}")
        if status in ("failed", "diverged"):
            raise RankFailed(
                error["rank"], error["cause"], self.folder / error.get("log", "slurm.log"), host=error.get("host")
            )
        raise RankFailed(None, f"Slurm ended it: {self.state}", self.folder / "slurm.log", "lost", f"job {self.number}")


def start(config: Config, folder: Path, quiet: bool, wish: Wish) -> None:
    """Run ``config``, saved in ``folder``, as a Slurm job, or on the allocation that this process is in, and wait for it.

    Raises:
        RankFailed: the first rank or machine that failed.
        ConfigError: what a person has to change.
        Preempted, Stopped: a signal asked for an early end.
    """
    if job_script.is_allocated():
        job_script.run_allocated(config, folder, quiet, wish)
        return
    job = Followed(_submit(config, folder, quiet), folder, quiet)
    job.say(f"job {job.number}: submitted; Ctrl-C ends it, and without this terminal it goes on")
    try:
        with wish.passed_to(job.ask, spare=job_script.SPARE_SECONDS):
            job.wait()
    except Stopped:
        job.cancel()
        raise
    job.judge()


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None


def _submit(config: Config, folder: Path, quiet: bool) -> str:
    """Write the job beside the run's files and hand it to Slurm; returns its number."""
    file = folder / "job.sbatch"
    terminal = shutil.get_terminal_size() if sys.stdout.isatty() else None
    file.write_text(job_script.script(config, folder, quiet, terminal))
    done = subprocess.run(["sbatch", "--parsable", str(file)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = "; ".join(done.stderr.replace("sbatch: error: ", "").split("\n")).strip("; ")
        raise ConfigError(f"cluster.slurm: Slurm refuses this job: {why} ({file})")
    return done.stdout.strip().partition(";")[0]
