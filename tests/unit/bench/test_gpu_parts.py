"""The commands of bench-gpu compose without a GPU, so that no device time is spent on a typo."""

import json
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from bench.equivalence import compose_run
from bench.gpu import parts, serve
from bench.gpu.parts import ALL, DEFAULT, Machine
from bench.gpu.steps import Part, Step
from hydraft.config import cli, rules
from hydraft.config.infer import InferConfig
from hydraft.models import shapes
from hydraft.plan.memory import Parts
from hydraft.plan.plan import make_plan
from hydraft.system.hardware import Gpu, Hardware
from hydraft.system.source_tree import ROOT, TINY

CARDS = {
    "H100": Gpu("NVIDIA H100 80GB HBM3", 81559 << 20, 9.0),
    "4090": Gpu("NVIDIA GeForce RTX 4090", 24564 << 20, 8.9),
}
PACKAGES = frozenset({"liger_kernel", "unsloth", "xdist", "pytest_timeout"})


def model_folder(folder: Path, name: str, tiny: bool) -> None:
    """Write the folder that bench.gpu.weights would write, without the weights."""
    section = compose_run([f"model={name}", "model.init=random", "mode=plan"]).model
    assert section.shape is not None
    shape = shapes.native_config(section.shape)
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    (folder / "config.json").write_text(json.dumps(shapes.tiny(shape, 3072) if tiny else shape))
    (folder / "model.safetensors").touch()


def machine(scratch: Path, rehearse: bool, memory: int | None) -> Machine:
    for name in ("chatglm2", "llama3"):
        model_folder(scratch / "models" / name, name, rehearse)
    (scratch / "records.json").write_text("[]")
    return Machine(scratch, memory, rehearse, PACKAGES if memory else frozenset(), "apart", parts.gpu_tests())


def trained(part: Part) -> dict[str, list[str]]:
    """The overrides of each step that has any."""
    return {step.name: arguments for step in part.steps if (arguments := parts.overrides(step.command))}


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("part", ALL)
def test_every_command_composes_on_a_gpu(part: str, card: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "find_spec", lambda name: object())  # as if liger and unsloth were installed
    hardware = Hardware((CARDS[card],), cpus=16, memory=128 << 30)
    made = ALL[part](machine(tmp_path, False, CARDS[card].memory))
    assert not [step.name for step in made.steps if step.skip]
    for name, arguments in trained(made).items():
        config = compose_run(arguments, hardware)
        plan = make_plan(config, 128, hardware)
        assert config.train.max_steps is not None
        if card == "H100":
            assert plan.fits, f"{name} does not fit an H100 according to the plan"
        elif "qlora" in name or name == "chatglm2-stage2":
            assert plan.fits, f"{name} does not fit a 4090 according to the plan"


@pytest.mark.parametrize("part", ALL)
def test_every_command_composes_in_a_rehearsal(part: str, tmp_path: Path) -> None:
    made = ALL[part](machine(tmp_path, True, None))
    for step in made.steps:
        if step.skip is None and (arguments := parts.overrides(step.command)):
            compose_run(arguments, Hardware(cpus=2, memory=16 << 30))


def test_a_typo_is_found(tmp_path: Path) -> None:
    step = parts.train(machine(tmp_path, False, 80 << 30), "x", 9, "train.max_step=3")
    with pytest.raises(Exception, match="max_step"):
        compose_run(parts.overrides(step.command))


def test_a_rehearsal_runs_the_same_commands(tmp_path: Path) -> None:
    """The same steps with the same settings but other values; fewer tiny runs, and pytest in one process."""
    card, none = machine(tmp_path / "a", False, 80 << 30), machine(tmp_path / "b", True, None)
    for name, part in ALL.items():
        real, tried = ({step.name: step for step in part(here).steps} for here in (card, none))
        assert tried.keys() <= real.keys()
        assert name == "tests" or list(tried) == list(real)
        for step in tried:
            ours, theirs = (settings(steps[step]) for steps in (tried, real))
            assert ours == theirs, step


