"""How run= is resolved, and which sources are refused: remote code, pickles, adapters that do not match their base."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import ROOT, config_of
from hydraft.config.choices import QuantKind
from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError
from hydraft.infer.load import load
from hydraft.infer.resolve import find
from hydraft.infer.source import ADAPTER, Kind
from hydraft.models import base_identity
from hydraft.system.source_tree import TINY
from using import adapter


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(tmp_path_factory.mktemp("made") / "zh", "quant=none")


def use(*places: Any, **settings: Any) -> InferConfig:
    return InferConfig(run=str(places[0]) if len(places) == 1 else [str(place) for place in places], **settings)


def test_a_run_an_adapter_a_checkpoint_and_a_model_are_distinguished(made: Path, tmp_path: Path) -> None:
    checkpoint = made / "checkpoints/step-000100"
    shutil.copytree(made / "adapter", checkpoint)
    moved = tmp_path / "moved"
    shutil.copytree(made / "adapter", moved)
    named = {place: find(use(place))[0] for place in (made, made / "adapter", checkpoint, moved, TINY)}
    assert [source.name for source in named.values()] == ["zh", "zh", "zh-step-000100", "moved", "tiny"]
    assert [source.kind for source in named.values()] == [*[Kind.adapter] * 4, Kind.model]
    assert [source.run is not None for source in named.values()] == [True, True, True, False, False]
    assert all(source.model.path == str(TINY) and not source.notices for source in list(named.values())[:4])
    assert [source.name for source in find(InferConfig(run={"a": str(made), "b": str(moved)}))] == ["a", "b"]


def test_an_adapter_of_an_earlier_version_loads_with_a_notice(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "old"
    shutil.copytree(made, run)
    (run / "adapter" / base_identity.NAME).unlink()
    (source,) = find(use(run))
    assert "has no hash of its base" in source.notices[0]
    alone = tmp_path / "alone"  # one that was trained on another machine
    shutil.copytree(run / "adapter", alone)
    (source,) = find(use(alone))
    assert source.model.path == str(TINY)
    assert "the base was not verified" in source.notices[0]
    load([source], use(alone))


def test_adapters_are_selected_by_name(made: Path, tmp_path: Path) -> None:
    other = adapter(tmp_path / "en", "quant=none", seed=1)
    options = use(made, other)
    loaded = load(find(options), options)
    ids = torch.tensor([[1, 7, 30, 200]])

    def logits_of(name: str) -> torch.Tensor:
        loaded.select(name)
        with torch.no_grad():
            return loaded.model(input_ids=ids).logits

    both = [logits_of("zh"), logits_of("en"), logits_of("zh")]
    assert torch.equal(both[0], both[2])
    for place, expected in ((made, both[0]), (other, both[1])):
        alone = load(find(use(place)), use(place)).model
        with torch.no_grad():
            assert torch.equal(alone(input_ids=ids).logits, expected)


def _pickled(folder: Path, name: str, removed: str) -> Path:
    (folder / removed).unlink()
    (folder / name).write_bytes(b"\x80\x04.")
    return folder


def test_unsuitable_sources_are_refused(made: Path, tmp_path: Path) -> None:
    def copy(name: str, source: Path = made / "adapter") -> Path:
        return Path(shutil.copytree(source, tmp_path / name))

    other = copy("other", TINY)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    smaller = adapter(tmp_path / "smaller", "quant=none")
    tensors = load_file(smaller / "adapter" / ADAPTER)
    name = next(name for name in tensors if "lora_A" in name)
    save_file({**tensors, name: tensors[name][:, :8].contiguous()}, smaller / "adapter" / ADAPTER)
    quantised = adapter(tmp_path / "quantised", "quant=nf4")
    traitor = copy("traitor", TINY)
    traitor_config = json.loads((traitor / "config.json").read_text())
    (traitor / "config.json").write_text(
        json.dumps(traitor_config | {"auto_map": {"AutoModel": "who/ever--code.Model"}})
    )
    refused: list[tuple[InferConfig, str]] = [
        (use(_pickled(copy("a"), "adapter_model.bin", ADAPTER)), r"a/adapter_model\.bin: is a pickle"),
        (
            use(_pickled(copy("b", TINY), "pytorch_model.bin", "model.safetensors")),
            r"b/pytorch_model\.bin: is a pickle",
        ),
        (use(made, base=str(_pickled(copy("c", TINY), "x.pt", "model.safetensors"))), r"base=.*c: no weights in it"),
        (use(made, base=str(other)), rf"zh/adapter: was trained on tiny .*, and {other} is another model"),
        (use(made, base=str(tmp_path / "nowhere")), r"its base .*nowhere does not exist any more; give base="),
        (use(TINY, base=str(TINY)), "is a whole model, which needs none"),
        (use(made, made), "is listed twice"),
        (use(made, TINY), "is a whole model; only adapters of one base"),
        (use(made, quantised), "quant=none in fp32, quantised with quant=nf4 in fp32: choose one"),
        (use(made, adapter="nobody"), r"adapter=nobody: not among those of run \(zh\)"),
        (use("owner/name"), "no such folder"),
        (use(tmp_path), "not a run's folder"),
        (use(made, base="owner/name", trust_remote_code=True), r"may change on the hub; pin it: revision="),
        (use(traitor, trust_remote_code=True), "takes its code from who/ever on the hub"),
    ]
    for options, message in refused:
        with pytest.raises(ConfigError, match=message):
            find(options)
    load(find(use(made, base=str(other), other_base=True)), use(made, other_base=True))
    with pytest.raises(
        ConfigError, match=r"does not fit .*tiny: .* has \d+ features in the base, and 8 in the adapter"
    ):
        load(find(use(smaller)), use(smaller))
    cut = copy("cut")
    (cut / ADAPTER).write_bytes((cut / ADAPTER).read_bytes()[:-100])
    with pytest.raises(ConfigError, match="truncated, or not safetensors"):
        load(find(use(cut)), use(cut))


def test_remote_code_of_a_run_needs_trust_on_the_command_line(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "theirs"
    shutil.copytree(made, run)
    origin = json.loads((run / "adapter" / base_identity.NAME).read_text())
    origin["model"]["trust_remote_code"] = True
    (run / "adapter" / base_identity.NAME).write_text(json.dumps(origin))
    with pytest.raises(ConfigError, match="to run that code here give trust_remote_code=true"):
        find(use(run))
    assert find(use(run, trust_remote_code=True))[0].model.trust_remote_code
    with pytest.raises(ConfigError, match=r"may change on the hub; pin it: model\.revision="):
        config_of("model=auto", "model.path=owner/name", "model.trust_remote_code=true")
    assert config_of(
        "model=auto", "model.path=owner/name", "model.trust_remote_code=true", f"model.revision={'a' * 40}"
    )
    assert find(use(made))[0].quant.kind is QuantKind.none


def test_a_refusal_imports_no_torch(made: Path, tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['infer.py', *%r]\n"
        "try: runpy.run_path('infer.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 2\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    arguments = [f"run={made}", "mode=batch", f"input={tmp_path / 'none.jsonl'}", f"output={tmp_path / 'o.jsonl'}"]
    done = subprocess.run(
        [sys.executable, "-c", code % arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert "none.jsonl: no such file" in done.stderr
