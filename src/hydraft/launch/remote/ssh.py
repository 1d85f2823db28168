"""Starts agents on hosts with the user's OpenSSH client, and on this machine directly. No torch at module level."""

import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hydraft.config.cluster import ClusterConfig
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.launch.local.shutdown import ShutdownHandler
from hydraft.launch.remote.channel import Channel, describe_exit
from hydraft.launch.remote.hosts import Host
from hydraft.launch.remote.protocol import LaunchSpec, forwarded
from hydraft.launch.remote.supervisor import HELLO_SECONDS, Supervisor
from hydraft.runs.consistency import canonical
from hydraft.system import hardware, limits, private_file, program
from hydraft.system.hardware import Hardware
from hydraft.system.source_tree import INSTALLED, ROOT

NO_PROJECT, NO_PYTHON = 81, 82

FILES_PER_HOST, OTHER_FILES = 3, 64
"""Open files of the launcher: the pipes of each ssh, and the rest."""

# Any login shell can pass this line to sh. It contains nothing of the run but two paths. A working copy is imported from the current
# folder; an installed package from where the python there has it, whatever is in the current folder (-P).
PLACE, SAFE = (
    ('cd -- "$1"', " -P") if INSTALLED else ('[ -f "$1/src/hydraft/launch/remote/agent.py" ] && cd -- "$1/src"', "")
)
REMOTE_SCRIPT = (
    f'{PLACE} || exit {NO_PROJECT}; command -v -- "$2" >/dev/null || exit {NO_PYTHON}; exec "$2"{SAFE} -u -m "$3"'
)

CAUSES = {  # from part of a message of ssh to what the user can do
    "host key verification failed": "its host key is unknown to ssh, or has changed: run `ssh {host}` once and compare (ssh-keyscan, ssh-keygen -R)",
    "remote host identification has changed": "its host key has changed: compare it, then ssh-keygen -R {host}",
    "permission denied": "ssh refuses this user: make `ssh -o BatchMode=yes {host} true` work first (ssh-copy-id, ssh-agent, IdentityFile in ~/.ssh/config)",
    "could not resolve hostname": "ssh cannot resolve this name: use another in cluster.hosts or the hostfile, or add it to ~/.ssh/config",
    "connection refused": "no ssh server is running on that port: start one, or set the port in ~/.ssh/config",
    "no route to host": "there is no route to it: check the name in cluster.hosts or the hostfile",
    "timed out": "it does not respond: check that it is running, and its name in cluster.hosts or the hostfile",
    "unreachable": "there is no route to it: check the name in cluster.hosts or the hostfile",
}  # fmt: skip


def start(config: Config, folder: Path, hosts: list[Host], quiet: bool, shutdown: ShutdownHandler) -> None:
    """Run ``config``, saved in ``folder``, on ``hosts``, and wait for all of them.

    Raises:
        RankFailed: the first rank or host that failed.
        ConfigError: what the user has to change on a host.
        Preempted, Stopped: a signal ended the run.
    """
    _allow_files(len(hosts))
    spec = make_spec(config, folder, [host.name for host in hosts], quiet)
    mark = folder / ".launch"
    private_file.write(mark, spec.token)
    channels: list[Channel] = []
    try:
        for number, host in enumerate(hosts):
            channels.append(_open(host, replace(spec, node=number), config.cluster))
        Supervisor(spec, channels, config.cluster.hang_timeout, shutdown).run()
    finally:
        for channel in channels:
            if channel.process.poll() is None:
                channel.process.kill()
                channel.process.wait()
        mark.unlink(missing_ok=True)


def _allow_files(hosts: int) -> None:
    """Raise the limit of open files of this process, if ``hosts`` connections need more.

    Raises:
        ConfigError: the hard limit is too low.
    """
    needed = OTHER_FILES + FILES_PER_HOST * hosts
    allowed = limits.raise_soft_limit(needed)
    if allowed < needed:
        raise ConfigError(
            f"cluster.nodes={hosts}: the connections need {needed} open files, and the hard limit here is {allowed}: raise it "
            "(ulimit -Hn), or use fewer hosts"
        )


