"""Models that are created in the cache on first use: converted, or with random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from conftest import ROOT, config_of, run_script
from hydraft.config.model import ModelConfig
from hydraft.errors import ConfigError
from hydraft.models import prepare
from published import (
    BAICHUAN2,
    CHATGLM2,
    RESERVED,
    THIRTEEN,
    baichuan_tensors,
    chatglm2_tensors,
    contents,
    save,
    sentencepiece_model,
)

TINY = ROOT / "src/hydraft/models/tiny"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate cache for the test."""
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/models"


def chatglm2_folder(folder: Path) -> Path:
    return save(folder, CHATGLM2, chatglm2_tensors(), sentencepiece_model())


def section(*overrides: str) -> ModelConfig:
    return config_of(*overrides).model


def made(cache: Path) -> list[Path]:
    return sorted(entry for entry in cache.iterdir() if entry.is_dir())


@pytest.mark.parametrize(
    ("config", "tensors", "defined", "architecture"),
    [
        (CHATGLM2, chatglm2_tensors, (), "GlmForCausalLM"),
        (BAICHUAN2, baichuan_tensors, RESERVED, "LlamaForCausalLM"),
    ],
    ids=["chatglm2", "baichuan2"],
)
def test_a_published_folder_is_converted_on_first_use(
    config: dict[str, Any], tensors: Any, defined: tuple[str, ...], architecture: str, tmp_path: Path, cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = save(tmp_path / "published", config, tensors(), sentencepiece_model(not defined, defined))
    model = section("model=auto", f"model.path={source}")
    native = prepare.native(model, 0)
    assert "converting it" in capsys.readouterr().err
    assert Path(native.path).parent == cache
    assert type(AutoModelForCausalLM.from_pretrained(native.path)).__name__ == architecture
    before = contents(Path(native.path))
    assert prepare.native(model, 0) == native
    assert "converting" not in capsys.readouterr().err  # found in the cache, not created again
    assert contents(Path(native.path)) == before
    (source / "config.json").touch()  # another modification time counts as another file
    assert prepare.native(model, 0).path != native.path


def test_a_hub_name_is_converted_from_the_hubs_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client stores ``models--owner--name/snapshots/<commit>``, and ``refs/main`` has the current commit."""
    commit = "0" * 40
    repository = tmp_path / "hub/models--THUDM--chatglm2-6b"
    chatglm2_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = ModelConfig(name="chatglm2", path="THUDM/chatglm2-6b")
    native = prepare.native(model, 0)
    assert made(cache) == [Path(native.path)]
    assert len(prepare.tokenizer(model)) == len(AutoTokenizer.from_pretrained(native.path))


def test_an_unavailable_hub_name_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = ModelConfig(name="x", path="owner/nowhere")
    assert prepare.native(model, 0) == model


def test_a_preview_needs_only_the_tokenizer(tmp_path: Path, cache: Path) -> None:
    source = chatglm2_folder(tmp_path / "published")
    done = run_script(
        "train.py", "mode=preview", "model=auto", f"model.path={source}", HYDRAFT_CACHE=str(tmp_path / "cache")
    )
    assert done.returncode == 0, done.stderr
    assert "[Round 1]" in done.stdout
    assert not cache.exists()


def test_random_weights_are_initialised_once_as_by_transformers(cache: Path) -> None:
    model = section("model=qwen", "model.size=2.5-1.5b", "model.init=random", "model.scale=tiny")
    native = prepare.native(model, 7)
    before = contents(Path(native.path))
    assert prepare.native(model, 7) == native and contents(Path(native.path)) == before
    assert prepare.native(model, 8).path != native.path
    drawn = AutoModelForCausalLM.from_pretrained(native.path, dtype=torch.float32)
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(native.path), dtype=torch.float32)
    ours, theirs = drawn.state_dict(), reference.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].shape == tensor.shape
        if tensor.std() == 0:  # norms and biases
            assert torch.equal(ours[name], tensor)
        else:
            assert float(ours[name].std()) == pytest.approx(float(tensor.std()), rel=0.05)
            assert abs(float(ours[name].mean())) < 5 * float(tensor.std()) / tensor.numel() ** 0.5
    files = {file.name: load_file(file) for file in Path(native.path).glob("*.safetensors")}
    assert "lm_head.weight" not in {name for tensors in files.values() for name in tensors}  # tied weights


def test_random_weights_can_have_the_shape_of_a_folder(tmp_path: Path) -> None:
    model = section("model=auto", f"model.path={TINY}", "model.init=random")
    native = prepare.native(model, 0)
    ours, shipped = AutoConfig.from_pretrained(native.path), AutoConfig.from_pretrained(TINY)
    assert ours.hidden_size == shipped.hidden_size and ours.vocab_size == shipped.vocab_size
    assert AutoTokenizer.from_pretrained(native.path).get_vocab() == AutoTokenizer.from_pretrained(TINY).get_vocab()


def test_a_full_disk_is_refused_before_anything_is_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    with pytest.raises(ConfigError, match=r"GiB of weights do not fit in .*HYDRAFT_CACHE"):
        prepare.native(section("model=chatglm2", "model.init=random"), 0)
    assert made(cache) == []


def test_an_incomplete_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json in it"):
        config_of("model=auto", f"model.path={tmp_path}")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no weights in it .*model\.init=random"):
        config_of("model=auto", f"model.path={tmp_path}")
    config_of("model=auto", f"model.path={tmp_path}", "model.init=random")
    (tmp_path / "model.safetensors").touch()
    config_of("model=auto", f"model.path={tmp_path}")
    config_of("model=auto", "model.path=owner/name")  # left to the hub
    with pytest.raises(ConfigError, match="no such folder"):
        config_of("model=auto", "model.path=./nowhere")


def test_the_message_has_the_size_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944})
    )
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match=r"hidden_size=3584, where model.size=3-8b has 4096: use model.size=2.5-7b"):
        config_of("model=qwen", f"model.path={tmp_path}")
    assert config_of("model=qwen", "model.size=2.5-7b", f"model.path={tmp_path}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=qwen", "model.size=9b"], "model.size=9b: no such size (there are: 2.5-0.5b,"),
        (["model=chatglm2", "model.scale=tiny"], "use model.init=random too"),
        (["model=auto", "model.path=owner/name", "model.init=random"], "the shape of owner/name is unknown"),
        (["lora=none", "quant=none", "model.dtype=bf16", "train.precision=fp32"], "model.dtype=bf16 is for frozen weights"),
    ],
)  # fmt: skip
def test_impossible_models_are_refused_on_one_line(overrides: list[str], message: str) -> None:
    done = run_script("train.py", *overrides)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_unsupported_variant_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    folder = tmp_path / "thirteen"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(THIRTEEN))
    (folder / "pytorch_model.bin").touch()
    done = run_script("train.py", "model=baichuan2", f"model.path={folder}", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 2
    assert "ALiBi" in done.stderr.splitlines()[-1]
    assert not [line for line in done.stderr.splitlines() if line.endswith((" torch", " transformers"))]
