"""When the imports of a sweep's jobs begin."""

from types import SimpleNamespace
from typing import Any

import pytest

from hydra_plugins.hydraft_pool.launcher import PoolConf
from hydraft.launch.local import fork_server
from hydraft.sweep import imports
from hydraft.system.hardware import Hardware

SWEEPS = [
    "-m lora.r=2,4",
    "lora.r=2,4 --multirun",
    "hydra.mode=MULTIRUN lora.r=2,4",
    "-m mode=train hydra.launcher.pack=off hydra.launcher.jobs=2 hydra.sweep.dir=/tmp/x",
]
OTHERS = [
    "lora.r=2",
    "-m mode=plan lora.r=2,4",
    "-m ++mode=plan lora.r=2,4",
    "-m lora.r=2,4 --cfg job",
    "-m --help",
    "-m -c job",
    "-m hydra/launcher=basic lora.r=2,4",
    "-m +hydra/launcher=submitit_slurm lora.r=2,4",
    "-m hydra.launcher.preload=[] lora.r=2,4",
]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the server is started and stopped with."""
    found: list[Any] = []
    monkeypatch.setattr(imports.fork_server, "start", lambda modules, _: found.append(modules))
    monkeypatch.setattr(imports.fork_server, "stop", lambda: found.append("stop"))
    monkeypatch.setattr(imports, "_early", [])
    return found


@pytest.mark.parametrize("command", SWEEPS)
def test_a_sweep_starts_them_at_once(started: list[Any], command: str) -> None:
    imports.start_early(command.split())
    assert started == [[imports.OWN, *imports.PRELOAD]]


@pytest.mark.parametrize("command", OTHERS)
def test_another_command_does_not(started: list[Any], command: str) -> None:
    imports.start_early(command.split())
    assert started == []


def test_they_are_those_of_the_launcher() -> None:
    assert list(imports.PRELOAD) == PoolConf().preload


@pytest.mark.parametrize("preload", [None, [*imports.PRELOAD], ["json"]], ids=["no server", "this one", "another"])
def test_a_server_that_the_launcher_does_not_need_is_ended(started: list[Any], preload: list[str] | None) -> None:
    imports.start_early(["-m"])
    launcher = SimpleNamespace()
    if preload is not None:
        launcher = SimpleNamespace(preload=preload, warm=lambda: started.append("warm"))
    imports.start_for(launcher)
    ended = [] if preload == [*imports.PRELOAD] else ["stop"]
    assert started[1:] == ended + ([] if preload is None else ["warm"])
    imports.start_for(launcher)  # a second sweep of the process
    assert started.count("stop") == len(ended)


def test_a_server_is_ended_while_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server.forkserver, "_forkserver", fork_server.forkserver.ForkServer())
    monkeypatch.setattr(fork_server.forkserver, "ensure_running", fork_server.forkserver._forkserver.ensure_running)
    monkeypatch.setattr(
        fork_server.forkserver, "set_forkserver_preload", fork_server.forkserver._forkserver.set_forkserver_preload
    )
    fork_server.start(["json"], Hardware())
    server = fork_server.process()
    assert server is not None
    assert server.runs
    fork_server.stop()
    assert not server.runs
    assert fork_server.process() is None