def make_spec(config: Config, folder: Path, hosts: list[str], quiet: bool) -> LaunchSpec:
    """The launch specification of all agents; they differ only in ``node``.

    Raises:
        ConfigError: a variable of ``cluster.env`` is not set here.
    """
    cluster = config.cluster
    unset = [name for name in cluster.env if name not in os.environ]
    if unset:
        raise ConfigError(f"cluster.env: {unset[0]} is not set here; export it, or use cluster.env without it")
    return LaunchSpec(
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


def query_hardware(host: Host, cluster: ClusterConfig) -> Hardware:
    """The hardware of ``host``.

    Raises:
        ConfigError: what the user has to change to reach it.
    """
    if host.is_here:
        return hardware.detect()
    command = _command(host, cluster, "hydraft.system.hardware")
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HELLO_SECONDS)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{host.name}: it accepts ssh, but has not responded for {HELLO_SECONDS:.0f} s") from None
    try:
        return Hardware.from_dict(json.loads(done.stdout.splitlines()[-1]))  # a login script may print before it
    except (ValueError, IndexError):
        raise ConfigError(f"{host.name}: {_explain(host, done.returncode, done.stderr, cluster)}") from None


def _open(host: Host, spec: LaunchSpec, cluster: ClusterConfig) -> Channel:
    """Start the agent of a host.

    Raises:
        ConfigError: ssh cannot be started here.
    """

    def begin() -> "subprocess.Popen[bytes]":
        try:
            process = subprocess.Popen(
                _command(host, cluster, "hydraft.launch.remote.agent"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the launcher, which stops the agents
            )
        except OSError as error:  # too many processes, for example
            cause = f"its connection could not be started here ({error.strerror}): see ulimit -u and ulimit -n"
            raise ConfigError(f"{host.name}: {cause}") from None
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; the supervisor reports why
            process.stdin.write(spec.to_line())
        return process

    def explain(code: int, stderr: str) -> str:
        # After the first event, stderr is that of the ranks: it does not explain why ssh ended.
        return _explain(host, code, "" if channel.connected else stderr, cluster)

    channel = Channel(begin(), [spec.here], explain, None if host.is_here else begin)
    return channel


def _command(host: Host, cluster: ClusterConfig, module: str) -> list[str]:
    """The command line that runs ``module`` on ``host``."""
    remote_command = [
        "sh",
        "-c",
        REMOTE_SCRIPT,
        "hydraft",
        project(cluster),
        cluster.python or sys.executable,
        module,
    ]
    return remote_command if host.is_here else _ssh(host.name, remote_command, cluster)


def project(cluster: ClusterConfig) -> str:
    """The folder on every host where the project is; of an installed package, where its processes start."""
    return cluster.workdir or ("." if INSTALLED else str(ROOT))


def no_project(cluster: ClusterConfig) -> str:
    """Why a host exits with ``NO_PROJECT``, and what to do."""
    if INSTALLED:
        return f"there is no folder {cluster.workdir} there: make it, or set cluster.workdir= to one that is there"
    return f"the project is not at {cluster.workdir or ROOT} there: copy it, or set cluster.workdir= to its folder"


def _ssh(name: str, remote_command: list[str], cluster: ClusterConfig) -> list[str]:
    """The command line that runs ``remote_command`` on host ``name``."""
    if shutil.which("ssh") is None:
        raise ConfigError(
            f"cluster.hosts: {name} is reached by ssh, which is not installed here: install openssh-client"
        )
    alive = max(1, int(cluster.link_timeout / 3))
    options = ["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", f"ServerAliveInterval={alive}"]
    options += ["-o", "ServerAliveCountMax=3", "-o", "ForwardX11=no", "-o", "ClearAllForwardings=yes"]
    # A shared connection would outlive this run, or end with another command's.
    options += ["-o", "ControlPath=none", "-o", "EscapeChar=none", "-o", "RemoteCommand=none"]
    if cluster.ssh_config is not None:
        options += ["-F", str(Path(cluster.ssh_config).expanduser())]
    return ["ssh", *options, "--", name, f"exec {shlex.join(remote_command)}"]


def _explain(host: Host, code: int, stderr: str, cluster: ClusterConfig) -> str:
    """Why an agent ended before its final event."""
    last = next((text for text in reversed(stderr.splitlines()) if text.strip()), "")
    if code == NO_PROJECT:
        return no_project(cluster)
    if code == NO_PYTHON:
        return f"there is no {cluster.python or sys.executable} there: {program.set_up()}, or set cluster.python= to its python"
    if "ModuleNotFoundError" in stderr or "No module named" in stderr:
        return f"the project's python there lacks a package ({last}): {program.set_up()}, or use cluster.python="
    if code == 255 and not host.is_here:
        for part, advice in CAUSES.items():
            if part in stderr.lower():
                return f"{advice.format(host=host.name)} ({last.strip()})"
        return f"ssh: {last.strip()}" if last else "its agent was killed, or the connection was lost"
    process = "its agent" if host.is_here else "ssh"
    return f"{process} {describe_exit(code)}" + (f" ({last.strip()})" if last and code > 0 else "")
