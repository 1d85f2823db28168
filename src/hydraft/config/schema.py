"""Schema of a run: every setting of train.py with its type, default, bounds and unit. No torch.

The YAML files in ``conf/`` hold values; this file and those of the larger sections beside it hold their meaning.
The root is ``Config``; that of infer.py is in ``infer.py``. Combinations of settings are checked in ``rules.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import OmegaConf

from hydraft.config import moved, saved_yaml, text
from hydraft.config.bounds import LARGEST_SEED, Effect, setting
from hydraft.config.choices import (
    Kernels,
    Loss,
    Mode,
    QuantKind,
    TrackerKind,
)
from hydraft.config.cluster import ClusterConfig
from hydraft.config.data import DataConfig
from hydraft.config.debug import DebugConfig
from hydraft.config.lora import LoraConfig
from hydraft.config.model import ModelConfig
from hydraft.config.objective import ObjectiveConfig
from hydraft.config.optimizer import OptimizerConfig
from hydraft.config.sweep import SweepConfig
from hydraft.config.train import AUTO, TrainConfig
from hydraft.config.zero import ZeroConfig
from hydraft.errors import ConfigError


@dataclass
class QuantConfig:
    """Quantisation of the frozen weights."""

    kind: QuantKind = QuantKind.none
    """How the frozen weights are stored: ``none`` (not quantised), ``nf4`` (4 bits, QLoRA) or ``int8`` (LLM.int8())."""
    double_quant: bool = True
    """nf4: quantise the constants of each block as well, which saves about 0.37 bits per weight."""


@dataclass
class KernelsConfig:
    """Kernels of the model and of the loss."""

    kind: Kernels = setting(Kernels.torch, effect=Effect.acts)
    """Library whose kernels run the model: PyTorch, Liger or Unsloth."""
    loss: Loss = Loss.auto
    """With ``kind=torch``: ``whole`` computes the loss of all trained tokens at once; ``chunked`` of 512 tokens at a time, so that not
    all logits are in memory together (the language-model head must be frozen). ``auto`` chooses by the size of the vocabulary."""


@dataclass
class TrackerConfig:
    """The dashboard that metrics are sent to."""

    kind: TrackerKind = setting(TrackerKind.none, effect=Effect.acts)
    """``wandb`` is online if a key is configured and offline otherwise; it never prompts. ``tensorboard``, ``mlflow`` and ``swanlab``
    need an extra package each."""
    project: str = setting("hydraft", effect=Effect.acts)
    """Project on the dashboard; with MLflow, the experiment."""
    name: str | None = setting(None, effect=Effect.acts)
    """Name of the run on the dashboard. null: model, method and what differs, as in ``tiny-nf4-lora8-stage2 · lr=1e-3``."""
    notes: str | None = setting(None, effect=Effect.acts)
    """Text about the run on the dashboard."""
    group: str | None = setting(None, effect=Effect.acts)
    """Group of the run on the dashboard. null: in a sweep, its name and id."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run, in addition to model, quantisation, LoRA method and ZeRO stage."""
    upload: bool = setting(False, effect=Effect.acts)
    """wandb and MLflow: upload the trained adapter (or model) as well."""


@dataclass
class Config:
    """A training run."""

    mode: Mode = Mode.train
    """``train``: run it. ``plan``: show what it would cost. ``preview``: show its data as the model would see it. ``verify``: train a few
    steps of it beside the plainest config that trains the same, on this machine, and compare them."""
    resume: str | None = None
    """Folder of a run to resume, or ``last``. Its saved config is used; other settings of the command replace those in it."""
    seed: int = setting(42, at_least=0, at_most=LARGEST_SEED)
    """Seed of the order of the records, the adapter's first weights and dropout."""
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.cluster.nodes * self.cluster.ranks_per_node

    @property
    def hpz_group(self) -> int:
        """Ranks that ZeRO++ hpZ gathers weights from in the backward pass; 1 without hpZ."""
        size = self.zero.hpz_partition_size
        return self.cluster.ranks_per_node if size == AUTO else int(size)

    @property
    def global_batch_size(self) -> int:
        """Records of an optimizer step: micro-batch x accumulation x ranks."""
        return self.train.micro_batch_size * self.train.gradient_accumulation_steps * self.world_size


def saved(config: Config, leave_out: Sequence[str] = (), earlier: bool = False) -> str:
    """``config`` as YAML, with every value, and of the model's sizes the chosen one.

    Args:
        leave_out: sections (``objective``) and settings (``data.thinking``) that are left out.
        earlier: whether settings have the names and places that earlier versions gave them (``moved.earlier``).
    """
    sizes = {size: shape for size, shape in config.model.sizes.items() if size == config.model.size}
    config = replace(config, model=replace(config.model, sizes=sizes))
    values = {name: value for name, value in text.plain(config).items() if name not in leave_out}
    for section, _, name in (each.partition(".") for each in leave_out if "." in each):
        del values[section][name]
    return saved_yaml.dumped(moved.earlier(values) if earlier else values)


def save_config(config: Config, path: Path) -> None:
    """Write ``config`` to a file, in the format of ``saved``."""
    path.write_text(saved(config), encoding="utf-8")


def load_config(path: Path) -> Config:
    """Read what ``save_config`` wrote. It is data: no interpolation in it is resolved.

    Raises:
        ConfigError: the file is not a run's config.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), text.escaped(moved.read(saved_yaml.read(path))))
        for name in sorted(OmegaConf.missing_keys(merged)):
            raise ConfigError(f"it has no {name}")
        return text.to_object(Config, OmegaConf.to_container(merged, resolve=True))
    except Exception as error:
        reason = getattr(error, "problem", None) or next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{path} is not a run's config: {reason}") from error
