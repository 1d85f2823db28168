"""Two hosts on one machine: network namespaces connected by a bridge, each with its own sshd and keys.

    desk  10.77.0.1, where tests run commands       worker-1 10.77.0.11          worker-2 10.77.0.12

All share the file system, except for the folder ``far``, which is a separate one on worker-2.
"""

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from conftest import ROOT, SCALE, family
from warm_python import WarmPython

HOSTS = {"worker-1": "10.77.0.11", "worker-2": "10.77.0.12"}
DESK = "10.77.0.1"
SSHD = "/usr/sbin/sshd"


def missing() -> str | None:
    """Why such hosts cannot be created here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    required = [name for name in ("ip", "ssh", "ssh-keygen", SSHD) if shutil.which(name) is None]
    if required:
        return f"{', '.join(required)} not installed: tests/support/install.sh"
    name = f"hydraft-try-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "this kernel does not allow network namespaces"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


class Lab:
    """The hosts, from ``start`` to ``stop``."""

    def __init__(self, folder: Path, python: WarmPython) -> None:
        self.folder = folder
        self.python = python
        self.far = folder / "far"
        self.ssh_config = folder / "ssh_config"
        self.names = {name: f"hydraft-{os.getpid()}-{name}" for name in ("desk", *HOSTS)}
        self.servers: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Create the network and start the servers."""
        self.far.mkdir()
        for space in self.names.values():
            _run("ip", "netns", "add", space)
            _run("ip", "-n", space, "link", "set", "lo", "up")
        desk = self.names["desk"]
        _run("ip", "-n", desk, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", desk, "address", "add", f"{DESK}/24", "dev", "bridge")
        _run("ip", "-n", desk, "link", "set", "bridge", "up")
        for name, address in HOSTS.items():
            space = self.names[name]
            _run("ip", "-n", desk, "link", "add", name, "type", "veth", "peer", "name", "cable0", "netns", space)
            _run("ip", "-n", desk, "link", "set", name, "master", "bridge", "up")
            _run("ip", "-n", space, "address", "add", f"{address}/24", "dev", "cable0")
            _run("ip", "-n", space, "link", "set", "cable0", "up")
        self._keys()
        Path("/run/sshd").mkdir(exist_ok=True)
        for name in HOSTS:
            self._serve(name)

    def _keys(self) -> None:
        user = self.folder / "user_key"
        for key in ("user_key", "worker-1_key", "worker-2_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key))
        known = self.folder / "known_hosts"
        known.write_text("".join(f"{a} {(self.folder / f'{n}_key.pub').read_text()}" for n, a in HOSTS.items()))
        blocks = [f"Host {name}\n  HostName {address}\n" for name, address in HOSTS.items()]
        # One name for each error of ssh: an unknown key, no host at that address, no server on that port.
        blocks += [f"Host unknown-key\n  HostName {HOSTS['worker-2']}\n  UserKnownHostsFile /dev/null\n"]
        blocks += ["Host nobody\n  HostName 10.77.0.99\n", f"Host no-server\n  HostName {DESK}\n"]
        blocks += [f"Host *\n  User root\n  IdentityFile {user}\n  IdentitiesOnly yes\n  UserKnownHostsFile {known}\n"]
        self.ssh_config.write_text("".join(blocks))

    def _serve(self, name: str) -> None:
        config = self.folder / f"{name}.conf"
        config.write_text(
            f"Port 22\nHostKey {self.folder / f'{name}_key'}\nAuthorizedKeysFile {self.folder / 'user_key.pub'}\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
        )
        mount = f"mount -t tmpfs tmpfs '{self.far}' && " if name == "worker-2" else ""
        command = ["ip", "netns", "exec", self.names[name], "sh", "-c", f"{mount}exec {SSHD} -D -e -f '{config}'"]
        with (self.folder / f"{name}.log").open("w") as log:
            self.servers[name] = subprocess.Popen(command, stderr=log)
        deadline = time.monotonic() + 10 * SCALE
        while subprocess.run(
            [*self.at_desk("ssh", "-F", str(self.ssh_config), name, "true")], capture_output=True, check=False
        ).returncode:
            assert time.monotonic() < deadline, (self.folder / f"{name}.log").read_text()
            time.sleep(0.1)

    def at_desk(self, *command: str) -> list[str]:
        """``command``, run in the namespace of the desk."""
        return ["ip", "netns", "exec", self.names["desk"], *command]

    def command(self, *overrides: str, python: str | None = None) -> list[str]:
        """train.py on the desk, with both workers unless ``overrides`` set other hosts.

        ``python`` is the interpreter here and there; by default one that has the libraries in memory.
        """
        hosts = [] if any("cluster.host" in text for text in overrides) else ["cluster.hosts=[worker-1,worker-2]"]
        script = [python or str(self.python.path), str(ROOT / "train.py"), f"cluster.ssh_config={self.ssh_config}"]
        return self.at_desk(*script, *hosts, *overrides)

    def cable(self, name: str, state: str) -> None:
        """Disconnect (``down``) or connect (``up``) a worker."""
        _run("ip", "-n", self.names["desk"], "link", "set", name, state)

    def processes(self, name: str) -> list[psutil.Process]:
        """Processes on a worker that its sshd has started, without the sshd, the agent before the others."""
        network = Path(f"/proc/{self.servers[name].pid}/ns/net").readlink()
        found = []
        for process in [*self.python.forks(), *family(self.servers[name].pid)[1:]]:
            with suppress(psutil.NoSuchProcess, FileNotFoundError):  # it has ended in the meantime
                if process.name() != "sshd" and Path(f"/proc/{process.pid}/ns/net").readlink() == network:
                    found.append(process)
        return found

    def end_sessions(self) -> None:
        """Kill the remaining sessions after a worker was disconnected."""
        for server in self.servers.values():
            for process in family(server.pid)[1:]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def stop(self) -> None:
        """End the servers and remove the network."""
        self.end_sessions()
        for server in self.servers.values():
            server.terminate()
            server.wait(10)
        for space in self.names.values():
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)
