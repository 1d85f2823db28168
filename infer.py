"""Use what was trained: python infer.py run=outputs/… prompt="…". See python infer.py --help."""

import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

try:
    from omegaconf import DictConfig

    from hydraft import cli, hardware
    from hydraft.infer import checks
    from hydraft.infer.config import InferConfig
    from hydraft.infer.find import find
except ModuleNotFoundError as error:
    sys.exit(f"infer.py: {error.name} is not installed here: run make setup, then .venv/bin/python infer.py")


def infer(composed: DictConfig) -> None:
    """One use of a model: check it, find what it needs, and hand it to the mode's module."""
    options = cli.typed(composed, InferConfig)
    checks.check(options)
    machine = hardware.detect()
    checks.usable(options, machine)
    sources = find(options)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve the processes beside them
    os.environ.update(hardware.environment(machine))
    importlib.import_module(f"hydraft.infer.{options.mode.value}").run(sources, options)  # torch, only now


if __name__ == "__main__":
    cli.exit_with(cli.run(infer, "infer"))
