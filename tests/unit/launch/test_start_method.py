"""How ranks start, and torch's settings for its agent."""

import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch.distributed.launcher.api as api

from hydraft.launch.local import elastic, fork_server
from hydraft.system.hardware import Hardware

MACHINE = Hardware()


@dataclass
class LaunchConfig2_11:
    """The used fields of torch 2.11's LaunchConfig."""

    nproc_per_node: int
    start_method: str = "spawn"


@dataclass
class LaunchConfig2_13(LaunchConfig2_11):
    """The used fields of torch 2.13's LaunchConfig."""

    shutdown_timeout: int | None = None


@pytest.mark.parametrize("kind", [LaunchConfig2_11, LaunchConfig2_13])
def test_the_agent_of_each_torch_version_gets_the_settings_it_has(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "LaunchConfig", kind)
    monkeypatch.setattr(elastic, "start_method", lambda _: "fork")
    config = elastic.launch_config(MACHINE, nproc_per_node=2)
    assert (config.nproc_per_node, config.start_method) == (2, "fork")
    assert getattr(config, "shutdown_timeout", None) == (elastic.SHUTDOWN_SECONDS if kind is LaunchConfig2_13 else None)


def test_the_start_method_is_chosen_after_the_agent_has_counted_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    class Counting(LaunchConfig2_13):
        def __init__(self, **settings: Any) -> None:
            order.append("counted")
            super().__init__(**settings)

    monkeypatch.setattr(api, "LaunchConfig", Counting)
    monkeypatch.setattr(elastic, "start_method", lambda _: order.append("decided") or "spawn")
    elastic.launch_config(MACHINE, nproc_per_node=1)
    assert order == ["counted", "decided"]


CASES = [
    # imported here, a fork of this process, a fork of the server, how
    (True, None, None, "fork"),
    (True, "touched", None, "forkserver"),
    (True, "touched", "raises", "spawn"),
    (False, None, None, "forkserver"),
    (False, None, "raises", "spawn"),
]


@pytest.mark.parametrize("here, own, others, how", CASES)
def test_ranks_are_forked_if_a_fork_can_use_a_gpu(
    here: bool, own: str | None, others: str | None, how: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    started: list[Any] = []
    monkeypatch.setattr(fork_server, "start", lambda modules, _: started.append(modules))
    monkeypatch.setattr(fork_server, "forks_without_gpu", lambda: own)
    monkeypatch.setattr(fork_server, "unusable", lambda *_: others)
    monkeypatch.setitem(sys.modules, elastic.LIBRARIES, sys) if here else monkeypatch.delitem(
        sys.modules, elastic.LIBRARIES, False
    )
    assert elastic.start_method(Hardware(gpus=("a card",))) == how  # type: ignore[arg-type]
    assert bool(started) == (how != "fork")
    assert capsys.readouterr().err.count("ranks are spawned") == (how == "spawn")
