"""The board's readers: runs and sweeps of earlier versions, damaged, foreign and hostile folders, and what has changed since a poll."""

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from hydraft.board import details, lines, logs, series
from hydraft.board.listing import EVERY, Listing
from hydraft.board.roots import Outside, folder_of, roots_of
from hydraft.errors import ConfigError
from hydraft.sweep.results import config_text
from hydraft.system import line_file
from hydraft.system.redaction import redact

BEFORE = Path(__file__).parents[2] / "fixtures" / "written_before"


@pytest.fixture
def listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Listing:
    """A sweep and a run of an earlier version."""
    shutil.copytree(BEFORE / "sweep", tmp_path / "multirun" / "ranks")
    shutil.copytree(BEFORE / "run" / "nf4", tmp_path / "outputs" / "nf4")
    for file in tmp_path.rglob("*"):
        if file.suffix in (".yaml", ".json", ".jsonl"):
            file.write_text(file.read_text().replace("@ROOT@", "/root").replace("@RUN@", "/run"))
    for file in (tmp_path / "multirun/ranks/r=3").iterdir():  # whose process, on another host, was killed
        os.utime(file, (1.7e9, 1.7e9))
    monkeypatch.chdir(tmp_path)
    return Listing(roots_of([]))


def again(listing: Listing, since: int) -> dict[str, Any]:
    """The next poll that reads."""
    listing._read_at -= EVERY
    return listing.changes(since)


def states(found: dict[str, Any]) -> dict[str, str]:
    return {run["id"]: run["state"] for run in found["runs"]}


def test_runs_and_sweeps_of_an_earlier_version(listing: Listing) -> None:
    found = listing.changes()
    job = "multirun/ranks/r="
    assert states(found) == {
        "outputs/nf4": "interrupted", f"{job}1": "completed", f"{job}2": "completed", f"{job}3": "interrupted",
    }  # fmt: skip
    runs = {run["id"]: run for run in found["runs"]}
    result = json.loads((BEFORE / "sweep/r=1/result.json").read_text())
    last = line_file.read(BEFORE / "sweep/r=1/metrics.jsonl").values[-1]
    assert (runs[f"{job}1"]["loss"], runs[f"{job}1"]["peak"]) == (last["loss"], result["peak_memory_bytes"])
    assert [runs[f"{job}{r}"]["settings"]["lora.r"] for r in (1, 2, 3)] == [1, 2, 3]
    assert "quant.kind" in found["keys"] and "model.name" not in found["keys"]
    (sweep,) = found["sweeps"]
    assert sweep["counts"] == {"completed": 2, "interrupted": 1} and sweep["state"] == "completed"


