"""Conversions: every published format, the manifest, the target folder, and the command line."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import ROOT
from hydraft.errors import ConfigError
from hydraft.models.convert import convert as conversion
from hydraft.models.convert import shards
from hydraft.models.convert.convert import convert, main
from hydraft.models.families import chatglm2
from hydraft.models.families.registry import PUBLISHED
from published import (
    BAICHUAN2,
    CHATGLM2,
    QKV,
    RESERVED,
    Tensors,
    baichuan_tensors,
    chatglm2_tensors,
    contents,
    interrupt,
    leftovers,
    save,
    sentencepiece_model,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "published", CHATGLM2, chatglm2_tensors(), sentencepiece_model())


@pytest.mark.parametrize(("suffix", "count"), [("safetensors", 3), ("safetensors", 1), ("bin", 3), ("bin", 1)])
def test_every_published_format_gives_the_same_weights(tmp_path: Path, suffix: str, count: int) -> None:
    tensors = chatglm2_tensors()
    source = save(tmp_path / "published", CHATGLM2, tensors, sentencepiece_model(), suffix, count)
    manifest = convert(source, tmp_path / "native")
    made: Tensors = {}
    for number in range(1, count + 1):
        made |= load_file(tmp_path / f"native/model-{number:05d}-of-{count:05d}.safetensors")
    query, key, value = (made[f"model.layers.1.self_attn.{kind}_proj.weight"] for kind in "qkv")
    assert torch.equal(torch.cat([query, key, value]), tensors[QKV])
    assert (len(query), len(key), len(value)) == (64, 32, 32)
    assert {tensor.dtype for tensor in made.values()} == {torch.float16}
    assert sum(tensor.numel() for tensor in made.values()) + 4 == sum(tensor.numel() for tensor in tensors.values())
    assert manifest["tensors_dropped"] == ["transformer.rotary_pos_emb.inv_freq"]
    assert sorted(manifest["tensors_used"] + manifest["tensors_dropped"]) == sorted(tensors)
    assert leftovers(tmp_path / "native") == []


@pytest.mark.parametrize("target", [".", "/", "../empty", "~/empty"])
def test_the_folder_one_is_in_and_the_root_are_refused(
    target: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "empty")
    assert main([str(source), target]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.endswith(": exists already; name a folder that does not exist yet\n")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "published"]


def test_bf16_and_files_of_torch_before_zip(tmp_path: Path) -> None:
    tensors = chatglm2_tensors(dtype=torch.bfloat16)
    source = save(tmp_path / "published", CHATGLM2, tensors, sentencepiece_model(), "bin", 1)
    torch.save(tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert(source, tmp_path / "native")
    made = load_file(tmp_path / "native/model-00001-of-00001.safetensors")
    assert torch.equal(made["lm_head.weight"], tensors["transformer.output_layer.weight"])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "native", dtype="auto").dtype == torch.bfloat16


def test_the_config_matches_the_published_model(tmp_path: Path, source: Path) -> None:
    convert(source, tmp_path / "native")
    config = AutoConfig.from_pretrained(tmp_path / "native")
    assert (config.model_type, config.architectures, config.dtype) == ("glm", ["GlmForCausalLM"], torch.float16)
    assert (config.rms_norm_eps, config.max_position_embeddings, config.vocab_size) == (1e-5, 256, 3016)
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, 2, None)
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    text = (tmp_path / "native/config.json").read_text() + (tmp_path / "native/tokenizer_config.json").read_text()
    assert "auto_map" not in text
    assert json.loads((tmp_path / "native/generation_config.json").read_text())["eos_token_id"] == 2


def test_the_published_6b_has_its_known_sizes() -> None:
    config = CHATGLM2 | {
        "ffn_hidden_size": 13696, "hidden_size": 4096, "kv_channels": 128, "num_attention_heads": 32,
        "num_layers": 28, "padded_vocab_size": 65024, "seq_length": 32768,
    }  # fmt: skip
    rules = chatglm2.rules(config)
    assert rules["transformer.encoder.layers.27.self_attention.query_key_value.weight"].shape == (4608, 4096)
    assert sum(torch.Size(rule.shape).numel() for rule in rules.values()) == 6_243_584_000
    with torch.device("meta"):
        native = AutoModelForCausalLM.from_config(AutoConfig.for_model(**chatglm2.native_config(config)))
    made = {part.name: rule.shape_of(part) for rule in rules.values() for part in rule.parts}
    assert made == {name: tuple(value.shape) for name, value in native.state_dict().items()}


def test_the_manifest_lists_the_files_of_both_sides(tmp_path: Path, source: Path) -> None:
    convert(source, tmp_path / "native")
    manifest = json.loads((tmp_path / "native/conversion.json").read_text())
    assert manifest["family"] == "chatglm2" and manifest["architecture"] == "GlmForCausalLM" and manifest["hydraft"]
    there, here = contents(source), contents(tmp_path / "native")
    assert {entry["name"]: entry["sha256"] for entry in manifest["source"]} == {
        name: sha for name, sha in there.items() if not name.endswith("index.json")
    }
    assert len(manifest["shards"]) == 3
    for entry in manifest["shards"]:
        assert here[entry["name"]] == entry["sha256"]
        assert (tmp_path / "native" / entry["name"]).stat().st_size == entry["bytes"]


def test_a_finished_target_is_skipped_and_another_is_refused(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "native"
    first = convert(source, target)
    times = {file.name: file.stat().st_mtime_ns for file in target.iterdir()}
    assert convert(source, target) == first
    assert {file.name: file.stat().st_mtime_ns for file in target.iterdir()} == times
    os.utime(source / "config.json")  # only its modification time has changed
    assert convert(source, target) == first
    other = save(tmp_path / "other", CHATGLM2, chatglm2_tensors(seed=1), sentencepiece_model())
    with pytest.raises(ConfigError, match="converted from other files"):
        convert(other, target)
    with (target / "model-00002-of-00003.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ConfigError, match="has changed since it was written"):
        convert(source, target)
    assert leftovers(target) == []


def test_a_target_with_other_files_is_refused_and_unchanged(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    convert(source, target)  # an empty folder is accepted
    shutil.rmtree(target)
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    for place in (target, target / "thesis.txt", source):
        with pytest.raises(ConfigError, match="contains something else"):
            convert(source, place)
    assert contents(target).keys() == {"thesis.txt"}
    assert leftovers(target) == leftovers(source) == []


def test_a_concurrent_conversion_is_refused(tmp_path: Path, source: Path) -> None:
    with FileLock(tmp_path / ".native.converting.lock"), pytest.raises(ConfigError, match="another conversion"):
        convert(source, tmp_path / "native")
    convert(source, tmp_path / "native")


def test_baichuan_is_converted_the_same_way(tmp_path: Path) -> None:
    model = sentencepiece_model(dummy_prefix=False, defined=RESERVED)
    source = save(tmp_path / "published", BAICHUAN2, baichuan_tensors(), model, "bin")
    assert convert(source, tmp_path / "native")["architecture"] == "LlamaForCausalLM"
    with pytest.raises(ConfigError, match="no turn tokens"):
        (source / "tokenizer.model").write_bytes(sentencepiece_model())
        convert(source, tmp_path / "other")
    assert leftovers(tmp_path / "other") == []


def test_the_command_line_ends_with_one_line(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(source), str(tmp_path / "native")]) == 0
    assert "GlmForCausalLM" in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nowhere" in error and "hf download" in error
    monkeypatch.setattr(conversion, "_finish", interrupt)
    assert main([str(source), str(tmp_path / "other")]) == 130
    assert "resumes after the last complete shard" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(model in shown for family in PUBLISHED for model in family.MODELS)


def test_help_and_a_refusal_do_not_import_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BAICHUAN2 | {"hidden_act": "gelu"}))
    code = "import sys, hydraft.models.convert.convert as c; r = c.main(sys.argv[1:]); assert r == 2 and 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "native")]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})


def test_the_writer_aligns_and_hashes(tmp_path: Path) -> None:
    values = {"a": torch.randn(3, 5), "b": torch.randn(7).half(), "c": torch.randn(2, 2).bfloat16()}
    kinds = {"a": "F32", "b": "F16", "c": "BF16"}
    layout = {name: shards.Tensor(kinds[name], tuple(value.shape)) for name, value in values.items()}
    file, counted = tmp_path / "x.safetensors", []
    sha = shards.write(file, layout, iter(values.values()), counted.append)
    assert sha == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sum(counted) == sum(value.nbytes for value in values.values())
    back = load_file(file)
    assert all(torch.equal(back[name], value) for name, value in values.items())
