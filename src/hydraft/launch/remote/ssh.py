"""Agents on named hosts, through the user's own OpenSSH; on this machine, directly. No torch at module level."""

import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from hydraft.config.cluster import ClusterConfig
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.launch.local.shutdown import Wish
from hydraft.launch.remote.channel import Channel, killed_by
from hydraft.launch.remote.hosts import Host
from hydraft.launch.remote.protocol import Job, forwarded
from hydraft.launch.remote.supervisor import HELLO_SECONDS, Supervisor
from hydraft.runs.consistency import canonical
from hydraft.system import hardware
from hydraft.system.hardware import Hardware
from hydraft.system.source_tree import ROOT

NO_PROJECT, NO_PYTHON = 81, 82

# Whatever a login shell is, it hands this line to sh. Of the run, nothing is in it but two paths.
FAR_SIDE = (
    f'[ -f "$1/src/hydraft/launch/remote/agent.py" ] && cd -- "$1/src" || exit {NO_PROJECT}; '
    f'command -v -- "$2" >/dev/null || exit {NO_PYTHON}; exec "$2" -u -m "$3"'
)

CAUSES = {  # words of ssh to what a person does about them
    "host key verification failed": "ssh does not know its host key, or knows another: run `ssh {host}` once and compare (ssh-keyscan, ssh-keygen -R)",
    "remote host identification has changed": "ssh knows another host key of it: compare, then ssh-keygen -R {host}",
    "permission denied": "ssh refuses this user: let `ssh -o BatchMode=yes {host} true` work first (ssh-copy-id, ssh-agent, IdentityFile in ~/.ssh/config)",
    "could not resolve hostname": "ssh finds no such name: use another in cluster.hosts or the hostfile, or add it to ~/.ssh/config",
    "connection refused": "it has no ssh server at that port: start one, or name the port in ~/.ssh/config",
    "no route to host": "no network leads to it: check the name in cluster.hosts or the hostfile",
    "timed out": "it does not answer: check that it is up, and its name in cluster.hosts or the hostfile",
    "unreachable": "no network leads to it: check the name in cluster.hosts or the hostfile",
}  # fmt: skip


def start(config: Config, folder: Path, hosts: list[Host], quiet: bool, wish: Wish) -> None:
    """Run ``config``, saved in ``folder``, on ``hosts``, and wait for all of them.

    Raises:
        RankFailed: the first rank or host that failed.
        ConfigError: what a person has to change on a host.
        Preempted, Stopped: a signal asked for an early end.
    """
    job = make_job(config, folder, [host.name for host in hosts], quiet)
    mark = folder / ".launch"
    mark.write_text(job.token)
    channels: list[Channel] = []
    try:
        for number, host in enumerate(hosts):
            channels.append(_open(host, number, config.cluster))
        for number, channel in enumerate(channels):
            assert channel.process.stdin is not None
            try:
                channel.process.stdin.write(replace(job, node=number).to_line())
            except BrokenPipeError:
                continue  # it has ended; the supervisor finds out why
        Supervisor(job, channels, config.cluster.hang_timeout, wish).run()
    finally:
        for channel in channels:
            if channel.process.poll() is None:
                channel.process.kill()
                channel.process.wait()
        mark.unlink(missing_ok=True)


def make_job(config: Config, folder: Path, hosts: list[str], quiet: bool) -> Job:
    """What every agent of the run is told; only ``node`` differs.

    Raises:
        ConfigError: a variable of ``cluster.env`` is not set here.
    """
    cluster = config.cluster
    unset = [name for name in cluster.env if name not in os.environ]
    if unset:
        raise ConfigError(f"cluster.env: {unset[0]} is not set here; export it, or use cluster.env without it")
    return Job(
        hosts=hosts,
        ranks=cluster.ranks_per_node,
        config=canonical(config),
        folder=str(folder.resolve()),
        token=secrets.token_hex(16),
        cwd=cluster.workdir or str(Path.cwd()),
        address=cluster.address,
        port=cluster.port,
        link_timeout=cluster.link_timeout,
        grace=config.train.grace,
        terminal=list(shutil.get_terminal_size()) if sys.stdout.isatty() else None,
        quiet=quiet,
        environment=forwarded(os.environ, cluster.env),
    )


