"""Several adapters become one as peft makes one of them, and the result is what it says: the weighted sum of their updates, or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hydraft.config import infer_rules
from hydraft.config.choices import Combine, ExportKind, InferMode, Precision
from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError
from hydraft.infer.export import compare
from hydraft.infer.export.run import run
from hydraft.infer.resolve import find
from hydraft.infer.source import ADAPTER
from hydraft.system.source_tree import TINY
from using import adapter

PROMPTS = [[1, 5, 9, 300, 17, 4], [1, 40, 41, 42]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with adapters: ``a`` and ``b`` of one rank on other layers, ``c`` with rsLoRA and another rank, and two that do not combine."""
    folder = tmp_path_factory.mktemp("runs")
    adapter(folder / "a", "quant=none", seed=1, target_modules=["q_proj", "down_proj"])
    adapter(folder / "b", "quant=none", seed=2, target_modules=["q_proj", "up_proj"], lora_alpha=4)
    adapter(folder / "c", "quant=none", seed=3, target_modules=["q_proj", "o_proj"], r=2, use_rslora=True)
    adapter(folder / "dora", "quant=none", seed=4, use_dora=True)
    adapter(folder / "pissa", "quant=none", init_lora_weights="pissa")
    return folder


def exported(folder: Path, names: str, target: Path, method: Combine, **settings: object) -> Path:
    options = options_of(folder, names, target, method, **settings)
    run(find(options), options)
    return target


def options_of(folder: Path, names: str, target: Path, method: Combine | None, **settings: object) -> InferConfig:
    options = InferConfig(mode=InferMode.export, run=[str(folder / name) for name in names.split()], output=str(target))
    options.export.combine, options.export.kind, options.export.dtype = method, ExportKind.adapter, Precision.fp32
    for name, value in settings.items():
        setattr(options.export if hasattr(options.export, name) else options, name, value)
    infer_rules.check(options)
    return options


@pytest.fixture(scope="module")
def by_peft(runs: Path) -> peft.PeftModel:
    """The base with the adapters ``a`` and ``b``, as peft loads them."""
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)  # in bf16, cat would round
    model = peft.PeftModel.from_pretrained(base, runs / "a" / "adapter", "first")
    model.load_adapter(runs / "b" / "adapter", "second")
    return model


@pytest.mark.parametrize("method", list(Combine), ids=lambda method: method.value)
def test_the_tensors_are_those_of_peft(method: Combine, runs: Path, by_peft: peft.PeftModel, tmp_path: Path) -> None:
    exported(runs, "a b", tmp_path / "out", method, weights=[0.7, -0.3], seed=7)
    torch.manual_seed(7)
    kind = {"dare": "dare_linear", "dare_svd": "dare_linear_svd"}.get(method.value, method.value)
    density = None if kind in ("cat", "svd", "linear") else 0.5
    by_peft.add_weighted_adapter(
        ["first", "second"], [0.7, -0.3], method.value, kind, density=density, svd_full_matrices=False
    )
    expected, found = (
        peft.get_peft_model_state_dict(by_peft, adapter_name=method.value),
        load_file(tmp_path / "out" / ADAPTER),
    )
    assert expected.keys() == found.keys() and len(found) == 2 * 3 * 4  # A and B of three layers in four blocks
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_cat_is_the_weighted_sum_of_the_updates_of_any_ranks_and_scalings(runs: Path, tmp_path: Path) -> None:
    """Not by peft's combination: over a base to whose weights the updates of each file are added."""
    weights = {"c": 0.5, "a": 0.75, "b": -1.0}
    scalings = {"c": 8 / 2**0.5, "a": 8 / 4, "b": 4 / 4}  # rsLoRA's is alpha / sqrt(r)
    plain = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    for name, weight in weights.items():
        tensors = load_file(runs / name / "adapter" / ADAPTER)
        for key in [key for key in tensors if "lora_A" in key]:
            layer = plain.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            update = tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
            layer.weight.data += weight * scalings[name] * update
    expected = compare.logits(plain, PROMPTS)
    alone = exported(runs, "c a b", tmp_path / "alone", Combine.cat, weights=list(weights.values()))
    over = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), alone)
    assert compare.difference(expected, compare.logits(over.eval(), PROMPTS))["relative"] < 1e-5
    assert json.loads((alone / "adapter_config.json").read_text())["r"] == 2 + 4 + 4
    whole = exported(
        runs, "c a b", tmp_path / "whole", Combine.cat, weights=list(weights.values()), kind=ExportKind.merged
    )
    merged = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32).eval()
    assert compare.difference(expected, compare.logits(merged, PROMPTS))["relative"] < 1e-5
    card = (whole / "README.md").read_text()
    assert "`export.combine=cat`" in card and "| b | -1 | `zh_tasks.train.json` |" in card
    assert sorted(file.name for file in tmp_path.iterdir()) == ["alone", "whole"]


def _other_template(folder: Path) -> None:
    file = folder / "adapter" / "hydraft.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"template": "{instruction}{input}"}))


def _other_chat(folder: Path) -> None:
    (folder / "adapter" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")


def _other_tokens(folder: Path) -> None:
    file = folder / "adapter" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens": []}))


def test_what_cannot_be_combined_is_refused_and_nothing_is_written(runs: Path, tmp_path: Path) -> None:
    changes: dict[str, Callable[[Path], None]] = {
        "prompted": _other_template,
        "words": _other_tokens,
        "chats": _other_chat,
    }
    for name, change in changes.items():
        shutil.copytree(runs / "b", runs / name)
        change(runs / name)
    refused = [
        ("a", Combine.cat, {}, r"export\.combine=cat: is for several adapters, and run is one: give run=\[a,b\]"),
        ("a b", Combine.cat, {"weights": [1.0]}, r"export\.weights=\[1\]: must be one number for each of the 2"),
        ("a b", Combine.cat, {"weights": [1.0, 0.0]}, r"export\.weights=\[1\.0, 0\.0\]: must be numbers other than 0"),
        ("a b", None, {"weights": [1.0, 2.0]}, r"export\.weights and export\.density are for several adapters"),
        ("a b", Combine.cat, {"density": 0.5}, r"export\.density=0\.5: export\.combine=cat keeps every number"),
        ("a b", Combine.ties, {"density": 0.0}, r"export\.density=0\.0: must be in"),
        ("a b", Combine.cat, {"adapter": "a"}, r"adapter=a is one, and export\.combine=cat takes all"),
        ("a b", Combine.cat, {"mode": InferMode.serve, "output": None}, r"export\.… is for mode=export"),
        ("a c", Combine.ties, {}, r"needs adapters of one rank \(a: 4, c: 2\): use export\.combine=ties_svd"),
        ("a c", Combine.linear, {}, r"needs adapters of one rank \(a: 4, c: 2\): use export\.combine=cat"),
        ("a dora", Combine.cat, {}, r"the adapter dora has use_dora=True, which is not part of its matrices"),
        ("a pissa", Combine.svd, {}, r"the adapter pissa has init_lora_weights=pissa, which changes the base"),
        ("a prompted", Combine.cat, {}, r"data\.template='chat' and prompted with .*choose one with template=…"),
        ("a chats", Combine.cat, {}, r"a and chats are prompted in different ways, .*\(auto, auto\): choose one"),
        ("a words", Combine.cat, {}, r"a and words have different tokenizers"),
    ]
    for names, method, settings, message in refused:
        with pytest.raises(ConfigError, match=message) as caught:
            options = options_of(runs, names, tmp_path / "out", method, **settings)
            run(find(options), options)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
