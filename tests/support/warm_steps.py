"""``python -m bench.gpu``, whose steps are forks of this process, which has imported the libraries."""

import runpy
import sys
from pathlib import Path

from bench.gpu import steps
from warm_command import SUBPROCESS

steps.subprocess = SUBPROCESS  # type: ignore[assignment]
sys.argv[0] = str(Path(steps.__file__).with_name("__main__.py"))
runpy.run_path(sys.argv[0], run_name="__main__")
