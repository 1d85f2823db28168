"""Maps the lora section to a peft LoraConfig."""

import peft

from hydraft.config.lora import LoraMethod
from hydraft.config.schema import LoraConfig


def adapter(lora: LoraConfig, targets: list[str]) -> peft.LoraConfig | None:
    """The adapter config for the layers ``targets``, of the variant in ``config/lora.py``; None for full fine-tuning."""
    if lora.method is LoraMethod.none:
        return None
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias=lora.bias,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        **lora.variant.peft,
    )
