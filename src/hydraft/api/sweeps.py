"""A sweep in Python: start one, and read what came of it. No torch."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydraft.api import composition, overrides
from hydraft.api.command import Command
from hydraft.api.progress import SweepBar
from hydraft.api.run import Run
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.infer import places
from hydraft.runs import claim
from hydraft.sweep import sweep_folder
from hydraft.sweep.results import html, reading, write
from hydraft.sweep.results import table as results_table
from hydraft.sweep.results.outcome import Sweep as Outcomes

if TYPE_CHECKING:
    from pandas import DataFrame

ROWS = 20
"""Rows of the table in a notebook."""


class Sweep:
    """A sweep that runs or has ended. Its files are read at each access."""

    folder: Path
    """Its folder, as an absolute path."""

    def __init__(self, folder: "str | os.PathLike[str]" = "last") -> None:
        """Open the sweep in ``folder``, or of that name below multirun/; ``last`` is the newest one.

        Raises:
            ConfigError: there is no sweep.
        """
        named = str(Path(folder).expanduser())
        self.folder = write.find(None if named == "last" else named).absolute()
        self.read()

    def __repr__(self) -> str:
        return f"Sweep({str(self.folder)!r}, {self.status})"

    def read(self) -> Outcomes:
        """Its jobs with their settings, scores and states, the best first; with several seeds, its points.

        Raises:
            ConfigError: there is no sweep in the folder.
        """
        return reading.read(self.folder)

    @property
    def status(self) -> str:
        """The number of jobs in each state: ``3 done, 1 failed``."""
        return self.read().counts

    @property
    def table(self) -> "DataFrame":
        """A row for each job, or with several seeds for each point, the best first: the columns of ``summary.csv``."""
        from pandas import DataFrame

        head, *rows = results_table.rows(self.read())
        found = DataFrame(rows, columns=head, dtype=object).infer_objects()
        whole = [name for index, name in enumerate(head) if _are_whole([row[index] for row in rows])]
        return found.astype(dict.fromkeys(whole, "Int64"))  # which may have gaps

    @property
    def runs(self) -> list[Run]:
        """The runs of all jobs that were started, the best first."""
        return [Run(job.folder) for job in self.read().jobs if (job.folder / claim.CONFIG).is_file()]

    @property
    def best(self) -> Run:
        """The run of the best job, by the first objective; with several seeds, of the best seed of the best point.

        Raises:
            ConfigError: no job has a result.
        """
        found = self.read()
        if found.best is None:
            raise ConfigError(f"{self.folder}: no job has a result ({found.counts})")
        return Run(places.best_seed(found.best, found.minimize[0]).folder)

    @property
    def findings(self) -> list[str]:
        """With several seeds: sentences on what can be told apart."""
        return self.read().findings

    @property
    def report(self) -> Path:
        """The page with its table and charts, which is written if it is missing."""
        page = self.folder / "report.html"
        return page if page.is_file() else html.write(self.read())

    def _repr_html_(self) -> str:
        found, table = self.read(), self.table
        shown = [
            "rank",
            *([] if found.axes else ["job"]),
            *(axis.key for axis in found.axes),
            *found.objectives,
            "seconds",
            "state",
        ]
        columns = [name for name in shown if name in table.columns]
        more = f"<p>… and {len(table) - ROWS} more</p>" if len(table) > ROWS else ""
        return f"{table[columns].head(ROWS).to_html(index=False, na_rep='', border=0)}{more}"


def sweep(
    config: Config | str | None = None,
    *given: str,
    params: Mapping[str, Any] | None = None,
    folder: "str | os.PathLike[str] | None" = None,
    progress: bool = True,
) -> Sweep:
    """Run the combinations of values, as ``python train.py -m`` does, and wait for the end.

    ``sweep("lora.r=4,8", "train.learning_rate=1e-3,2e-3")`` has four jobs, and so has
    ``sweep(config, params={"lora.r": [4, 8], "train.learning_rate": [1e-3, 2e-3]})``.

    Args:
        config: what all jobs have in common, or the first override.
        given: overrides as on the command line, such as ``lora.r=4,8``, ``sweep=rank_lr`` and ``sweep.replicas=3``.
        params: values to try, by setting; a text is what would be typed, such as ``"interval(1e-4, 1e-3)"`` for a search.
        folder: of the sweep; by default a new one below multirun/.
        progress: whether to show a bar and what the sweep prints.

    Raises:
        ConfigError: a setting has to be changed; nothing was started.
        RunFailed: not all jobs are done; ``Sweep("last")`` has the results of the others.
        RunStopped: it was interrupted, and can be resumed by the same call with ``sweep.resume=last``.
    """
    typed = [config, *given] if isinstance(config, str) else list(given)
    typed += [f"{key}={_values(key, values)}" for key, values in (params or {}).items()]
    base = overrides.of(config) if config is not None and not isinstance(config, str) else []
    for override in typed:
        _refuse(override)
    keys = {_key(override) for override in typed}
    place, where = _place(typed, folder)
    arguments = ["-m", *(line for line in base if _key(line) not in keys), *typed, *where]
    command = Command(arguments)
    with SweepBar(place, progress) as bar:
        command.wait(bar.follow)
    return Sweep(place)


def _are_whole(values: list[Any]) -> bool:
    """Whether values are whole numbers, some of which may be missing."""
    return {type(value) for value in values} <= {int, type(None)} and any(value is not None for value in values)


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _values(key: str, values: Any) -> str:
    """Several values in Hydra's grammar."""
    if isinstance(values, str):
        return values
    if not isinstance(values, Iterable) or isinstance(values, Mapping):
        raise ConfigError(f"{key}={values}: give a list of the values to try")
    found = [overrides.written(value) for value in values]
    if not found:
        raise ConfigError(f"{key}=[]: has no value to try")
    return ",".join(found)


def _refuse(override: Any) -> None:
    """Refuse what is no override of a sweep.

    Raises:
        ConfigError: says where it belongs.
    """
    if not isinstance(override, str):
        raise ConfigError(
            f"{override!r}: an override is a text, such as 'lora.r=4,8'; values by setting are params={{…}}"
        )
    if override.startswith("-"):
        raise ConfigError(f"{override}: is a flag of the command line: leave it out")
    if _key(override) == "hydra.sweep.dir":
        raise ConfigError(f"{override}: is given as hydraft.sweep(…, folder=…)")
    if _key(override) == "mode":
        raise ConfigError(f"{override}: a sweep trains its jobs: leave it out, or use hydraft.plan(config)")


def _place(typed: list[str], folder: "str | os.PathLike[str] | None") -> tuple[Path, list[str]]:
    """The sweep's folder, and the overrides that give it.

    Raises:
        ConfigError: it is given twice, or there is no sweep to resume.
    """
    named = {_key(override): override.partition("=")[2] for override in typed if _key(override).startswith("sweep.")}
    name, resumed = named.get("sweep.name"), named.get("sweep.resume")
    if folder is not None:
        if name or resumed:
            raise ConfigError(f"folder={folder}: the overrides name the sweep's folder too: leave one of them out")
        place = Path(os.fspath(folder)).expanduser().absolute()
    elif resumed:
        return sweep_folder.find(resumed).absolute(), []
    elif name:
        return (sweep_folder.ROOT / name).absolute(), []
    else:
        place = composition.new_folder(sweep=True)
    return place, [f"hydra.sweep.dir={overrides.written(str(place))}"]
