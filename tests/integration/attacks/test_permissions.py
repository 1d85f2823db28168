"""What a run writes has the permissions that the umask allows, and a folder of someone else's is refused in one line."""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from conftest import config_of
from hydraft.config import cli
from hydraft.infer.batch.journal import Journal
from hydraft.plan.plan import make_plan
from hydraft.runs import claim, run_folder
from hydraft.system import files
from hydraft.system.hardware import Hardware

NOBODY = 65534


def test_what_is_written_has_the_permissions_that_the_umask_allows(tmp_path: Path) -> None:
    config = config_of("lora.r=4")
    for umask in (0o077, 0o027, 0o022, 0o002):
        before = os.umask(umask)
        try:
            folder = tmp_path / f"{umask:o}"
            run_folder.create(folder, config, make_plan(config, 8), Hardware())
            with files.staged_folder(folder / "adapter") as staging:
                (staging / "inner").mkdir()
                os.close(os.open(staging / "inner/weights", os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
            run_folder.describe(folder, config, make_plan(config, 8), Hardware())
            Journal(folder / "answers.jsonl", "key").close([], {})
        finally:
            os.umask(before)
        for entry in (folder, *folder.rglob("*")):
            assert entry.stat().st_mode & 0o777 == (0o777 if entry.is_dir() else 0o666) & ~umask, entry


def as_nobody(folder: Path) -> tuple[int, str]:
    """The code and the errors of a command that begins a run in ``folder`` as another user, whom a fork of this process becomes."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        code, printed = 99, io.StringIO()
        try:

            def check(composed: Any, asked: Path, typed: str) -> None:
                os.setgid(NOBODY)
                os.setuid(NOBODY)  # now, since Hydra's own files may be closed to this user
                claim.check(asked, typed)

            def begin(composed: Any) -> None:
                with run_folder.held(cli.output_folder()):
                    printed.write("began")

            sys.argv = ["train.py", f"hydra.run.dir={folder}"]
            with contextlib.redirect_stderr(printed):
                code = cli.run(begin, "train", check)
        finally:
            os.write(writer, printed.getvalue().encode())
            os._exit(code)
    os.close(writer)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(reader) as errors:
        return code, errors.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_someone_else_is_refused_in_one_line() -> None:
    with tempfile.TemporaryDirectory() as name:  # below pytest's own folder, everything is closed
        above = Path(name)
        above.chmod(0o755)
        for place, mode in {"readable": 0o755, "closed": 0o700}.items():
            (above / place).mkdir()
            (above / place).chmod(mode)
        for place in ("readable", "readable/a/b", "closed", "closed/a"):
            code, errors = as_nobody(above / place)
            assert code == 2 and errors.count("\n") == 1, errors
            assert errors.startswith("train.py: ") and "Permission denied" in errors and "hydra.run.dir=" in errors
        assert sorted(entry.name for entry in above.rglob("*")) == ["closed", "readable"]
