"""``tracker=wandb``: online with an API key, otherwise offline; ``wandb sync`` uploads an offline run later."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

from hydraft.config import printed
from hydraft.config.schema import Config
from hydraft.system.redaction import redact_text
from hydraft.tracking import metadata, names
from hydraft.tracking.base import Tracker, numbers


class WandbTracker(Tracker):
    """One wandb run per training run."""

    def __init__(self, config: Config, folder: Path, identity: str | None = None, name: str | None = None) -> None:
        import wandb
        from wandb.sdk.lib import runid

        # Without a key wandb would prompt for one, and an unattended run would hang; offline, its files wait for `wandb sync`.
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        group = metadata.group(config, folder)
        self.name = names.title(config, folder, name)
        agent = bool(os.environ.get("WANDB_SWEEP_ID"))  # it has chosen project and run, which WANDB_RUN_ID names
        if identity is None and not agent and names.in_sweep(folder):
            identity = runid.generate_id()  # WANDB_RUN_ID would make all jobs one run
        with metadata.published_arguments():
            self.run = wandb.init(
                project=None if agent else config.tracker.project,
                name=self.name,
                notes=config.tracker.notes,
                dir=str(folder),
                config=metadata.settings(config, folder),
                mode=mode,  # type: ignore[arg-type]
                id=None if agent and os.environ.get("WANDB_RUN_ID") else identity,
                resume="allow",
                reinit="create_new",  # several runs of a pack are in one process
                group=group,
                job_type="train",
                tags=metadata.tags(config, group is not None),
                settings=wandb.Settings(git_remote_url=_git_remote()),
            )
        for stream in (sys.stdout, sys.stderr):  # wandb shows on its page what is printed
            _redact_prints(stream)
        self.identity = self.run.id
        self.offline = mode == "offline"
        if self.offline:
            self.upload_command = f"wandb sync {printed.shell_word(printed.short_path(Path(self.run.dir).parent))}"
        self.run.define_metric("objective", summary=metadata.directions(folder)[0])

    def log(self, values: dict[str, float], step: int) -> None:
        """Log the metrics of one step."""
        self.run.log(values, step=step)

    def resume(self, lines: list[dict[str, Any]]) -> None:
        """Log earlier steps again if offline, where each start writes a new file. Online, the server has them."""
        for line in lines if self.offline else []:
            self.log(numbers(line), line["step"])

    def upload(self, folder: Path) -> None:
        """Upload ``folder`` as an artifact of the run."""
        import wandb

        artifact = wandb.Artifact(f"{folder.name}-{self.run.id}", type=folder.name)
        artifact.add_dir(str(folder))
        self.run.log_artifact(artifact)

    def table(self, name: str, columns: list[str], rows: list[list[str]]) -> None:
        """Log a ``wandb.Table``."""
        import wandb

        self.run.log({name: wandb.Table(columns=list(columns), data=rows)})

    def finish(self, summary: dict[str, Any]) -> None:
        """Close the run; every file is on the disk afterwards."""
        self.run.log({name: value for name, value in summary.items() if isinstance(value, (int, float))})
        self.run.summary.update(summary)
        self.run.finish()


def _git_remote() -> str | None:
    """The address of the git remote if it has a secret in it, without that; None if wandb may read the address itself."""
    command = ["git", "config", "--get", "remote.origin.url"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.SubprocessError):  # no git here
        return None
    shown = redact_text(done.stdout.strip())
    return None if shown == done.stdout.strip() else shown


def _redact_prints(stream: TextIO) -> None:
    """Hide secrets in what is printed to ``stream`` from now on."""
    write = stream.write
    stream.write = lambda text: write(redact_text(text))  # type: ignore[method-assign]
