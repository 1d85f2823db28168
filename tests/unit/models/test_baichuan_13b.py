"""Baichuan with ALiBi: several documents in a row, 16 bits, which checkpoints have it, and heads that stay exact.

Its logits, loss, gradients and greedy tokens are compared with the published architecture in ``test_baichuan.py``.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM

from baichuan import FIRST_13B, MODELS, SECOND_13B, reference
from conftest import config_of
from hydraft.config.choices import Precision, QuantKind
from hydraft.config.schema import ModelConfig, QuantConfig
from hydraft.data.batch import PaddingFree
from hydraft.errors import ConfigError
from hydraft.infer.export import merge, native_layout
from hydraft.infer.export.published_layout import publish
from hydraft.infer.resolve import look
from hydraft.infer.serve.run import refuse_alibi
from hydraft.models import fp32_weights
from hydraft.models.architectures.modeling_baichuan_alibi import FEATURES
from hydraft.models.convert.convert import convert
from hydraft.models.families import baichuan
from hydraft.models.families.base import ALIBI_FEATURES
from hydraft.models.load import load_base
from hydraft.plan.disk import disk
from hydraft.plan.memory import memory
from hydraft.plan.model_size import ModelSize
from hydraft.plan.parameters import layout, trained
from published import RESERVED, as_shard, baichuan_tensors, save, sentencepiece_model

LENGTHS = (9, 130, 61)
USED = ("input_ids", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Baichuan2-13B in fp16, as it is published."""
    folder = tmp_path_factory.mktemp("baichuan") / "published"
    return save(folder, SECOND_13B, baichuan_tensors(**SECOND_13B), sentencepiece_model(False, RESERVED), count=2)


@pytest.fixture(scope="module")
def native(published: Path) -> ModelConfig:
    convert(published, published.with_name("native"))
    return ModelConfig(name="b", path=str(published.with_name("native")))


def documents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, SECOND_13B["vocab_size"], (1, length), generator=generator) for length in LENGTHS]


def exact(ids: torch.Tensor, of: dict[str, torch.Tensor]) -> torch.Tensor:
    """The published architecture's logits in the type of these weights."""
    return reference(of, SECOND_13B, ids, torch.ones_like(ids))


def in_fp32(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in tensors.items()}


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
@torch.no_grad()
def test_a_document_in_a_row_has_the_logits_that_it_has_alone(native: ModelConfig, precision: Precision) -> None:
    model = load_base(native, QuantConfig(), precision).eval()
    items = [[{"input_ids": ids[0].tolist(), "labels": ids[0].tolist()} for ids in documents()]]
    batch = PaddingFree()(items)
    assert batch["input_ids"].shape == (1, sum(LENGTHS))
    packed = model(**{name: value for name, value in batch.items() if name in USED}).logits
    alone = torch.cat([model(input_ids=ids).logits for ids in documents()], dim=1)
    assert (packed - alone).abs().max() <= (1e-5 if precision is Precision.fp32 else 0)
    first, second = documents()[:2]
    swapped = model(input_ids=torch.cat([second, first], dim=1)).logits  # one document: the second part sees the first
    assert (swapped[:, LENGTHS[1] :] - alone[:, : LENGTHS[0]]).abs().max() > 0.1


@torch.no_grad()
def test_in_bf16_logits_are_no_less_exact_than_the_published_ones(native: ModelConfig) -> None:
    """The published code adds a bias in bf16, and normalises the head in bf16."""
    halves = {name: tensor.bfloat16() for name, tensor in baichuan_tensors(**SECOND_13B).items()}
    ids = documents()[1]
    truth = exact(ids, in_fp32(halves))
    theirs = (exact(ids, halves).float() - truth).abs().mean()
    errors = {}
    for attention in ("documents", "sdpa", "eager"):
        model = load_base(native, QuantConfig(), Precision.bf16).eval()
        model.set_attn_implementation(attention)
        errors[attention] = float((model(input_ids=ids).logits.float() - truth).abs().mean() / theirs)
    print(f"13B: mean error of the logits in bf16, relative to the published code's {theirs:.4f}: {errors}")
    assert max(errors["documents"], errors["sdpa"]) < 1.05
    assert errors["eager"] < 1.2


@pytest.mark.parametrize("name", MODELS)
def test_the_config_shows_positions_and_head(name: str) -> None:
    config = MODELS[name]
    unit = [part.unit_rows for part in baichuan.rules(config)["lm_head.weight"].parts]
    assert unit == [name.startswith("2")]
    assert (baichuan.native_config(config)["model_type"] == "baichuan_alibi") is name.endswith("13b")


WIDE = {"hidden_size": 5120, "num_attention_heads": 40}


