"""Resuming a run: its saved config, and which settings may be changed. No torch."""

import dataclasses
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hydraft.config import foreign, moved, printed, text
from hydraft.config.choices import Launcher
from hydraft.config.schema import Config, load_config
from hydraft.config.train import AUTO
from hydraft.errors import ConfigError
from hydraft.runs import claim, run_folder

CHANGEABLE = (
    "mode", "resume", "cluster", "zero", "tracker", "train.epochs", "train.max_steps", "train.log_every", "train.save",
    "train.save_every", "train.save_minutes", "train.keep_last", "train.grace", "train.eval_every",
    "train.eval_loss_only", "train.show_answers", "train.patience", "train.min_delta", "train.best_by", "train.keep",
    "train.micro_batch_size",
    "train.gradient_accumulation_steps", "train.gradient_checkpointing", "train.compile", "train.profile", "data.eval",
    "data.eval_limit",
    "data.eval_max_new_tokens", "train.on_divergence", "train.loss_spike", "train.zero_grad_steps", "train.max_rewinds",
    "train.auto_micro_batch", "kernels", "model.cache_quantised",
)  # fmt: skip
"""Settings, and sections, that do not change the course of the training, or only make it longer."""


def merged(composed: DictConfig, overrides: list[str]) -> tuple[Config, Config, Path]:
    """The config of the run that ``resume`` names, with the other overrides applied to it.

    Args:
        composed: the config that Hydra composed from the command line.
        overrides: the overrides of the command line; that of a group (``zero=stage2``) replaces its whole section.

    Returns:
        That config, the saved one, and the run's folder.

    Raises:
        ConfigError: there is no such run, or it is another user's and has settings that this command line must give.
    """
    folder = run_folder.find(str(composed.resume), "resume")
    saved = load_config(folder / "config.yaml")
    base = OmegaConf.structured(text.escaped(saved))
    if saved.cluster.launcher is Launcher.joined:  # this command may use another launcher
        base.cluster.launcher = Launcher.auto
    given = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(given, dict)
    given = moved.composed(given)
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0]
        with suppress(KeyError):  # a group without a section (experiment), or Hydra's own
            if key != "resume":
                OmegaConf.update(base, key, text.escaped(_under(given, key)))
    config = text.to_object(Config, OmegaConf.to_container(base, resolve=True))
    foreign.refuse(config, given, folder)
    return config, saved, folder


def _under(values: Any, key: str) -> Any:
    """What ``values`` have under a dotted key; KeyError if they have nothing there."""
    for part in key.split("."):
        values = values[int(part) if isinstance(values, list) else part]
    return values


def changes(saved: Config, config: Config, folder: Path) -> list[str]:
    """The differences from the saved config, one line each.

    Raises:
        ConfigError: a setting differs that may not be changed on resume.
    """
    changed = differences(saved, config)
    for name, (before, after) in changed.items():
        if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in CHANGEABLE):
            raise ConfigError(
                f"{name}={after}: {folder} was started with {name}={before}, which cannot be changed on resume: start a new run"
            )
    if config.global_batch_size != saved.global_batch_size:
        raise ConfigError(_batch(saved, config))
    return [f"{name}={after} (was {before})" for name, (before, after) in changed.items()]


def adopted(config: Config, folder: Path) -> Config:
    """``config`` with what the run in ``folder`` has decided or changed: recomputation, skipped steps, a smaller micro-batch."""
    if not claim.holds_run(folder, config):
        return config
    before = claim.read(folder).train
    train = config.train
    taken: dict[str, Any] = {}
    if not train.pass_over:
        taken["pass_over"] = before.pass_over
    if train.gradient_checkpointing == AUTO:
        taken["gradient_checkpointing"] = before.gradient_checkpointing
    sizes = ("micro_batch_size", "gradient_accumulation_steps")
    old, new = ([getattr(section, name) for name in sizes] for section in (before, train))
    if train.auto_micro_batch and old[0] < new[0] and math.prod(old) == math.prod(new):
        taken |= dict(zip(sizes, old, strict=True))
    return dataclasses.replace(config, train=dataclasses.replace(train, **taken))


def same(config: Config, folder: Path) -> bool:
    """Whether ``folder`` holds a run with this config; false if it holds none.

    Raises:
        ConfigError: it holds another run, or something else.
    """
    if not claim.holds_run(folder, config):
        return False
    different = differences(claim.read(folder), config)
    if different:
        name, (before, after) = next(iter(different.items()))
        raise ConfigError(
            f"hydra.run.dir={folder}: a run is in it already, with {name}={before}, not {after}: give another folder, "
            f"or resume it: {printed.override('resume', folder)}"
        )
    return True


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Every setting that differs, by its dotted name; the model sizes that are not used do not count."""
    old, new = _flat(before), _flat(after)
    return {
        name: (old.get(name), new.get(name))
        for name in old | new
        if old.get(name) != new.get(name) and not name.startswith(("model.sizes.", "resume", "sweep."))
    }


def _flat(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{name}.{key}" if name else str(key))
        else:
            found[name] = getattr(value, "value", value)

    walk(dataclasses.asdict(config), "")
    return found


def _batch(saved: Config, config: Config) -> str:
    """The message for a changed global batch: which setting keeps it."""
    round_size = config.train.micro_batch_size * config.world_size
    steps, rest = divmod(saved.global_batch_size, round_size)
    hint = "use another cluster or train.micro_batch_size" if rest else f"use train.gradient_accumulation_steps={steps}"
    return (
        f"cluster={config.cluster.nodes}x{config.cluster.ranks_per_node}: the global batch would be {config.global_batch_size} "
        f"records, and the run was started with {saved.global_batch_size}: {hint}"
    )
