"""Maps the lora section to a config of peft."""

import peft
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hydraft.config.lora import ALL_LINEAR, LoraConfig, LoraMethod
from hydraft.models import expert_targets, lora_targets


def targets(lora: LoraConfig, model: torch.nn.Module) -> list[str] | str:
    """The ``target_modules`` of peft for ``model``, which may be on the meta device.

    Raises:
        ConfigError: one of ``lora.target_modules`` is in no layer's name.
    """
    modules = dict(model.named_modules())
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    linear = [
        name for name, module in modules.items() if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    ]
    linear = expert_targets.adaptable(model, linear)
    found = lora_targets.resolve(lora, modules, linear)
    if found != ALL_LINEAR:
        embeddings = {name for name, module in modules.items() if isinstance(module, torch.nn.Embedding)}
        lora.check_linear(lora_targets.matching(found, embeddings))
    return expert_targets.named(model, found, linear)


def copied(lora: LoraConfig, model: torch.nn.Module, targets: list[str] | str) -> list[str] | None:
    """The ``modules_to_save`` of peft for ``model``, whose layers ``targets`` get an adapter; None for none.

    Raises:
        ConfigError: one of ``lora.modules_to_save`` is no module that can be trained whole.
    """
    if not lora.modules_to_save:
        return None
    own, linear = set(), set()
    for name, module in model.named_modules():
        weights = list(module.parameters(recurse=False))
        if weights and not isinstance(module, (Linear4bit, Linear8bitLt)):
            own.add(name)
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            linear.add(name)
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    linear -= {name for name, module in model.named_modules() if module is head}
    return lora_targets.copied(
        lora, own, linear if targets == ALL_LINEAR else lora_targets.matching(targets, linear | own)
    )


def adapter(
    lora: LoraConfig, targets: list[str] | str, quantised: bool = False, copied: list[str] | None = None
) -> peft.PeftConfig | None:
    """The adapter config for the layers ``targets``, of the variant in ``config/lora.py``; None for full fine-tuning.

    Args:
        quantised: whether the base is. What a variant takes from the weights is then made by ``lora_init.py``.
        copied: the modules that are trained whole.
    """
    if lora.method is LoraMethod.none:
        return None
    if lora.variant.shared:
        return peft.VeraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            vera_dropout=lora.dropout,
            target_modules=targets,
            save_projection=True,
            modules_to_save=copied,
        )
    further = dict(lora.variant.peft)
    if quantised and lora.variant.changes_base:
        further = {}
    if lora.variant.reads_records:
        further["eva_config"] = peft.EvaConfig(rho=1.0)  # every layer keeps its rank
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias=lora.bias,
        target_modules=targets,
        modules_to_save=copied,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        **further,
    )