@pytest.mark.parametrize(
    ("config", "alibi", "second"),
    [
        (FIRST_13B | WIDE, True, False),
        (SECOND_13B | WIDE | {"vocab_size": 125696}, True, True),
        ({**SECOND_13B, **WIDE, "vocab_size": 125700, "z_loss_weight": None}, True, True),  # extended
        (SECOND_13B | WIDE | {"max_position_embeddings": 4096}, True, True),  # added by another program
        (FIRST_13B | {"hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 4096, "vocab_size": 125696}, False, True),
    ],
)  # fmt: skip
def test_published_widths_and_vocabularies_decide(config: dict[str, Any], alibi: bool, second: bool) -> None:
    baichuan.refuse(config, Path())
    assert (baichuan.native_config(config)["model_type"] == "baichuan_alibi") is alibi
    assert baichuan.rules(config)["lm_head.weight"].parts[0].unit_rows is second


@pytest.mark.parametrize("size", ["7b-chat", "13b-chat"])
def test_a_conversion_is_counted_with_its_fp32_head(size: str) -> None:
    config = config_of("model=baichuan2", f"model.size={size}", "train.precision=bf16")
    known = layout(baichuan.ARCHITECTURES["baichuan2"] | dataclasses.asdict(config.model.shape))  # type: ignore[arg-type]
    assert known is not None
    learns, head = trained(known, config.lora), known.vocabulary * known.hidden
    assert disk(config, known, learns).base == 2 * known.count + 2 * head
    config.quant.kind = QuantKind.none
    # Where weights are read into main memory first, the head is copied in its new type; the others stay pages of the file.
    assert memory(config, ModelSize(known, learns, 100), on_gpu=True).host_loading.weights == 2 * head


def test_a_converted_folder_shows_its_fp32_head(native: ModelConfig, published: Path) -> None:
    head = SECOND_13B["vocab_size"] * SECOND_13B["hidden_size"]
    assert fp32_weights.elements(native) == fp32_weights.elements(ModelConfig(name="b", path=str(published))) == head
    assert (
        fp32_weights.elements(config_of("model=tiny").model)
        == fp32_weights.elements(config_of("model=qwen").model)
        == 0
    )


def test_the_plan_knows_the_features_of_the_class() -> None:
    assert ALIBI_FEATURES == FEATURES


def test_serving_is_refused_with_what_works() -> None:
    refuse_alibi("x", "llama")
    refuse_alibi("x", None)
    with pytest.raises(ConfigError, match=r"mode=serve: x has ALiBi positions.* use mode=batch, mode=generate"):
        refuse_alibi("x", "baichuan_alibi")


@torch.no_grad()
def test_an_export_in_16_bits_keeps_the_head_exact(native: ModelConfig, tmp_path: Path) -> None:
    """Rounded to fp16, the head alone would put fp32 logits off by 6e-4."""
    plain = merge.merged(torch.nn.Module(), look(native.path), native, Precision.fp16)
    (tmp_path / "merged").mkdir()
    native_layout.write(plain, torch.float16, tmp_path / "merged", Console(quiet=True))
    saved = load_file(tmp_path / "merged/model.safetensors")
    assert {name for name, value in saved.items() if value.dtype is torch.float32} == {"lm_head.weight"}
    ids = documents()[1]
    truth = exact(ids, in_fp32(baichuan_tensors(**SECOND_13B)))
    for folder in (native.path, tmp_path / "merged"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        assert (model(input_ids=ids).logits - truth).abs().max() <= 1e-5
    assert set(fp32_weights.found_in(str(tmp_path / "merged"))) == {"lm_head.weight"}


@torch.no_grad()
def test_an_adapter_is_merged_into_the_exact_head(native: ModelConfig, tmp_path: Path) -> None:
    base = load_base(native, QuantConfig(), Precision.fp16)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    source = look(str(tmp_path / "adapter"))
    merged = merge.merged(adapted, source, native, Precision.fp16)
    layer: Any = adapted.base_model.model.lm_head
    head = normalize(baichuan_tensors(**SECOND_13B)["lm_head.weight"].float())
    added = layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float() * layer.scaling["default"]
    assert added.abs().max() > 0.01
    assert torch.allclose(merged.weights.read("lm_head.weight"), head + added, rtol=0, atol=1e-6)


def test_a_conversion_of_an_earlier_version_is_refused(published: Path, tmp_path: Path) -> None:
    convert(published, tmp_path / "native")
    manifest = json.loads((tmp_path / "native/conversion.json").read_text())
    del manifest["format"]
    (tmp_path / "native/conversion.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="by an earlier version; remove it and convert again"):
        convert(published, tmp_path / "native")


def test_the_reference_has_the_published_slopes() -> None:
    """Published for 8 heads in arXiv:2108.12409, section 3: 1/2, 1/4, …, 1/256."""
    from baichuan import slopes as theirs
    from hydraft.models.architectures.modeling_baichuan_alibi import slopes as ours

    assert theirs(8) == [2.0**-power for power in range(1, 9)]
    for heads in (1, 2, 6, 8, 12, 40, 64, 100):
        assert ours(heads) == pytest.approx(theirs(heads), rel=1e-12)


def test_the_published_layout_has_the_published_head(published: Path, native: ModelConfig, tmp_path: Path) -> None:
    found = {
        name: tensor for file in Path(native.path).glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    (tmp_path / "back").mkdir()
    publish(as_shard(found), published, tmp_path / "back")
    back = {name: tensor for file in tmp_path.glob("back/*.safetensors") for name, tensor in load_file(file).items()}
    theirs = baichuan_tensors(**SECOND_13B)
    assert back.keys() == theirs.keys() and all(torch.equal(back[name], tensor) for name, tensor in theirs.items())
    found["lm_head.weight"] = found["lm_head.weight"] * 1.001
    with pytest.raises(ConfigError, match=r"lm_head was trained.*leave export\.layout out"):
        publish(as_shard(found), published, tmp_path / "back")