def ask_hardware(host: Host, cluster: ClusterConfig) -> Hardware:
    """What ``host`` has.

    Raises:
        ConfigError: what a person has to change to reach it.
    """
    if host.is_here:
        return hardware.detect()
    command = _command(host, cluster, "hydraft.system.hardware")
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HELLO_SECONDS)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{host.name}: it takes ssh, and answers nothing for {HELLO_SECONDS:.0f} s") from None
    try:
        return Hardware.from_dict(json.loads(done.stdout.splitlines()[-1]))  # a login script may print before it
    except (ValueError, IndexError):
        raise ConfigError(f"{host.name}: {_explain(host, done.returncode, done.stderr, cluster)}") from None


def _open(host: Host, number: int, cluster: ClusterConfig) -> Channel:
    """Start the agent of a host; its job is still to be sent."""
    process = subprocess.Popen(
        _command(host, cluster, "hydraft.launch.remote.agent"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,  # Ctrl-C is for the launcher, which asks the agents to stop
    )

    def explain(code: int, said: str) -> str:
        # From the first event on, what is on stderr is the ranks': it explains nothing about ssh.
        return _explain(host, code, "" if channel.greeted else said, cluster)

    channel = Channel(process, [number], explain)
    return channel


def _command(host: Host, cluster: ClusterConfig, module: str) -> list[str]:
    """The command line that runs ``module`` on ``host``."""
    far_side = ["sh", "-c", FAR_SIDE, "hydraft", cluster.workdir or str(ROOT), cluster.python or sys.executable, module]
    return far_side if host.is_here else _ssh(host.name, far_side, cluster)


def _ssh(name: str, far_side: list[str], cluster: ClusterConfig) -> list[str]:
    """The command line that runs ``far_side`` on ``name``."""
    if shutil.which("ssh") is None:
        raise ConfigError(f"cluster.hosts: {name} is reached by ssh, and there is none here: install openssh-client")
    alive = max(1, int(cluster.link_timeout / 3))
    options = ["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", f"ServerAliveInterval={alive}"]
    options += ["-o", "ServerAliveCountMax=3", "-o", "ForwardX11=no", "-o", "ClearAllForwardings=yes"]
    # A shared connection would outlive this run, and end with another's.
    options += ["-o", "ControlPath=none", "-o", "EscapeChar=none", "-o", "RemoteCommand=none"]
    if cluster.ssh_config is not None:
        options += ["-F", str(Path(cluster.ssh_config).expanduser())]
    return ["ssh", *options, "--", name, f"exec {shlex.join(far_side)}"]


def _explain(host: Host, code: int, said: str, cluster: ClusterConfig) -> str:
    """Why an agent ended before its last word."""
    last = next((text for text in reversed(said.splitlines()) if text.strip()), "")
    if code == NO_PROJECT:
        return f"the project is not at {cluster.workdir or ROOT} there: put a copy there, or name its folder with cluster.workdir="
    if code == NO_PYTHON:
        return f"there is no {cluster.python or sys.executable} there: run make setup there, or name its python with cluster.python="
    if "ModuleNotFoundError" in said:
        return f"the project's python there lacks a package ({last}): run make setup there, or use cluster.python="
    if code == 255 and not host.is_here:
        for words, help_text in CAUSES.items():
            if words in said.lower():
                return f"{help_text.format(host=host.name)} ({last.strip()})"
        return f"ssh: {last.strip()}" if last else "its agent was killed, or the link to it broke"
    process = "its agent" if host.is_here else "ssh"
    return f"{process} {killed_by(code)}" + (f" ({last.strip()})" if last and code > 0 else "")
