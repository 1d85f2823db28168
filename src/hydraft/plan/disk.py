"""What a run writes to the disk. No torch."""

from dataclasses import dataclass
from pathlib import Path

from hydraft.config.choices import Init, LoraMethod, Save
from hydraft.config.schema import Config
from hydraft.models.families.registry import is_published_architecture, published_config, published_family
from hydraft.plan.memory import WIDTH
from hydraft.plan.parameters import Layout, Trained

STATE_WIDTH = 12
"""Bytes a trained number of ``optimizer.safetensors``."""

CHECKPOINT_WIDTH = 2
"""Bytes a weight of published and of random checkpoints."""


@dataclass(frozen=True)
class Disk:
    """Bytes, tokenizers and pictures apart."""

    weights: int
    """What was trained: the adapter or the model."""
    checkpoint: int
    """One of it with the optimizer's state: the fp32 weight and two moments of each trained number."""
    checkpoints: int
    """How many are kept at most, the last among them."""
    base: int
    """A copy of the base in the cache, made once: converted, or drawn at random."""


def disk(config: Config, layout: Layout, learns: Trained) -> Disk:
    """Count what a resolved ``config`` leaves."""
    width = WIDTH[config.train.precision]
    tensors = layout.count if learns.full else sum(learns.adapter)
    if config.lora.method is LoraMethod.pissa:
        tensors *= 2  # saved as plain LoRA of twice the rank
    state = (layout.count if learns.full else sum(learns.adapter)) * STATE_WIDTH
    train = config.train
    between = train.save is Save.epoch or train.save_every is not None or train.save_minutes is not None
    kept = config.train.keep_last + (config.data.eval is not None) if between else 1
    made = _converts(config) or config.model.init is Init.random
    return Disk(tensors * width, tensors * width + state, kept, layout.count * CHECKPOINT_WIDTH if made else 0)


def _converts(config: Config) -> bool:
    """Whether the checkpoint is a published one that transformers cannot load as it is."""
    folder = Path(config.model.path).expanduser()
    if folder.is_dir():
        return published_family(published_config(folder)) is not None
    shape = config.model.shape
    return shape is not None and is_published_architecture(shape.architecture)
