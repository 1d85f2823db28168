"""Finds the tasks of benchmarks: those of lm-evaluation-harness by their names, and task files of one's own. No torch.

The data set of a task is read here too, so what is missing is refused before a model is loaded.
"""

import difflib
import logging
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.evaluation.benchmarks import task_files
from hydraft.system import program
from hydraft.system.source_tree import ROOT

ALIASES = {"ceval": "ceval-valid"}
"""Common names of benchmarks that lm-evaluation-harness has under another one."""

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Requested:
    """Benchmarks that are to be run."""

    names: list[str]
    """Names of tasks, groups and tags, YAML files of tasks, and folders of them."""
    shots: int | None = None
    """Solved examples before each question; None for those of each task."""
    limit: int | None = None
    """Questions of each task; None for all."""
    chat: bool = False
    """Whether prompts are formatted with the model's chat template."""
    code: bool = False
    """Whether task files may run Python code that comes with them."""
    setting: str = "benchmark"
    """The setting of ``names``, for messages."""


@dataclass
class Tasks:
    """Loaded tasks."""

    requested: Requested
    loaded: dict[str, Any]
    """What ``TaskManager.load`` returns: ``tasks``, ``groups`` and ``group_map``."""
    reported: list[str] = field(default_factory=list)
    """Those whose scores are reported: the requested tasks, and the groups that have scores of their own."""
    notes: list[str] = field(default_factory=list)
    """Lines to print."""


def of_run(config: Config) -> Requested:
    """The benchmarks of a training run."""
    data = config.data
    return Requested(
        data.benchmark,
        data.benchmark_shots,
        data.benchmark_limit,
        data.benchmark_chat,
        config.model.trust_remote_code,
        "data.benchmark",
    )


def is_path(name: str) -> bool:
    """Whether a benchmark is a file or a folder, not the name of a task."""
    return Path(name).suffix in SUFFIXES or "/" in name or Path(name).expanduser().exists()


def _place(name: str) -> str:
    """The task file of a shipped benchmark (``zh_general``); another name as it is."""
    shipped = ROOT / "data" / f"{name}.yaml"
    return name if is_path(name) or not shipped.is_file() else str(shipped)


def load(requested: Requested) -> Tasks:
    """Find and load the tasks, with their data sets.

    Raises:
        ConfigError: the package is missing, there is no such task, or its data set is not available.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError(
            f"{requested.setting}={_typed(requested.names)} needs a package that is not installed: {program.install('benchmark')}"
        )
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it reports each setting that it applies
    import datasets
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    _sandbox()
    names = [_place(name) for name in requested.names]
    paths = [name for name in names if is_path(name)]
    own = task_files.read(paths, requested.setting, requested.code)
    named = [ALIASES.get(name, name) for name in names if name not in paths]
    manager = TaskManager(include_defaults=bool(named or own.others))
    manager.task_index.update(own.entries)
    known = [*manager.all_tasks, *own.entries]
    for name in named:
        if name not in manager.task_index:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else "; lm-eval ls tasks lists all"
            raise ConfigError(f"{requested.setting}={name}: no such task, and no file of that name{hint}")
    for name in own.others:
        if name not in manager.task_index:
            raise ConfigError(
                f"{requested.setting}={_typed(paths)}: a group names the task {name}, which does not exist"
            )
    wanted = list(dict.fromkeys([*named, *own.requested]))
    tasks = Tasks(requested, _read(manager, wanted, requested))
    tasks.reported = _reported(tasks.loaded, wanted)
    _check(tasks)
    return tasks


def _sandbox() -> None:
    """Render the templates of tasks in Jinja's sandbox: as lm-evaluation-harness renders them, they could run any Python."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    plain = utils.env
    if not isinstance(plain, SandboxedEnvironment):
        utils.env = SandboxedEnvironment(
            loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
        )
        utils.env.filters.update(plain.filters)


def _read(manager: Any, names: list[str], requested: Requested) -> dict[str, Any]:
    """Load the tasks of these names.

    Raises:
        ConfigError: a data set is not available, or a task cannot be made from its file.
    """
    found: list[Any] = []
    for name in names:
        try:
            found.append(manager.load([name]))
        except Exception as error:  # of the hub, of datasets, or of the code of a task
            raise ConfigError(f"{requested.setting}={name}: {_why(error)}") from error
    merged: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for one in found:
        for part, values in merged.items():
            values.update(one.get(part, {}))
    return merged


def _why(error: Exception) -> str:
    """Why a task could not be loaded, in one line."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    causes = [error]
    while causes[-1].__cause__ or causes[-1].__context__:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)  # type: ignore[arg-type]
    network = {
        "ConnectionError",
        "OfflineModeIsEnabled",
        "LocalEntryNotFoundError",
        "ConnectError",
        "ConnectTimeout",
        "ProxyError",
    }
    if any(type(cause).__name__ in network for cause in causes):
        return f"its data set is neither in the cache nor to be downloaded ({line}): run it once with a connection, or copy HF_HOME from where it was"
    if type(error).__name__ in ("DatasetNotFoundError", "GatedRepoError"):
        return f"its data set was not found on the hub, or needs a login ({line})"
    return f"cannot be loaded: {line}"


def _reported(loaded: dict[str, Any], wanted: list[str]) -> list[str]:
    """The requested tasks and groups; of a group without scores of its own, those in it."""
    found: list[str] = []

    def add(name: str) -> None:
        group = loaded["groups"].get(name)
        if group is not None and not group.aggregate_metric_list:
            for child in group.child_names:
                add(child)
        elif name not in found:
            found.append(name)

    for name in wanted:
        if name in loaded["groups"] or name in loaded["tasks"]:
            add(name)
        else:  # a tag
            for task in loaded["tasks"].values():
                if name in _tags(task):
                    add(task.task_name)
    return found


def _tags(task: Any) -> list[str]:
    tags = task.get_config("tag") or []
    return [tags] if isinstance(tags, str) else list(tags)


def _check(tasks: Tasks) -> None:
    """Refuse tasks that cannot be run here.

    Raises:
        ConfigError: a task runs generated programs, has images, or has no examples for ``shots``.
    """
    requested = tasks.requested
    for name, task in tasks.loaded["tasks"].items():
        where = f"{requested.setting}={name}"
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(f"{where}: runs programs that the model writes, which is not supported: leave it out")
        if getattr(task, "MULTIMODAL", False):
            raise ConfigError(f"{where}: has images or sounds, and the model reads text: leave it out")
        if not requested.shots:
            continue
        if task.get_config("num_fewshot") == 0:
            tasks.notes.append(f"{where}: is always asked without examples: {requested.setting}_shots does not apply")
        elif task.fewshot_docs() is None or len(list(task.fewshot_docs())) <= requested.shots:
            raise ConfigError(
                f"{requested.setting}_shots={requested.shots}: {name} has no {requested.shots} examples to show: use {requested.setting}_shots=0"
            )


def _typed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"[{','.join(names)}]"
