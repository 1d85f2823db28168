"""Sixteen hosts with eight ranks each over one launcher: real agents and channels, stub ranks (bench/stub_hosts.py)."""

import json
import re
import signal
from collections.abc import Iterator

import pytest

from bench.stub_hosts import StubHosts
from conftest import SCALE


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StubHosts]:
    """The hosts, without a run."""
    with StubHosts(tmp_path_factory.mktemp("hosts") / "s", 16, 8) as hosts:
        yield hosts


def log(hosts: StubHosts) -> str:
    return (hosts.folder / "run" / "train.log").read_text()


def test_a_death_names_its_host_after_logins_that_were_dropped_and_with_few_open_files(hosts: StubHosts) -> None:
    for name in hosts.names[::4]:
        hosts.tell(f"drop-{name}", 1)
    command = hosts.launch(limits=(100, 1000))  # 16 connections alone take 48
    hosts.wait(lambda: hosts.started() or command.poll() is not None, 60 * SCALE)
    hosts.tell("die-node-005", 3)
    printed, _ = command.communicate(timeout=60 * SCALE)
    assert command.returncode == 1, printed
    assert printed.startswith("rank 43 on node-005 failed: RuntimeError: the record is not what it seems\n")
    assert log(hosts).count("kex_exchange_identification") == 4
    hosts.wait(lambda: not hosts.left(), 20 * SCALE)


def test_several_cut_links_are_told_together_and_end_at_the_same_time(hosts: StubHosts) -> None:
    command = hosts.launch(link_timeout=3)
    hosts.wait(lambda: hosts.started() or command.poll() is not None, 60 * SCALE)
    for name in hosts.names[8:13]:
        hosts.cut(name)
    printed, _ = command.communicate(timeout=60 * SCALE)
    assert command.returncode == 1, printed
    lost = re.match(
        r"(node-\S+) failed: no message for 3 s: the machine or the connection is lost; so are (.+)\n", printed
    )
    assert lost is not None, printed
    assert lost[1] in hosts.names[8:13]
    assert lost[2].endswith(" and 1 more")
    hosts.wait(lambda: not hosts.left(), 20 * SCALE)  # those hosts have found out on their own


def test_ctrl_c_has_all_hosts_save_and_leaves_nothing(hosts: StubHosts) -> None:
    command = hosts.launch(grace=30)
    hosts.wait(lambda: hosts.started() or command.poll() is not None, 60 * SCALE)
    command.send_signal(signal.SIGINT)
    printed, _ = command.communicate(timeout=60 * SCALE)
    assert command.returncode == 130, printed
    assert json.loads((hosts.folder / "run" / "result.json").read_text())["status"] == "preempted"
    hosts.wait(lambda: not hosts.left(), 20 * SCALE)


def test_too_low_a_limit_of_open_files_is_refused_in_one_line(hosts: StubHosts) -> None:
    command = hosts.launch(limits=(100, 100))
    printed, _ = command.communicate(timeout=60 * SCALE)
    assert (command.returncode, printed.count("\n")) == (2, 1), printed
    assert "cluster.nodes=16" in printed
    assert "ulimit -Hn" in printed
