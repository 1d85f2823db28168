"""Whether a folder is this user's own: nobody else can have written what is in it. No torch.

As in OpenSSH (misc.c, safe_path; Debian's secure_permissions for a user's private group): what is read from a file may only be trusted
with the user's rights if no other user could have put it there.
"""

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

LINKS = 40
"""Symbolic links that the kernel follows in one path."""


def doubt(folder: Path, file: str) -> str | None:
    """Why ``file`` in ``folder`` may be somebody else's; None if both are this user's own, also for root.

    Own means: both belong to the effective user, and neither of them, nor any folder or link on the way, can be changed by another.
    A folder with the sticky bit, such as /tmp, protects what is in it.
    """
    passed = list(_passed(folder / file))
    if others := _written_by_others(passed):
        return others
    for place, found in (list(_passed(folder))[-1], passed[-1]):
        if found.st_uid != os.geteuid():
            return f"{place} belongs to {_name(found.st_uid)}"
        if _open_to_others(found):
            return _can_be_changed(place)
    return None


def writable_by_others(path: Path) -> str | None:
    """Why another user than this one and root may have written what is at ``path``; None if none can have."""
    return _written_by_others(_passed(path))


def _written_by_others(passed: Iterable[tuple[Path, os.stat_result]]) -> str | None:
    for place, found in passed:
        if found.st_uid not in (os.geteuid(), 0):
            return f"{place} belongs to {_name(found.st_uid)}"
        in_sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if _open_to_others(found) and not in_sticky:
            return _can_be_changed(place)
    return None


def of_another(path: Path) -> str | None:
    """The name of the user who ``path`` belongs to, if that is neither this user nor root."""
    for _, found in _passed(path):
        if found.st_uid not in (os.geteuid(), 0):
            return _name(found.st_uid)
    return None


def _passed(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every folder and symbolic link that opening ``path`` passes, from / to the file itself."""
    root = Path("/")
    at, todo, links = root, list(reversed(path.absolute().parts[1:])), 0
    yield at, at.lstat()
    while todo:
        part = todo.pop()
        if part == "..":
            at = at.parent
            continue
        found = (at / part).lstat()
        yield at / part, found
        if not stat.S_ISLNK(found.st_mode):
            at = at / part
            continue
        links += 1
        if links > LINKS:
            raise OSError(f"{path}: too many symbolic links")
        target = (at / part).readlink()
        at = root if target.is_absolute() else at
        todo.extend(reversed([piece for piece in target.parts if piece != "/"]))


def _open_to_others(found: os.stat_result) -> bool:
    """Whether another user may write: everybody, or the members of a group that is not one user's own."""
    if stat.S_ISLNK(found.st_mode):
        return False  # a link has no permissions; the folder that it is in has
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_private(found.st_gid)


def _is_private(group: int) -> bool:
    """Whether a group has only this user, as where each user has a group of the same name."""
    if group == 0:
        return not _members(group) - {"root"}
    try:
        me = pwd.getpwuid(os.geteuid())
        return grp.getgrgid(group).gr_name == me.pw_name and not _members(group) - {me.pw_name}
    except KeyError:
        return False


def _members(group: int) -> set[str]:
    return set(grp.getgrgid(group).gr_mem)


def _can_be_changed(place: Path) -> str:
    return f"{place} can be changed by others (chmod go-w {shlex.quote(str(place))})"


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