def settings(step: Step) -> tuple[list[str], list[str]]:
    """The command without its values, and the names of its overrides."""
    return list(step.command[1:3])[: 2 if step.command[1] == "-m" else 1], [
        word.partition("=")[0] for word in parts.overrides(step.command)
    ]


def test_the_other_commands_compose(tmp_path: Path) -> None:
    """A resumed run, a sweep's job and the server, which have other kinds of arguments."""
    here = machine(tmp_path, False, 80 << 30)
    commands = {step.name: step.command for step in parts.tests(here).steps}
    resumed = [word for word in commands["resume-nf4"][2:] if not word.startswith("resume=")]
    assert f"resume={tmp_path / 'tiny-nf4-stage2'}" in commands["resume-nf4"]
    assert {"tiny-nf4-stage2", "tiny-none-stage2"} <= commands.keys()
    job = [word.partition(",")[0] for word in commands["sweep"][3:] if not word.startswith("hydra.")]
    for arguments in (resumed, job):
        compose_run(arguments)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = cli.typed(compose("infer", ["run=x", "serve.port=1", *serve.SETTINGS]), InferConfig)
    assert config.serve.max_running == 32 >= max(at_once for at_once, _ in serve.PASSES)


def test_timed_runs_fill_their_length_and_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "find_spec", lambda name: object())
    here = machine(tmp_path, False, 80 << 30)
    for name in ("chatglm2", "llama", "unsloth"):
        assert ALL[name](here).at_once == 1
        for step, arguments in trained(ALL[name](here)).items():
            assert f"data.train={here.records}" in arguments, step
            assert "data.eval=null" in arguments, step
    (records,) = (step.command for step in parts.first(here).steps if step.name == "records")
    longest = max(
        compose_run(arguments, Hardware((CARDS["H100"],))).data.max_length
        for arguments in trained(parts.llama(here)).values()
    )
    assert int(records[records.index("--characters") + 1]) > longest


def test_only_unsloths_steps_have_its_path(tmp_path: Path) -> None:
    here = machine(tmp_path, False, 80 << 30)
    for name, part in ALL.items():
        for step in part(here).steps:
            assert ("PYTHONPATH" in step.environment) == (
                name == "unsloth" and "random" not in step.name and step.name != "records"
            )


def test_a_run_with_its_weights_in_main_memory_has_less_of_the_gpu_than_they_have(tmp_path: Path) -> None:
    card = CARDS["4090"]
    (step,) = (
        one for one in parts.sharded(machine(tmp_path, False, card.memory)).steps if one.name == "sharded-offload"
    )
    name, _, share = step.environment["PYTORCH_CUDA_ALLOC_CONF"].partition(":")
    assert name == "per_process_memory_fraction"
    hardware = Hardware((card,), cpus=16, memory=128 << 30)

    def planned(zero: str) -> Parts:
        overrides = [*parts.overrides(step.command), f"zero={zero}"]
        cost = make_plan(compose_run(overrides, hardware), 128, hardware).cost
        assert cost is not None
        return cost.memory.training

    offloaded = planned("stage3_offload")
    assert offloaded.total - offloaded.overhead < float(share) * card.memory < planned("stage2").weights


def test_a_small_gpu_recomputes_in_all_runs_of_a_comparison(tmp_path: Path) -> None:
    here = machine(tmp_path, False, 24 << 30)
    for name in ("llama", "unsloth"):
        assert all("train.gradient_checkpointing=true" in arguments for arguments in trained(ALL[name](here)).values())


def test_the_default_parts_are_in_the_order_of_all_parts() -> None:
    assert list(DEFAULT) == [name for name in ALL if name in DEFAULT]


def test_files_with_gpu_tests_are_found() -> None:
    found = parts.gpu_tests()
    assert "tests/unit/models/test_attention.py" in found
    assert "tests/integration/config/test_cli.py" not in found
