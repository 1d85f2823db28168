"""What Liger's and Unsloth's kernels do not support: one table, which refuses runs and prints the documents' (``hydraft kernels``).

Unsloth's limits are from its sources, Liger's from its sources and from running its kernels in Triton's interpreter. No torch.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hydraft.config.choices import Kernels, Loss, Precision, QuantKind
from hydraft.config.lora import LoraMethod
from hydraft.config.schema import Config
from hydraft.errors import EXIT_REFUSED
from hydraft.models.families.native import FAMILIES

Applies = Callable[[Config, str | None], bool]
"""Whether a limit applies to a config and a ``model_type``, which is None if it is not known."""


@dataclass(frozen=True)
class Limit:
    """A setting that a library's kernels do not support, or do not make faster than torch."""

    kind: Kernels
    setting: str
    """The row of the table."""
    applies: Applies
    reason: str
    """``{c}`` is the config, ``{family}`` the ``model_type``."""
    instead: str
    """The override to change."""
    source: str
    refused: bool = True
    """False if the run starts, without the kernels."""


def supported(kind: Kernels) -> list[str]:
    """The model types that ``kind`` has kernels for."""
    return [model_type for model_type, family in FAMILIES.items() if kind in family.kernels]


def _other_family(kind: Kernels) -> Applies:
    return lambda c, family: family is not None and family not in supported(kind)


LIMITS = [
    Limit(
        Kernels.liger, "other families", _other_family(Kernels.liger),
        "it has no kernels for the family {family}", "kernels=torch",
        "liger-kernel 0.8.5, transformers/monkey_patch.py, MODEL_TYPE_TO_APPLY_LIGER_FN",
    ),
    # The loss reads ``lm_head.weight``, which is the weight beneath an adapter: the adapter would get no gradient, without an error.
    Limit(
        Kernels.liger, "an adapter on lm_head", lambda c, _: c.lora.on_head,
        "its loss ignores an adapter on lm_head", "kernels=torch, or lora.target_modules without lm_head",
        "liger-kernel 0.8.5, transformers/model/llama.py, lce_forward",
    ),
    Limit(
        Kernels.liger, "train.compile=true", lambda c, _: c.train.compile,
        "each of its kernels is a graph break", "train.compile=false, or kernels=torch",
        "liger-kernel 0.8.5, backends/dispatch.py: torch.compiler.disable",
    ),
    Limit(
        Kernels.unsloth, "other families", _other_family(Kernels.unsloth),
        "it has no fast path for the family {family}", "kernels=liger or kernels=torch",
        "unsloth 2026.10.7, models/loader.py, FastLanguageModel.from_pretrained",
    ),
    Limit(
        Kernels.unsloth, "zero=stage3", lambda c, _: c.zero.stage == 3,
        "its kernels read weights that ZeRO-3 has not gathered", "zero=stage2, or kernels=liger",
        "unsloth 2026.10.7, models/llama.py, on FSDP",
    ),
    Limit(
        Kernels.unsloth, "lora=none", lambda c, _: c.lora.method is LoraMethod.none,
        "full fine-tuning does not take its fast path", "kernels=liger, or lora=default",
        "unsloth 2026.10.7, models/loader.py, from_pretrained: FastModel",
    ),
    Limit(
        Kernels.unsloth, "lora=pissa", lambda c, _: c.lora.method is LoraMethod.pissa,
        "it initialises PiSSA by its own decomposition, so its adapters would differ", "kernels=liger, or lora=rslora",
        "unsloth 2026.10.7, models/_utils.py, fast_lora_init",
    ),
    Limit(
        Kernels.unsloth, "lora=olora, eva, loftq, orthogonal, lora_fa, vera",
        lambda c, _: c.lora.variant.alone and c.lora.method is not LoraMethod.pissa,
        "its own loader makes adapters of trained A and B, drawn at random", "kernels=liger, or lora=rslora",
        "unsloth 2026.10.7, models/llama.py, get_peft_model",
    ),
    Limit(
        Kernels.unsloth, "quant=int8", lambda c, _: c.quant.kind is QuantKind.int8,
        "int8 does not take its fast path", "quant=nf4, or kernels=liger",
        "unsloth 2026.10.7, models/loader.py, from_pretrained: FastModel",
    ),
    Limit(
        Kernels.unsloth, "an adapter on lm_head", lambda c, _: c.lora.on_head,
        "it would train all of lm_head", "kernels=torch, or lora.target_modules without lm_head",
        "unsloth 2026.10.7, models/llama.py, get_peft_model",
    ),
    Limit(
        Kernels.unsloth, "train.compile=true", lambda c, _: c.train.compile,
        "it compiles modules itself", "train.compile=false, or kernels=torch",
        "unsloth 2026.10.7, models/llama.py",
    ),
    Limit(
        Kernels.unsloth, "lora=dora", lambda c, _: c.lora.method is LoraMethod.dora,
        "DoRA's layers are not fused", "", "unsloth 2026.10.7, models/llama.py, patch_peft_model", refused=False,
    ),
    Limit(
        Kernels.unsloth, "lora.bias", lambda c, _: c.lora.bias != "none",
        "layers with a trained bias are not fused", "", "unsloth 2026.10.7, models/llama.py, get_peft_model", refused=False,
    ),
    Limit(
        Kernels.unsloth, "train.precision=fp32", lambda c, _: c.train.precision is Precision.fp32,
        "in fp32 no LoRA layer is fused", "", "unsloth 2026.10.7, models/llama.py, patch_peft_model", refused=False,
    ),
    *(
        Limit(
            kind, "kernels.loss=whole", lambda c, _: c.kernels.loss is not Loss.auto,
            "it has its own loss", "kernels.loss=auto", "its fused linear cross entropy",
        )
        for kind in (Kernels.liger, Kernels.unsloth)
    ),
]  # fmt: skip


