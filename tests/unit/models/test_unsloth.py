"""The arguments that Unsloth gets, and the inputs of its models.

A recorder over plain transformers and peft replaces the library, since its kernels need a GPU (``test_kernels.py``
compares them with torch's there).
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import config_of
from hydraft.data.batch import Padded, PaddingFree, PaddingFreeForUnsloth, collator
from hydraft.models.load import load_trainable, trainable
from hydraft.system.source_tree import TINY

calls: dict[str, dict[str, Any]] = {}


class Recorder:
    """``FastLanguageModel`` with the signatures of the library, without its kernels."""

    @staticmethod
    def from_pretrained(**named: Any) -> tuple[Any, None]:
        calls["from_pretrained"] = named
        return AutoModelForCausalLM.from_pretrained(named["model_name"], dtype=named["dtype"]), None

    @staticmethod
    def get_peft_model(model: Any, **named: Any) -> Any:
        calls["get_peft_model"] = dict(named)
        for own in ("use_gradient_checkpointing", "random_state"):
            named.pop(own)
        return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **named))


@pytest.fixture
def unsloth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = ModuleType("unsloth")
    module.FastLanguageModel = Recorder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unsloth", module)
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path))
    for name in ("UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_COMPILE_LOCATION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")


def test_all_settings_are_passed_to_unsloth(unsloth: None) -> None:
    config = config_of(
        "experiment=llama3_unsloth_zero2", "model=auto", f"model.path={TINY}", "train.precision=bf16", "data.max_length=99999", "mode=plan",
    )  # fmt: skip
    model = load_trainable(config)
    assert isinstance(model, peft.PeftModel)
    arguments = calls["from_pretrained"]
    stored = arguments.pop("quantization_config")
    assert (stored.bnb_4bit_quant_type, stored.bnb_4bit_use_double_quant, stored.bnb_4bit_quant_storage) == (
        "nf4",
        True,
        torch.bfloat16,
    )
    assert arguments == {
        "model_name": str(TINY), "max_seq_length": model.config.max_position_embeddings, "dtype": torch.bfloat16,
        "load_in_4bit": True, "load_in_16bit": False, "device_map": {"": "cuda:1"}, "revision": None, "trust_remote_code": False,
        "use_exact_model_name": True, "fix_tokenizer": False, "offload_embedding": False, "use_gradient_checkpointing": False,
        "random_state": 42,
    }  # fmt: skip
    assert calls["get_peft_model"] == {
        "r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "bias": "none", "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "use_gradient_checkpointing": False, "random_state": 42,
    }  # fmt: skip
    assert all("lora_" in name for name in trainable(model))


def test_documents_are_separated_by_their_lengths() -> None:
    items = [[{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}], [{"input_ids": [8, 9], "labels": [-100, 9]}]]
    config = config_of("kernels=unsloth", "mode=plan")
    collate = collator(config.data, 0, config.kernels.kind)
    assert isinstance(collate, PaddingFreeForUnsloth)
    batch = collate(items)  # type: ignore[arg-type]
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 7, 8, 9]],
        "position_ids": [[0, 1, 2, 0, 1]],
        "labels": [[-100, 6, 7, -100, 9]],
        "packed_seq_lengths": [3, 2],
    }
    assert batch["packed_seq_lengths"].dtype == torch.int32
    config = config_of("kernels=liger", "mode=plan")
    assert isinstance(collator(config.data, 0, config.kernels.kind), PaddingFree)
    config = config_of("kernels=unsloth", "data.batching=padded", "mode=plan")
    assert isinstance(collator(config.data, 0, config.kernels.kind), Padded)
