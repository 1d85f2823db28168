"""``hydraft sweep --wandb sweep=rank_lr > sweep.yaml``: a search space as a sweep of wandb's own, whose agents start train.py. No torch.

The file has no axis, value or direction of its own: they are those of ``python train.py -m`` with the same overrides. Each agent's run is
in a folder named by wandb's ids, so that a run that is started again resumes.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydraft.config import cli, mistakes, moved, rules
from hydraft.config.choices import TrackerKind
from hydraft.config.explain import explain
from hydraft.config.schema import Config
from hydraft.errors import EXIT_REFUSED, ConfigError
from hydraft.runs import resume
from hydraft.sweep.results import axes, objective
from hydraft.system import program
from hydraft.system.source_tree import ROOT

METHODS = {"grid": "grid", "random": "random", "qmc": "random", "tpe": "bayes", "cmaes": "bayes", "nsga2": "bayes"}
"""wandb's method by the sampler of ``hydra/sweeper=search``."""

FOLDER = "hydra.run.dir=outputs/${oc.env:WANDB_SWEEP_ID}/${oc.env:WANDB_RUN_ID}"
"""Of an agent's run. The agent sets both variables."""

TRIALS = 20
"""Runs of a search without ``hydra.sweeper.trials``, as with ``python train.py -m``; wandb itself would not end."""

SUMMARY = {"memory": "peak_memory_bytes", "seconds": "train_seconds", "tokens_per_second": "tokens_per_second"}
"""Objectives that are no held-out scores, by their names on the dashboard."""


@dataclass
class _Typed:
    """The overrides of the command line."""

    fixed: list[str] = field(default_factory=list)
    """As Hydra reads them."""
    swept: list[Override] = field(default_factory=list)


def definition(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The content of the file for the overrides of a sweep, and notes on what wandb has no counterpart for.

    Raises:
        ConfigError: names the override that a sweep of wandb cannot have.
    """
    arguments = moved.overrides(arguments)
    mistakes.refuse(arguments, "train")
    typed = _typed(arguments)
    config, sweeper = _composed(typed.fixed)
    rules.check(config, None)
    if len(config.sweep.objective) > 1:
        raise ConfigError(
            f"sweep.objective={config.sweep.objective}: a sweep of wandb has one metric: use sweep.objective={config.sweep.objective[0]}"
        )
    space, whole = _space(typed, sweeper), config
    searches = str(sweeper.get("_target_", "")).startswith("hydra_plugins.hydraft_search")
    method = METHODS[str(sweeper.get("sampler", "tpe"))] if searches else "grid"
    parameters = {key: _parameter(key, axis, method) for key, axis in space.items()}
    name = config.sweep.objective[0]
    found: dict[str, Any] = {
        "program": "train.py",
        "project": config.tracker.project,
        "method": method,
        "metric": {"name": _metric(name, config), "goal": objective.direction(name)},
        "parameters": parameters,
    }
    notes: list[str] = []
    if searches and (method != "grid" or sweeper.get("trials")):
        found["run_cap"] = int(sweeper.get("trials") or TRIALS)
    pruner = str(sweeper.get("pruner", "none")) if searches else "none"
    if pruner in ("successive_halving", "hyperband"):
        found["early_terminate"] = _early(sweeper.get("pruner_options") or {}, config)
    elif pruner != "none":
        notes.append(
            f"hydra.sweeper.pruner={pruner} is left out: wandb stops runs with successive_halving and hyperband only"
        )
    plain, _ = _composed([one for one in typed.fixed if not one.startswith(("sweep=", "sweep.", "hydra."))])
    of_option = [f"{key}={_spelled(after)}" for key, (_, after) in resume.differences(plain, whole).items()]
    own = [one for one in typed.fixed if not one.startswith(("sweep=", "sweep.", "hydra."))]
    tracker = [] if config.tracker.kind is TrackerKind.wandb else ["tracker=wandb"]
    if tracker and config.tracker.kind is not TrackerKind.none:
        raise ConfigError(
            f"tracker={config.tracker.kind.value}: the runs of wandb's agents need tracker=wandb: leave it out"
        )
    in_place = program.under() == "train.py"
    head = ["${env}", "${interpreter}", "${program}"] if in_place else ["${env}", *program.typed("train").split()]
    found["command"] = [*head, *own, *of_option, *tracker, FOLDER, "${args_no_hyphens}"]
    return found, notes


def _typed(arguments: Sequence[str]) -> _Typed:
    found, parser = _Typed(), OverridesParser.create()
    for argument in arguments:
        if argument.startswith("-"):
            if argument in ("-m", "--multirun"):
                continue
            raise ConfigError(f"{argument}: hydraft sweep --wandb takes overrides, as python train.py -m does")
        override = parser.parse_override(cli.quote(argument, sweep=True))
        if override.is_sweep_override():
            found.swept.append(override)
        else:
            found.fixed.append(str(override.input_line))
    return found


def _composed(overrides: list[str]) -> tuple[Config, DictConfig]:
    """The typed config, and the sweeper's section of Hydra's."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", overrides, return_hydra_config=True)
    sweeper = OmegaConf.select(composed, "hydra.sweeper")
    plain = {key: value for key, value in composed.items_ex(resolve=False) if key != "hydra"}
    return cli.typed(OmegaConf.create(plain), Config), sweeper


