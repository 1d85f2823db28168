"""A temporary Slurm cluster of two machines, n1 and n2, on the loopback interface, with separate daemons and state."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import pytest

from conftest import SCALE

CONFIG = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=5
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """``with Slurm() as slurm``: Slurm's commands work with ``SLURM_CONF`` set to ``slurm.config``."""

    def __init__(self) -> None:
        missing = [name for name in ("munged", "slurmctld", "slurmd", "srun") if shutil.which(name, path=PATH) is None]
        if missing:
            pytest.skip(f"{missing[0]} is not installed: run tests/support/install.sh")
        if os.geteuid() != 0:
            pytest.skip("Slurm's daemons need root")
        self.folder = Path(tempfile.mkdtemp(prefix="hydraft-slurm-"))
        self.config = self.folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.config), "PATH": PATH}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        munge = self.folder / "munge"
        self.folder.chmod(0o755)
        munge.mkdir(mode=0o711)
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o600)
        for name in ("state", "spool-n1", "spool-n2"):
            (self.folder / name).mkdir()
        self.config.write_text(CONFIG.format(folder=self.folder, ports=_free_ports(3)))
        files = [f"--{kind}-file={munge}/{kind}" for kind in ("key", "pid", "log", "seed")]
        try:
            self._start("munged", "--foreground", "--force", f"--socket={munge}/socket", *files)
            _wait_for(lambda: (munge / "socket").exists(), "munged")
            self._start("slurmctld", "-D", "-i")
            self._start("slurmd", "-D", "-N", "n1")
            self._start("slurmd", "-D", "-N", "n2")
            _wait_for(
                lambda: self.run("sinfo", "--noheader", "--format=%D %t").stdout.split() == ["2", "idle"], "Slurm"
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.run("squeue", "--noheader", "--format=%i").stdout.split():
            self.run("scancel", job)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=30 * SCALE, check=False
        )

    def jobs(self) -> str:
        """Numbers and states of the queued jobs."""
        return self.run("squeue", "--noheader", "--format=%i %T").stdout

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}-{len(self.daemons)}.out").open("wb") as output:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=output, stderr=output))


PATH = f"{os.environ['PATH']}:/usr/sbin"


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("localhost", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait_for(condition: object, what: str) -> None:
    assert callable(condition)
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < 30 * SCALE, f"{what} did not start within 30 s"
        time.sleep(0.1)
