"""Processes that a bench or a test started and ended."""

import psutil


def runs(process: psutil.Process) -> bool:
    """Whether a process still runs: False for a zombie, and where it ends between the two questions."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
