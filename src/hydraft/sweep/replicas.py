"""The runs of each point of a sweep with several seeds (``sweep.replicas``): ordinary jobs that differ in their seed. No torch."""

from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hydraft.config.bounds import LARGEST_SEED
from hydraft.data import held_out
from hydraft.errors import ConfigError
from hydraft.sweep.results.points import EVAL_SEED, SEED


def check(config: DictConfig, swept: Sequence[str]) -> None:
    """Refuse what would give seeds another meaning than that of replicas.

    Args:
        config: of the sweep.
        swept: the keys with several values.

    Raises:
        ConfigError: the seed is swept too, or there is nothing that ``sweep.decide`` could do.
    """
    chosen = config.sweep
    if chosen.replicas > 1 and SEED in swept:
        raise ConfigError(
            f"sweep.replicas={chosen.replicas} runs each point with several seeds, and seed has several values too: leave one of them out"
        )
    if chosen.decide and chosen.replicas < 2:
        raise ConfigError(
            "sweep.decide=true needs points with several seeds: use sweep.replicas=3, or sweep.decide=false"
        )
    if chosen.decide and chosen.max_replicas <= chosen.replicas:
        raise ConfigError(
            f"sweep.max_replicas={chosen.max_replicas}: sweep.decide=true adds seeds to the {chosen.replicas} of sweep.replicas: give more, "
            "or use sweep.decide=false"
        )


def refuse_single(config: DictConfig, swept: Sequence[str]) -> None:
    """Refuse a sweep of one job, of which ``-m`` alone makes a sweep. With a launcher such as submitit it is how that job is submitted.

    Raises:
        ConfigError: nothing has several values.
    """
    here = str(config.hydra.launcher._target_).startswith(("hydra_plugins.hydraft_", "hydra._internal."))
    if here and not swept and config.sweep.replicas == 1 and config.sweep.resume is None:
        raise ConfigError(
            "-m: nothing varies: give a setting several values, such as lora.r=4,8, or a ready-made sweep, such as sweep=rank_lr; "
            "for a single run leave -m out"
        )


def axes(found: Sequence[str], config: DictConfig) -> list[str]:
    """The keys by which jobs are named: with replicas also the seed, but not ``data.eval_seed``, which follows from it."""
    if config.sweep.replicas == 1:
        return list(dict.fromkeys(found))
    return list(dict.fromkeys([*(key for key in found if key != EVAL_SEED), SEED]))


def expanded(loader: ConfigLoader, config: DictConfig, points: Sequence[Sequence[str]]) -> list[list[str]]:
    """The overrides of all runs of ``points``. A point that cannot be composed stays as it is, and is refused later."""
    count = config.sweep.replicas
    return (
        [run for point in points for run in runs(loader, config, point, range(count))]
        if count > 1
        else list(map(list, points))
    )


def runs(loader: ConfigLoader, config: DictConfig, point: Sequence[str], numbers: Sequence[int]) -> list[list[str]]:
    """The overrides of these runs of a point, numbered from 0: the first has the seed of ``point`` itself.

    Args:
        loader: composes the config of a job of the sweep with this ``config``.
    """
    try:
        composed = loader.load_sweep_config(config, list(point))
        return [overrides(point, composed, number) for number in numbers]
    except (HydraException, OmegaConfBaseException):
        return [list(point)]


def overrides(point: Sequence[str], composed: Any, number: int) -> list[str]:
    """The overrides of run ``number`` of a point.

    All runs hold out the same records: a share of the training records is that of the point's seed.

    Args:
        composed: the config of the point.

    Raises:
        ConfigError: there is no such seed.
    """
    seed, data = int(composed.seed), composed.data
    if seed + number > LARGEST_SEED:
        raise ConfigError(f"seed={seed}: sweep.replicas needs seeds above it, and the largest is {LARGEST_SEED}")
    if number == 0:
        return list(point)
    kept = [one for one in point if one.lstrip("+").partition("=")[0] not in (SEED, EVAL_SEED)]
    held = [] if held_out.share(data) is None else [f"{EVAL_SEED}={held_out.seed_of(data, seed)}"]
    return [*kept, *held, f"{SEED}={seed + number}"]
