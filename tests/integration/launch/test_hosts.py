"""The hosts that a run uses, and hostfiles that are refused."""

import ast
import collections
import logging
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from conftest import run_script
from hydraft.config.cluster import ClusterConfig
from hydraft.errors import ConfigError
from hydraft.launch.remote import hosts


def names(**settings: object) -> list[str]:
    return [host.name for host in hosts.choose(ClusterConfig(ranks_per_node=4, **settings))]  # type: ignore[arg-type]


def test_the_first_hosts_of_a_hostfile_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hostfile").write_text("# ours\n\nworker-1 slots=4\nme@worker-2  slots=8  # the big one\n10.0.0.3 slots=4\n")
    assert names(nodes=2) == ["worker-1", "me@worker-2"]
    assert names(nodes=3, hostfile=str(tmp_path / "hostfile")) == ["worker-1", "me@worker-2", "10.0.0.3"]
    assert names(nodes=2, hosts=["localhost", "localhost"]) == ["localhost", "localhost"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("worker-1 slots=4\n", "lists 1 of the 2 hosts that cluster=2x4 needs"),
        (
            "worker-1 slots=4\nworker-2 slots=2\n",
            "worker-2 has slots=2 and cluster=2x4 needs 4: use cluster.ranks_per_node=2",
        ),
        ("worker-1 slots=4\nworker-1 slots=4\n", "worker-1 is listed twice"),
        ("worker-1 slots=4\nworker-2\n", "line 2 must be a name and slots=N"),
        ("worker-1 slots=4\nworker-2 slots=0\n", "line 2 must be a name and slots=N"),
        ("worker-1 slots=4 worker-2 slots=4\n", "line 1 must be a name and slots=N"),
        ("worker-1 slots=4\n-oProxyCommand=id slots=4\n", "'-oProxyCommand=id' is not a valid host name"),
        ("worker-1 slots=4\nworker-2;id slots=4\n", "'worker-2;id' is not a valid host name"),
        ("worker-1 slots=4\n$(id) slots=4\n", re.escape("'$(id)' is not a valid host name")),
    ],
)
def test_an_invalid_hostfile_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "hosts"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        names(nodes=2, hostfile=str(file))


def deepspeeds_parser() -> Callable[[list[str]], dict[str, int]]:
    """DeepSpeed's function, without the import of DeepSpeed."""
    spec = find_spec("deepspeed")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent.joinpath("launcher", "runner.py").read_text(encoding="utf-8")
    (function,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == "_parse_hostfile")
    scope = {"re": re, "collections": collections, "logger": logging.getLogger("deepspeed")}
    exec(ast.unparse(function), scope)
    return scope["_parse_hostfile"]  # type: ignore[return-value]


FILES = [
    "a slots=2\nb slots=2\n", "a slots=2 max_slots=4\nb slots=2 max_slots=4\n", "a slots=02\nb\tslots=2\n", "  a   slots=2  \r\n\r\nb slots=2\r\n",
    "#a slots=9\n # c slots=9\n\na slots=2 # ours\nb slots=2", "a slots=2#x\nb slots=2 max-slots=2\n", "fd00::1 slots=2\n::2 slots=2\n",
    "me@a slots=2\nfe80::1%eth0 slots=2\n", "[fd00::1] slots=2\nme@[fd00::2] slots=2\n",
]  # fmt: skip
REFUSED = [
    "a\nb\n",
    "a:2\nb:2\n",
    "a slots = 2\n",
    "a slots=\n",
    "a slots=two\n",
    "a 2\n",
    "",
    "\n# nothing\n",
    "slots=2\n",
    "a max_slots=2\n",
]


@pytest.mark.parametrize("text", FILES)
def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "hostfile"
    for mark in ("", "\ufeff"):  # Notepad's byte order mark, which DeepSpeed takes for a part of the first name
        file.write_bytes(f"{mark}{text}".encode())
        found = {
            host.name: host.slots for host in hosts.choose(ClusterConfig(nodes=2, ranks_per_node=2, hostfile=str(file)))
        }
        expected = deepspeeds_parser()(text.splitlines())
        assert found == {re.sub(r"[\[\]]", "", name): slots for name, slots in expected.items()}


@pytest.mark.parametrize("text", REFUSED)
def test_a_hostfile_that_deepspeed_refuses_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "hostfile"
    file.write_text(text)
    with pytest.raises(ValueError, match="Hostfile"):
        deepspeeds_parser()(text.splitlines())
    with pytest.raises(
        ConfigError, match=r"must be a name and slots=N|lists no host; cluster=2x4 needs 2 lines such as worker-1"
    ):
        names(nodes=2, hostfile=str(file))


def test_a_hostfile_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "hostfile"
    file.write_bytes("a slots=4\n".encode("utf-16"))  # by Windows PowerShell
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        names(nodes=2, hostfile=str(file))


def test_this_machine_has_an_ipv6_name_too() -> None:
    assert [host.is_here for host in hosts.choose(ClusterConfig(nodes=2, hosts=["::1", "[::1]"]))] == [True, True]


def test_hosts_and_hostfile_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="use only one of them"):
        names(nodes=1, hosts=["localhost"], hostfile="hosts")


def test_a_missing_hostfile_is_reported_with_its_format() -> None:
    done = run_script("train.py", "cluster=2x4")
    assert done.returncode == 2
    assert done.stderr == (
        "train.py: cluster.hostfile=hostfile: no such file; cluster=2x4 needs one with 2 lines such as worker-1 slots=4, "
        "or use cluster.hosts=[worker-1,…]\n"
    )


def test_a_plan_for_two_hosts_needs_no_hostfile() -> None:
    done = run_script("train.py", "cluster=2x4", "mode=plan")
    assert done.returncode == 0, done.stderr
    assert "8 ranks" in done.stdout


def test_a_host_that_starts_with_a_dash_is_never_passed_to_ssh() -> None:
    done = run_script("train.py", "cluster.hosts=['-oProxyCommand=touch /tmp/never']")
    assert done.returncode == 2
    assert "is not a valid host name" in done.stderr