def refusal(config: Config, family: str | None) -> str | None:
    """Why a run cannot use its kernels, and what to write instead; None if it can.

    Args:
        family: the native ``model_type``; None if it is not known.
    """
    for limit in _applying(config, family):
        if limit.refused:
            both = family is None or family in supported(Kernels.liger)
            instead = limit.instead if both else limit.instead.replace("kernels=liger or ", "")
            return f"kernels={limit.kind.value}: {_reason(limit, config, family)}: use {instead}"
    return None


def slower(config: Config, family: str | None) -> list[str]:
    """The settings of a run that its kernels do not make faster than torch."""
    return [
        f"kernels={limit.kind.value}: {_reason(limit, config, family)}"
        for limit in _applying(config, family)
        if not limit.refused
    ]


def _applying(config: Config, family: str | None) -> Iterator[Limit]:
    return (limit for limit in LIMITS if limit.kind is config.kernels.kind and limit.applies(config, family))


def _reason(limit: Limit, config: Config, family: str | None) -> str:
    return limit.reason.format(c=config, family=family)


def table() -> str:
    """The table of models and settings by kernels, in Markdown."""
    kinds = (Kernels.liger, Kernels.unsloth)
    rows = [("", *(f"`kernels={kind.value}`" for kind in Kernels)), ("---",) * 4]
    rows += [
        (f"{family.models} (`{model_type}`)", "yes", *("yes" if kind in family.kernels else "no" for kind in kinds))
        for model_type, family in FAMILIES.items()
        if family.kernels
    ]
    for setting in dict.fromkeys(limit.setting for limit in LIMITS):
        about = {limit.kind: limit for limit in LIMITS if limit.setting == setting}
        name = f"`{setting}`" if "=" in setting or "." in setting else setting
        rows.append((name, "yes", *(_verdict(about.get(kind)) for kind in kinds)))
    return "\n".join("|".join(["", *(f" {cell} ".replace(" --- ", "---") for cell in row), ""]) for row in rows)


def _verdict(limit: Limit | None) -> str:
    if limit is None:
        return "yes"
    return f"{'no' if limit.refused else 'slower'}: {limit.reason}".replace(" {family}", "")


def main(arguments: list[str]) -> int:
    """Print ``table``; it takes no arguments."""
    if arguments:
        print("hydraft kernels: takes no arguments", file=sys.stderr)
        return EXIT_REFUSED
    print(table())
    return 0
