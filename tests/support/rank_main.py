"""The main function of a script that ``conftest.run_ranks`` runs on each rank."""

import json
import sys
from collections.abc import Callable
from typing import Any

import deepspeed
import torch.distributed as dist


def main(measure: Callable[[str], Any]) -> None:
    """Call ``measure`` with each argument of the command line, in a process group; rank 0 prints its results as JSON."""
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    results = [measure(argument) for argument in sys.argv[1:]]
    if dist.get_rank() == 0:
        print(json.dumps(results))
    dist.destroy_process_group()
