"""Ranks started by other launchers are detected by environment variables and applied to the config."""

from pathlib import Path

import pytest

from conftest import config_of
from hydraft.config import rules
from hydraft.config.choices import Launcher
from hydraft.errors import ConfigError
from hydraft.launch.external.environment import World, apply, describe, detect, forget_empty, sweep_command
from hydraft.system import hardware
from hydraft.system.hardware import Gpu, Hardware

CPU = Hardware()
ONE_GPU = Gpu("card", 80 * 2**30, 9.0)
RENDEZVOUS = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
TORCHRUN = {
    **RENDEZVOUS, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "1",
}  # fmt: skip
DEEPSPEED = {
    **RENDEZVOUS, "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "CROSS_SIZE": "2", "CROSS_RANK": "1",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "6", "SLURM_PROCID": "4", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x3)", "SLURM_STEP_NODELIST": "n[1-3]",
}  # fmt: skip


def detected(environ: dict[str, str]) -> World:
    """The detected ranks, which must not be None."""
    world = detect(environ)
    assert world is not None
    return world


def test_each_launcher_is_detected_by_its_variables() -> None:
    world = detected(TORCHRUN)
    assert world == World("torchrun", 5, 8, 1, 4, "node1", 29500, True, "1")
    assert (world.nodes, world.environment()["LOCAL_WORLD_SIZE"]) == (2, "4")
    assert detected({**TORCHRUN, "ACCELERATE_MIXED_PRECISION": "no"}).starter == "accelerate"
    assert detected(DEEPSPEED) == World("deepspeed", 3, 4, 1, 2, "node1", 29500)
    one_a_machine = detected({**RENDEZVOUS, "RANK": "1", "WORLD_SIZE": "2"})
    assert (one_a_machine.starter, one_a_machine.local_size, one_a_machine.nodes) == ("RANK", 1, 2)


def test_srun_gives_the_first_node_and_a_port_per_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$2" = hostnames ] && echo n1 && echo n2 || echo "NodeAddr=10.0.0.7 Port=1"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    world = detected(SRUN)
    assert (world.starter, world.rank, world.size, world.local_size, world.nodes) == ("srun", 4, 6, 2, 3)
    assert world.address == "10.0.0.7"  # the name itself cannot be resolved here
    assert world.port == detected({**SRUN, "SLURM_PROCID": "1"}).port
    assert world.port != detected({**SRUN, "SLURM_STEP_ID": "4"}).port
    assert detected({**SRUN, **RENDEZVOUS}).address == "node1"


