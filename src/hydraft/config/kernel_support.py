"""Which kernels work with which settings: one table for refusals and for the documentation (``hydraft kernels``). No torch.

Unsloth's limits are from its source code, Liger's from its source code and from running its kernels in Triton's interpreter.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hydraft.config.choices import Kernels, LoraMethod, Loss, Precision, QuantKind
from hydraft.config.schema import Config
from hydraft.errors import EXIT_REFUSED

FAMILIES = {
    Kernels.liger: {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "glm": "glm4"},
    Kernels.unsloth: {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"},
}
"""By library: the native families (``model_type`` of config.json) with kernels, and the name of these. Baichuan is a Llama, ChatGLM2 a GLM."""

NAMES = {
    "llama": "Llama 3, Baichuan2 (`llama`)",
    "qwen2": "Qwen2.5 (`qwen2`)",
    "qwen3": "Qwen3 (`qwen3`)",
    "glm": "ChatGLM2 (`glm`)",
}

PACKAGES = {Kernels.liger: "liger_kernel", Kernels.unsloth: "unsloth"}

INTERPRETED = "TRITON_INTERPRET"
"""Set to 1, Triton runs its kernels as Python on a CPU, about a thousand times slower."""

Broken = Callable[[Config, str | None], bool]
"""Called with the config and the model's native family, None if that is not known."""


@dataclass(frozen=True)
class Limit:
    """Something that a library's kernels cannot do, or do no faster than torch."""

    kind: Kernels
    setting: str
    """The row of the table."""
    broken: Broken
    reason: str
    """``{c}`` is the config, ``{family}`` the model's."""
    instead: str
    """The override to change."""
    source: str
    refused: bool = True
    """False: it runs, but without these kernels."""


def _unknown(kind: Kernels) -> Broken:
    return lambda c, family: family is not None and family not in FAMILIES[kind]


LIMITS = [
    Limit(
        Kernels.liger, "other families", _unknown(Kernels.liger),
        "it has none for the family {family}", "kernels=torch",
        "liger-kernel 0.8.5, transformers/monkey_patch.py, MODEL_TYPE_TO_APPLY_LIGER_FN",
    ),
    # The loss reads ``lm_head.weight``, the weight without the adapter: the adapter would silently not be trained.
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
        Kernels.unsloth, "other families", _unknown(Kernels.unsloth),
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
        "full fine-tuning leaves its fast path", "kernels=liger, or lora=default",
        "unsloth 2026.10.7, models/loader.py, from_pretrained: FastModel",
    ),
    Limit(
        Kernels.unsloth, "lora=pissa", lambda c, _: c.lora.method is LoraMethod.pissa,
        "it initialises PiSSA in another way than peft", "kernels=liger, or lora=rslora",
        "unsloth 2026.10.7, models/_utils.py, fast_lora_init",
    ),
    Limit(
        Kernels.unsloth, "quant=int8", lambda c, _: c.quant.kind is QuantKind.int8,
        "int8 leaves its fast path", "quant=nf4, or kernels=liger",
        "unsloth 2026.10.7, models/loader.py, from_pretrained: FastModel",
    ),
    Limit(
        Kernels.unsloth, "an adapter on lm_head", lambda c, _: c.lora.on_head,
        "it would train all of lm_head", "kernels=torch, or lora.target_modules without lm_head",
        "unsloth 2026.10.7, models/llama.py, get_peft_model",
    ),
    Limit(
        Kernels.unsloth, "train.compile=true", lambda c, _: c.train.compile,
        "it compiles the model itself", "train.compile=false, or kernels=torch",
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
    for limit in _broken(config, family):
        if limit.refused:
            return f"kernels={limit.kind.value}: {_reason(limit, config, family)}: use {limit.instead}"
    return None


def slower(config: Config, family: str | None) -> list[str]:
    """Settings of a run with which its kernels are no faster than torch, as messages."""
    return [
        f"kernels={limit.kind.value}: {_reason(limit, config, family)}"
        for limit in _broken(config, family)
        if not limit.refused
    ]


def interpreted(config: Config) -> bool:
    """Whether a run uses only Triton kernels and Triton interprets them without a GPU."""
    return config.kernels.kind is Kernels.liger and os.environ.get(INTERPRETED) == "1"


def _broken(config: Config, family: str | None) -> Iterator[Limit]:
    return (limit for limit in LIMITS if limit.kind is config.kernels.kind and limit.broken(config, family))


def _reason(limit: Limit, config: Config, family: str | None) -> str:
    return limit.reason.format(c=config, family=family)


def table() -> str:
    """The table of docs/performance.md, in Markdown."""
    kinds = (Kernels.liger, Kernels.unsloth)
    rows = [("", *(f"`kernels={kind.value}`" for kind in Kernels)), ("---",) * 4]
    rows += [
        (name, "yes", *("yes" if family in FAMILIES[kind] else "no" for kind in kinds))
        for family, name in NAMES.items()
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
