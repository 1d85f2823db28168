"""gloo and NCCL use the interface of the route to the first host, unless the user has set one."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from hydraft.launch.local import interface

HERE = "127.0.0.1:29500"
NAMES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@pytest.fixture(autouse=True)
def nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "NCCL_CONF_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_both_variables_are_set() -> None:
    """The interface of an address of this machine; without the =, NCCL would use the value as a prefix."""
    found = interface.environment(HERE)
    assert found == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}


@pytest.mark.parametrize("variable", NAMES)
def test_a_variable_that_the_user_has_set_is_kept(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "eth9")
    monkeypatch.setenv("NCCL_IB_HCA", "mlx5")  # determines where data is sent, not the interface of the connection
    assert set(interface.environment(HERE)) == set(NAMES) - {variable}


def test_an_interface_in_an_nccl_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable would override the setting in the file."""
    (tmp_path / ".nccl.conf").write_text("NCCL_DEBUG=WARN\n# NCCL_SOCKET_IFNAME=eth8\n")
    assert set(interface.environment(HERE)) == set(NAMES)
    (tmp_path / ".nccl.conf").write_text("NCCL_DEBUG=WARN\nNCCL_SOCKET_IFNAME=eth9\n")
    assert set(interface.environment(HERE)) == {"GLOO_SOCKET_IFNAME"}
    (tmp_path / "other.conf").write_text("")
    monkeypatch.setenv("NCCL_CONF_FILE", str(tmp_path / "other.conf"))
    assert set(interface.environment(HERE)) == set(NAMES)


def test_an_alias_of_an_interface_is_not_mistaken_for_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"eth0:1": [SimpleNamespace(address="127.0.0.1")]})
    assert interface.environment(HERE) == {"GLOO_SOCKET_IFNAME": "eth0:1", "NCCL_SOCKET_IFNAME": "eth0"}


def test_without_a_route_neither_variable_is_set() -> None:
    assert interface.environment("not.a.host.invalid:29500") == {}


@pytest.mark.gpu
def test_nccl_uses_the_interface() -> None:
    code = (
        "import os\nfrom hydraft.launch.local import interface\nos.environ.update(interface.environment('127.0.0.1:29500'))\n"
        "import torch, torch.distributed as dist\ntorch.cuda.set_device(0)\n"
        "dist.init_process_group('nccl', init_method='tcp://127.0.0.1:29511', rank=0, world_size=1)\n"
        "one = torch.ones(1, device='cuda')\ndist.all_reduce(one)\nassert float(one) == 1\ndist.destroy_process_group()\n"
    )
    environment = {**os.environ, "NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,ENV"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "NCCL_SOCKET_IFNAME set by environment to =lo" in done.stdout + done.stderr
