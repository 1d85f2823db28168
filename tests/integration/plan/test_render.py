"""The printed plan: on any machine, for any possible run, without torch."""

import io
import subprocess
import sys

import pytest

from conftest import ROOT, config_of, run_script
from hydraft.plan.memory_parts import Parts, size
from hydraft.plan.plan import Plan, make_plan, planned_for
from hydraft.plan.render import STYLES, announce, report
from hydraft.plan.token_count import Text
from hydraft.system.hardware import Gpu, Hardware
from hydraft.system.plain_console import PlainConsole

MACHINE = Hardware(cpus=8, memory=64 * 2**30)


def shown(*overrides: str, short: bool = False, refused: tuple[str, ...] = ()) -> tuple[str, Plan]:
    config = config_of(*overrides)
    plan = make_plan(config, 1000, planned_for(config, MACHINE), Text(123_456, 40))
    console = PlainConsole(file=io.StringIO(), width=120)
    if short:
        announce(config, plan, console)
    else:
        report(config, plan, list(refused), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue(), plan


def test_a_plan_shows_all_parts() -> None:
    text, plan = shown("model=llama3", "mode=plan", "cluster.gpu_memory=24GiB", "cluster=1x4", refused=("no GPUs",))
    for part in (
        "20,971,520 of 8,030,261,248", "about 120,000 tokens", "of 24.0 GiB", "frozen weights", "main memory per machine",
        "network: each rank sends", "disk:", "fits", "refused here: no GPUs",
    ):  # fmt: skip
        assert part in text, part
    assert plan.cost is not None


def test_every_part_of_memory_has_a_style() -> None:
    assert list(STYLES) == list(Parts().to_dict())
    assert len({glyph for glyph, _, _ in STYLES.values()}) == len(STYLES)


@pytest.mark.parametrize("card", [8, 24, 192])
def test_the_length_of_a_bar_is_proportional_to_its_bytes(card: int) -> None:
    text, plan = shown("model=llama3", "mode=plan", f"cluster.gpu_memory={card}GiB")
    bar = next(line for line in text.splitlines() if line.startswith("training "))
    inside = bar[bar.index("▕") + 1 : bar.index("▏")]
    assert plan.cost is not None
    total = plan.cost.memory.training.total
    scale = max(card * 2**30, plan.cost.memory.peak) / 48
    assert len(inside) == 48
    assert len(inside.rstrip()) == pytest.approx(total / scale, abs=1)
    assert ("│" in inside) == (total > card * 2**30)


def test_the_summary_of_a_run_is_short_and_warns() -> None:
    text, _ = shown("model=llama3", "mode=plan", "cluster.gpu_memory=8GiB", "data.max_length=2048", short=True)
    assert len(text.splitlines()) <= 8
    assert "does not fit; the cheapest change: " in " ".join(text.split())


def test_a_run_on_cpus_is_planned_for_main_memory() -> None:
    text, plan = shown()
    assert " of 64.0 GiB" in text
    assert plan.gpu_memory is None


def test_an_unknown_model_is_not_planned() -> None:
    text, plan = shown("model=auto", "model.path=owner/unheard-of")
    assert plan.cost is None
    assert "memory is not planned" in text


def test_sizes_are_readable() -> None:
    assert [size(n) for n in (0, 2048, 3 << 20, 1 << 30, 1 << 37, 1 << 41)] == [
        "–", "2 KiB", "3.0 MiB", "1.0 GiB", "128.0 GiB", "2.0 TiB",
    ]  # fmt: skip


def test_a_saved_plan_has_plain_numbers() -> None:
    _, plan = shown("model=llama3", "mode=plan", "cluster.gpu_memory=8GiB")
    values = plan.to_dict()
    assert values["cost"]["memory"]["training"]["weights"] > 0
    assert values["change"]["overrides"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["experiment=chatglm2_qlora_zero3"], "refused here: cluster.hostfile=hostfile: no such file"),
        (["experiment=chatglm2_qlora_zero3", "cluster.gpu_memory=24GiB"], "of 24.0 GiB"),
        (["experiment=llama3_unsloth_zero2"], "refused here: kernels=unsloth"),
        (["train.precision=fp16"], "refused here: train.precision=fp16 needs a GPU"),
    ],
)
def test_a_run_for_another_machine_can_be_planned_here(arguments: list[str], expected: str) -> None:
    done = run_script("train.py", "mode=plan", *arguments)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["quant=int8", "zero=stage3"], "quant=int8 cannot be sharded"),
        (["cluster.gpu_memory=24"], "cluster.gpu_memory=24: must be a number with one of the units"),
        (["model=llama3", "lora.target_modules=[query]"], "no such layers in this model"),
        (["kernels=unsloth", "zero=stage3"], "that ZeRO-3 has not gathered"),
    ],
)
def test_an_impossible_run_is_refused(arguments: list[str], expected: str) -> None:
    done = run_script("train.py", "mode=plan", *arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_plan_needs_no_torch() -> None:
    code = (
        "import runpy, sys; sys.argv = ['train.py', 'mode=plan', 'model=llama3', 'cluster.gpu_memory=8GiB']\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'deepspeed', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_gpus_of_this_machine_are_planned_for_by_default() -> None:
    config = config_of("model=llama3")
    machine = Hardware(gpus=(Gpu("card", 24 * 2**30, 8.6),), cpus=8, memory=64 * 2**30)
    assert make_plan(config, 1000, planned_for(config, machine)).gpu_memory == 24 * 2**30
