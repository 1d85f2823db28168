"""An Optuna study of a sweep: samplers and pruners over a search space, stored in the sweep's folder. No torch.

The storage is Optuna's journal (``optuna/journal.log``), which needs no database and survives a kill at any time.
"""

import itertools
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from hydraft.config.bounds import LARGEST_SEED
from hydraft.errors import ConfigError
from hydraft.sweep import halving
from hydraft.sweep.results import objective
from hydraft.sweep.search_space import Space
from hydraft.system import line_file, ownership

T = TypeVar("T")

NAME = "sweep"
TRIALS = 20
OVER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": TPESampler,
    "random": RandomSampler,
    "cmaes": CmaEsSampler,
    "qmc": QMCSampler,
    "nsga2": NSGAIISampler,
    "grid": RandomSampler,  # not used: every point is queued
}
PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "none": NopPruner,
    "median": MedianPruner,
    **dict.fromkeys(halving.KINDS, NopPruner),  # halving.py decides
}


@dataclass(frozen=True)
class Method:
    """How the space is searched."""

    trials: int | None = None
    """Jobs in all, including those before a resume. None: every point of a grid, otherwise 20."""
    sampler: str = "tpe"
    """``tpe``, ``random``, ``cmaes``, ``qmc``, ``nsga2`` or ``grid``."""
    sampler_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of Optuna's class."""
    pruner: str = "none"
    """``median``, ``successive_halving``, ``hyperband`` or ``none``. The resource of ``median`` is the number of evaluations during
    training, that of the others the optimizer steps."""
    pruner_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of Optuna's class, or fields of ``halving.Options``."""
    shuffle: bool = False
    """Whether the points of a grid are tried in a random order, so that the first ones cover the space."""
    seed: int = 42
    """Seed of the sampler."""


class _Journal(JournalFileBackend):
    """Optuna's journal, in which every line is whole; Optuna cannot read one with a line that a full disk cut off."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries, on the disk when this returns."""
        with get_lock_file(self._lock):
            line_file.append(Path(self._file_path), *logs, sync=True)


class Search:
    """A study: which job to try next, and when to stop one."""

    def __init__(self, folder: Path, space: Space, objectives: list[str], method: Method) -> None:
        """Create the study in the sweep's ``folder``, or load the one that is there.

        Raises:
            ConfigError: the method is wrong or does not fit the space, or the folder has a search with other objectives.
        """
        if len(objectives) > 1 and method.pruner != "none":
            raise ConfigError(
                f"hydra.sweeper.pruner={method.pruner}: Optuna prunes by one objective, sweep.objective has {len(objectives)}"
            )
        if method.trials is not None and method.trials < 1:
            raise ConfigError(f"hydra.sweeper.trials={method.trials}: must be at least 1, or null for {TRIALS}")
        self.space = space
        self.objectives = objectives
        self.trials = method.trials or TRIALS
        pruner, axes = _pruner(method), space.grid() if method.sampler == "grid" else {}
        _sampler(method, method.seed)  # refused before anything is written
        _refuse_pickles(folder, method)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", module="optuna")
        (folder / "optuna").mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(_Journal(str(folder / "optuna" / "journal.log")))
        self.study = _study(storage, space, objectives, pruner)
        seen = self.study.get_trials(deepcopy=False)
        # With the same seed a resumed sampler would draw the first values again.
        self.study.sampler = _sampler(method, (method.seed + len(seen)) % (LARGEST_SEED + 1))
        if method.sampler == "grid":  # Optuna's own grid sampler runs only in its own loop
            grid = list(itertools.product(*axes.values()))
            if method.shuffle:
                random.Random(method.seed).shuffle(grid)
            for point in grid:
                self.study.enqueue_trial(dict(zip(axes, point, strict=True)), skip_if_exists=True)
            self.trials = min(method.trials or len(grid), len(grid))
        self._left = [trial.number for trial in seen if trial.state is TrialState.RUNNING]
        self._evaluations: dict[int, dict[int, float]] = {}
        self._by_steps = method.pruner in halving.KINDS

    def ask(self) -> Trial | None:
        """The next trial: first those that were interrupted; None if there are no more."""
        if self._left:
            number = self._left.pop(0)
            return Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)
        out = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state is not TrialState.WAITING]
        if len(out) >= self.trials:
            return None
        return self.study.ask(self.space.axes)

    @property
    def interrupted(self) -> bool:
        """Whether there are trials of an earlier command that ``ask`` returns first."""
        return bool(self._left)

    @property
    def untried(self) -> int:
        """The number of queued points that have not been tried."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def overrides(self, trial: Trial) -> list[str]:
        """The overrides of a trial's job."""
        return self.space.overrides(trial.params)

    def evaluated(self, trial: Trial, step: int, value: float) -> bool:
        """Report a running job's objective after ``step`` optimizer steps; whether the job should stop."""
        known = self._evaluations.setdefault(trial.number, {})
        if step in known:  # reported again after a resume
            return False
        known[step] = value
        trial.report(value, step if self._by_steps else len(known))
        return trial.should_prune()

    def ended(self, trial: Trial, values: list[float] | None, pruned: bool = False) -> None:
        """Report the objectives of a job at its end; None if it failed. A pruned one keeps its last evaluation."""
        if pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif values is None:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, values)

    def best(self) -> list[FrozenTrial]:
        """The best trial; with several objectives, the Pareto front."""
        if not self.study.get_trials(states=(TrialState.COMPLETE,)):
            return []
        return self.study.best_trials

    def counts(self) -> dict[str, int]:
        """Number of trials in each final state."""
        found = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        return {state.name.lower(): found.count(state) for state in OVER if state in found}


