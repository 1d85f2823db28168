"""What the board does to runs: only what its own page asks, only below its folders, and only to the very process that runs a run."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from hydraft.board import command, commands
from hydraft.board.app import Board, build
from hydraft.board.listing import Listing
from hydraft.board.process import HOLDER
from hydraft.board.roots import roots_of
from hydraft.board.stopping import find
from hydraft.errors import ConfigError
from hydraft.infer.serve.middleware import Access
from hydraft.runs import run_folder
from hydraft.sweep import holder
from hydraft.sweep.results.ledger import ABOUT, FORMAT, MARK, Job, Ledger
from hydraft.system.processes import ProcessId

ADDRESS = "http://127.0.0.1:8600"
ACTS = {"start": {}, "resume": {"id": "outputs/one"}, "stop": {"id": "outputs/one"}, "plan": {}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run in it."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs/one"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("model:\n  name: tiny\n")
    return tmp_path


def client(key: str | None = None) -> TestClient:
    """The board of the working directory, as ``hydraft board`` makes it."""
    board = Board(Listing(roots_of([])))
    board.listing.changes()
    app = build(board, Access(key, True, 200_000, 5, lambda: False), command.routers(board))
    return TestClient(app, base_url=ADDRESS, client=("192.0.2.1", 1))


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that waits."""
    found = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    yield found
    found.kill()
    found.wait()


def hold(folder: Path, **named: Any) -> Path:
    file = folder / HOLDER
    file.write_text(json.dumps(named))
    file.chmod(0o600)
    return file


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("path", ACTS)
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Host": "evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Origin": ADDRESS, "Content-Type": "text/plain"}, 415),
    ],
)  # fmt: skip
def test_only_its_own_page_acts(path: str, headers: dict[str, str], code: int, folder: Path) -> None:
    before, board = files_in(folder), client()
    sent = {"Content-Type": "application/json", **headers}
    assert board.post(f"/api/{path}", content=json.dumps(ACTS[path]), headers=sent).status_code == code
    assert board.get("/api/acts").json() == {"started": [], "stopping": {}}
    assert files_in(folder) == before


def test_without_the_key_nothing_acts(folder: Path) -> None:
    board = client("secret")
    assert [board.post(f"/api/{path}", json=body).status_code for path, body in ACTS.items()] == [401] * 4
    authorized = {"Authorization": "Bearer secret"}
    assert board.get("/api/acts", headers=authorized).json()["started"] == []
    assert board.post("/api/stop", json=ACTS["stop"], headers=authorized).status_code == 200


@pytest.mark.parametrize("name", ["../one", "outputs/../../etc", "/etc", "outputs/link", "outputs/none", "outputs", "", "outputs/one/../one"])  # fmt: skip
def test_no_other_folder_is_acted_upon(name: str, folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/config.yaml").write_text("model:\n  name: tiny\n")
    (folder / "outputs/link").symlink_to(folder / "elsewhere")
    board = client()
    for path in ("stop", "resume"):
        for kind in ("run", "sweep"):
            assert board.post(f"/api/{path}", json={"id": name, "kind": kind}).status_code == 404
    assert board.get("/api/command", params={"id": name}).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"more": "hydra.run.dir=/etc"}, {"settings": {"hydra.run.dir": "../x"}}, {"more": "--config-dir=/tmp"}, {"more": "resume=/etc"},
        {"more": "-m lora.r=1,2 hydra.sweep.dir=/tmp/x"}, {"more": "-m lora.r=1,2 sweep.name=../../x"}, {"settings": {"a b": "c"}},
        {"groups": {"hydra/job_logging": "none"}}, {"more": "x='"}, {"settings": {"lora.r": "1\0"}}, {"more": "hydra.launcher._target_=os.system"},
    ],
)  # fmt: skip
def test_a_command_that_the_board_does_not_pass_on_starts_nothing(body: dict[str, Any], folder: Path) -> None:
    before, board = files_in(folder), client()
    started, planned = board.post("/api/start", json=body).json(), board.post("/api/plan", json=body).json()
    assert started["started"] is None and started["refusal"] == planned["refusal"] and "\n" not in started["refusal"]
    if "groups" not in body:
        assert board.post("/api/resume", json={"id": "outputs/one", **body}).json()["started"] is None
    assert board.get("/api/acts").json()["started"] == []
    assert files_in(folder) == before


