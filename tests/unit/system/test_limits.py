"""The limit of open files: raised where the hard limit allows it, and otherwise named."""

import os
import resource
import subprocess
import sys

from conftest import ROOT

CODE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
sys.argv[:] = [{script!r}, *sys.argv[3:]]
import runpy
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def run(script: str, soft: int, hard: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``script`` with these limits; it prints those that it leaves."""
    command = [sys.executable, "-c", CODE.format(script=str(ROOT / script)), str(soft), str(hard), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ), check=False)


def test_a_hard_limit_that_is_too_low_is_refused_on_one_line() -> None:
    for script in ("train.py", "infer.py"):
        done = run(script, 32, 32, "--help")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"{script}: ulimit -n: at most 32 open files are allowed here, and 48 are needed")


def test_a_low_soft_limit_is_raised() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = run("train.py", 32, hard, "--help")
    assert done.returncode == 0, done.stderr
    soft = int(done.stdout.split()[-2])
    assert soft == (4096 if hard == resource.RLIM_INFINITY else min(hard, 4096))
