"""Who may use the board: hosts, keys, origins and other users; and what its page is made of."""

import contextlib
import http.client
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import APIRouter
from starlette.testclient import TestClient

from hydraft.board import command
from hydraft.board.access import user_of
from hydraft.board.app import SHARED, Board, build
from hydraft.board.listing import Listing
from hydraft.board.roots import roots_of
from hydraft.infer.serve.middleware import Access
from hydraft.sweep.results import html

ADDRESS = "http://127.0.0.1:8600"


def client(folder: Path, key: str | None = None) -> TestClient:
    """A board of a folder, with a route that acts."""
    router = APIRouter(prefix="/api")

    @router.post("/act")
    def act(body: dict[str, int]) -> dict[str, int]:
        return body

    access = Access(key, local=True, max_body=1000, patience=5, full=lambda: False)
    app = build(Board(Listing(roots_of([str(folder)]))), access, [router])
    return TestClient(app, base_url=ADDRESS, client=("192.0.2.1", 1))


def test_only_its_own_page_may_ask(tmp_path: Path) -> None:
    board = client(tmp_path)
    assert board.get("/api/board").status_code == 200
    assert board.get("/api/board", headers={"Host": "evil.example"}).status_code == 403  # DNS rebinding
    assert board.get("/api/board", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert board.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200  # a link from elsewhere
    assert board.post("/api/act", json={"x": 1}, headers={"Origin": ADDRESS}).json() == {"x": 1}
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}):
        assert board.post("/api/act", json={"x": 1}, headers=headers).status_code == 403
    assert board.post("/api/act", content='{"x": 1}', headers={"Content-Type": "text/plain"}).status_code == 415
    page = board.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"] and page.headers["x-frame-options"] == "DENY"


def test_a_key_is_asked_for(tmp_path: Path) -> None:
    board = client(tmp_path, "secret")
    assert board.get("/").status_code == 401
    assert board.get("/", auth=("", "wrong")).status_code == 401
    assert board.get("/", auth=("", "secret")).status_code == 200
    assert board.get("/api/board", headers={"Authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/report.js", "/page/none.js", "/api/run?run=../x", "/api/log?run=x&name=y", "/api/sweep?sweep=..", "/api/configs?run=/etc"],
)  # fmt: skip
def test_nothing_else_is_served(path: str, tmp_path: Path) -> None:
    assert client(tmp_path).get(path).status_code == 404


def test_logs_are_the_runs_own(tmp_path: Path) -> None:
    run = tmp_path / "one"
    run.mkdir()
    (run / "config.yaml").write_text("model:\n  name: tiny\n")
    (run / "train.log").write_text("a line\n")
    (run / "secret.log").symlink_to("/etc/passwd")
    (run / "key.txt").write_text("no log")
    board = client(tmp_path)
    name = board.get("/api/board").json()["runs"][0]["id"]
    assert board.get("/api/logs", params={"run": name}).json() == {"logs": ["train.log"]}
    assert board.get("/api/log", params={"run": name, "name": "train.log"}).json()["text"] == "a line\n"
    for other in ("secret.log", "key.txt", "../one/train.log", "config.yaml"):
        assert board.get("/api/log", params={"run": name, "name": other}).status_code == 404


def test_the_report_of_a_sweep_has_the_same_charts(tmp_path: Path) -> None:
    board = client(tmp_path)
    report = html.page({"title": "", "sections": []})
    for name in ("charts.js", "colours.css"):
        assert board.get(f"/page/{name}").content == (SHARED / name).read_bytes()
        assert (SHARED / name).read_text(encoding="utf-8") in report


@pytest.fixture
def served(tmp_path: Path) -> Iterator[int]:
    """The port of a board that a command has started."""
    arguments = [sys.executable, "-m", "hydraft", "board", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    yield int(process.stdout.readline().rstrip("/\n").rpartition(":")[2])
    process.terminate()
    assert process.wait(20) in (0, -15)


def test_another_user_of_this_machine_is_refused(served: int) -> None:
    asked = http.client.HTTPConnection("127.0.0.1", served, timeout=20)
    asked.connect()
    assert user_of(*asked.sock.getsockname()) == os.geteuid()
    asked.request("GET", "/api/board")
    assert asked.getresponse().status == 200
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    child = os.fork()  # with what it needs in memory: another user cannot read root's Python
    if child == 0:
        with contextlib.suppress(BaseException):
            os.setuid(65534)
            other = http.client.HTTPConnection("127.0.0.1", served, timeout=20)
            other.request("GET", "/api/board")
            os._exit(0 if other.getresponse().status == 403 else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["nowhere"], "nowhere"), (["--port", "70000"], "--port"), (["--port", "x"], "--port"), (["--api-key-file", "none"], "--api-key-file none"), (["--colour"], "--colour")],
)  # fmt: skip
def test_commands_that_are_refused(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hydraft board: ") and named in line
