"""The Dockerfile: hadolint has nothing to say, and what it copies and runs is there."""

import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from conftest import ROOT
from hydraft import __main__
from installed import SOURCES

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = re.findall(r"^([A-Z]+) ((?:.*\\\n)*.*)$", TEXT, flags=re.MULTILINE)


def _of(name: str) -> list[str]:
    return [re.sub(r"\\\n\s*", "", rest) for instruction, rest in INSTRUCTIONS if instruction == name]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_it_copies_and_runs_is_there() -> None:
    assert _of("COPY") == ["--chown=hydraft . ."]
    ignored = (ROOT / ".dockerignore").read_text().split()
    for name in (*SOURCES, "requirements.txt"):
        assert (ROOT / name).exists()
        assert not [pattern for pattern in ignored if fnmatch.fnmatch(name, pattern) or name.startswith(f"{pattern}/")]
    for private in (".git", ".venv", "outputs", "multirun", "conf/local", "bench/results"):
        assert private in ignored
    (entry,) = _of("ENTRYPOINT")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(json.loads(entry)) == set(scripts)
    commands = re.findall(r"\bhydraft (\w+)", _of("RUN")[-1])
    assert commands == ["ops"] and "ops" in __main__.COMMANDS


def test_it_ends_as_a_user_that_owns_where_it_works() -> None:
    (user,) = _of("USER")
    made = " ".join(_of("RUN"))
    assert int(user) >= 1000 and f"--uid {user} " in made
    (owned,) = re.findall(r"install -d -o hydraft ([^&]+)", made)
    assert set(_of("WORKDIR")) <= set(owned.split())  # a WORKDIR that is not there yet would be root's
