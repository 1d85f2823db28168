"""The hosts that a run uses, and hostfiles that are refused."""

import re
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
