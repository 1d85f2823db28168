"""Estimates what a run writes to the disk. No torch."""

from dataclasses import dataclass
from pathlib import Path

from hydraft.config.choices import Init, Keep, QuantKind, Save
from hydraft.config.schema import Config
from hydraft.config.train import AUTO
from hydraft.models import fp32_weights, quantised_copy, shapes, stored_quant
from hydraft.models.families.registry import is_published_architecture, published_config, published_family
from hydraft.plan import moments
from hydraft.plan.parameters import Layout, Trained
from hydraft.plan.quantised_size import codes, constants
from hydraft.plan.swap import Swap, swap
from hydraft.plan.weights import WIDTH

CHECKPOINT_WIDTH, FP32_WIDTH = 2, 4
"""Bytes per weight of published and of random checkpoints, and of what conversions keep in fp32."""


@dataclass(frozen=True)
class Disk:
    """Bytes, without tokenizers and plots."""

    weights: int
    """The adapter, or the model in full fine-tuning."""
    checkpoint: int
    """One checkpoint: the weights, and the optimizer's state, an fp32 weight and the moments of each trained parameter."""
    checkpoints: int
    """The largest number of checkpoints that are kept, including the last."""
    best: int
    """The most that is kept of weights of the best evaluation (``train.keep=best``): of each checkpoint's, and of the newest."""
    base: int
    """The base in the cache, which is written once: converted or of random weights."""
    quantised: int
    """Its quantised copy in the cache, which is written once."""
    swap: Swap
    """What each rank keeps in ``zero.nvme_path`` while the run goes on."""


def disk(config: Config, layout: Layout, learns: Trained) -> Disk:
    """Estimate the disk space of a resolved ``config``."""
    width = WIDTH[config.train.precision]
    tensors = layout.count if learns.full else sum((*learns.adapter, *learns.frozen, *learns.copies)) + learns.shared
    if config.lora.variant.changes_base and not learns.frozen:
        tensors += sum(learns.adapter)  # saved as plain LoRA of twice the rank
    state = 4 * learns.count + moments.saved(config.optimizer, learns)
    train = config.train
    between = train.save is Save.epoch or train.save_every is not None or train.save_minutes is not None
    kept = config.train.keep_last + (config.data.eval is not None) if between else 1
    weights = tensors * width
    best = weights * (kept + 1) if train.keep is Keep.best else 0
    swapped = swap(config, layout, learns) if config.zero.swaps else Swap()
    return Disk(
        weights,
        weights + state,
        kept,
        best,
        _base(config, layout),
        _quantised(config, layout),
        swapped,
    )


def _base(config: Config, layout: Layout) -> int:
    """Bytes of a base that is converted or filled with random weights; 0 for one that transformers loads as it is."""
    weights = layout.count * CHECKPOINT_WIDTH
    if config.model.init is Init.random:
        return weights
    return weights + fp32_weights.elements(config.model) * (FP32_WIDTH - CHECKPOINT_WIDTH) if _converts(config) else 0


def _quantised(config: Config, layout: Layout) -> int:
    """Bytes of the quantised copy; 0 for a run that has none."""
    model = config.model
    kept = quantised_copy.of_run(config)
    if kept is None:
        return 0
    folder = shapes.folder_of(model) if model.init is Init.pretrained else None
    stored = None if folder is None else stored_quant.recorded(published_config(folder))
    if stored is not None and not stored.dequantised:
        return 0
    plain = _base(config, layout) or (0 if folder is None else quantised_copy.size(folder))
    if model.cache_quantised == AUTO and (plain or layout.count * CHECKPOINT_WIDTH) < quantised_copy.LEAST:
        return 0
    return sum(
        codes(tensor, QuantKind.nf4, 1 if tensor.packs else WIDTH[kept.precision])
        + constants(tensor, QuantKind.nf4, kept.double_quant)
        for tensor in layout.tensors
    )


def _converts(config: Config) -> bool:
    """Whether the checkpoint is a published one that has to be converted."""
    folder = Path(config.model.path).expanduser()
    if folder.is_dir():
        return published_family(folder) is not None
    shape = config.model.shape
    return shape is not None and is_published_architecture(shape.architecture)
