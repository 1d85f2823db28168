"""Settings that kernels do not support are refused before anything is loaded, by the table in docs/performance.md."""

import re
from pathlib import Path

import pytest

from conftest import ROOT, config_of, run_script
from hydraft.config import rules
from hydraft.config.choices import Kernels
from hydraft.errors import ConfigError
from hydraft.models import kernel_support, shapes
from hydraft.plan import preflight
from hydraft.system import program
from hydraft.system.hardware import Gpu, Hardware

MACHINE = Hardware(gpus=(Gpu("card", 24 * 2**30, 8.9),), cpus=8, memory=64 * 2**30)


@pytest.fixture(autouse=True)
def all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "find_spec", lambda name: True)


def refusal_and_notes(*overrides: str) -> tuple[str | None, list[str]]:
    """Why a run is refused, and the notes on settings that are slower."""
    config = config_of(*overrides, "mode=plan")
    family = (shapes.planned_config(config.model) or {}).get("model_type")
    return kernel_support.refusal(config, family), kernel_support.slower(config, family)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("kernels=unsloth zero=stage3", ["ZeRO-3", "use zero=stage2, or kernels=liger"]),
        ("kernels=unsloth model=chatglm2", ["glm", "use kernels=liger or kernels=torch"]),
        ("kernels=unsloth model=baichuan2 model.size=13b-chat", ["baichuan_alibi: use kernels=torch"]),
        ("kernels=unsloth lora=none quant=none", ["full fine-tuning", "kernels=liger"]),
        ("kernels=unsloth quant=int8", ["quant=nf4"]),
        ("kernels=unsloth lora=pissa quant=none", ["lora=rslora"]),
        ("kernels=unsloth lora.target_modules=[q_proj,lm_head]", ["lora.target_modules without lm_head"]),
        ("kernels=unsloth kernels.loss=chunked", ["kernels.loss=auto"]),
        ("kernels=unsloth train.compile=true", ["train.compile=false"]),
        ("kernels=liger lora.target_modules=[q_proj,lm_head]", ["ignores an adapter on lm_head"]),
        ("kernels=liger kernels.loss=chunked", ["kernels.loss=auto"]),
        ("kernels=liger train.compile=true", ["train.compile=false"]),
    ],
)
def test_unsupported_settings_of_kernels_are_refused_with_an_alternative(overrides: str, expected: list[str]) -> None:
    reason, _ = refusal_and_notes(*overrides.split())
    assert reason is not None
    assert reason.startswith(f"kernels={overrides.split()[0].removeprefix('kernels=')}: ")
    assert all(word in reason for word in expected)


@pytest.mark.parametrize(
    "overrides",
    [
        "model=baichuan2", "model=qwen model.size=3-8b", "model=llama3 zero=stage2_offload lora.dropout=0.1", "lora=rslora data.packing=true",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["liger", "unsloth"])
def test_supported_settings_are_not_refused(kind: str, overrides: str) -> None:
    assert refusal_and_notes(f"kernels={kind}", *overrides.split())[0] is None


def test_a_family_without_kernels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    for kind in ("liger", "unsloth"):
        reason, _ = refusal_and_notes(f"kernels={kind}", "model=auto", f"model.path={tmp_path}", "model.init=random")
        assert reason is not None
        assert "gpt2" in reason


def test_settings_without_speedup_are_reported() -> None:
    refused, notes = refusal_and_notes("kernels=unsloth", "lora=dora", "train.precision=bf16")
    assert refused is None
    assert notes == ["kernels=unsloth: DoRA's layers are not fused"]
    assert refusal_and_notes("kernels=liger", "lora=dora")[1] == []


def test_a_machine_without_a_gpu_only_supports_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("liger", "unsloth"):
        config = config_of(f"kernels={kind}", "mode=plan")
        config.mode = config_of().mode
        with pytest.raises(ConfigError, match=f"kernels={kind} needs a GPU, and none was found: use kernels=torch"):
            rules.check(config, Hardware())
        rules.check(config, MACHINE)
        monkeypatch.setattr(rules, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=re.escape(program.install(kind))):
            rules.check(config, MACHINE)
        monkeypatch.setattr(rules, "find_spec", lambda name: True)


def test_a_run_is_refused_with_code_2() -> None:
    run = run_script("train.py", "kernels=unsloth", "zero=stage3", "mode=plan")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("train.py: kernels=unsloth: its kernels read weights that ZeRO-3 has not gathered")


def test_a_plan_suggests_nothing_that_the_kernels_do_not_support() -> None:
    config = config_of(
        "kernels=unsloth", "model=llama3", "mode=plan", "cluster.gpu_memory=8GiB", "train.precision=bf16", "data.max_length=2048"
    )  # fmt: skip
    plan = preflight.admit(preflight.resolve(config, None)).plan
    assert plan.fits is False
    assert plan.change is None or "zero.stage=3" not in plan.change.overrides


def test_every_kind_has_its_group_option() -> None:
    assert {file.stem for file in (ROOT / "conf/kernels").glob("*.yaml")} == {kind.value for kind in Kernels}


def test_the_document_has_the_table() -> None:
    assert kernel_support.table() in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
