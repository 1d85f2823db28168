"""Channels to many hosts: what is kept of what they print, which host is blamed, and the probe of addresses."""

import json
import os
import selectors
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from conftest import SCALE
from hydraft.errors import FailureReason
from hydraft.launch.local.shutdown import ShutdownHandler
from hydraft.launch.remote import channel as channel_module
from hydraft.launch.remote import probe
from hydraft.launch.remote.agent import Agent
from hydraft.launch.remote.channel import Channel, close
from hydraft.launch.remote.protocol import LaunchSpec, line, pieces
from hydraft.launch.remote.supervisor import Supervisor
from hydraft.launch.slurm import job_script

NAMES = [f"n{number:02}" for number in range(64)]


def process(script: str) -> "subprocess.Popen[bytes]":
    pipe = subprocess.PIPE
    return subprocess.Popen(["sh", "-c", script], stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)


def test_the_task_that_srun_names_first_is_blamed_among_64() -> None:
    first = "echo 'srun: error: n37: task 37: Exited with exit code 81' >&2;"
    others = "".join(
        f"echo 'srun: error: {name}: task {n}: Terminated' >&2;" for n, name in enumerate(NAMES) if n != 37
    )
    begun = process(f"{first}{others}exit 81")
    spec = LaunchSpec(NAMES, 8, "seed: 42\n", "/run", "token", "/")
    message = "the project is not there"
    channel = Channel(begun, list(range(64)), lambda code, _: message, blamed=job_script._first_to_end)
    supervisor = Supervisor(spec, [channel], 600, ShutdownHandler(0))
    begun.wait(10)
    while not channel.closed:
        supervisor.receive(1)
    supervisor.check_connections()
    failure = supervisor.cause().failure  # type: ignore[union-attr]
    supervisor.end()
    assert (failure.reason, failure.host) == (FailureReason.config, "n37")
    assert failure.message == f"n37: {message}"


def test_a_long_event_of_each_of_64_machines_arrives_whole_through_one_srun(tmp_path: Path) -> None:
    events = [line(event="stacks", node=node, ranks={str(n): "x" * 500 for n in range(8)}) for node in range(64)]
    cut = [pieces(event, node).splitlines(keepends=True) for node, event in enumerate(events)]
    mixed = b"".join(part for parts in zip(*cut, strict=True) for part in parts)  # srun passes lines on as they come
    assert max(map(len, mixed.splitlines())) <= 1024
    (tmp_path / "mixed").write_bytes(mixed)
    begun = process(f"cat {tmp_path / 'mixed'}")
    channel = Channel(begun, list(range(64)), lambda code, _: "")
    with selectors.DefaultSelector() as selector:
        channel.register(selector)
        found = []
        while not channel.closed:
            for key, _ in selector.select(1):
                found += channel.read(key.fileobj, selector)
    close([channel])
    channel.release()
    assert sorted(found, key=lambda event: event["node"]) == [json.loads(event) for event in events]  # type: ignore[index]


def answer(caller: socket.socket, token: str) -> None:
    """Answer a caller as a probe server with this token does."""
    server = probe.ProbeServer("127.0.0.1", 0, token)
    server._answer(caller)
    server.close()


def test_an_agent_serves_while_it_tries_addresses_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each address takes its whole timeout, and the launcher takes an agent that is silent for ``link_timeout`` for lost."""
    monkeypatch.setattr(probe, "PROBE_SECONDS", 300.0)
    with socket.create_server(("127.0.0.1", 0), backlog=8) as silent:
        port = silent.getsockname()[1]
        reading, writing = os.pipe()
        agent = Agent(LaunchSpec(["a", "b"], 1, "", "/nowhere", "token", "/", node=1), writing)
        addresses = ["127.0.0.1", "127.0.0.1", "127.0.0.1"]
        asked = threading.Thread(target=agent.probe_addresses, args=(port, addresses), daemon=True)
        asked.start()
        asked.join(60)
        assert not asked.is_alive(), "the agent waits for the addresses"
        callers = [silent.accept()[0] for _ in addresses]  # all are tried at once
        for caller, token in zip(callers, ("token", "wrong", "token"), strict=True):
            answer(caller, token)
        assert json.loads(os.read(agent.probed, 1 << 16))["addresses"] == ["127.0.0.1", "127.0.0.1"]
    for end in (reading, writing, agent.probed, agent.probes):
        os.close(end)


def test_processes_that_do_not_end_are_ended_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "END_SECONDS", (0.5, 600.0))
    signalled: list[float] = []
    send = subprocess.Popen.send_signal
    monkeypatch.setattr(
        subprocess.Popen, "send_signal", lambda self, number: (signalled.append(time.monotonic()), send(self, number))
    )
    channels = [Channel(process("exec sleep 600"), [node], lambda code, _: "") for node in range(8)]
    close(channels)
    assert len(signalled) == 8
    assert all(channel.process.poll() is not None for channel in channels)
    assert signalled[-1] - signalled[0] < 0.5 * SCALE  # one after another, each would wait that long for its own
    for channel in channels:
        channel.release()
