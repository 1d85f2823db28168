"""What a run may begin again for by itself: a sick step that it passes over, or a micro-batch that was too large. No torch.

What changes is changed in the run's own config, so that every rank of the next attempt, and every later resume, has it too.
"""

import dataclasses
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from hydraft.checkpoint import manifest
from hydraft.config.choices import Launcher, OnDivergence
from hydraft.config.schema import Config, save_config
from hydraft.errors import RankFailed
from hydraft.launch.slurm import job_script
from hydraft.plan import plan
from hydraft.plan.token_count import Text
from hydraft.runs import resume
from hydraft.system import files, hardware
from hydraft.system.hardware import Hardware

logger = logging.getLogger(__name__)

DIVERGED, NO_MEMORY = "Diverged: ", "OutOfMemory: "
"""How the causes of ranks begin that raised these."""

IN_A_PASS = ("in the forward pass", "in the backward pass")
"""What a smaller micro-batch helps against."""


class Attempts:
    """The attempts of one command at a run."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config = config
        """As the next attempt has it; the run's folder has the same."""
        self.folder = folder
        self.rewinds = 0

    def mend(self, error: RankFailed) -> bool:
        """Change the run so that what ended it does not end it again; False where that is not asked for, or cannot be."""
        if self.config.cluster.launcher is Launcher.slurm and not job_script.is_allocated():
            return False  # the job has done it itself
        if error.cause.startswith(DIVERGED):
            changed = self._rewound()
        elif error.cause.startswith(NO_MEMORY):
            changed = _halved(self.config) if any(phase in error.cause for phase in IN_A_PASS) else None
        else:
            return False
        if changed is None:
            return False
        what = error.cause.partition("; try ")[0]
        diverged = what.removeprefix(DIVERGED)
        self._say(f"the run diverged: {diverged}" if diverged != what else f"{error.who} failed: {what}")
        for name, (before, after) in resume.differences(self.config, changed).items():
            self._say(f"changed: {name}={after} (was {before})")
        self.config = changed
        _describe(self.folder, changed)
        newest, _ = manifest.newest(self.folder)
        self._say(f"going on from {'the beginning' if newest is None else newest.name}")
        return True

    def _rewound(self) -> Config | None:
        train = self.config.train
        if train.on_divergence is not OnDivergence.rewind or self.rewinds == train.max_rewinds:
            return None
        result = self.folder / "result.json"
        found = json.loads(result.read_text()) if result.exists() else {}
        steps: list[int] = found.get("divergence", {}).get("pass_over", [])
        if not steps:
            return None
        self.rewinds += 1
        result.unlink()
        for checkpoint in manifest.checkpoints(self.folder):
            if manifest.step_of(checkpoint) >= min(steps):
                self._say(f"{checkpoint.name} is removed: a step in it is passed over now")
                shutil.rmtree(checkpoint)
        passed = sorted({*train.pass_over, *steps})
        return dataclasses.replace(self.config, train=dataclasses.replace(train, pass_over=passed))

    def _say(self, line: str) -> None:
        logger.info(line)
        print(line, file=sys.stderr, flush=True)


def _halved(config: Config) -> Config | None:
    """With a micro-batch of half the size or less, and the same global batch; None where it is 1, or that is not asked for."""
    train = config.train
    if not train.auto_micro_batch or train.micro_batch_size == 1:
        return None
    whole = train.micro_batch_size * train.gradient_accumulation_steps
    size = next(size for size in range(train.micro_batch_size // 2, 0, -1) if whole % size == 0)
    smaller = dataclasses.replace(train, micro_batch_size=size, gradient_accumulation_steps=whole // size)
    return dataclasses.replace(config, train=smaller)


def _describe(folder: Path, config: Config) -> None:
    """Write down what the run has become: its config, and its cost."""
    staging = folder / ".config.yaml"
    save_config(config, staging)
    staging.replace(folder / "config.yaml")
    known: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    found = json.loads((folder / "environment.json").read_text())["hardware"]
    machine = hardware.detect() if found is None else Hardware.from_dict(found)
    text = None if known["tokens"] is None else Text(known["tokens"], known.get("labelled", config.data.max_length))
    files.write_json(folder / "plan.json", plan.make_plan(config, known["records"], machine, text).to_dict())


def advice_on_a_kill(config: Config, error: RankFailed) -> str:
    """What to add to the cause of a rank that was killed by SIGKILL where ``train.auto_micro_batch`` is on."""
    if not config.train.auto_micro_batch or not error.cause.startswith("killed by SIGKILL"):
        return ""
    smaller = _halved(config)
    tries = (
        ""
        if smaller is None
        else f" (train.micro_batch_size={smaller.train.micro_batch_size} "
        f"train.gradient_accumulation_steps={smaller.train.gradient_accumulation_steps})"
    )
    return (
        "; train.auto_micro_batch acts on an allocation that failed, and not on a kill, which anyone may have sent: the kernel's "
        f"log (dmesg) names what it killed for want of memory; if it was this, halve the micro-batch yourself{tries}"
    )
