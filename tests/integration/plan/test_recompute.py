"""``train.gradient_checkpointing=auto`` turns recomputation on if a run fits only with it."""

import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from conftest import ROOT, run_script
from hydraft.config import cli
from hydraft.config.schema import Config, load_config
from hydraft.plan import plan, preflight
from hydraft.plan.suggest import apply
from hydraft.runs import resume, run_folder
from hydraft.system.hardware import Gpu, Hardware

GIB = 2**30


def requested(*overrides: str) -> Config:
    """The config before ``auto`` is resolved."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return cli.typed(compose("train", list(overrides)), Config)


def gpu(gibibytes: int) -> Hardware:
    return Hardware(gpus=(Gpu("gpu", gibibytes * GIB, 8.6),), cpus=8, memory=64 * GIB)


LLAMA = ["model=llama3", "model.init=random"]


@pytest.mark.parametrize(
    ("overrides", "machine", "expected", "fits"),
    [
        (["data.max_length=2048"], gpu(24), True, True),
        (["data.max_length=2048"], gpu(80), False, True),
        (["data.max_length=512"], gpu(24), False, True),
        (["data.max_length=2048"], gpu(4), False, False),  # it does not fit either way; the plan suggests a change
        (["data.max_length=2048"], dataclasses.replace(gpu(0), memory=0), False, None),
        (["data.max_length=2048", "train.gradient_checkpointing=false"], gpu(24), False, False),
        (["train.gradient_checkpointing=true"], gpu(80), True, True),
    ],
)
def test_recomputation_is_on_if_it_is_needed_and_sufficient(
    overrides: list[str], machine: Hardware, expected: bool, fits: bool | None
) -> None:
    admitted = preflight.admit(preflight.resolve(requested(*LLAMA, *overrides), machine))
    assert admitted.config.train.gradient_checkpointing is expected
    assert (admitted.plan.without is not None) is expected
    assert admitted.plan.fits is fits


def test_the_decision_uses_the_plans_number_of_tokens() -> None:
    """The decision and the displayed plan use the same estimate, to the byte at the threshold."""
    config = requested(
        "model=llama3", "model.init=random", "data.max_length=2048", "train.gradient_checkpointing=false"
    )
    needs = preflight.admit(preflight.resolve(config, gpu(24))).plan.cost
    assert needs is not None
    for room, expected in ((needs.memory.peak, False), (needs.memory.peak - 1, True)):
        machine = Hardware(gpus=(Gpu("gpu", room, 8.6),), cpus=8, memory=64 * GIB)
        admitted = preflight.admit(
            preflight.resolve(apply(config, [("train.gradient_checkpointing", "auto")]), machine)
        )
        assert (admitted.config.train.gradient_checkpointing, admitted.plan.fits) == (expected, True)


def test_a_run_on_cpus_is_planned_for_main_memory_and_saved_with_the_decision(tmp_path: Path) -> None:
    config = requested("data.max_length=512", "train.micro_batch_size=64", "train.epochs=1")
    roomy = preflight.admit(preflight.resolve(config, Hardware(cpus=2, memory=64 * GIB)))
    assert roomy.config.train.gradient_checkpointing is False and roomy.plan.cost is not None
    tight = Hardware(cpus=2, memory=roomy.plan.cost.memory.host_peak - 1)
    admitted = preflight.admit(preflight.resolve(config, tight))
    run_folder.create(tmp_path / "run", admitted.config, admitted.plan, tight)
    assert load_config(tmp_path / "run" / "config.yaml").train.gradient_checkpointing is True
    # The same command in the same folder keeps it, although more memory is free now.
    repeated = resume.adopted(config, tmp_path / "run")
    assert preflight.admit(preflight.resolve(repeated, Hardware(cpus=2, memory=64 * GIB))).config.train.recomputes
    assert resume.same(preflight.admit(preflight.resolve(repeated, tight)).config, tmp_path / "run")


def test_on_an_unknown_machine_it_stays_auto_until_the_run_starts() -> None:
    config = requested(*LLAMA, "data.max_length=2048")
    admitted = preflight.admit(preflight.resolve(config, None))
    assert admitted.config.train.gradient_checkpointing == "auto"  # for the machine that Slurm will choose
    assert not admitted.config.train.recomputes and admitted.plan.without is None
    resolved = plan.resolve(admitted.config, gpu(24))
    assert plan.settle(resolved, gpu(24), 64).train.gradient_checkpointing is True
    unknown = dataclasses.replace(resolved, model=requested("model=auto", "model.path=owner/unknown").model)
    assert plan.settle(unknown, gpu(24), 64).train.gradient_checkpointing is False


def test_a_plan_shows_recomputation_on_one_line() -> None:
    done = run_script("train.py", "mode=plan", "model=llama3", "cluster.gpu_memory=24GiB", "data.max_length=2048")
    line = next(line for line in done.stdout.splitlines() if line.startswith("recomputes"))
    assert line == "recomputes activations: 58.1 GiB per GPU without, of 24.0 GiB"
    done = run_script("train.py", "mode=plan", "model=llama3", "cluster.gpu_memory=80GiB", "data.max_length=2048")
    assert "recomputes" not in done.stdout
