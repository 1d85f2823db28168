"""A run's folder in Python: its config, metrics, result, answers and weights. No torch."""

import base64
import html
import json
import os
import socket
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydraft.api import start
from hydraft.api.overrides import written
from hydraft.config.schema import Config, load_config
from hydraft.errors import ConfigError
from hydraft.evaluation import answers
from hydraft.evaluation.metrics import shown
from hydraft.runs import claim, run_folder
from hydraft.system import files, line_file
from hydraft.system.processes import ProcessId
from hydraft.system.redaction import redact_text

if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN = ("train_loss", "steps", "tokens", "train_seconds")
"""Figures of result.json in a notebook."""


class Run:
    """A run that is training, or has ended. Files are read at each access, so that one that trains can be followed."""

    folder: Path
    """Its folder, as an absolute path."""

    def __init__(self, folder: "str | os.PathLike[str]" = "last") -> None:
        """Open the run in ``folder``; ``last`` is the newest below outputs/.

        Raises:
            ConfigError: there is no run.
        """
        self.folder = run_folder.find(str(Path(folder).expanduser())).absolute()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.status})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.folder == other.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    @cached_property
    def config(self) -> Config:
        """The config that it trains with, in which ``auto`` is replaced.

        Raises:
            ConfigError: it cannot be read.
        """
        return load_config(self.folder / claim.CONFIG)

    @property
    def metrics(self) -> "DataFrame":
        """Loss, learning rate, tokens and held-out scores (``eval_loss``, …) by optimizer step; NaN where a step has none."""
        from pandas import DataFrame, Index

        by_step: dict[int, dict[str, Any]] = {}
        for line in line_file.read(self.folder / "metrics.jsonl").values:
            if isinstance(step := line.pop("step", None), int):
                by_step.setdefault(step, {}).update(line)
        return DataFrame(list(by_step.values()), index=Index(list(by_step), name="step", dtype="int64"))

    @property
    def result(self) -> dict[str, Any]:
        """``result.json``: status, objective, scores before and after, steps, tokens, seconds, memory, error; empty before the end."""
        return files.read_object(self.folder / "result.json")

    @property
    def status(self) -> str:
        """``running``; how it ended (``completed``, ``preempted``, ``interrupted``, ``failed``, ``diverged``); or ``ended`` without a result."""
        return "running" if self._is_held() else run_folder.status(self.folder) or "ended"

    def _is_held(self) -> bool:
        """Whether a process holds the run: one of this machine that runs, or one of another."""
        try:
            known = json.loads((self.folder / ".holder.json").read_text(encoding="utf-8"))
            return known["host"] != socket.gethostname() or ProcessId(int(known["pid"])).runs
        except (OSError, ValueError, LookupError, TypeError):
            return False

    @property
    def objective(self) -> float | None:
        """Its held-out loss, or else its training loss; None before the end."""
        found = self.result.get("objective")
        return None if found is None else float(found)

    @property
    def error(self) -> str | None:
        """Why it failed, in one line; None if it did not."""
        found = (self.result.get("error") or {}).get("cause")
        return None if found is None else redact_text(" ".join(str(found).split()))

    @property
    def adapter(self) -> Path | None:
        """The folder of the trained adapter, in PEFT format; None if there is none, or with full fine-tuning."""
        return self._part("adapter")

    @property
    def model(self) -> Path | None:
        """The folder of the trained model, with full fine-tuning; else None."""
        return self._part("model")

    def _part(self, name: str) -> Path | None:
        return self.folder / name if (self.folder / name).is_dir() else None

    @property
    def answers(self) -> "DataFrame":
        """The answers to the held-out records: a row for each record and evaluation, with the scores of the answer."""
        from pandas import DataFrame

        names = ["step", "record", "task", "prompt", "reference", "answer"]
        rows = [
            {**{name: getattr(line, name) for name in names}, "right": line.is_right, **line.scores}
            for lines in answers.read(self.folder).values()
            for line in lines
        ]
        return DataFrame(rows, columns=None if rows else [*names, "right"])

    def resume(self, *overrides: str, progress: bool = True) -> "Run":
        """Go on from the newest checkpoint, as ``python train.py resume=…`` does, and wait for the end.

        Args:
            overrides: settings that change, such as ``train.epochs=5``.
            progress: whether to show a bar and what the run prints.

        Returns:
            This run.

        Raises:
            ConfigError, RunFailed, RunStopped: as ``hydraft.train``.
        """
        start.run(self.folder, [f"resume={written(str(self.folder))}", *overrides], progress)
        self.__dict__.pop("config", None)
        return self

    def _repr_html_(self) -> str:
        """A small table and the plot of the losses, for a notebook."""
        found = self.result
        rows = [("folder", str(self.folder)), ("status", self.status)]
        rows += [("error", self.error)] if self.error else []
        before, after = found.get("before") or {}, found.get("after") or {}
        rows += [
            (
                f"held-out {name.replace('_', ' ')}",
                f"{shown(name, before[name]) + ' → ' if name in before else ''}{shown(name, value)}",
            )
            for name, value in after.items()
        ]
        rows += [
            (name.replace("_", " "), f"{found[name]:,.4g}" if isinstance(found[name], float) else f"{found[name]:,}")
            for name in SHOWN
            if name in found
        ]
        table = "".join(
            f"<tr><th style='text-align:left'>{html.escape(one)}</th><td style='text-align:left'>{html.escape(str(two))}</td></tr>"
            for one, two in rows
        )
        plot = self.folder / "loss.png"
        picture = ""
        if plot.is_file():
            encoded = base64.b64encode(plot.read_bytes()).decode()
            picture = (
                f"<img alt='losses by step' style='max-width:560px;width:100%' src='data:image/png;base64,{encoded}'>"
            )
        return f"<table>{table}</table>{picture}"


def runs(*folders: "str | os.PathLike[str]") -> list[Run]:
    """All runs below ``folders`` (by default outputs/), the newest last. ``runs("outputs", "multirun")`` has the jobs of sweeps too.

    Raises:
        ConfigError: there is no such folder.
    """
    found = []
    for folder in map(Path, folders or ("outputs",)):
        if not folder.is_dir():
            if folders:
                raise ConfigError(f"{folder}: no such folder")
            continue
        found += [file for file in folder.rglob(claim.CONFIG) if file.is_file()]
    return [Run(file.parent) for file in sorted(found, key=lambda file: file.stat().st_mtime)]
