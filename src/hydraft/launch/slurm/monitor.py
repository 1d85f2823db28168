"""Submits a Slurm job and follows it: its state in the queue, its output, and its result. No torch."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydraft.config.schema import Config
from hydraft.errors import ConfigError, Failure, FailureReason, RankFailed
from hydraft.launch.local.shutdown import Preempted, ShutdownHandler, Stopped
from hydraft.launch.slurm import job_script
from hydraft.launch.slurm.job_script import FAILURE
from hydraft.system import private_file, streams

POLL_SECONDS = 2.0
"""Between two queries of Slurm's controller."""
SCREEN_SECONDS = 0.3
"""Between two reads of the job's output."""
CANCEL_SECONDS = 60
UNKNOWN_SECONDS = 120
"""How long the controller may be unreachable, or not know the job, before the job counts as lost."""
ACTIVE = (
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "RESIZING", "SIGNALING",
    "STAGE_OUT",
)  # fmt: skip
"""States of a job that has not ended."""

LOG = "slurm.log"
"""The job's output, in the run's folder."""


class SlurmJob:
    """A job that this command has submitted."""

    def __init__(self, number: str, folder: Path, quiet: bool) -> None:
        self.number = number
        self.folder = folder
        self.quiet = quiet
        """Whether its output is not printed."""
        self.shown = 0
        """Bytes of its output that have been printed."""
        self.state = self.printed_state = ""
        self.last_known = time.monotonic()
        """When Slurm last reported its state."""
        self.log_before = _changed(folder / LOG)
        """When an earlier attempt last wrote its output, which stays until this job starts."""
        self.before = _read(folder / "result.json")
        """Result of an earlier attempt."""
        self.signal_to_send = 0
        """A signal that is still to be forwarded."""

    def wait(self) -> None:
        """Print its state in the queue, then its output, until it ends."""
        last_query = 0.0
        while not self.ended():
            if time.monotonic() - last_query > POLL_SECONDS:
                last_query = time.monotonic()
                self.query()
            if self.signal_to_send:
                self.forward_signal()
            self.show()
            time.sleep(SCREEN_SECONDS)
        self.show()

    def request_exit(self, number: int) -> bool:
        """Have the job save and exit; False if it is not running yet."""
        self.signal_to_send = number
        return self.state == "RUNNING" or (self.shown > 0 and not self.ended())  # it may run since the last query

    def forward_signal(self) -> None:
        """Send the signal to the process on the job's first machine, which forwards it to the ranks."""
        name = signal.Signals(self.signal_to_send).name
        self.signal_to_send = 0
        self.say(f"job {self.number}: saving and exiting ({name}); a second signal cancels the job")
        subprocess.run(["scancel", "--batch", f"--signal={name.removeprefix('SIG')}", self.number], check=False)

    def ended(self) -> bool:
        """Whether it has ended, as far as is known."""
        return bool(self.state) and self.state not in ACTIVE

    def query(self) -> None:
        """Query its state, and print it if it has changed."""
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", self.number], capture_output=True, text=True, check=False
        )
        found = dict(re.findall(r"(JobState|Reason|NodeList)=(\S+)", done.stdout))
        if "JobState" not in found:
            if time.monotonic() - self.last_known > UNKNOWN_SECONDS:
                self.state = f"unknown to Slurm ({done.stderr.strip()})"
            return
        self.last_known, self.state = time.monotonic(), found["JobState"]
        why = f" ({found['Reason']})" if self.state == "PENDING" and found.get("Reason", "None") != "None" else ""
        where = f" on {found['NodeList']}" if self.state == "RUNNING" else ""
        if self.printed_state != self.state + why and not self.ended():
            self.printed_state = self.state + why
            self.say(f"job {self.number}: {self.state.lower()}{where}{why}")

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            print(text, flush=True)

    def show(self) -> None:
        """Print what the job has written since the last call."""
        if _changed(self.folder / LOG) == self.log_before:
            return
        try:
            with (self.folder / LOG).open("rb") as log:
                log.seek(self.shown)
                new = log.read()
        except FileNotFoundError:
            return
        self.shown += len(new)
        if new and not self.quiet:
            streams.show(new)

    def cancel(self) -> None:
        """Cancel it, and wait for its end."""
        self.say(f"job {self.number}: cancelling")
        subprocess.run(["scancel", self.number], check=False)
        begun = time.monotonic()
        while not self.ended() and time.monotonic() - begun < CANCEL_SECONDS:
            time.sleep(SCREEN_SECONDS)
            self.query()

    def check_result(self) -> None:
        """Return if the job completed its run, according to the files that it wrote, or else to Slurm.

        Raises:
            RankFailed: it failed, or ended without writing a result.
            Preempted: a signal, or the warning before its time limit, made it save and exit.
            Stopped: a signal ended it at once.
        """
        written = _read(self.folder / "result.json")
        result: dict[str, Any] = json.loads(written) if written not in (None, self.before) else {}
        status = result.get("status")
        if status == "completed":
            return
        number = signal.Signals[result.get("signal", "SIGTERM")]
        if status == "preempted":
            raise Preempted(result["step"], number)
        if status == "interrupted":
            raise Stopped(number, f"job {self.number} was stopped by {number.name}")
        if status in ("failed", "diverged"):
            raise RankFailed(self._failure(result))
        message, log = f"Slurm ended it: {self.state}", self.folder / LOG
        raise RankFailed(Failure(FailureReason.host_lost, message, host=f"job {self.number}", log=log))

    def _failure(self, result: dict[str, Any]) -> Failure:
        """The failure of the job, from the file that it has written, or else from its result."""
        error = result.get("error") or {}
        file = self.folder / FAILURE
        if (text := _read(file)) is None:
            reason = FailureReason.diverged if result["status"] == "diverged" else FailureReason.raised
            failure = Failure(reason, error.get("cause") or "the job wrote no cause")
        else:
            file.unlink(missing_ok=True)
            failure = Failure.from_dict(json.loads(text))
        log = failure.log or self.folder / (error.get("log") or LOG)
        return replace(failure, rank=error.get("rank"), host=error.get("host"), log=log)


