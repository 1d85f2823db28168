"""Two hosts over ssh: the same losses as on one, all files in the run's folder, and no secret in any command line."""

import json
import os
import pty
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from conftest import ROOT, SCALE, run_script
from lab import HOSTS, Lab
from warm_python import WarmPython

SECRET = "not-for-anyones-eyes-4711"
TINY_CHATGLM2 = (
    "model=chatglm2", "model.init=random", "model.scale=tiny", "quant=nf4", "zero=stage3", "lora.dropout=0", "data.eval=null",
    "train.max_steps=4", "train.log_every=1", "train.micro_batch_size=1", "train.learning_rate=1e-2", "optimizer.eps=1e-5",
)  # fmt: skip


def curve(folder: Path, name: str) -> list[float]:
    """A value of every step."""
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Watcher:
    """Searches the command lines of all processes for a text, repeatedly."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.seen: list[bytes] = []
        self.searches = 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.search)

    def search(self) -> None:
        while not self.stopped.wait(0.05):
            self.searches += 1
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = file.read_bytes()
                except OSError:
                    continue
                if self.text in line:
                    self.seen.append(line)

    def __enter__(self) -> "Watcher":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()


def has_variable(processes: list[psutil.Process], name: str, value: str) -> bool:
    """Whether one of the ``processes`` has an environment variable."""
    for process in processes:
        with suppress(psutil.Error):
            if process.environ().get(name) == value:
                return True
    return False


@pytest.fixture
def killed_at_end(lab: Lab) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """A list for commands; those that are left after a failed test are killed."""
    commands: list[subprocess.Popen[bytes]] = []
    yield commands
    for command in commands:
        if command.poll() is None:
            command.kill()
            command.wait(10)


def test_two_by_four_gives_the_losses_of_one_rank_and_keeps_a_secret(
    lab: Lab, records: Path, tmp_path: Path, killed_at_end: list["subprocess.Popen[bytes]"]
) -> None:
    """8 ranks on two hosts that share no run folder."""
    folder = lab.far / "two-by-four"
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("# both workers\nworker-1 slots=4\nworker-2   slots=8\n")
    command = lab.command(
        *TINY_CHATGLM2, f"data.train={records}", "cluster=2x4", f"cluster.hostfile={hostfile}", "cluster.env=[MY_TOKEN]",
        f"hydra.run.dir={folder}", python=sys.executable,
    )  # fmt: skip
    environment = {**os.environ, "WANDB_API_KEY": SECRET, "MY_TOKEN": f"{SECRET}-too", "UNRELATED": "stays here"}
    with Watcher(SECRET) as watcher, (tmp_path / "output").open("w") as stream:
        run = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        killed_at_end.append(run)
        arrived = stayed = 0
        while run.poll() is None:
            there = lab.processes("worker-2")
            arrived += has_variable(there, "MY_TOKEN", f"{SECRET}-too") and has_variable(there, "WANDB_API_KEY", SECRET)
            stayed += has_variable(there, "UNRELATED", "stays here")
            time.sleep(0.3)
    output = (tmp_path / "output").read_text()
    assert run.returncode == 0, output
    assert (arrived > 0, stayed) == (True, 0)
    assert (watcher.searches > 20, watcher.seen) == (True, [])
    written = [file for file in folder.rglob("*") if file.is_file()]
    assert {f"rank-{n}.log" for n in range(8)} <= {file.name for file in written}
    assert not [file for file in written if SECRET.encode() in file.read_bytes()]
    assert "deepspeed" in (folder / "rank-7.log").read_text().lower()  # it was sent back to the first host
    assert output.count("training …") == 1
    assert SECRET not in output

    alone = run_script(
        "train.py", *TINY_CHATGLM2, f"data.train={records}", "cluster=1x1", "train.gradient_accumulation_steps=8",
        f"hydra.run.dir={tmp_path / 'alone'}",
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    for name in ("loss", "grad_norm"):
        assert curve(folder, name) == pytest.approx(curve(tmp_path / "alone", name), rel=1e-5)
    assert curve(folder, "loss")[-1] < 0.98 * curve(folder, "loss")[0]  # or all losses might be equal


def test_a_remote_rank_0_sends_all_files_and_arguments_arrive_as_typed(lab: Lab, records: Path) -> None:
    """The first host does not share the folder, and a shell would change the template."""
    folder, trap = lab.far / "home", lab.folder / "trap"
    template = f"问：{{instruction}} '单引号' \"双引号\" $(touch {trap}) `id` {{input}}"
    command = lab.command(
        "cluster.hosts=[worker-2]", f"data.train={records}", "data.eval=null", "train.max_steps=2", f"data.template={template}",
        f"hydra.run.dir={folder}",
    )  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not trap.exists()
    assert json.loads((folder / "result.json").read_text())["status"] == "completed"
    assert {"adapter", "metrics.jsonl", "loss.png", "rank-0.log"} <= {entry.name for entry in folder.iterdir()}
    assert not (folder / ".launch").exists()
    answer = run_script("infer.py", f"run={folder}", "prompt=你好", "max_new_tokens=2")
    assert answer.returncode == 0, answer.stderr
    assert lab.processes("worker-2") == []


def test_localhost_twice_shows_one_bar_in_the_terminals_width(
    python: WarmPython, records: Path, tmp_path: Path
) -> None:
    control, terminal = pty.openpty()
    command = [
        str(python.path), str(ROOT / "train.py"), "cluster.nodes=2", "cluster.hosts=[localhost,localhost]",
        f"data.train={records}", "data.eval=null", "train.max_steps=2", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    run = subprocess.Popen(
        command, cwd=ROOT, stdout=terminal, stderr=subprocess.PIPE, env={**os.environ, "TERM": "xterm"}
    )
    os.close(terminal)
    shown = b""
    try:
        while piece := os.read(control, 1 << 16):
            shown += piece
    except OSError:  # the terminal was closed
        pass
    assert run.wait(30 * SCALE) == 0
    text = shown.decode()
    assert "━" in text  # a progress bar, not lines
    assert "training …" not in text
    assert text.count("training loss") == 1
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment["command"][1] == "cluster.nodes=2"


REFUSED = {
    "cluster.hosts=[nobody]": "nobody: there is no route to it",
    "cluster.hosts=[no-server]": "no-server: no ssh server is running on that port",
    "cluster.hosts=[unknown-key]": "unknown-key: its host key is unknown to ssh",
    "cluster.hosts=[no-such-name.invalid]": "no-such-name.invalid: ssh cannot resolve this name",
    "cluster.hosts=[worker-2] cluster.python=/nowhere/python": "worker-2: there is no /nowhere/python there",
    "cluster.hosts=[worker-2] cluster.python=/usr/bin/env": "worker-2: ",
    "cluster.hosts=[worker-2] cluster.workdir=/nowhere": "worker-2: the project is not at /nowhere there",
    "cluster.hosts=[worker-1] cluster.port=22": "worker-1: cluster.port=22: Address already in use",
    "cluster.hosts=[worker-1,worker-2] cluster.nodes=2 cluster.address=10.77.0.12": "worker-2 does not reach worker-1",
    "cluster.hosts=[worker-2] cluster.env=[NOT_SET_ANYWHERE]": "cluster.env: NOT_SET_ANYWHERE is not set here",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_a_problem_with_a_host_is_reported_on_one_line(lab: Lab, records: Path, tmp_path: Path, overrides: str) -> None:
    folder = tmp_path / "run"
    command = lab.command(f"data.train={records}", "data.eval=null", f"hydra.run.dir={folder}", *overrides.split())
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"train.py: {REFUSED[overrides]}"), done.stderr
    assert done.stderr.count("\n") == 1
    if folder.exists():  # the first host is contacted before anything is written
        assert json.loads((folder / "result.json").read_text())["status"] == "failed"
    assert [process for name in HOSTS for process in lab.processes(name)] == []


def test_hosts_with_different_versions_are_reported(lab: Lab, records: Path, tmp_path: Path) -> None:
    """Another working copy on worker-2, with another transformers on its path."""
    copy = lab.far / "project"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    spoof = copy / "src/transformers-9.9.9.dist-info"
    make = (
        f"mkdir -p {copy} && cp -r {ROOT}/src {copy}/src && mkdir {spoof} && "
        f"printf 'Metadata-Version: 2.1\\nName: transformers\\nVersion: 9.9.9\\n' > {spoof}/METADATA"
    )
    subprocess.run(lab.at_desk("ssh", "-F", str(lab.ssh_config), "worker-2", make), check=True)
    command = lab.command(
        "cluster.nodes=2",
        f"cluster.workdir={copy}",
        f"data.train={records}",
        "data.eval=null",
        f"hydra.run.dir={tmp_path / 'run'}",
        python=sys.executable,
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "transformers is 5." in done.stderr
    assert "on worker-1 and 9.9.9 on worker-2" in done.stderr
    assert done.stderr.count("\n") == 1
