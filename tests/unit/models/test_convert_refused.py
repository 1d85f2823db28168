"""Incomplete or unsupported checkpoints are refused on one line, before anything is written."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from baichuan import FIRST_13B
from hydraft.errors import ConfigError
from hydraft.models.convert.convert import convert
from hydraft.models.families import chatglm2
from hydraft.models.families.layout import assign
from published import (
    BAICHUAN2,
    CHATGLM2,
    CHATGLM3,
    QKV,
    Tensors,
    chatglm2_tensors,
    leftovers,
    save,
    sentencepiece_model,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "published", CHATGLM2, chatglm2_tensors(), sentencepiece_model())


def drop_one(tensors: Tensors) -> None:
    del tensors[QKV]


def add_one(tensors: Tensors) -> None:
    tensors["transformer.prefix_encoder.embedding.weight"] = torch.zeros(2, 2, dtype=torch.float16)


def reshape_one(tensors: Tensors) -> None:
    tensors[QKV] = torch.zeros(192, 64, dtype=torch.float16)  # as if all heads had keys and values


def quantise_one(tensors: Tensors) -> None:
    tensors[QKV] = torch.zeros(128, 64, dtype=torch.int8)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (drop_one, "query_key_value.weight is in no weight file"),
        (add_one, "prefix_encoder.embedding.weight is unknown"),
        (reshape_one, r"has shape \(192, 64\), where config.json requires \(128, 64\)"),
        (quantise_one, r"has data type"),
    ],
)
def test_tensors_that_do_not_match_the_config_are_refused(
    tmp_path: Path, change: Callable[[Tensors], None], reason: str, suffix: str
) -> None:
    tensors = chatglm2_tensors()
    change(tensors)
    source = save(tmp_path / "published", CHATGLM2, tensors, sentencepiece_model(), suffix)
    with pytest.raises(ConfigError, match=reason):
        convert(source, tmp_path / "native")
    assert not (tmp_path / "native").exists() and leftovers(tmp_path / "native") == []


def test_a_tensor_in_two_files_is_refused() -> None:
    rules = chatglm2.rules(CHATGLM2)
    twice = [(file, name, rule.shape) for file in ("a", "b") for name, rule in rules.items()]
    with pytest.raises(ConfigError, match="is also in a"):
        assign(rules, chatglm2.DROPPED, twice)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("kept", [0, 3, 1000, -1])
def test_a_truncated_shard_is_refused(tmp_path: Path, suffix: str, kept: int) -> None:
    source = save(tmp_path / "published", CHATGLM2, chatglm2_tensors(), sentencepiece_model(), suffix)
    shard = sorted(source.glob(f"*.{suffix}"))[1]
    with shard.open("r+b") as file:
        file.truncate(kept if kept >= 0 else shard.stat().st_size - 1)
    with pytest.raises(ConfigError, match=rf"{shard.name}: (truncated|contains code)"):
        convert(source, tmp_path / "native")
    assert not (tmp_path / "native").exists() and leftovers(tmp_path / "native") == []


class Trap(NamedTuple):
    """Creates a folder if its pickle is loaded."""

    place: str

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.place,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_shard_that_contains_code_is_not_loaded(tmp_path: Path) -> None:
    source = save(tmp_path / "published", CHATGLM2, chatglm2_tensors(), sentencepiece_model(), "bin", 1)
    torch.save({QKV: Trap(str(tmp_path / "sprung"))}, source / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="contains code"):
        convert(source, tmp_path / "native")
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(str(tmp_path / "sprung"))))
    with pytest.raises(ConfigError, match="contains code"):
        convert(source, tmp_path / "native")
    assert not (tmp_path / "sprung").exists()


def rewrite_index(source: Path, change: Callable[[dict[str, str]], None]) -> None:
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))


def test_a_wrong_index_is_refused(tmp_path: Path, source: Path) -> None:
    rewrite_index(source, lambda placed: placed.update({QKV: "model-00003-of-00003.safetensors"}))
    with pytest.raises(ConfigError, match="the index has"):
        convert(source, tmp_path / "native")
    rewrite_index(source, lambda placed: placed.update({QKV: "../elsewhere.safetensors"}))
    with pytest.raises(ConfigError, match="files in the same folder"):
        convert(source, tmp_path / "native")
    rewrite_index(source, lambda placed: placed.update({QKV: "model-00004-of-00003.safetensors"}))
    with pytest.raises(ConfigError, match="which does not exist"):
        convert(source, tmp_path / "native")
    (source / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ConfigError, match="not a shard index"):
        convert(source, tmp_path / "native")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "weights"])
def test_a_missing_file_is_refused(tmp_path: Path, source: Path, name: str) -> None:
    for file in source.glob("model*" if name == "weights" else name):
        file.unlink()
    with pytest.raises(ConfigError, match="no weights" if name == "weights" else name):
        convert(source, tmp_path / "native")


FIRST = {"model_type": "chatglm", "position_encoding_2d": True, "vocab_size": 130528}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (FIRST_13B | {"vocab_size": 64001}, "neither Baichuan-13B's"),
        (FIRST_13B | {"model_max_length": None}, "model_max_length is None"),
        (BAICHUAN2 | {"architectures": ["OtherForCausalLM"]}, "shows whether the head is normalised"),
        (BAICHUAN2 | {"vocab_size": 64000}, "is not a published model"),
        (BAICHUAN2 | {"hidden_act": "gelu"}, "hidden_act=gelu"),
        (BAICHUAN2 | {"hidden_size": "64"}, "hidden_size is '64'"),
        (BAICHUAN2 | {"rms_norm_eps": None}, "rms_norm_eps is None"),
        (FIRST, "the first ChatGLM-6B"),
        (CHATGLM2 | {"rmsnorm": False}, "rmsnorm=False: it has LayerNorm"),
        (CHATGLM2 | {"rope_ratio": 50}, "rope_ratio=50: its rotary positions are scaled"),
        (CHATGLM2 | {"quantization_bit": 4}, "quantised"),
        (CHATGLM2 | {"padded_vocab_size": 151552}, r"GLM-4-9B .* model=auto model\.path=THUDM/glm-4-9b-chat-hf"),
        (CHATGLM3 | {"padded_vocab_size": 151552}, "GLM-4-9B"),
        (CHATGLM3 | {"rope_ratio": "50"}, "rope_ratio='50', where a positive number"),
        (CHATGLM3 | {"rmsnorm": False}, "it has LayerNorm"),
        (CHATGLM2 | {"pre_seq_len": 128}, "P-tuning"),
        (CHATGLM2 | {"multi_query_attention": False}, "multi_query_attention=False"),
        (CHATGLM2 | {"add_bias_linear": True}, "add_bias_linear=True"),
        (CHATGLM2 | {"apply_residual_connection_post_layernorm": True}, "residual"),
        ({"model_type": "llama"}, "needs no conversion"),
        ([], "not a config"),
    ],
)
def test_a_variant_without_a_native_architecture_is_refused(tmp_path: Path, config: Any, reason: str) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=reason):
        convert(folder, tmp_path / "native")
