"""Reads task files of one's own, in the YAML of lm-evaluation-harness. No torch.

Their ``data_files`` may stand beside them. Python code that they name (``!function``, metrics of other libraries) is not run without
permission.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydraft.errors import ConfigError


@dataclass
class OwnTasks:
    """The tasks of files and folders."""

    entries: dict[str, Any] = field(default_factory=dict)
    """By name: what ``TaskManager.task_index`` holds."""
    requested: list[str] = field(default_factory=list)
    """Names of the tasks and groups that the files and folders stand for."""
    others: list[str] = field(default_factory=list)
    """Names in groups that are no entries: tasks of lm-evaluation-harness."""


def read(paths: list[str], setting: str, code: bool) -> OwnTasks:
    """The tasks in these files and folders.

    Raises:
        ConfigError: one does not exist, is no task, or has code that is not allowed.
    """
    own = OwnTasks()
    members: set[str] = set()
    for name in paths:
        path, where = Path(name).expanduser(), f"{setting}={name}"
        if not path.exists():
            raise ConfigError(f"{where}: no such file or folder")
        files = sorted([*path.rglob("*.yaml"), *path.rglob("*.yml")]) if path.is_dir() else [path]
        if not files:
            raise ConfigError(f"{where}: no task file in it (.yaml)")
        for file in files:
            key, entry, inside = _entry(file, where, code)
            if key in own.entries:
                raise ConfigError(f"{where}: {file} has the name {key}, as another file does")
            own.entries[key] = entry
            members.update(inside)
    own.requested = [key for key in own.entries if key not in members]
    own.others = sorted(members - own.entries.keys())
    return own


def _entry(file: Path, where: str, code: bool) -> tuple[str, Any, list[str]]:
    """The name of a task or group, its entry, and the names that it has inside."""
    from lm_eval.tasks._index import Entry, TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        if not code:
            _refuse_code(file, where)
        config = load_yaml(file, resolve_func=code)
        kind = TaskIndex._kind_of(config)
        key = str(config["group"] if kind.name == "GROUP" else config["task"])
    except ConfigError:
        raise
    except Exception as error:
        reason = getattr(error, "problem", None) or next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{where}: {file} is not a task of lm-evaluation-harness: {reason}") from error
    options = config.get("dataset_kwargs") or {}
    if "data_files" in options:
        config["dataset_kwargs"] = {**options, "data_files": _placed(options["data_files"], file.parent)}
    listed = config.get("task") if kind.name == "GROUP" else None
    inside = [str(one) for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
    return key, Entry(name=key, kind=kind, yaml_path=None, cfg=config), inside


def _refuse_code(file: Path, where: str) -> None:
    """Refuse a file, or one that it includes, that names Python code or a metric that is code of the hub.

    Raises:
        ConfigError: names the file.
    """
    from lm_eval.api import metrics  # noqa: F401  # registers the metrics
    from lm_eval.api.registry import metric_registry
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(file, resolve_func=False, recursive=False)
    includes = config.get("include") or []
    for include in includes if isinstance(includes, list) else [includes]:
        _refuse_code((file.parent / str(include)).resolve(), where)
    named = [one for one in config.get("metric_list") or [] if isinstance(one, dict)]
    foreign = [
        one.get("metric") for one in named if one.get("hf_evaluate") or str(one.get("metric")) not in metric_registry
    ]
    if "!function" in file.read_text(encoding="utf-8") or (foreign and "process_results" not in config):
        what = f"the metric {foreign[0]}" if foreign else "Python code (!function)"
        raise ConfigError(f"{where}: {file} runs {what}: give trust_remote_code=true if you trust it")


def _placed(files: Any, folder: Path) -> Any:
    """``data_files`` with paths beside the task file; those that are not there stay as they are."""
    if isinstance(files, dict):
        return {split: _placed(one, folder) for split, one in files.items()}
    if isinstance(files, list):
        return [_placed(one, folder) for one in files]
    beside = folder / str(files)
    return str(beside.resolve()) if beside.is_file() else files
