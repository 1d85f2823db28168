"""A temporary SSH server on the loopback interface, with its own keys."""

import shutil
import socket
import subprocess
from pathlib import Path
from typing import Self

import pytest

from hydraft.system.parent_death import die_with_parent


class Sshd:
    """``with Sshd(folder) as sshd``: ``ssh -p {sshd.port} {options} localhost`` logs in as the current user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if shutil.which("sshd", path="/usr/sbin:/usr/bin") is None or shutil.which("ssh") is None:
            pytest.skip("openssh-server is not installed")
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            self.port = int(probe.getsockname()[1])
        self.options = [
            "-i", str(folder / "key"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
            "-o", "LogLevel=ERROR", "-o", "BatchMode=yes",
        ]  # fmt: skip

    def __enter__(self) -> Self:
        self.folder.mkdir(mode=0o700)
        for name in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], check=True)
        (self.folder / "config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {self.folder}/host_key\nPidFile none\nStrictModes no\n"
            f"AuthorizedKeysFile {self.folder}/key.pub\nPasswordAuthentication no\nUsePAM no\nPermitRootLogin yes\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)  # required for its privilege separation
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", self.folder / "config"]
        self.process = subprocess.Popen(command, preexec_fn=die_with_parent)  # reaper.py cannot find its mark
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
