"""Maps the lora section to a peft LoraConfig."""

import peft

from hydraft.config.choices import LoraMethod
from hydraft.config.schema import LoraConfig


def adapter(lora: LoraConfig, targets: list[str]) -> peft.LoraConfig | None:
    """The adapter config for the layers ``targets``; None for full fine-tuning.

    LoRA: arXiv:2106.09685. rsLoRA scales by alpha / sqrt(r) (arXiv:2312.03732), DoRA trains magnitudes separately
    (arXiv:2402.09353), PiSSA starts from the principal singular vectors (arXiv:2404.02948).
    """
    if lora.method is LoraMethod.none:
        return None
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias=lora.bias,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        use_rslora=lora.method is LoraMethod.rslora,
        use_dora=lora.method is LoraMethod.dora,
        init_lora_weights="pissa" if lora.method is LoraMethod.pissa else True,
    )
