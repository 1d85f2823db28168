"""State of processes that a bench or a test started."""

import psutil


def runs(process: psutil.Process) -> bool:
    """Whether a process is running; False for a zombie, and for one that ends during the check."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
