"""What a Slurm job runs on its first machine: ``python -m hydraft.launch.batch FOLDER``. No torch here.

It knows this machine, so ``auto`` gets its meaning here; whoever submitted the job tells a person how it went.
"""

import sys
from pathlib import Path

from hydraft import hardware, launch, plan, rundir
from hydraft.cli import EXIT_INTERRUPTED, EXIT_REFUSED, RunFailed
from hydraft.config import ConfigError, canonical, load_config


def main(arguments: list[str]) -> int:
    """Run what is saved in a folder; the exit code is that of train.py."""
    folder = Path(arguments[0])
    try:
        saved = load_config(folder / "config.yaml")
        config = plan.resolve(saved, hardware.detect())
        if config != saved:
            rundir.write_text(folder / "config.yaml", canonical(config))
        launch.run(config, folder, quiet="--quiet" in arguments)
    except ConfigError:
        return EXIT_REFUSED
    except RunFailed as error:
        return error.code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
