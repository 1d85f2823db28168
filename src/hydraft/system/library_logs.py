"""Log messages of libraries when they are imported. No torch."""

import logging


def quiet_bitsandbytes() -> None:
    """Suppress a message of bitsandbytes on import about an optional CPU kernel that is missing: ranks have no log yet."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
