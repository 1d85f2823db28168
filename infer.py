"""Use what was trained: python infer.py run=outputs/… prompt="…". See python infer.py --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

try:
    from omegaconf import DictConfig

    from hydraft import cli, rundir
    from hydraft.checks import check_infer
    from hydraft.config import InferConfig
except ModuleNotFoundError as error:
    sys.exit(f"infer.py: {error.name} is not installed here: run make setup, then .venv/bin/python infer.py")


def infer(composed: DictConfig) -> None:
    """Answer one prompt with one run's model."""
    options = cli.typed(composed, InferConfig)
    check_infer(options)
    folder = rundir.find(options.run)
    from hydraft.generate import generate  # torch, only once there is something to run

    generate(folder, options)


if __name__ == "__main__":
    cli.exit_with(cli.run(infer, "infer"))
