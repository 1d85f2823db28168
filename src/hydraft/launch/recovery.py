"""Automatic recovery of a failed run: steps that diverged are skipped, and a micro-batch that did not fit is halved. No torch.

The change is made in the run's own config, so that every rank of the next attempt, and every later resume, has it too.
"""

import dataclasses
import json
import logging
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from hydraft.checkpoint import manifest
from hydraft.config.choices import Launcher, OnDivergence
from hydraft.config.schema import Config, saved
from hydraft.config.train import TrainConfig
from hydraft.errors import Failure, FailureReason, Phase
from hydraft.launch.slurm import job_script
from hydraft.plan import plan
from hydraft.plan.token_count import Text
from hydraft.runs import resume, run_folder
from hydraft.system import files, hardware
from hydraft.system.hardware import Hardware

logger = logging.getLogger(__name__)

PASSES = (Phase.forward, Phase.backward)
"""Phases whose memory a smaller micro-batch reduces."""


class Attempts:
    """The attempts of one command at a run."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config = config
        """Of the next attempt; the run's folder has the same."""
        self.folder = folder
        self.rewinds = 0

    def recover(self, failure: Failure) -> bool:
        """Change the run so that ``failure`` does not occur again; False if the config does not allow it, or nothing helps."""
        if self.config.cluster.launcher is Launcher.slurm and not job_script.is_allocated():
            return False  # the job has done it itself
        changed = None
        diverged = failure.reason is FailureReason.diverged
        if diverged:
            changed = self._rewound(failure.skip_steps)
        elif failure.reason is FailureReason.out_of_memory and failure.phase in PASSES:
            smaller = _halved(self.config.train)
            changed = None if smaller is None else dataclasses.replace(self.config, train=smaller)
        if changed is None:
            return False
        self._say(
            f"the run diverged: {failure.message}" if diverged else f"{failure.subject} failed: {failure.summary}"
        )
        for name, (before, after) in resume.differences(self.config, changed).items():
            self._say(f"changed: {name}={after} (was {before})")
        self.config = changed
        _update_folder(self.folder, changed)
        newest, _ = manifest.newest(self.folder)
        self._say("restarting from the beginning" if newest is None else f"resuming from {newest.name}")
        return True

    def _rewound(self, steps: tuple[int, ...]) -> Config | None:
        """The config with ``steps`` skipped, after removing the checkpoints that contain them."""
        train = self.config.train
        if train.on_divergence is not OnDivergence.rewind or self.rewinds == train.max_rewinds or not steps:
            return None
        self.rewinds += 1
        (self.folder / "result.json").unlink(missing_ok=True)
        for checkpoint in manifest.checkpoints(self.folder):
            if manifest.step_of(checkpoint) >= min(steps):
                self._say(f"{checkpoint.name} is removed: it contains a step that is skipped now")
                shutil.rmtree(checkpoint)
        skipped = sorted({*train.pass_over, *steps})
        return dataclasses.replace(self.config, train=dataclasses.replace(train, pass_over=skipped))

    def _say(self, line: str) -> None:
        logger.info(line)
        print(line, file=sys.stderr, flush=True)


def _halved(train: TrainConfig) -> TrainConfig | None:
    """With a micro-batch of at most half the size and the same global batch; None if it is 1, or without ``auto_micro_batch``."""
    if not train.auto_micro_batch or train.micro_batch_size == 1:
        return None
    whole = train.micro_batch_size * train.gradient_accumulation_steps
    size = next(size for size in range(train.micro_batch_size // 2, 0, -1) if whole % size == 0)
    return dataclasses.replace(train, micro_batch_size=size, gradient_accumulation_steps=whole // size)


def _update_folder(folder: Path, config: Config) -> None:
    """Write the changed config and its plan to the run's folder."""
    files.write_text(folder / "config.yaml", saved(config))
    run_folder.keep_private(folder)
    known: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    found = json.loads((folder / "environment.json").read_text())["hardware"]
    machine = hardware.detect() if found is None else Hardware.from_dict(found)
    text = None if known["tokens"] is None else Text(known["tokens"], known.get("labelled", config.data.max_length))
    files.write_json(folder / "plan.json", plan.make_plan(config, known["records"], machine, text).to_dict())


def advice_on_kill(train: TrainConfig, failure: Failure) -> str:
    """What to add to the cause of a rank that was killed by SIGKILL, with ``train.auto_micro_batch``."""
    killed = failure.reason is FailureReason.killed and failure.signal == signal.SIGKILL
    if not train.auto_micro_batch or not killed or failure.rank is None:
        return ""
    smaller = _halved(train)
    overrides = (
        ""
        if smaller is None
        else f" (train.micro_batch_size={smaller.micro_batch_size} "
        f"train.gradient_accumulation_steps={smaller.gradient_accumulation_steps})"
    )
    return (
        "; train.auto_micro_batch does not react to a killed process, since anyone may have sent the signal: the kernel's log "
        f"(dmesg) lists the processes that it killed for lack of memory; if it lists this one, halve the micro-batch{overrides}"
    )
