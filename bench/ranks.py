"""Starts the ranks of a bench on this machine's CPU. No torch."""

import json
import os
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any


def run(command: list[str], ranks: int, threads: int = 1, **environment: str) -> Any:
    """Run ``command`` once for each rank, with ``threads`` threads each: the JSON that rank 0 prints last.

    Raises:
        SystemExit: a rank failed; with the end of what it printed.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    quiet = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as name:
        running = []
        for rank in range(ranks):
            own = {**os.environ, **shared, **quiet, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with Path(name, f"{rank}.out").open("wb") as out, Path(name, f"{rank}.err").open("wb") as err:
                running.append(subprocess.Popen(command, env=own, stdout=out, stderr=err))
        codes = [one.wait() for one in running]
        if any(codes):
            failed = max(range(ranks), key=lambda rank: codes[rank] != 0)
            told = Path(name, f"{failed}.err").read_text(errors="replace")[-3000:]
            raise SystemExit(f"{told}\nrank {failed} of {ranks} ended with code {codes[failed]}: {' '.join(command)}")
        return json.loads(Path(name, "0.out").read_text().splitlines()[-1])
