"""Ranks that are forks of the test's process: a group of gloo in a second, without a command."""

import json
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist


def run_forks(action: Callable[[int], Any], folder: Path, ranks: int = 2) -> list[Any]:
    """What ``action`` returns on each rank, as JSON; of one that raised, the exception's name and message."""
    children = [_start(rank, action, folder, ranks) for rank in range(ranks)]
    for child in children:
        os.waitpid(child, 0)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def _start(rank: int, action: Callable[[int], Any], folder: Path, ranks: int) -> int:
    child = os.fork()
    if child != 0:
        return child
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(str(folder / "store"), ranks),
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=60),
        )
        try:
            found = action(rank)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        (folder / f"{rank}.json").write_text(json.dumps(found))
        dist.barrier()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
