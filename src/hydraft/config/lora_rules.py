"""Combinations of settings of the lora section that a run cannot have. No torch."""

from hydraft.config.choices import Kernels, QuantKind
from hydraft.config.lora import LoraMethod
from hydraft.config.rule import value
from hydraft.config.schema import Config


def _narrows(config: Config) -> bool:
    lora = config.lora
    return bool(lora.layers or lora.exclude_modules or lora.rank_pattern or lora.alpha_pattern or lora.modules_to_save)


LORA = [
    value(
        lambda c: c.lora.variant.reads_error and c.quant.kind is not QuantKind.nf4,
        "lora={c.lora.method.value} starts from what NF4 loses: use quant=nf4, or lora=default",
        source="LoftQ, arXiv:2310.08659",
    ),
    # Its number of passes depends on the numbers, which may differ in their last bits between ranks that gather weights together.
    value(
        lambda c: c.lora.variant.reads_records and c.zero.stage == 3,
        "lora={c.lora.method.value} reads training records before ZeRO-3 can gather weights: use zero=stage2, or lora=default",
        source="peft, tuners/lora/eva.py, _get_eva_state_dict: until all layers have converged",
    ),
    value(
        lambda c: c.lora.method is LoraMethod.orthogonal and any(r % 2 for r in c.lora.ranks),
        "lora.r={c.lora.r}, lora.rank_pattern={c.lora.rank_pattern}: lora=orthogonal gives A and B half of the rows each: use an even rank",
        source="peft, tuners/lora/layer.py, orthogonal_init",
    ),
    value(
        lambda c: c.lora.method is LoraMethod.orthogonal and c.quant.kind is QuantKind.int8,
        "lora=orthogonal is made in the type of the base's weights, which quant=int8 has none for: use quant=nf4, or lora=default",
        source="peft, tuners/lora/layer.py, orthogonal_init",
    ),
    value(
        lambda c: c.lora.variant.shared and c.lora.alpha != 1,
        "lora.alpha={c.lora.alpha:g}: the update of lora={c.lora.method.value} is not scaled: leave lora.alpha out, or use lora.alpha=1",
        source="peft, tuners/vera/layer.py, forward",
    ),
    value(
        lambda c: c.lora.variant.shared and c.lora.bias != "none",
        "lora.bias={c.lora.bias}: lora={c.lora.method.value} trains no biases: leave lora.bias out, or use lora=default",
    ),
    value(
        lambda c: c.lora.variant.shared and bool(c.lora.rank_pattern or c.lora.alpha_pattern),
        "lora.rank_pattern, lora.alpha_pattern: lora={c.lora.method.value} has one pair of matrices for all layers: leave them out",
    ),
    value(
        lambda c: c.lora.start is not None and bool(c.lora.layers or c.lora.exclude_modules or c.lora.modules_to_save),
        "lora.layers, lora.exclude_modules, lora.modules_to_save: the adapter of lora.start has its own layers: leave them out, or lora.start",
    ),
    value(
        lambda c: c.lora.method is LoraMethod.none and _narrows(c),
        "lora.layers, exclude_modules, modules_to_save, rank_pattern and alpha_pattern are for adapters, and lora=none trains all weights: leave "
        "them out, or use lora=default",
    ),
    value(
        lambda c: c.kernels.kind is Kernels.unsloth and _narrows(c),
        "lora.layers, exclude_modules, modules_to_save, rank_pattern and alpha_pattern are not read by kernels=unsloth: leave them out, or use "
        "kernels=torch",
    ),
    value(
        lambda c: bool(c.lora.modules_to_save) and c.zero.stage == 3,
        "lora.modules_to_save={c.lora.modules_to_save}: whole modules are copied before ZeRO-3 shards the copies: use zero=stage2, or leave it "
        "out",
        source="peft, utils/other.py, ModulesToSaveWrapper.update: deepcopy of a gathered module",
    ),
    value(
        lambda c: bool(c.lora.modules_to_save) and c.quant.kind is not QuantKind.none and c.lora.variant.changes_base,
        "lora.modules_to_save={c.lora.modules_to_save}: lora={c.lora.method.value} has a second adapter over quantised weights, and peft would "
        "copy the modules for both: use quant=none, or lora=default",
    ),
]