def test_a_body_of_another_form_is_refused(folder: Path) -> None:
    board = client()
    assert board.post("/api/start", json={"arguments": ["mode=plan"]}).status_code == 400
    assert board.post("/api/stop", json={"id": 3}).status_code == 400
    assert board.post("/api/stop", json={"id": "outputs/one", "kind": "host"}).status_code == 400


def test_the_process_that_runs_a_run_is_stopped(folder: Path, process: "subprocess.Popen[bytes]") -> None:
    board, run = client(), folder / "outputs/one"
    assert "no process of yours runs it" in board.post("/api/stop", json={"id": "outputs/one"}).json()["refusal"]
    hold(run, host=socket.gethostname(), pid=process.pid, started=ProcessId.of(process.pid).started)
    assert board.post("/api/stop", json={"id": "outputs/one"}).json()["refusal"] is None
    assert process.wait(10) == -signal.SIGTERM
    assert "has ended" in board.post("/api/stop", json={"id": "outputs/one"}).json()["refusal"]


def test_a_second_request_ends_it_at_once(folder: Path) -> None:
    handler = (
        "import signal, time; signal.signal(15, lambda *_: print('saving', flush=True)); print('ready', flush=True)"
    )
    code = f"{handler}\nwhile True: time.sleep(0.05)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        started = ProcessId.of(process.pid).started
        hold(folder / "outputs/one", host=socket.gethostname(), pid=process.pid, started=started)
        board, asked = client(), {"id": "outputs/one"}
        assert board.post("/api/stop", json=asked).json()["now"] is False
        assert process.stdout.readline() == "saving\n"
        assert "is being stopped" in board.post("/api/stop", json=asked).json()["refusal"]
        assert board.get("/api/acts").json()["stopping"]["outputs/one"]["now"] is False
        assert board.post("/api/stop", json={**asked, "now": True}).json()["now"] is True
        assert process.stdout.readline() == "saving\n"
        process.kill()
    assert board.get("/api/acts").json()["stopping"] == {}


def test_a_run_writes_down_which_process_runs_it(tmp_path: Path) -> None:
    with run_folder.held(tmp_path):
        assert find(tmp_path, False, None) == [ProcessId.of(os.getpid())]
    with holder.named(tmp_path):
        assert find(tmp_path, True, None) == [ProcessId.of(os.getpid())]
    for sweep in (False, True):
        with pytest.raises(ConfigError, match="no process of yours"):
            find(tmp_path, sweep, None)


@pytest.mark.parametrize("case", ["recycled", "earlier", "host", "link", "world", "pid"])
def test_no_other_process_is_signalled(case: str, folder: Path, process: "subprocess.Popen[bytes]") -> None:
    board, run = client(), folder / "outputs/one"
    started = ProcessId.of(process.pid).started
    assert started is not None
    named: dict[str, Any] = {"host": socket.gethostname(), "pid": process.pid, "started": started}
    match case:
        case "recycled":
            named["started"] = started - 1
        case "earlier":
            del named["started"]
        case "host":
            named["host"] = "gpu7"
        case "pid":
            named["pid"] = -process.pid  # of a group
    file = hold(run, **named)
    if case == "link":
        file.rename(folder / "moved.json")
        file.symlink_to(folder / "moved.json")
    if case == "world":
        file.chmod(0o666)
    refused = board.post("/api/stop", json={"id": "outputs/one", "now": True}).json()["refusal"]
    assert refused and "\n" not in refused
    if case == "host":
        assert f"ssh gpu7 kill -TERM {process.pid}" in refused
    assert process.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's files need root")