def _space(typed: _Typed, sweeper: DictConfig) -> dict[str, Any]:
    """Optuna's distribution of each axis, those of the option of ``sweep`` first."""
    from hydraft.sweep.search_space import make_space  # Optuna, only where it is used

    params = OmegaConf.to_container(sweeper.params) if sweeper.get("params") else {}
    assert isinstance(params, dict)
    parser = OverridesParser.create()
    keyed = {
        one.key_or_group: one for one in parser.parse_overrides(cli.params({str(k): v for k, v in params.items()}))
    }
    for override in typed.swept:
        keyed[override.key_or_group] = override
    fixed = {one.lstrip("+").partition("=")[0] for one in typed.fixed}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", typed.fixed)
    return make_space([one for key, one in keyed.items() if key not in fixed], composed).axes


def _parameter(key: str, axis: Any, method: str) -> dict[str, Any]:
    """A distribution of Optuna in wandb's words."""
    if hasattr(axis, "choices"):
        return {"values": [_value(key, str(choice)) for choice in axis.choices]}
    whole, step, log = isinstance(axis.low, int), getattr(axis, "step", None), axis.log
    if step and (step != 1 or method == "grid"):
        count = round((axis.high - axis.low) / step) + 1
        return {"values": [axis.low + number * step for number in range(count)]}
    if method == "grid":
        raise ConfigError(f"{key}: a grid has no intervals: list values ({key}=a,b,c), or use hydra/sweeper=search")
    ends = {"min": axis.low, "max": axis.high}
    if whole:
        return (
            {"distribution": "q_log_uniform_values", "q": 1, **ends} if log else {"distribution": "int_uniform", **ends}
        )
    return {"distribution": "log_uniform_values" if log else "uniform", **ends}


def _value(key: str, text: str) -> Any:
    found = axes.split(f"{key}={text}")[1]
    return "null" if found is None else found


def _metric(name: str, config: Config) -> str:
    """The name of an objective on the dashboard."""
    if name == objective.LOSS:
        return "train/loss" if config.data.eval is None else "eval/loss"
    return SUMMARY.get(name, f"eval/{name}")


def _early(options: Any, config: Config) -> dict[str, Any]:
    """wandb's stopping of runs; it counts the evaluations, of which the first is before training."""
    every = config.train.eval_every
    if not isinstance(every, int):
        raise ConfigError(f"train.eval_every={every}: rungs are counted in steps: use a number of steps")
    first = int(options.get("min_resource", every))
    return {"type": "hyperband", "min_iter": max(1, first // every) + 1, "eta": int(options.get("reduction_factor", 3))}


def _spelled(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def main(arguments: Sequence[str]) -> int:
    """Print the file; the exit code: 0, or 2 if there is none for these overrides."""
    try:
        found, notes = definition(arguments)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        print(f"hydraft sweep --wandb: {explain(error, 'train', list(arguments))}", file=sys.stderr)
        return EXIT_REFUSED
    print("# wandb sweep sweep.yaml, and then on each machine the line that it prints: wandb agent …")
    for note in notes:
        print(f"# {note}")
        print(note, file=sys.stderr)
    print(yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=1000), end="")
    return 0