def _study(storage: JournalStorage, space: Space, objectives: list[str], pruner: BasePruner) -> Study:
    """The study of this space. If the last study had another space, a new one with those of its trials that are in this space.

    Raises:
        ConfigError: the last study had other objectives.
    """
    axes = {key: distribution_to_json(axis) for key, axis in space.axes.items()}
    names = optuna.get_all_study_names(storage)
    last = None if not names else optuna.load_study(study_name=f"{NAME}-{len(names)}", storage=storage, pruner=pruner)
    if last is not None and last.user_attrs["objectives"] != objectives:
        raise ConfigError(f"sweep.objective={objectives}: the sweep was started with {last.user_attrs['objectives']}")
    if last is not None and last.user_attrs["axes"] == axes:
        return last
    directions = [objective.direction(name) for name in objectives]
    study = optuna.create_study(
        storage=storage, study_name=f"{NAME}-{len(names) + 1}", directions=directions, pruner=pruner
    )
    study.set_user_attr("objectives", objectives)
    study.set_user_attr("axes", axes)
    for trial in last.trials if last is not None else []:
        inside = trial.params.keys() == space.axes.keys() and all(
            _contains(axis, trial.params[key]) for key, axis in space.axes.items()
        )
        if inside and trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            trial.distributions = space.axes
            study.add_trial(trial)
    return study


def _refuse_pickles(folder: Path, method: Method) -> None:
    """CMA-ES keeps its state as a pickle in the journal (optuna, samplers/_cmaes.py), which may contain code."""
    journal = folder / "optuna" / "journal.log"
    if method.sampler == "cmaes" and journal.exists() and (doubt := ownership.doubt(journal.parent, journal.name)):
        raise ConfigError(
            f"sweep.resume={folder}: {doubt}, and hydra.sweeper.sampler=cmaes would read pickles there, which may contain code: "
            "use another sampler, or a new sweep"
        )


def _contains(axis: BaseDistribution, value: Any) -> bool:
    if isinstance(axis, CategoricalDistribution):
        return value in axis.choices
    return isinstance(value, (int, float)) and axis._contains(axis.to_internal_repr(value))


def _sampler(method: Method, seed: int) -> BaseSampler:
    return _build("sampler", SAMPLERS, method.sampler, {"seed": seed, **method.sampler_options})


def _pruner(method: Method) -> BasePruner:
    if method.pruner in halving.KINDS:
        halving.options(method.pruner, method.pruner_options)  # refused before anything is written
        return NopPruner()
    return _build("pruner", PRUNERS, method.pruner, method.pruner_options)


def _build(kind: str, known: dict[str, Callable[..., T]], name: str, options: dict[str, Any]) -> T:
    if name not in known:
        raise ConfigError(f"hydra.sweeper.{kind}={name}: no such {kind} (there are: {', '.join(sorted(known))})")
    try:
        return known[name](**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"hydra.sweeper.{kind}_options={options}: {error}") from None
