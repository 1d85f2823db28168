"""What a dashboard gets besides metrics: config, plan, environment and sweep, with secrets redacted. No torch."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from hydraft.config.objective import ObjectiveKind
from hydraft.config.schema import Config
from hydraft.system import files
from hydraft.system.redaction import redact, redact_command, redact_text


def settings(config: Config, folder: Path) -> dict[str, Any]:
    """The resolved config, with the contents of plan.json and environment.json."""
    found = plain(dataclasses.asdict(config))
    found["model"]["sizes"] = {
        size: shape for size, shape in found["model"]["sizes"].items() if size == config.model.size
    }
    shown: dict[str, Any] = redact(
        {
            **found,
            "plan": files.read_object(folder / "plan.json"),
            "environment": files.read_object(folder / "environment.json"),
        }
    )
    return shown


def flat(settings: dict[str, Any], name: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names, for dashboards that show flat ones only."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        whole = f"{name}.{key}" if name else key
        found.update(flat(value, whole) if isinstance(value, dict) and value else {whole: value})
    return found


def group(config: Config, folder: Path) -> str | None:
    """The group of a sweep's runs: ``tracker.group``, or the sweep's name and id; None for a single run."""
    if config.tracker.group is not None:
        return config.tracker.group
    about = files.read_object(folder.parent / "sweep.json")
    if about.get("id"):
        return f"{Path(str(about.get('name') or folder.parent.name)).name}-{about['id']}"
    return folder.parent.name if (folder.parent / "multirun.yaml").exists() else None


def directions(folder: Path) -> list[str]:
    """``min`` or ``max`` for each objective of the run's sweep."""
    about = files.read_object(folder.parent / "sweep.json")
    given = about.get("direction") or about.get("directions") or ["minimize"]
    return [str(one)[:3] for one in ([given] if isinstance(given, str) else given)]


def tags(config: Config, grouped: bool) -> list[str]:
    """The run's tags: model, objective (unless ``sft``), quantisation, LoRA variant, ZeRO stage and ``tracker.tags``."""
    objective = [] if config.objective.kind is ObjectiveKind.sft else [config.objective.kind.value]
    own = [config.model.name, *objective, config.quant.kind.value, config.lora.method.value, f"zero{config.zero.stage}"]
    given = [redact_text(tag) for tag in config.tracker.tags]
    return list(dict.fromkeys([*own, *(["sweep"] if grouped else []), *given]))


@contextmanager
def published_arguments() -> Iterator[None]:
    """While the block runs, ``sys.argv`` has no secrets: a dashboard reads the command line itself."""
    before = sys.argv
    sys.argv = redact_command(before)
    try:
        yield
    finally:
        sys.argv = before


def plain(value: Any) -> Any:
    """``value`` with enums replaced by their values, in dicts and lists too."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value
