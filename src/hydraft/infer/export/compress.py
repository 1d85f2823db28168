"""Quantises a model folder with llm-compressor: a process of its own, ``python -m hydraft.infer.export.compress <settings.json>``.

llm-compressor takes whatever GPU it finds: ``quantise.py`` decides by ``CUDA_VISIBLE_DEVICES`` which one that is. The process ends with the
one that started it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from hydraft.system.parent_death import die_with_parent

ROUTERS = ("gate", "router", "shared_expert_gate")
"""Last parts of the names of layers that choose experts: they are small, and stay as they are."""


def main(file: Path) -> None:
    """Quantise as the settings in ``file`` say: ``model`` and ``output`` (folders), ``kind``, ``group_size`` and ``ids``, the records."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM

    settings = json.loads(file.read_text(encoding="utf-8"))
    model: Any = AutoModelForCausalLM.from_pretrained(settings["model"], dtype="auto")
    if not torch.accelerator.is_available():
        # llm-compressor 0.14 pins memory for AWQ where there is no accelerator to pin it for, and fails.
        IntermediatesCache.pin_memory = lambda *_, **__: None
    ids = settings["ids"]
    calibration = {}
    if ids:
        rows = [{"input_ids": one, "attention_mask": [1] * len(one)} for one in ids]
        calibration = {
            "dataset": Dataset.from_list(rows),
            "num_calibration_samples": len(rows),
            "max_seq_length": max(map(len, ids)),
            "shuffle_calibration_samples": False,
        }
    oneshot(model=model, recipe=recipe(settings["kind"], settings["group_size"], ignored(model)), **calibration)
    model.save_pretrained(settings["output"], save_compressed=True)


def ignored(model: Any) -> list[str]:
    """Names of linear layers that are not quantised: the head, and what chooses experts."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head or name.rpartition(".")[2] in ROUTERS]


def recipe(kind: str, group_size: int | None, ignore: list[str]) -> list[Any]:
    """The modifiers: FP8 with a scale for each output feature and each token, or 4 bits with a scale for each group of weights."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    if kind == "fp8":
        return [QuantizationModifier(targets=["Linear"], scheme="FP8_DYNAMIC", ignore=ignore)]
    weights = {
        "num_bits": 4,
        "type": "int",
        "strategy": "group",
        "group_size": group_size,
        "symmetric": True,
        "dynamic": False,
    }
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    if kind == "gptq":
        return [GPTQModifier(config_groups=groups, ignore=ignore)]
    return [AWQModifier(), QuantizationModifier(config_groups=groups, ignore=ignore)]


if __name__ == "__main__":
    die_with_parent()
    main(Path(sys.argv[1]))
