"""Qwen3.5: published checkpoints have images and multi-token prediction too; its text model is planned, loaded and trained."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from conftest import ROOT, config_of
from hydraft.config.choices import Precision
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.models import prepare, shapes
from hydraft.models.load import load_base, load_trainable
from hydraft.models.random_weights import write
from hydraft.plan.parameters import layout, trained

TEXT: dict[str, Any] = {
    "vocab_size": 3072, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "tie_word_embeddings": True,
}  # fmt: skip
VISION = {"hidden_size": 32, "depth": 1, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 32}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Qwen3_5ForConditionalGeneration]:
    """A checkpoint as published: the image model's config and names, and a multi-token prediction layer."""
    folder = tmp_path_factory.mktemp("qwen35") / "published"
    torch.manual_seed(0)
    model = Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(text_config=TEXT, vision_config=VISION, tie_word_embeddings=True)
    ).eval()
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    assert any(name.startswith("model.language_model.layers") for name in weights)
    assert any(name.startswith("model.visual") for name in weights)
    save_file(weights | {"mtp.fc.weight": torch.zeros(32, 64)}, folder / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny").save_pretrained(folder)
    return folder, model


def settings(folder: Path, *more: str) -> Config:
    return config_of("model=auto", f"model.path={folder}", "quant=none", "train.precision=fp32", *more)


def test_the_text_model_of_a_published_checkpoint_is_loaded(published: Any) -> None:
    folder, whole = published
    config = settings(folder)
    prepare.check(config.model)
    loaded = load_base(config.model, config.quant, Precision.fp32).eval()
    assert loaded.config.model_type == "qwen3_5_text"
    ids = torch.randint(0, 300, (1, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (loaded(input_ids=ids).logits - whole(input_ids=ids).logits).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "adapter", [[], ["lora.target_modules=[q_proj,in_proj_qkv,in_proj_z,out_proj]"], ["lora.bias=all"], ["lora=none"]]
)
def test_the_plan_counts_the_text_model(published: Any, adapter: list[str]) -> None:
    folder, _ = published
    config = settings(folder, *adapter)
    model = load_trainable(config)
    native = shapes.planned_config(config.model)
    assert native is not None
    known = layout(native)
    assert known is not None
    base = model.base_model.model if isinstance(model, peft.PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    if not isinstance(model, peft.PeftModel):
        assert {tensor.name: tensor.shape for tensor in known.tensors} == {
            name: tuple(parameter.shape) for name, parameter in model.named_parameters()
        }
    sizes = sorted(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert sorted(trained(known, config.lora).tensors) == sizes


def test_random_weights_of_a_size_have_both_kinds_of_layer(tmp_path: Path) -> None:
    config = config_of("model=qwen", "model.size=3.5-9b", "model.init=random", "model.scale=tiny")
    assert config.model.shape is not None
    native = shapes.native_config(config.model.shape)
    write(native, ROOT / "src/hydraft/models/tiny", True, 0, tmp_path, console())
    assert AutoConfig.from_pretrained(tmp_path).layer_types == ["linear_attention", "full_attention"]
    planned = shapes.planned_config(dataclasses.replace(config.model, path=str(tmp_path)))
    assert planned is not None and layout(planned) is not None


def console() -> Any:
    from rich.console import Console

    return Console(quiet=True)


def test_a_folder_of_another_size_is_named(published: Any) -> None:
    folder, _ = published
    with pytest.raises(ConfigError, match=r"hidden_size=32, where model\.size=3\.5-9b has 4096: use model=auto"):
        config_of("model=qwen", "model.size=3.5-9b", f"model.path={folder}")


def test_a_head_that_no_weight_file_has_is_refused(published: Any, tmp_path: Path) -> None:
    """transformers would draw it at random: the whole model ties it by the outer config, the text model by its own."""
    folder = tmp_path / "untied"
    shutil.copytree(published[0], folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    made = settings(folder)
    with pytest.raises(ConfigError, match=r"lm_head\.weight is in none of its weight files \(1 tensors are missing\)"):
        load_base(made.model, made.quant, Precision.fp32)
