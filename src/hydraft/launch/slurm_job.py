"""What a Slurm job runs on its first machine: ``python -m hydraft.launch.slurm_job FOLDER``. No torch.

The job knows its hardware, so settings that are ``auto`` are resolved here. The command that submitted the job reports its result.
"""

import json
import sys
from pathlib import Path

from hydraft.config import rules
from hydraft.config.schema import load_config, saved
from hydraft.errors import (
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    ConfigError,
    Failure,
    RunFailed,
    RunStopped,
)
from hydraft.launch import run as launch
from hydraft.launch.slurm.job_script import FAILURE
from hydraft.plan import plan
from hydraft.runs import run_folder
from hydraft.system import files, hardware, streams
from hydraft.system.redaction import redact


def main(arguments: list[str]) -> int:
    """Run what is saved in a folder; the exit code is that of train.py."""
    streams.guard()
    streams.go_on()
    folder = Path(arguments[0])
    try:
        with run_folder.held(folder):
            return _run(folder, "--quiet" in arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)  # another job is running it and will write result.json
        return EXIT_REFUSED


def _run(folder: Path, quiet: bool) -> int:
    (folder / FAILURE).unlink(missing_ok=True)
    try:
        machine = hardware.detect()
        config = plan.resolve(load_config(folder / "config.yaml"), machine)
        planned = json.loads((folder / "plan.json").read_text())
        config = plan.settle(config, machine, planned.get("labelled", config.data.max_length))
        rules.check(config, machine)
        files.write_text(folder / "config.yaml", saved(config))
        run_folder.keep_private(folder)
        known = json.loads((folder / "environment.json").read_text())
        files.write_json(folder / "environment.json", {**known, "hardware": machine.to_dict()})
        launch.run(config, folder, quiet)
    except ConfigError as error:
        failure = Failure.from_exception(error)
        files.write_json(folder / FAILURE, redact(failure.to_dict()))
        if not (folder / "result.json").exists():
            known = {"rank": None, "cause": failure.cause, "log": "slurm.log"}
            files.write_json(folder / "result.json", redact({"status": "failed", "error": known}))
        return EXIT_REFUSED
    except RunFailed as error:
        if error.failure is not None:
            files.write_json(folder / FAILURE, redact(error.failure.to_dict()))
        return error.code
    except RunStopped as error:
        return error.code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
