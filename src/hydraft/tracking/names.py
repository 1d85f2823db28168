"""The name of a run on a dashboard: model, method and what differs, such as ``tiny-nf4-lora8-stage2 · lr=1e-3``. No torch."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from hydraft.config.lora import LoraMethod
from hydraft.config.objective import ObjectiveKind
from hydraft.config.schema import Config
from hydraft.system import files
from hydraft.system.redaction import redact_text

LONGEST = 100
"""Characters of a name; wandb takes 128."""

SHORT = {"learning_rate": "lr"}
"""Parts of settings that have a shorter usual name."""

SAID = (
    "model",
    "model.size",
    "quant",
    "quant.kind",
    "lora",
    "lora.r",
    "lora.method",
    "zero",
    "zero.stage",
    "objective",
)
"""Overrides that the first part of a name has in it."""

SILENT = ("hydra", "tracker", "mode", "resume", "sweep")
"""Sections that say nothing about what is trained."""


def title(config: Config, folder: Path, earlier: str | None = None) -> str:
    """The name of the run in ``folder``.

    Args:
        earlier: its name before it was resumed, which it keeps unless ``tracker.name`` is given.
    """
    job = folder.name if in_sweep(folder) else ""
    if config.tracker.name is not None:
        return _bounded(config.tracker.name, job)
    return earlier or _bounded(method(config), job or ", ".join(_typed(folder)))


def in_sweep(folder: Path) -> bool:
    """Whether the run is a job of a sweep, whose folder is named by what differs between the jobs."""
    return any((folder.parent / name).exists() for name in ("sweep.json", "multirun.yaml"))


def method(config: Config) -> str:
    """Model, quantisation, what is trained, objective and ZeRO stage, as in ``tiny-nf4-lora8-stage2``."""
    full = config.lora.method is LoraMethod.none
    parts = [
        config.model.name,
        config.quant.kind.value,
        "full" if full else f"{config.lora.method.value}{config.lora.r}",
    ]
    parts += [] if config.objective.kind is ObjectiveKind.sft else [config.objective.kind.value]
    return "-".join(part for part in [*parts, f"stage{config.zero.stage}"] if part != "none")


def _typed(folder: Path) -> Iterator[str]:
    """The overrides of the run's command that say what is trained, with short names; the last one of each setting."""
    command: Sequence[object] = files.read_object(folder / "environment.json").get("command") or []
    words = [str(word).lstrip("+").partition("=") for word in command[1:]]
    last = {key: value for key, equals, value in words if equals and not key.startswith(("-", "~"))}
    for key, value in last.items():
        if key in SAID or key.partition(".")[0] in SILENT:
            continue
        name, text = key.rpartition(".")[2], value.strip("'\"")
        text = text.rstrip("/").rpartition("/")[2] if "/" in text else text
        yield text if key == "experiment" else f"{SHORT.get(name, name)}={text}"


def _bounded(first: str, rest: str) -> str:
    whole = redact_text(" ".join((f"{first} · {rest}" if rest else first).split()))
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 1].rstrip()}…"