@pytest.mark.parametrize(
    "environ",
    [
        {}, {"RANK": "0"}, {**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
        dict.fromkeys([*TORCHRUN, *DEEPSPEED, *SRUN], ""), {**dict.fromkeys(SRUN, " "), "RANK": "", "WORLD_SIZE": "2"},
        {**RENDEZVOUS, "RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    ],
    ids=["nothing", "RANK alone", "one task", "a batch script", "empty", "blank", "a pod alone", "a notebook"],
)  # fmt: skip
def test_no_other_launcher_is_detected(environ: dict[str, str]) -> None:
    assert detect(environ) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0 is set, as by a launcher, but MASTER_ADDR is not"),
        ({**RENDEZVOUS, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "LOCAL_WORLD_SIZE"),
        ({**TORCHRUN, "WORLD_SIZE": "6"}, "every machine needs the same number"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, "WORLD_SIZE=many"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "if no launcher started this, type unset RANK WORLD_SIZE first"),
        (
            {**RENDEZVOUS, "RANK": "2", "WORLD_SIZE": "2"},
            "rank 2 of 2, by a launcher: ranks count from 0 to 1; if no launcher",
        ),
    ],
)
def test_incomplete_variables_are_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detect(environ)


def test_empty_variables_do_not_hide_others() -> None:
    assert detected({**TORCHRUN, **dict.fromkeys(SRUN, ""), "CROSS_SIZE": ""}) == detected(TORCHRUN)
    assert detected({**SRUN, **RENDEZVOUS, "RANK": "0", "WORLD_SIZE": "1"}).starter == "srun"
    assert detected({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}).starter == "torchrun"
    environ = {
        "RANK": "",
        "LOCAL_WORLD_SIZE": "",
        "MASTER_ADDR": " ",
        "SLURM_JOB_ID": "",
        "CUDA_VISIBLE_DEVICES": "",
        "HOME": "",
    }
    forget_empty(environ)
    assert list(environ) == ["CUDA_VISIBLE_DEVICES", "HOME"]


def test_the_default_cluster_is_reapplied_and_reported() -> None:
    world = detected(TORCHRUN)
    applied = apply(config_of(), world, explicit=False)
    assert (applied.cluster.nodes, applied.cluster.ranks_per_node, applied.cluster.launcher) == (2, 4, Launcher.joined)
    rules.check(applied, CPU)
    assert describe(world) == "8 ranks, started by torchrun: cluster is 2x4 in this run"


@pytest.mark.parametrize(
    ("environ", "command"),
    [
        (TORCHRUN, "torchrun --nnodes 1 --nproc-per-node 2 train.py"),
        ({**TORCHRUN, "ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch --multi_gpu --num_machines 1 --num_processes 2 train.py"),
        (DEEPSPEED, "deepspeed --num_nodes 1 --num_gpus 2 train.py"),
        ({**SRUN, **RENDEZVOUS}, "srun --nodes 1 --ntasks-per-node 2 python train.py"),
        ({**RENDEZVOUS, "RANK": "0", "WORLD_SIZE": "2"}, r"torchrun --nnodes 1 --node-rank \$RANK --nproc-per-node 2 .*unset RANK WORLD_SIZE"),
    ],
    ids=["torchrun", "accelerate", "deepspeed", "srun", "pods"],
)  # fmt: skip
def test_a_different_number_of_ranks_is_refused_with_the_matching_command(
    environ: dict[str, str], command: str
) -> None:
    with pytest.raises(ConfigError, match=command):
        apply(config_of("cluster=1x2"), detected(environ), explicit=True)


def test_an_explicit_single_rank_is_not_replaced() -> None:
    with pytest.raises(ConfigError, match="cluster=1x1: deepspeed started 2x2: use cluster=2x2"):
        apply(config_of(), detected(DEEPSPEED), explicit=True)
    assert apply(config_of("cluster=1x8"), detected({**TORCHRUN, "LOCAL_WORLD_SIZE": "8"}), True)


@pytest.mark.parametrize("override", ["cluster.hosts=[a,b,c,d]", "cluster.launcher=slurm", "cluster.port=1234"])
def test_settings_for_starting_ranks_are_refused_under_another_launcher(override: str) -> None:
    name = override.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{name} is for ranks that train.py starts itself, and torchrun has"):
        apply(config_of(override), detected(TORCHRUN), True)


def test_one_visible_gpu_per_task_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    world = detected({**SRUN, **RENDEZVOUS})
    monkeypatch.setattr(hardware, "detect", lambda: Hardware(gpus=(ONE_GPU,)))
    with pytest.raises(ConfigError, match="--gpu-bind=none"):
        apply(config_of(), world, False)
    monkeypatch.setattr(hardware, "detect", lambda: Hardware(gpus=(ONE_GPU, ONE_GPU)))
    assert apply(config_of(), world, False)


def test_joined_cannot_be_set_by_a_user() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.launcher=joined"):
        apply(config_of("cluster.launcher=joined"), None, True)


def test_the_command_for_a_sweep() -> None:
    typed = ["-m", "lora.r=4,8", "cluster=1x1"]
    assert sweep_command(typed, detected(TORCHRUN)) == "python train.py -m lora.r=4,8 cluster=2x4"
