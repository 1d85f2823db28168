"""What a Slurm job runs on its first machine: ``python -m hydraft.launch.slurm_job FOLDER``. No torch here.

It knows this machine, so ``auto`` gets its meaning here; whoever submitted the job tells a person how it went.
"""

import json
import sys
from pathlib import Path

from hydraft.config import rules
from hydraft.config.schema import load_config, saved
from hydraft.errors import EXIT_INTERRUPTED, EXIT_REFUSED, ConfigError, RunFailed, RunStopped
from hydraft.launch import run as launch
from hydraft.plan import plan
from hydraft.runs import run_folder
from hydraft.system import files, hardware


def main(arguments: list[str]) -> int:
    """Run what is saved in a folder; the exit code is that of train.py."""
    folder = Path(arguments[0])
    try:
        with run_folder.held(folder):
            return _run(folder, "--quiet" in arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)  # another job runs it: result.json will be that one's
        return EXIT_REFUSED


def _run(folder: Path, quiet: bool) -> int:
    try:
        machine = hardware.detect()
        config = plan.resolve(load_config(folder / "config.yaml"), machine)
        planned = json.loads((folder / "plan.json").read_text())
        config = plan.settle(config, machine, planned.get("labelled", config.data.max_length))
        rules.check(config, machine)
        files.write_text(folder / "config.yaml", saved(config))
        known = json.loads((folder / "environment.json").read_text())
        files.write_json(folder / "environment.json", {**known, "hardware": machine.to_dict()})
        launch.run(config, folder, quiet)
    except ConfigError as error:
        if not (folder / "result.json").exists():
            files.write_json(folder / "result.json", {"status": "failed", "error": _refused(error)})
        return EXIT_REFUSED
    except (RunFailed, RunStopped) as error:
        return error.code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _refused(error: ConfigError) -> dict[str, str | None]:
    return {"rank": None, "cause": f"ConfigError: {error}", "log": "slurm.log"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