def start(config: Config, folder: Path, quiet: bool, shutdown: ShutdownHandler) -> None:
    """Run ``config``, saved in ``folder``, as a Slurm job, or in the allocation of this process, and wait for it.

    Raises:
        RankFailed: the first rank or machine that failed.
        ConfigError: what the user has to change.
        Preempted, Stopped: a signal ended the run.
    """
    if job_script.is_allocated():
        job_script.run_allocated(config, folder, quiet, shutdown)
        return
    job = SlurmJob(_submit(config, folder, quiet), folder, quiet)
    job.say(f"job {job.number}: submitted; Ctrl-C ends it, and it continues without this terminal")
    try:
        with shutdown.forwarding(job.request_exit, extra=job_script.SPARE_SECONDS):
            job.wait()
    except Stopped:
        job.cancel()
        raise
    job.check_result()


def _changed(file: Path) -> int | None:
    """When a file was last written, in nanoseconds; None if there is none."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None


def _submit(config: Config, folder: Path, quiet: bool) -> str:
    """Write the batch script to the run's folder and submit it; returns the job's number."""
    file = folder / "job.sbatch"
    terminal = shutil.get_terminal_size() if sys.stdout.isatty() else None
    private_file.write(
        file, job_script.script(config, folder, quiet, terminal)
    )  # cluster.slurm.setup may have a secret in it
    done = subprocess.run(["sbatch", "--parsable", str(file)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = "; ".join(done.stderr.replace("sbatch: error: ", "").split("\n")).strip("; ")
        raise ConfigError(f"cluster.slurm: Slurm rejected the job: {why} ({file})")
    return done.stdout.strip().partition(";")[0]
