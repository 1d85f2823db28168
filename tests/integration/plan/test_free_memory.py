"""A plan uses the free memory of the GPUs that ranks use; memory of other processes is shown if it matters."""

import dataclasses
import io

import pytest
from hydra import compose, initialize_config_dir

from conftest import ROOT, config_of
from hydraft.config import cli
from hydraft.config.schema import Config
from hydraft.plan import preflight
from hydraft.plan.plan import Plan, fits_memory, make_plan, planned_for
from hydraft.plan.render import announce, report
from hydraft.system.hardware import Gpu, Hardware
from hydraft.system.plain_console import PlainConsole

GIB = 2**30
LLAMA = ["model=llama3", "model.init=random", "train.precision=bf16", "data.max_length=512"]


def machine(*free: float | None, size: int = 24, reserved: float = 0.5, unified: bool = False) -> Hardware:
    """Hardware with GPUs of ``size`` GiB, of which ``free`` are free."""
    gpus = tuple(
        Gpu("card", size * GIB, 8.6, index, free=None if gibibytes is None else round(gibibytes * GIB), reserved=round(reserved * GIB), unified=unified)
        for index, gibibytes in enumerate(free)
    )  # fmt: skip
    return Hardware(gpus, cpus=8, memory=64 * GIB)


def planned(config: Config, here: Hardware) -> Plan:
    return make_plan(config, 1000, planned_for(config, here))


def printed(config: Config, plan: Plan) -> list[str]:
    """The summary of a run, and the complete plan."""
    texts = []
    for show in (lambda console: announce(config, plan, console), lambda console: report(config, plan, [], console)):
        console = PlainConsole(file=io.StringIO(), width=200)
        show(console)
        assert isinstance(console.file, io.StringIO)
        texts.append(console.file.getvalue())
    return texts


def test_memory_that_other_processes_use_is_not_available() -> None:
    config = config_of(*LLAMA)
    roomy = planned(config, machine(23.5))
    assert (roomy.fits, roomy.gpu_memory, roomy.gpu_taken) == (True, round(23.5 * GIB), 0)
    assert not any("other processes use" in text for text in printed(config, roomy))
    used = planned(config, machine(5))
    assert (used.fits, used.gpu_memory, used.gpu_taken) == (False, 5 * GIB, round(18.5 * GIB))
    for text in printed(config, used):
        assert "other processes use 18.5 GiB of 23.5 GiB of a GPU" in text
    assert planned(config, machine(0)).fits is False  # no free memory is not the same as unknown memory
    assert used.to_dict()["gpu_memory"] == 5 * GIB


def test_memory_of_the_driver_is_not_available() -> None:
    config = config_of(*LLAMA)
    needs = planned(config, machine(None)).cost
    assert needs is not None
    gibibytes = needs.memory.peak / GIB
    short = Hardware((Gpu("card", needs.memory.peak, 8.6, reserved=1),), 8, 64 * GIB)
    assert planned(config, short).fits is False
    assert planned(config, dataclasses.replace(short, gpus=(Gpu("card", needs.memory.peak, 8.6),))).fits is True
    assert planned(config, machine(gibibytes + 0.01)).fits is True


def test_only_gpus_of_ranks_are_counted() -> None:
    """A second GPU that another process has filled does not affect a run of one rank."""
    config = config_of(*LLAMA)
    assert planned(config, machine(23, 1)).fits is True
    assert planned(config, machine(1, 23)).fits is False
    both = apply_ranks(config, 2)
    assert planned(both, machine(23, 1)).fits is False


def apply_ranks(config: Config, ranks: int) -> Config:
    return dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, ranks_per_node=ranks))


def test_a_gpu_with_unified_memory_shares_it_with_the_process() -> None:
    config = config_of(*LLAMA)
    cost = planned(config, machine(None)).cost
    assert cost is not None
    together = cost.memory.peak + cost.memory.host_peak
    gpu = Gpu("NVIDIA GB10", together, 12.1, 0, unified=True)
    assert fits_memory(config, cost.memory, Hardware((gpu,), 8, together)) is True
    assert fits_memory(config, cost.memory, Hardware((gpu,), 8, together - 1)) is False
    assert cost.memory.peak < together - 1  # each part alone would fit


@pytest.mark.parametrize(("free", "recomputes"), [(23.5, False), (16.0, True)])
def test_recomputation_depends_on_free_memory(free: float, recomputes: bool) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        requested = cli.typed(compose("train", LLAMA), Config)
    admitted = preflight.admit(preflight.resolve(requested, machine(free)))
    assert admitted.config.train.recomputes is recomputes
    assert admitted.plan.fits is True


@pytest.mark.gpu
def test_memory_of_other_processes_is_measured() -> None:
    """After a process has allocated a GiB, the next detection reports that much less."""
    import subprocess
    import sys

    from hydraft.system import hardware

    detect = hardware.detect.__wrapped__
    before = detect().gpus[0]
    if before.free is None:
        pytest.skip("the driver does not say what is free")
    code = "import sys, torch; x = torch.ones(2**28, device='cuda'); torch.cuda.synchronize(); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        after = detect().gpus[0]
        other.stdin.close()
    assert after.free is not None and before.free - after.free >= GIB
