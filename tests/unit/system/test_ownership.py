"""Whose a folder is: its owner, its modes, the folders above it and the links on the way."""

import grp
import os
import pwd
from pathlib import Path

import pytest

from hydraft.system import ownership

NOBODY = 65534


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "above" / "run"
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    return folder


def test_what_this_user_made_is_own(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ownership.doubt(own, "file") is None  # below /tmp, which everybody may write, and has the sticky bit
    (tmp_path / "link").symlink_to(own)
    assert ownership.doubt(tmp_path / "link", "file") is None
    monkeypatch.chdir(own)
    assert ownership.doubt(Path(), "file") is None
    assert ownership.doubt(Path("../run"), "file") is None


@pytest.mark.parametrize("part", ["above", "above/run", "above/run/file"])
@pytest.mark.parametrize("mode", [0o777, 0o772, 0o1777])
def test_what_others_can_change_is_not(part: str, mode: int, own: Path, tmp_path: Path) -> None:
    (tmp_path / part).chmod(mode)
    safe = mode == 0o1777 and part == "above"  # in a sticky folder others can replace nothing
    found = ownership.doubt(own, "file")
    assert found is None if safe else f"{tmp_path / part} can be changed by others (chmod go-w" in str(found)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")
@pytest.mark.parametrize("part", ["above", "above/run", "above/run/file"])
def test_what_another_user_owns_is_not(part: str, own: Path, tmp_path: Path) -> None:
    os.chown(tmp_path / part, NOBODY, 0)
    assert ownership.doubt(own, "file") == f"{tmp_path / part} belongs to {pwd.getpwuid(NOBODY).pw_name}"
    assert ownership.of_another(own / "file") == pwd.getpwuid(NOBODY).pw_name


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")
def test_a_link_that_another_user_can_turn_is_not(own: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("above")
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    assert "link belongs to" in str(ownership.doubt(link / "run", "file"))
    os.chown(link, 0, 0, follow_symlinks=False)
    second = tmp_path / "second"
    second.symlink_to(link / "run")  # a link to a folder through another link
    assert ownership.doubt(second, "file") is None
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    assert "link belongs to" in str(ownership.doubt(second, "file"))


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to a group needs root")
def test_a_group_is_others_unless_it_is_the_users_own(own: Path) -> None:
    own.chmod(0o775)
    os.chown(own, 0, pwd.getpwuid(os.geteuid()).pw_gid)
    assert ownership.doubt(own, "file") is None  # umask 002 with a group for each user
    os.chown(own, 0, next(group.gr_gid for group in grp.getgrall() if group.gr_name in ("users", "nogroup", "adm")))
    assert "can be changed by others" in str(ownership.doubt(own, "file"))


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="too many symbolic links"):
        ownership.doubt(tmp_path / "a", "file")
