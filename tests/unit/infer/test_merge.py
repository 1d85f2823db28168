"""A merged model is the trained one: over bases that are stored quantised, over tied heads, and whatever peft has trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from merging import merged_whole, trained
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import published
import stored
from hydraft.config.choices import InferMode, Precision, QuantKind
from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError, RunFailed
from hydraft.infer.export import compare, merge, published_layout
from hydraft.infer.export.run import run
from hydraft.infer.load import load
from hydraft.infer.resolve import find
from hydraft.models import prepare
from hydraft.models.convert import shards

PROMPTS = [[1, 5, 9, 300, 17, 4], [1, 40, 41, 42]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored.plain(tmp_path_factory.mktemp("base") / "base")


def same_as_whole(adapter: Path, folder: Path, precision: Precision, dtype: Precision = Precision.fp32) -> None:
    """Assert that the weights in ``folder`` are those that peft merges in memory, bit for bit, and so is the config."""
    given = InferConfig(run=str(adapter), dtype=dtype)
    (source,) = find(given)
    whole = merged_whole(load([source], given).model, source, prepare.native(source.model, source.seed), precision)
    whole.save_pretrained(folder / "whole")
    expected, found = (load_file(place / "model.safetensors") for place in (folder / "whole", folder))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype and torch.equal(tensor, found[name]), name
    configs = [json.loads((place / "config.json").read_text()) for place in (folder / "whole", folder)]
    assert configs[0] | {"use_cache": True} == configs[1]


def exported(adapter: Path, target: Path, **options: Any) -> tuple[dict[str, float], Any]:
    """Export in fp32 and load it with plain transformers: its difference to the trained model, and the config."""
    given = InferConfig(mode=InferMode.export, run=str(adapter), output=str(target), dtype=Precision.fp32, **options)
    given.export.dtype = Precision.fp32
    run(find(given), given)
    plain = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    same_as_whole(adapter, target, Precision.fp32)
    expected = compare.logits(load(find(given), given).model, PROMPTS)
    return compare.difference(expected, compare.logits(plain, PROMPTS)), plain.config


@pytest.mark.parametrize(("kind", "tolerance"), [("nf4", 1e-5), ("nf4 of fp32", 1e-5), ("int8", 0.1)])
def test_a_base_that_is_stored_quantised_is_dequantised(
    kind: str, tolerance: float, base: Path, tmp_path: Path
) -> None:
    quantised = stored.bitsandbytes(base, tmp_path / "stored", kind)
    adapter = trained(tmp_path / "adapter", quantised)
    (source,) = find(InferConfig(run=str(adapter)))
    assert source.quant.kind is QuantKind(kind.split()[0])
    difference, config = exported(adapter, tmp_path / "out")
    assert difference["relative"] <= tolerance
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in written and not hasattr(config, "quantization_config")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}


def test_a_whole_model_that_is_stored_quantised_is_dequantised(base: Path, tmp_path: Path) -> None:
    quantised = stored.bitsandbytes(base, tmp_path / "stored", "nf4")
    difference, config = exported(quantised, tmp_path / "out")
    assert difference["relative"] <= 1e-5 and not hasattr(config, "quantization_config")


@pytest.mark.parametrize(
    ("lora", "tied"),
    [
        ({}, True),
        ({"target_modules": ["lm_head"]}, False),
        ({"target_modules": ["embed_tokens"]}, False),
        ({"target_modules": ["q_proj", "lm_head", "embed_tokens"]}, False),
        ({"target_modules": "all-linear", "modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["embed_tokens"]}, False),
        ({"trainable_token_indices": [5, 9, 300]}, True),
        ({"target_modules": r".*layers\.1\..*_proj", "use_dora": True}, True),
    ],
    ids=str,
)
def test_head_and_embedding_are_two_weights_where_the_adapter_separates_them(
    lora: dict[str, Any], tied: bool, base: Path, tmp_path: Path
) -> None:
    difference, config = exported(trained(tmp_path / "adapter", base, **lora), tmp_path / "out")
    assert difference["relative"] <= 1e-5
    assert config.tie_word_embeddings is tied
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) is not tied


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_every_variant_is_merged_as_by_peft_and_rounded_once(kind: str, tmp_path: Path) -> None:
    over = stored.plain(tmp_path / "base", tie_word_embeddings=False, attention_bias=True)
    for lora in (
        {"use_rslora": True, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 3}, "bias": "all"},
        {"use_dora": True, "target_modules": ["v_proj", "lm_head", "embed_tokens"]},
        {"lora_bias": True, "target_modules": ["k_proj", "o_proj"], "trainable_token_indices": [5, 9]},
        {"vera": True, "target_modules": ["k_proj", "down_proj"]},
    ):
        adapter = trained(tmp_path / "adapter", over, **lora)
        given = InferConfig(run=str(adapter), dtype=Precision.bf16)
        given.quant.kind = QuantKind(kind)
        (source,) = find(given)
        section, model = prepare.native(source.model, source.seed), load([source], given).model
        made = merge.merged(model, source, section, Precision.bf16).weights
        expected = merged_whole(model, source, section, Precision.bf16).state_dict()
        assert made.names == list(expected)
        for name, tensor in expected.items():
            assert made.describe(name) == shards.described(tensor)
            assert torch.equal(made.read(name), tensor) and torch.equal(made.read(name), tensor), name
        shutil.rmtree(adapter)


def test_a_merged_model_that_is_not_the_trained_one_is_not_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained(tmp_path / "adapter", base, target_modules=["lm_head"])
    monkeypatch.setattr(merge, "_untie", lambda model, saved: None)
    with pytest.raises(
        RunFailed, match=r"not the trained one, and was not kept: .* use export\.kind=adapter"
    ) as caught:
        exported(adapter, tmp_path / "out")
    assert caught.value.code == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter"]


def test_weights_without_a_place_in_the_published_layout_are_refused(tmp_path: Path) -> None:
    source = published.save(
        tmp_path / "source", published.CHATGLM2, published.chatglm2_tensors(), published.sentencepiece_model(), "bin", 1
    )
    with pytest.raises(ConfigError, match=r"export\.layout=published: that layout has no place for head\.weight"):
        published_layout.publish(published.as_shard({"head.weight": torch.zeros(2, 2)}), source, tmp_path)


def test_a_tokenizer_beside_an_adapter_may_not_have_more_tokens_than_its_base(base: Path, tmp_path: Path) -> None:
    adapter = trained(tmp_path / "adapter", base)
    config = json.loads((adapter / "tokenizer_config.json").read_text())
    (adapter / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<new>"}))
    with pytest.raises(ConfigError, match=r"adapter has 3073 tokens, and its embedding has 3072 rows"):
        find(InferConfig(run=str(adapter)))
