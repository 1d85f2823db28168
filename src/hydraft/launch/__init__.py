"""How ranks come to life. Knows a Config and a run's folder, nothing of training, and imports no torch at module level."""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from hydraft import hardware, ops, rundir
from hydraft.cli import RunFailed
from hydraft.config import Config, ConfigError
from hydraft.launch.local import RankFailed, Stopped, start

logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)

EXIT_TERMINATED = 143


def run(config: Config, folder: Path, quiet: bool = False) -> float | None:
    """Run ``config``, already saved in ``folder``, on its ranks, and write how it ended to ``result.json``.

    ``quiet`` keeps the bar and the table off the screen.

    Returns:
        The run's objective (held-out loss, else training loss), or None.

    Raises:
        RunFailed: a rank failed; the message names rank and cause.
        ConfigError: a rank found a value that a person has to change.
    """
    machine = hardware.detect()
    started = time.time()

    def end(status: str, **more: Any) -> None:
        result_file = folder / "result.json"
        known = json.loads(result_file.read_text()) if result_file.exists() else {}
        logger.info("%s %s", status, more)
        result = {**known, "status": status, "started": started, "ended": time.time(), **more}
        try:
            rundir.write_json(result_file, result)
        except OSError as error:  # a full disk must not hide why the run ended
            print(f"result.json could not be written: {error.strerror}", file=sys.stderr)

    def terminate(*_: object) -> None:
        raise Stopped

    log = logging.FileHandler(folder / "train.log", encoding="utf-8")
    log.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.getLogger("hydraft").addHandler(log)
    logger.info("command: %s", sys.argv)
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        for line in ops.prepare(ops.needed(config, machine), machine):
            print(line, file=sys.stderr)
            logger.info(line)
        os.environ.update(ops.environment(machine))
        # Beside another busy process, threads that spin while they wait slow a run on a CPU a hundredfold.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        start(folder, config.world_size, machine, quiet)
    except RankFailed as error:
        end("failed", error={"rank": error.rank, "cause": error.cause, "log": error.log.name})
        if error.cause.startswith("ConfigError: "):
            raise ConfigError(error.cause.removeprefix("ConfigError: ")) from None
        raise RunFailed(f"rank {error.rank} failed: {error.cause}\n  its log: {error.log}") from None
    except KeyboardInterrupt:
        end("interrupted")
        raise
    except Stopped:
        end("interrupted")
        raise RunFailed(f"stopped by SIGTERM; what was saved is in {folder}", EXIT_TERMINATED) from None
    except BaseException as error:
        end("failed", error={"rank": None, "cause": f"{type(error).__name__}: {error}"})
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        logging.getLogger("hydraft").removeHandler(log)
        log.close()
    end("completed")
    return rundir.objective(folder)
