"""What a run listens on, and what another user of the machine gets from it: nothing."""

import base64
import encodings.idna  # noqa: F401  (another user cannot read Python's files)
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from conftest import ROOT, SCALE, family, start_script, wait_for
from ports import Listening, as_stranger, closed_to_others, listening

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mknod, (str(self.file),)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of temporary files that everyone can read, as /tmp, but of one run."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def start(arguments: list[str], shared: Path, survivors: list[psutil.Process]) -> "subprocess.Popen[bytes]":
    """A train.py that would train for hours."""
    command = [sys.executable, str(ROOT / "train.py"), "data.eval=null", "train.epochs=100000", "train.log_every=1"]
    process = subprocess.Popen(
        [*command, *arguments], cwd=ROOT, env={**os.environ, "TMPDIR": str(shared)}, start_new_session=True
    )
    survivors.append(psutil.Process(process.pid))
    return process


def steps(folder: Path) -> int:
    """The steps that a run has logged."""
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def attack(found: list[Listening], canary: Path) -> list[str]:
    """As another user, try every socket of a run: plain bytes, gloo's greeting, and the store of a rendezvous with a pickle in it."""
    answered = []
    poison = base64.b64encode(pickle.dumps(Canary(canary))).decode()
    for place in found:
        kind = socket.AF_UNIX if place.kind == "unix" else socket.AF_INET6 if place.kind == "tcp6" else socket.AF_INET
        address: Any = place.address if place.kind == "unix" else (place.address.replace("::", "::1"), place.port)
        with socket.socket(kind) as connection, suppress(OSError):
            connection.settimeout(0.3)
            connection.connect(address)
            answered.append(f"{place.kind} {place.address}:{place.port}")
            connection.sendall(struct.pack("<q", 0) + b"\x80\x04." * 100)
        if answered and place.kind != "unix":
            with suppress(RuntimeError):
                store = TCPStore("localhost", place.port, timeout=timedelta(seconds=1), wait_for_workers=False)
                for key in ("torch.rendezvous.hydraft", "hydraft", "default_pg/0//cpu//0/rank_0"):
                    store.set(key, poison)
                answered.append(f"a store on port {place.port}")
    return answered


def readable(folder: Path) -> list[str]:
    """As another user, everything below ``folder`` that can be listed or read."""
    found = []
    for entry in folder.iterdir():
        with suppress(OSError):
            content = [str(inner) for inner in entry.iterdir()] if entry.is_dir() else [entry.read_text()]
            found += [f"{entry}: {part}" for part in content]
    return found


def test_another_user_gets_nothing_from_a_run(
    shared: Path, records: Path, tmp_path: Path, survivors: list[psutil.Process]
) -> None:
    """Two ranks on this machine: its sockets are gloo's, which are closed, and the fork server's, in a private folder."""
    folder, canary = tmp_path / "run", shared / "canary"
    process = start([f"data.train={records}", "cluster=1x2", f"hydra.run.dir={folder}"], shared, survivors)
    wait_for(lambda: steps(folder) > 0 or process.poll() is not None, 120, "the first step")
    survivors += family(process.pid)
    found = listening(process.pid)
    unix = [place for place in found if place.kind == "unix"]
    kinds = Counter((place.kind, place.address) for place in found if place.kind != "unix")
    assert kinds == {("tcp", "127.0.0.1"): 4}, "each rank's default group, and the one that DeepSpeed makes of it"
    assert [closed_to_others(place.address) for place in unix] == [True], "the server that ranks are forked from"
    assert as_stranger(lambda: attack(found, canary)) == []
    private = [entry for entry in shared.iterdir() if entry.is_dir()]
    assert any((entry / "rendezvous.json").exists() for entry in private)
    assert as_stranger(lambda: readable(shared)) == []
    before = steps(folder)
    wait_for(lambda: steps(folder) > before + 1 or process.poll() is not None, 60, "more steps")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60 * SCALE) == 130
    assert json.loads((folder / "result.json").read_text())["status"] == "preempted"
    assert not canary.exists()
    left = [entry.name for entry in shared.iterdir()]
    assert [name for name in left if not name.startswith("torchinductor")] == [], "torch's is empty"


def test_another_user_gets_nothing_from_a_sweep(records: Path, tmp_path: Path, survivors: list[psutil.Process]) -> None:
    """Two jobs at the same time, of a rank each: gloo listens for no one, and is closed too."""
    folder, streams, canary = tmp_path / "sweep", tmp_path / "streams", Path(tempfile.gettempdir(), tmp_path.name)
    streams.mkdir()
    process = start_script(
        "train.py", "-m", f"data.train={records}", "data.eval=null", "train.epochs=100000", "train.log_every=1",
        "lora.r=2,4", "hydra.launcher.jobs=2", f"hydra.sweep.dir={folder}", streams=streams,
    )  # fmt: skip
    survivors.append(psutil.Process(process.pid))
    both = (folder / "r=2", folder / "r=4")
    wait_for(lambda: all(map(steps, both)) or not process.is_alive(), 200, "the first steps of both jobs")
    survivors += family(psutil.Process(process.pid).pid)
    found = listening(process.pid or 0)
    kinds = Counter((place.kind, place.address) for place in found if place.kind != "unix")
    assert kinds == {("tcp", "127.0.0.1"): 4}, "each rank's default group, and the one that DeepSpeed makes of it"
    assert all(closed_to_others(place.address) for place in found if place.kind == "unix")
    assert as_stranger(lambda: attack(found, canary)) == []
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(60 * SCALE)
    assert process.exitcode == 128 + signal.SIGTERM
    assert [json.loads((run / "result.json").read_text())["status"] for run in both] == ["preempted"] * 2
    assert not canary.exists()
