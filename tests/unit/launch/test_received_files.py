"""Files that an agent sends appear in the run's folder whole or not at all."""

from pathlib import Path

import pytest
from small_disk import mounted

from hydraft.errors import RankFailed
from hydraft.launch.remote.received_files import ReceivedFiles


def test_a_file_replaces_what_was_there_once_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("old")
    cut_off = ReceivedFiles(tmp_path)
    cut_off.add("result.json", b"of a launcher", False)
    received = ReceivedFiles(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"], "nothing is left of the other launcher"
    for name, again in (("result.json", b"2"), ("adapter/adapter_model.safetensors", b"3")):
        received.add(name, b"1", False)
        assert [file.read_text() for file in tmp_path.rglob("result.json")] == ["old" if again == b"2" else "12"]
        received.add(name, again, True)
    received.add("rank-1.log", b"", True)
    files = {str(file.relative_to(tmp_path)): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {"result.json": b"12", "adapter/adapter_model.safetensors": b"13", "rank-1.log": b""}
    received.add("result.json", b"again", True)
    assert (tmp_path / "result.json").read_text() == "again"


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", "link/outside", ".", ""])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(RankFailed, match="an agent sent a file named"):
        ReceivedFiles(folder).add(name, b"x", True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_is_a_failure_that_keeps_what_was_there(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "64k") as disk:
        (disk / "result.json").write_text("old")
        received = ReceivedFiles(disk)
        with pytest.raises(
            RankFailed, match=r"result\.json: No space left on device; the file is still in the run's folder"
        ):
            received.add("result.json", bytes(1 << 20), True)
        assert [(file.name, file.read_text()) for file in disk.iterdir()] == [("result.json", "old")]