def test_a_poll_has_what_changed_and_nothing_else(listing: Listing, tmp_path: Path) -> None:
    version = listing.changes()["version"]
    assert again(listing, version)["runs"] == []
    run, holder = tmp_path / "outputs/nf4", tmp_path / "outputs/nf4/.holder.json"
    holder.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1.5, "tokens": 391, "tokens_per_second": 10.0}\n{"step": 5, "lo')
    found = again(listing, version)
    assert states(found) == {"outputs/nf4": "saving"} and found["runs"][0]["loss"] == 1.5  # step 4 of 4
    gone = psutil.Popen(["true"])
    gone.wait()
    holder.write_text(json.dumps({"host": socket.gethostname(), "pid": gone.pid}))
    assert states(again(listing, found["version"])) == {"outputs/nf4": "interrupted"}
    holder.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    elsewhere = again(listing, found["version"])["runs"][0]
    assert (elsewhere["state"], elsewhere["host"]) == ("saving", "elsewhere")
    shutil.rmtree(tmp_path / "multirun/ranks/r=1")
    (tmp_path / "outputs/new").mkdir()
    shutil.copy(BEFORE / "sweep/r=2/config.yaml", tmp_path / "outputs/new")
    found = again(listing, version)
    assert found["gone"] == [] and "outputs/new" in states(found)  # the ledger still knows the job
    shutil.rmtree(tmp_path / "multirun")
    assert {"run:multirun/ranks/r=2", "sweep:multirun/ranks"} <= set(again(listing, found["version"])["gone"])


def test_damaged_and_hostile_folders_are_shown_with_the_reason(listing: Listing, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    bomb = "a: &a [x, x]\n" + "".join(
        f"b{i}: &b{i} [{f'*b{i - 1}' if i else '*a'}, {f'*b{i - 1}' if i else '*a'}]\n" for i in range(40)
    )
    configs = {
        "binary": b"\xff\xfe\0",
        "empty": b"",
        "bomb": bomb.encode(),
        "torn": b"model:\n  name: 'ti",
        "list": b"- 1\n",
    }
    for name, text in configs.items():
        (outputs / name).mkdir()
        (outputs / name / "config.yaml").write_bytes(text)
        (outputs / name / "result.json").write_bytes(b'{"status": ["completed"], "objective": "x", "ended": {}')
    (outputs / "piped").mkdir()
    os.mkfifo(outputs / "piped/config.yaml")
    os.mkfifo(outputs / "piped/metrics.jsonl")
    (outputs / "bare").mkdir()
    (outputs / "bare/metrics.jsonl").write_text("{}")
    (outputs / "odd").mkdir()
    shutil.copy(tmp_path / "multirun/ranks/r=2/config.yaml", outputs / "odd")
    (outputs / "odd/metrics.jsonl").write_text(
        '{"step": "1", "loss": "x"}\n{"step": 2, "loss": null, "eval_loss": [1]}\n[]\n' + "[" * 5000 + "\n"
    )
    for name, text in (
        ("result", '{"status": 7, "after": [1], "error": "no"}'),
        ("plan", '{"steps": "9", "cost": {"memory": {"host_training": 3}}}'),
    ):
        (outputs / f"odd/{name}.json").write_text(text)
    (outputs / os.fsdecode(b"\xff\xfe")).mkdir()
    (outputs / "link").symlink_to(tmp_path / "multirun/ranks/r=1")
    (tmp_path / "multirun/other").mkdir()
    (tmp_path / "multirun/other/sweep.json").write_text("[]")
    (tmp_path / "multirun/ranks/ledger.jsonl").open("a").write('{"job": 1, "state": "?"}\n')
    found = listing.changes()
    shown = states(found)
    assert {shown[f"outputs/{name}"] for name in configs} == {"unreadable"}
    assert all(run["note"].startswith("config.yaml: ") for run in found["runs"] if run["state"] == "unreadable")
    assert shown["outputs/odd"] == "interrupted" and "outputs/link" not in shown
    assert {note["id"]: note["note"] for note in found["notes"]}["outputs/bare"] == "no config.yaml in it"
    assert {sweep["id"]: bool(sweep["note"]) for sweep in found["sweeps"]} == {
        "multirun/ranks": True,
        "multirun/other": True,
    }
    json.dumps(found).encode()
    for run in listing.runs.values():
        json.dumps([details.run(run), series.part(run.folder, "") if run.id != "outputs/piped" else None]).encode()


def test_settings_are_those_of_the_whole_file_and_secrets_are_hidden(listing: Listing, tmp_path: Path) -> None:
    secret = "hf_" + "Ab1" * 12
    file = tmp_path / "outputs/nf4/config.yaml"
    file.write_text(file.read_text().replace("  env: []", f"  env:\n  - HF_TOKEN={secret}\n  - A=*b"))
    (tmp_path / "outputs/nf4/train.log").write_text(f"\x1b[31mred\x1b[0m\nstep 1\rstep 2\ntoken {secret}\nhalf")
    listing.changes()
    run = listing.runs["outputs/nf4"]
    assert run.config == redact(config_text.settings(file.read_text()))
    assert secret in file.read_text() and secret not in json.dumps(details.run(run))
    part = logs.part(tmp_path / "outputs/nf4/train.log")
    assert part["text"] == "red\nstep 2\ntoken …\n"
    with (tmp_path / "outputs/nf4/train.log").open("a") as log:
        log.write(" and the rest\n")
    assert logs.part(tmp_path / "outputs/nf4/train.log", part["cursor"])["text"] == "half and the rest\n"


def test_parts_of_a_file_are_the_whole_wherever_it_was_cut(tmp_path: Path) -> None:
    whole = (BEFORE / "sweep/r=1/metrics.jsonl").read_bytes()
    expected, file = line_file.parse(whole).values, tmp_path / "metrics.jsonl"
    for cut in range(0, len(whole), 7):
        file.write_bytes(whole[:cut])
        first = lines.read(file)
        with file.open("ab") as appended:
            appended.write(whole[cut:])
        second = lines.read(file, first.cursor)
        assert first.values + second.values == expected and not second.anew
        file.unlink()
    file.write_bytes(whole)
    cursor = lines.read(file).cursor
    line_file.rewrite(file, expected[:2])  # as a run that is resumed from an earlier step
    part = series.part(tmp_path, cursor)
    assert part["anew"] and part["steps"] == [1, 2]
    assert part["values"]["loss"] == [line["loss"] for line in expected[:2]]
    found = series.part(tmp_path, "")
    assert lines.ends(file, 1 << 14)[0] == expected[1] and found["steps"] == [1, 2]
    small = [lines.read(file, most=200)]
    while small[-1].more:
        small.append(lines.read(file, small[-1].cursor, most=200))
        assert len(small) < 10
    assert [value for part in small for value in part.values] == expected[:2]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "outputs/..", "outputs/../..", "outputs//nf4", "/etc", "outputs/nf4/../../..", "outputs/link", "outputs/link/r=1", "outputs/\0", "outputs/nf4/config.yaml", "elsewhere/nf4", "outputs/" + "x" * 5000]
)  # fmt: skip
def test_only_folders_below_the_roots(name: str, listing: Listing, tmp_path: Path) -> None:
    (tmp_path / "outputs/link").symlink_to(tmp_path / "multirun")
    assert folder_of(listing.roots, "outputs/nf4") == tmp_path / "outputs/nf4"
    with pytest.raises(Outside):
        folder_of(listing.roots, name)


def test_roots_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "c/b").mkdir(parents=True)
    assert [root.label for root in roots_of([str(tmp_path / "a/b"), str(tmp_path / "c/b")])] == ["b", "b~2"]
    for named in ([str(tmp_path / "none")], [str(tmp_path / "a"), str(tmp_path / "a/b")]):
        with pytest.raises(ConfigError):
            roots_of(named)


def test_a_folder_that_changes_while_it_is_read(listing: Listing, tmp_path: Path) -> None:
    """What was added within the tick of the clock in which a folder was read is found."""
    for index in range(20):
        (tmp_path / f"outputs/late{index}").mkdir()
        listing._read_at = float("-inf")
        listing.changes()
        shutil.copy(BEFORE / "sweep/r=2/config.yaml", tmp_path / f"outputs/late{index}")
    time.sleep(0.01)
    assert {f"outputs/late{index}" for index in range(20)} <= set(states(again(listing, 0)))