def test_a_file_of_another_user_names_no_process(folder: Path, process: "subprocess.Popen[bytes]") -> None:
    started = ProcessId.of(process.pid).started
    file = hold(folder / "outputs/one", host=socket.gethostname(), pid=process.pid, started=started)
    os.chown(file, 65534, 65534)
    assert client().post("/api/stop", json={"id": "outputs/one"}).json()["refusal"]
    assert process.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's process needs root")
def test_a_process_of_another_user_is_not_signalled(folder: Path) -> None:
    with subprocess.Popen(["sleep", "600"], user=65534, group=65534) as other:
        hold(folder / "outputs/one", host=socket.gethostname(), pid=other.pid, started=ProcessId.of(other.pid).started)
        assert client().post("/api/stop", json={"id": "outputs/one"}).json()["refusal"]
        assert other.poll() is None
        other.kill()


def test_a_run_of_slurm_is_stopped_by_scancel(folder: Path) -> None:
    run = folder / "outputs/one"
    (run / "job.sbatch").write_text("#!/bin/bash\n#SBATCH --job-name=hydraft-one\n")
    refused = client().post("/api/stop", json={"id": "outputs/one"}).json()["refusal"]
    assert "scancel --batch --signal=TERM --name=hydraft-one" in refused


def sweep_in(folder: Path, overrides: Any) -> Path:
    sweep = folder / "multirun/mine"
    sweep.mkdir(parents=True)
    about = {"mark": MARK, "format": FORMAT, "id": "1", "name": "mine", "command": "python train.py -m lora.r=1,2"}
    (sweep / ABOUT).write_text(json.dumps(about))
    (sweep / commands.MULTIRUN).write_text(json.dumps({"hydra": {"overrides": overrides}}))
    return sweep


def test_a_sweep_is_resumed_with_its_own_overrides(folder: Path) -> None:
    sweep = sweep_in(
        folder,
        {"task": ["lora.r=1,2", "sweep.name=mine"], "hydra": ["hydra.mode=MULTIRUN", "hydra/launcher=pool", "hydra.sweep.dir=x"]},
    )  # fmt: skip
    assert commands.resume_sweep(sweep, retry_failed=True) == ["-m", "lora.r=1,2", "hydra/launcher=pool", f"sweep.resume={sweep}", "sweep.retry_failed=true"]  # fmt: skip
    assert commands.of(sweep, sweep=True) == "python train.py -m lora.r=1,2"
    (sweep / commands.MULTIRUN).chmod(0o666)  # anybody could have written what is run
    board = client()
    refused = board.post("/api/resume", json={"id": "multirun/mine", "kind": "sweep"}).json()
    assert refused["started"] is None and "can be changed by others" in refused["refusal"]
    assert board.get("/api/acts").json()["started"] == []


def test_a_sweep_whose_jobs_have_not_begun_is_running(folder: Path) -> None:
    sweep, key = sweep_in(folder, {"task": [], "hydra": []}), "1" * 16
    Ledger(sweep).add([Job(key, "r=1", ["lora.r=1"])])

    def state() -> str:
        return str(client().get("/api/board").json()["sweeps"][0]["state"])

    assert state() == "interrupted"
    with holder.named(sweep):
        assert state() == "running"
    assert state() == "interrupted"
    assert commands.of_job(sweep / "r=1") == "python train.py lora.r=1"


@pytest.mark.parametrize("overrides", [{}, {"task": [["a"]], "hydra": []}, None, {"task": "lora.r=1", "hydra": [1]}])
def test_a_sweep_with_a_damaged_file_is_not_resumed(overrides: Any, folder: Path) -> None:
    sweep_in(folder, overrides)
    refused = client().post("/api/resume", json={"id": "multirun/mine", "kind": "sweep"}).json()
    assert refused["started"] is None and "cannot be read" in refused["refusal"]
