"""A quantised export is read again by transformers with a loss near the merged model's; what cannot be quantised is refused at once."""

import dataclasses
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig

from conftest import run_code
from hydraft.config import infer_rules
from hydraft.config.choices import ExportKind, ExportQuant, InferMode, Layout
from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError
from hydraft.infer.export import calibration, quantise, quantise_check
from hydraft.infer.export.calibration import RunRecords
from hydraft.infer.export.quantise import Quality
from hydraft.infer.export.run import run
from hydraft.infer.resolve import find
from hydraft.system.source_tree import TINY
from using import adapter

installed = pytest.mark.skipif(find_spec("llmcompressor") is None, reason="needs the extra llmcompressor")


def options_of(made: Path | list[str], target: Path, quant: ExportQuant, **export: Any) -> InferConfig:
    options = InferConfig(mode=InferMode.export, run=made if isinstance(made, list) else str(made), output=str(target))
    options.export = dataclasses.replace(options.export, quant=quant, **export)
    infer_rules.check(options)
    return options


def transformers_loss(folder: Path, records: RunRecords) -> float:
    """The mean loss of a folder, as transformers loads it and computes it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    total, tokens = 0.0, 0
    for example in records.measured:
        ids, labels = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
        count = int((labels[:, 1:] != -100).sum())
        with torch.inference_mode():
            total, tokens = total + count * float(model(input_ids=ids, labels=labels).loss), tokens + count
    return total / tokens


@installed
def test_an_export_is_read_again_with_nearly_the_loss_of_the_merged_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "MEASURED", 16)
    made = adapter(tmp_path / "run", "quant=none", target_modules=["q_proj", "down_proj"])
    options = options_of(made, tmp_path / "out", ExportQuant.gptq, calibration=8)
    run(find(options), options)
    line = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("loss on 16 held-out sequences")
    )
    merged, quantised = (float(line.split(f" {name}")[0].split()[-1]) for name in ("merged", "quantised"))
    records = calibration.read(find(InferConfig(run=str(made)))[0], options)
    assert quantised == pytest.approx(transformers_loss(tmp_path / "out", records), rel=2e-3)
    assert quantised == pytest.approx(merged, rel=quantise.EXPECTED[ExportQuant.gptq])
    assert stored_types(tmp_path / "out") == {"I32"}
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    card = (tmp_path / "out" / "README.md").read_text()
    assert line in card and "convert_hf_to_gguf" not in card and str(tmp_path) not in card
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "run"]


def stored_types(folder: Path) -> set[str]:
    """The data types of the weights of the linear layers in the blocks."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    weights = [name for name in types if name.endswith(("_proj.weight", "_proj.weight_packed"))]
    assert len(weights) == 4 * 7 and "lm_head.weight_packed" not in types
    return {types[name] for name in weights}


TWICE = """
import sys
from pathlib import Path
from hydraft.infer.export.compress import main
for file in sys.argv[1:]:
    main(Path(file))
"""


@installed
def test_every_kind_is_read_again_by_transformers(tmp_path: Path) -> None:
    """Of the embedded model itself, in one process, since most of the time is llm-compressor's import."""
    made = adapter(tmp_path / "run", "quant=none")
    options = options_of(made, tmp_path / "out", ExportQuant.awq, calibration=8)
    records = calibration.read(find(options)[0], options)
    records = dataclasses.replace(records, measured=records.measured[:16])
    ids = [list(example["input_ids"]) for example in records.calibration]
    for kind, group_size, calibrated in (("awq", 64, ids), ("fp8", None, [])):
        values = {"kind": kind, "group_size": group_size, "ids": calibrated}
        settings = {"model": str(TINY), "output": str(tmp_path / kind), **values}
        (tmp_path / f"{kind}.json").write_text(json.dumps(settings))
    done = run_code(TWICE, tmp_path, str(tmp_path / "awq.json"), str(tmp_path / "fp8.json"))
    assert done.returncode == 0, done.stderr
    before = transformers_loss(TINY, records)
    for kind, dtype in ((ExportQuant.awq, "I32"), (ExportQuant.fp8, "F8_E4M3")):
        after = transformers_loss(tmp_path / kind.value, records)
        assert after != before and after == pytest.approx(before, rel=quantise.EXPECTED[kind])
        assert stored_types(tmp_path / kind.value) == {dtype}


def test_records_are_those_of_training_and_of_every_run(tmp_path: Path) -> None:
    """Those to calibrate on are trained ones, those to measure with are not, and without any held-out ones they lie between."""
    for name, overrides in {"a": [], "b": ["data.eval=null"]}.items():
        adapter(tmp_path / name, "quant=none", *overrides)
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    found = {}
    for name in runs:
        options = options_of(Path(name), tmp_path / "out", ExportQuant.gptq, calibration=10)
        found[name] = calibration.read(find(options)[0], options)
    first, second = found.values()
    assert [len(part.calibration) for part in (first, second)] == [10, 10]
    assert (first.held_out, second.held_out) == (True, False)
    assert [one["input_ids"] for one in first.calibration] == [one["input_ids"] for one in second.calibration]
    trained = {tuple(one["input_ids"]) for one in second.calibration}
    assert not trained & {tuple(one["input_ids"]) for part in (first, second) for one in part.measured}


def test_what_cannot_be_quantised_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = adapter(tmp_path / "run", "quant=none")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"quant": ExportQuant.fp8, "kind": ExportKind.adapter}, r"export\.quant=fp8 is for whole models"),
        ({"quant": ExportQuant.gptq, "layout": Layout.published}, r"export\.quant=gptq: is stored in the layout"),
        ({"quant": ExportQuant.fp8, "calibration": 8}, r"export\.calibration=8 is for export\.quant=gptq"),
    ]
    for settings, message in refused:
        with pytest.raises(ConfigError, match=message):
            options_of(made, tmp_path / "out", **settings)
    options = options_of(made / "adapter", tmp_path / "out", ExportQuant.awq)
    monkeypatch.setattr(quantise_check, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"export\.quant=awq: needs llm-compressor: pip install .*\[llmcompressor\]'"):
        run(find(options), options)
    monkeypatch.setattr(quantise_check, "find_spec", lambda name: name)
    sources = find(options)
    for source in sources:
        source.run = None
    with pytest.raises(ConfigError, match=r"is not in a run's folder, so it has no records .* give run="):
        run(sources, options)
    with torch.device("meta"):
        narrow: Any = AutoModelForCausalLM.from_config(
            LlamaConfig(hidden_size=96, intermediate_size=40, num_attention_heads=2, vocab_size=8, num_hidden_layers=1)
        )
    with pytest.raises(
        ConfigError, match=r"multiple of 32, and model\.layers\.0\.mlp\.down_proj has 40: use export\.quant=fp8"
    ):
        quantise._group_size(narrow, ExportQuant.awq)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_rises_more_than_usual_is_said() -> None:
    records = RunRecords([], [{"input_ids": [1, 2], "labels": [1, 2]}], True)
    said = [
        Quality(ExportQuant.gptq, 128, records, before, after).notice
        for before, after in ((1.0, 1.09), (0.001, 0.01), (1.0, 1.11))
    ]
    assert said[:2] == [None, None] and "export.quant=fp8" in str(said[2])
